"""EnvSpec: what it refuses, and what it then suggests (row 32 of the fault list)."""

import builtins
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import play
import pytest

from distrl.envs import EnvSpec
from distrl.errors import BadInput


@pytest.mark.parametrize(
    ("env_id", "suggestion"),
    [
        ("CartPole-v7", "CartPole-v1"),
        ("Cartpole-v1", "CartPole-v1"),
        ("CartPoll-v1", "CartPole-v1"),
        ("HalfCheeta-v5", "HalfCheetah-v5"),
        ("ALE/Breakot-v5", "ALE/Breakout-v5"),
        ("toy_envs:Toy/Nestd-v0", "Toy/Nested-v0"),
    ],
)
def test_an_unknown_env_suggests_the_nearest(env_id: str, suggestion: str) -> None:
    with pytest.raises(BadInput, match=f"did you mean '{suggestion}'"):
        EnvSpec(env_id).make_one()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"env_id": "no_such_module:Env-v0"}, "module 'no_such_module' cannot be imported"),
        ({"env_id": "CartPole-v1", "wrapper": "toy_envs"}, "wrapper must be module:function, got 'toy_envs'"),
        ({"env_id": "CartPole-v1", "wrapper": "toy_envs:Remember"}, "did you mean 'Remembers'"),
        (
            {"env_id": "CartPole-v1", "wrapper": "toy_envs:wrong_wrapper"},
            "must return a gymnasium.Env, got str",
        ),
        ({"env_id": "CartPole-v1", "kwargs": {"gravity": 3}}, "unexpected keyword argument 'gravity'"),
        ({"env_id": "CartPole-v1", "atari": True}, "CartPole-v1"),
        ({"env_id": "ALE/Breakout-v5", "kwargs": {"frameskip": 4}}, "needs frameskip 1"),
        ({"env_id": "toy_envs:Toy/Nested-v0", "frame_stack": 2}, "frame_stack must be 1"),
    ],
)
def test_what_cannot_be_made_says_why(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as refused:
        EnvSpec(**fields).make_one()
    assert said in str(refused.value)


def test_fields_out_of_range_are_refused_all_at_once() -> None:
    with pytest.raises(BadInput) as refused:
        EnvSpec("CartPole-v1", vectorization="asink", autoreset="same-step", nonfinite="x", frame_stack=0)
    said = refused.value.problems
    assert len(said) == 4
    assert "did you mean 'async'" in said[0]
    assert "did you mean 'same_step'" in said[1]


def test_a_missing_extra_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found, imported = importlib.util.find_spec, builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        return None if name in ("mujoco", "ale_py") else found(name, *rest)

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name == "mujoco":
            raise ModuleNotFoundError("No module named 'mujoco'")
        return imported(name, *rest, **named)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(BadInput, match=r"needs ale_py: pip install 'distrl\[atari\]'"):
        EnvSpec("ALE/Pong-v5").make_one()
    for module in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(BadInput, match=r"needs mujoco: pip install 'distrl\[mujoco\]'"):
        EnvSpec("Hopper-v5").make_one()


def test_spaces_that_cannot_be_learned_from_are_refused() -> None:
    with pytest.raises(
        BadInput, match="the action space must be Discrete, MultiDiscrete, MultiBinary or Box"
    ):
        play.make(EnvSpec("toy_envs:Toy/Acts-v0", {"space": "dict"}))


def test_a_spec_survives_json() -> None:
    spec = EnvSpec("CartPole-v1", {"sutton_barto_reward": True}, max_episode_steps=9)
    assert EnvSpec(**json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.make_one().spec.max_episode_steps == 9  # type: ignore[union-attr]


def test_mujoco_leaves_no_log_file_in_the_current_folder(tmp_path: Path) -> None:
    script = "from distrl.envs import EnvSpec; EnvSpec('HalfCheetah-v5').make_one()"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
