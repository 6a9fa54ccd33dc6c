"""config.json: it comes back as it was, decides what a resume may change, and is trusted where it is one's own."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from distrl.build import learner_device
from distrl.config import TrainConfig
from distrl.errors import BadInput
from distrl.fields import flat_fields
from distrl.preflight import check_machine
from distrl.resolve import (
    CHANGEABLE,
    from_flat,
    merge_for_resume,
    read_config,
    resolve,
    resolve_resume,
    to_flat,
    write_config,
)
from distrl.trust import check_trust, modules_named

# --- config.json

UNUSUAL = {
    "env": "my_envs:space/Thing-v3",
    "env_kwargs": {"range": [0.7, float("inf")], "deep": {"x": None, "text": "inf"}},
    "hidden_sizes": "8",
    "clip": 0.3,
    "groups": 3,
    "atari": "none",
    "wandb": True,
}


def test_a_configuration_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    for flags in ({}, UNUSUAL):
        resolved = resolve(flags)
        assert from_flat(json.loads(json.dumps(to_flat(resolved.config), allow_nan=False))) == resolved.config
        path = tmp_path / "config.json"
        write_config(path, resolved)
        assert read_config(path).config == resolved.config
        assert read_config(path).sources == resolved.sources
        stored = json.loads(path.read_text())
        assert stored["schema"] == 1
        assert set(flat_fields()) < set(stored)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda text: "[]", "must have schema 1"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "must have schema 1, got 2"),
        (lambda text: text.replace('"gamma"', '"gama"'), "did you mean --gamma"),
        (lambda text: text.replace('"gamma": 0.99', '"gamma": 9'), "--gamma: must be less"),
    ],
)
def test_a_damaged_config_json_is_refused_and_names_the_file(
    tmp_path: Path, damage: object, said: str
) -> None:
    path = tmp_path / "config.json"
    write_config(path, resolve({}))
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    with pytest.raises(BadInput) as caught:
        read_config(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


# --- resume (row 22)


def test_what_may_change_on_resume_changes_and_is_listed() -> None:
    saved = resolve({"algo": "a2c", "env_kwargs": {"a": 1}}).config
    config, changes = merge_for_resume(
        saved,
        {"total-steps": "2e6", "learning_rate": 1e-4, "workers": 0, "algo": "a2c", "env_kwargs": {"a": 1}},
    )
    assert (config.total_steps, config.recipe.learning_rate, config.workers) == (2_000_000, 1e-4, 0)
    assert changes == ["total_steps: 500000 -> 2000000", "learning_rate: 0.001 -> 0.0001", "workers: 2 -> 0"]
    same = {"total_steps", "workers", "recipe"}
    assert config.model_dump(exclude=same) == saved.model_dump(exclude=same)
    assert dataclasses.replace(config.recipe, learning_rate=saved.recipe.learning_rate) == saved.recipe


def test_a_run_with_both_parts_on_a_gpu_goes_on_where_there_is_none() -> None:
    saved = resolve({"device": "cuda", "rollout_device": "cuda", "learner": "captured", "workers": 0}).config
    config, _ = merge_for_resume(saved, {"device": "cpu", "rollout_device": "cpu", "workers": 2})
    check_machine(config)
    assert learner_device(config) == config.rollout_device == "cpu"


CHANGED = {
    "env": "Acrobot-v1", "env_kwargs": {"a": 2}, "wrapper": "a:b", "algo": "a2c", "seed": 2, "groups": 1,
    "vectorization": "async", "autoreset": "next_step", "atari": False, "frame_stack": 2,
    "max_episode_steps": 9, "normalize_observation": True, "normalize_reward": True, "network": "mlp",
    "hidden_sizes": "8", "activation": "relu", "lstm_size": 8, "policy": "a:b", "init_from": "x",
    "learner_threads": 7, "run_dir": "x", "nonfinite": "drop", "num_envs": 16, "num_steps": 64,
    "gamma": 0.9, "lam": 0.9, "clip": 0.1, "epochs": 2, "minibatches": 2, "clip_value": 0.2,
    "target_kl": 0.1, "value_coef": 1, "entropy_coef": 0.1, "adam_eps": 1e-8, "max_grad_norm": 1,
    "normalize_advantage": False, "credit": "return", "baseline": False, "collects": "episodes",
    "clip_schedule": "linear", "overlap": 1, "env_backend": "gymnasium", "rollout": "stepwise",
    "inference": "torch", "learner": "torch", "precision": "bf16", "mask_key": "m", "rescale_action": False,
    "observation_scale": "off",
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_what_the_curve_hangs_on_is_refused_on_resume_and_both_values_shown(name: str) -> None:
    saved = resolve({}).config
    with pytest.raises(BadInput) as caught:
        merge_for_resume(saved, {name: CHANGED[name]})
    (message,) = caught.value.problems
    assert message.startswith("--" + name.replace("_", "-"))
    assert "the run has" in message and "given" in message and "start a new run" in message


def test_every_field_either_may_change_on_resume_or_is_tested_not_to() -> None:
    assert set(flat_fields()) == set(CHANGEABLE) | set(CHANGED) | {"policy_kwargs"}


def test_resume_reads_config_json_and_marks_what_the_flags_changed(tmp_path: Path) -> None:
    write_config(tmp_path / "config.json", resolve({"num_envs": 4}))
    resolved = resolve_resume(tmp_path, {"workers": "1"})
    assert resolved.config.recipe.num_envs == 4
    assert resolved.sources["workers"] == "flag"
    assert resolved.sources["num_envs"] == "flag"
    assert resolved.sources["seed"] == "default"
    assert resolved.changes == ("workers: 2 -> 1",)
    with pytest.raises(BadInput, match="is .* a run directory"):
        resolve_resume(tmp_path / "missing", {})


def test_resume_tells_all_problems_at_once(tmp_path: Path) -> None:
    write_config(tmp_path / "config.json", resolve({}))
    with pytest.raises(BadInput) as caught:
        resolve_resume(
            tmp_path, {"env": "Acrobot-v1", "total_steps": "0", "wrokers": "1"}, problems=["--x: first"]
        )
    assert len(caught.value.problems) == 4


# --- trust


def test_modules_are_named_by_env_wrapper_and_policy() -> None:
    config = resolve({"env": "mine:space/Env-v0", "wrapper": "wraps.deep:fn", "policy": "nets:make"}).config
    assert modules_named(config) == {"env": "mine", "wrapper": "wraps.deep", "policy": "nets"}
    assert modules_named(resolve({"env": "ALE/Breakout-v5"}).config) == {}
    ours = resolve({"env": "distrl.show.gridworld:Grid-v0", "wrapper": "distrlike:fn"}).config
    assert modules_named(ours) == {"wrapper": "distrlike"}


@pytest.mark.parametrize(
    "name",
    ["distrl.py:fn", "distrl.x/../../evil.py:fn", "distrl:/../../evil.py:fn", "python.evil:fn", "python:fn"],
)
def test_a_name_that_only_begins_as_ours_does_is_foreign(name: str) -> None:
    assert "wrapper" in modules_named(TrainConfig.model_construct(**dict(TrainConfig()) | {"wrapper": name}))


def test_a_file_of_code_comes_back_and_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "config.json", resolve({"wrapper": "mine.py:wrap", "policy": "nets/mlp.py:make"}))
    monkeypatch.chdir("/")
    config = read_config(tmp_path / "config.json").config
    assert (config.wrapper, config.policy) == (f"{tmp_path}/mine.py:wrap", f"{tmp_path}/nets/mlp.py:make")
    assert modules_named(config) == {"wrapper": f"{tmp_path}/mine.py", "policy": f"{tmp_path}/nets/mlp.py"}


def foreign(tmp_path: Path, **flags: object) -> Path:
    """A config.json that belongs to another user."""
    if os.getuid() != 0:
        pytest.skip("only root can give a file to another user")
    path = tmp_path / "config.json"
    write_config(path, resolve(flags))
    os.chown(path, 65534, -1)
    return path


def test_anothers_config_cannot_name_code_to_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = foreign(tmp_path, wrapper="evil:fn")
    with pytest.raises(BadInput) as caught:
        resolve_resume(tmp_path, {})
    assert all(part in str(caught.value) for part in (str(path), "65534", "evil (wrapper)", "--trust-run"))
    assert capsys.readouterr().err == ""

    assert resolve_resume(tmp_path, {}, trust_run=True).config.wrapper == "evil:fn"
    assert str(path) in capsys.readouterr().err

    assert (
        resolve_resume(tmp_path, {"wrapper": "evil:fn"}).config.wrapper == "evil:fn"
    )  # typed by this person


def test_anothers_config_that_names_no_code_is_fine(tmp_path: Path) -> None:
    foreign(tmp_path)
    assert resolve_resume(tmp_path, {}).config == TrainConfig()


def test_ones_own_config_is_trusted_and_its_name_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    resolved = resolve({"policy": "nets:make"})
    write_config(path, resolved)
    check_trust(path, resolved.config, trust_run=False)
    assert str(path) in capsys.readouterr().err
