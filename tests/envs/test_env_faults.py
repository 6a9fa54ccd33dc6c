"""Environments that raise, hang, lie about their spaces or give NaN: rows 26, 27, 29, 30 of the fault list."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import play
import pytest

from distrl.envs import EnvGroup, EnvSpec, repro
from distrl.errors import BadInput, RunFailed
from distrl.maths.random import derive_seed

HERE = Path(__file__).parent
VECTORIZATIONS = ("sync", "async")


def still(group: EnvGroup) -> Any:
    return np.zeros(group.num_envs, np.int64)


def toy(name: str, kwargs: dict[str, Any] | None = None, **fields: Any) -> EnvSpec:
    return EnvSpec(f"toy_envs:Toy/{name}-v0", kwargs or {}, **fields)


# -- 26: raises


@pytest.mark.parametrize("vectorization", VECTORIZATIONS)
@pytest.mark.parametrize("at", [0, 3])
def test_an_env_that_raises_once_is_made_anew_and_put_back_to_the_bit(
    vectorization: str, at: int, tmp_path: Path
) -> None:
    digests = []
    for times in (0, 1):
        kwargs = {"at": at, "times": times, "tally": str(tmp_path / f"tally{times}")}
        group = play.make(toy("Raises", kwargs, vectorization=vectorization))
        group.start()
        digests.append(play.play(group, play.actions(group, 14)))
        assert len(group.warnings) == times
        assert group.reproducibility == "exact"
        if times:
            assert "ArithmeticError: the simulator broke" in group.warnings[0]
            assert "was recreated" in group.warnings[0]
        group.close()
    assert digests[0] == digests[1]


@pytest.mark.parametrize("budget", [1, 100])
@pytest.mark.parametrize("restored", [False, True])
def test_an_env_with_a_snapshot_is_put_back_from_it_after_a_raise(
    restored: bool, budget: int, tmp_path: Path
) -> None:
    digests = []
    for times in (0, 1):
        kwargs = {"at": 4, "times": times, "tally": str(tmp_path / f"tally{times}")}
        # A budget of one step is not enough for the episode; it is for what came after the snapshot.
        group = play.make(toy("OwnRaises", kwargs, max_replay_steps=budget), num_envs=1)
        group.start()
        before, after = play.actions(group, 2), play.actions(group, 9, seed=1)
        play.play(group, before)
        state = group.snapshot()
        assert state["envs"][0]["strategy"] == "snapshot"
        if restored:
            group.close()
            group = play.make(group.spec, num_envs=1)
            group.restore(state)
        digests.append(play.play(group, after))
        assert len(group.warnings) == times
        group.close()
    assert digests[0] == digests[1]


@pytest.mark.parametrize("vectorization", VECTORIZATIONS)
def test_an_env_that_raises_again_and_again_fails_with_a_one_command_repro(
    vectorization: str, tmp_path: Path
) -> None:
    spec = toy(
        "Raises",
        {"at": 3, "length": 6},
        vectorization=vectorization,
        max_env_restarts=2,
        repro_dir=str(tmp_path / "repro"),
    )
    group = play.make(spec)
    group.start()
    group.step(still(group))
    group.step(still(group))
    with pytest.raises(RunFailed) as failure:
        group.step(still(group))
    message = str(failure.value)
    group.close()
    assert "\n" not in message
    assert "env 3 (toy_envs:Toy/Raises-v0) raised ArithmeticError: the simulator broke at step 3" in message
    assert "2 restarts" in message
    path = Path(message.rpartition(" ")[2])
    content = json.loads(path.read_text())
    assert content["actions"] == [0, 0, 0]
    assert content["spec"]["kwargs"] == {"at": 3, "length": 6}
    assert f"reset seed {content['seed']}" in message
    assert 'raise ArithmeticError(f"the simulator broke' in content["traceback"]

    command = [sys.executable, "-m", "distrl.envs.repro", str(path)]
    again = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1] == "ArithmeticError: the simulator broke at step 3"

    content["spec"]["kwargs"]["times"] = 0  # the user fixed the bug
    path.write_text(json.dumps(content))
    fixed = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=60, check=False)
    assert fixed.returncode == 0, fixed.stderr
    assert "went through: 3 steps" in fixed.stderr


def test_the_cap_on_restarts_is_the_group_s_and_not_each_env_s(tmp_path: Path) -> None:
    for vectorization in VECTORIZATIONS:
        group = play.make(
            toy(
                "Raises",
                {"times": 3, "tally": str(tmp_path / vectorization)},
                vectorization=vectorization,
                max_env_restarts=1,
            )
        )
        group.start()
        with pytest.raises(RunFailed, match="1 restarts of its group are used up"):
            for _ in range(12):
                group.step(still(group))
        group.close()


def test_a_repro_file_of_another_user_or_without_the_whole_episode_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repro.write(toy("Raises", repro_dir=str(tmp_path)), 0, 0, 1, [np.int64(0)], False, "trace")
    assert path is not None
    with pytest.raises(BadInput, match="only the last 1 actions"):
        repro.replay(path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "getuid", lambda: 12345)
        with pytest.raises(BadInput, match="belongs to another user"):
            repro.replay(path)


def test_an_env_subprocess_that_is_killed_fails_the_group_in_bounded_time() -> None:
    group = play.make(EnvSpec("CartPole-v1", vectorization="async"))
    group.start()
    os.kill(group.calls.pids()[1], signal.SIGKILL)
    group._vector.processes[1].join(timeout=10)  # the signal takes its time
    with pytest.raises(RunFailed, match="a subprocess of an environment died"):
        for _ in range(3):
            group.step(still(group))
    group.close()


def test_env_subprocesses_die_with_a_killed_parent() -> None:
    script = (
        "import play, time\n"
        "from distrl.envs import EnvSpec\n"
        "group = play.make(EnvSpec('CartPole-v1', vectorization='async'), num_envs=3)\n"
        "group.start()\n"
        "print(*group.calls.pids(), flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=HERE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3 and all(_alive(pid) for pid in pids)
        parent.kill()
    deadline = time.monotonic() + 5
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# -- 27: hangs


@pytest.mark.parametrize(
    ("vectorization", "holds_gil", "expected"),
    [
        (
            "sync",
            False,
            "env group 0 (toy_envs:Toy/Hangs-v0, envs 3..4): a step or reset has not returned for 0.5 s",
        ),
        (
            "sync",
            True,
            "Timeout (0:00:00.875000)!",
        ),  # no Python line runs any more, faulthandler's timer does
        (
            "async",
            False,
            "env group 0 (toy_envs:Toy/Hangs-v0, envs 3..4): a step or reset has not returned for 0.5 s",
        ),
    ],
)
def test_a_hang_dumps_the_stacks_and_ends_the_process(
    vectorization: str, holds_gil: bool, expected: str
) -> None:
    script = (
        "import play\n"
        "from distrl.envs import EnvSpec\n"
        f"spec = EnvSpec('toy_envs:Toy/Hangs-v0', dict(holds_gil={holds_gil}), vectorization='{vectorization}',\n"
        "               step_timeout_sec=0.5)\n"
        "group = play.make(spec)\n"
        "group.start()\n"
        "play.play(group, play.actions(group, 5))\n"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=HERE, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert time.monotonic() - began < 15
    assert expected in done.stderr
    assert "toy_envs.py" in done.stderr and "in step" in done.stderr, "the stack of the env itself"


def test_slow_work_between_steps_is_no_hang() -> None:
    script = (
        "import play, time\n"
        "from distrl.envs import EnvSpec\n"
        "group = play.make(EnvSpec('CartPole-v1', step_timeout_sec=0.4))\n"
        "group.start()\n"
        "for _ in range(2):\n"
        "    play.play(group, play.actions(group, 5))\n"
        "    time.sleep(1.2)\n"
        "print('fine')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=HERE, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


# -- 29: outside of its space


@pytest.mark.parametrize("vectorization", VECTORIZATIONS)
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("shape", "observation is outside its space: expected shape (2,) float32, got shape (3,) float32"),
        ("dtype", "observation is outside its space: expected shape (2,) float32, got shape (2,) complex64"),
        ("bounds", "observation is outside its space: expected values in [0, 100], got [-7, -7]"),
        ("keys", "observation is outside its space: expected a dict with keys ['a'], got keys ['b']"),
    ],
)
def test_a_first_observation_outside_its_space_names_env_key_expected_and_got(
    how: str, said: str, vectorization: str
) -> None:
    group = play.make(toy("Lies", {"how": how}, vectorization=vectorization))
    with pytest.raises(RunFailed) as failure:
        group.start()
    assert said in str(failure.value)
    assert "env 3 (toy_envs:Toy/Lies-v0)" in str(failure.value) or vectorization == "async"
    group.close()


@pytest.mark.parametrize("vectorization", VECTORIZATIONS)
def test_a_later_observation_of_another_shape_is_caught_too(vectorization: str) -> None:
    group = play.make(toy("Lies", {"how": "shape", "at": 3}, vectorization=vectorization))
    group.start()
    group.step(still(group))
    group.step(still(group))
    with pytest.raises(RunFailed, match=r"expected shape \(2,\) float32, got shape \(3,\) float32"):
        group.step(still(group))
    group.close()


def test_a_nested_observation_outside_its_space_names_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    import toy_envs

    def observe(self: Any) -> Any:
        return {
            "camera": np.zeros((4, 4, 1), np.uint8),
            "body": (9, np.zeros(3)),
            "flags": np.zeros(2, np.int8),
        }

    monkeypatch.setattr(toy_envs.Nested, "observe", observe)
    group = play.make(toy("Nested"))
    with pytest.raises(
        RunFailed, match=r"observation\['body'\]\[0\] .* expected values in \[0, 8\], got \[9, 9\]"
    ):
        group.start()
    group.close()


# -- 30: NaN and Inf


@pytest.mark.parametrize("mode", ["disabled", "next_step", "same_step"])
@pytest.mark.parametrize(
    ("what", "value"), [("observation", np.nan), ("reward", np.inf), ("observation", 1e300)]
)
def test_nan_and_inf_fail_by_default_and_name_env_key_and_seed(what: str, value: float, mode: str) -> None:
    group = play.make(toy("Spoils", {"what": what, "value": value, "first": 1}, autoreset=mode))
    group.start()
    for _ in range(7 + (mode == "next_step")):
        group.step(still(group))
    with pytest.raises(RunFailed) as failure:
        group.step(still(group))
    key = r"observation['a']" if what == "observation" else "reward"
    assert f"env 3 (toy_envs:Toy/Spoils-v0): {key} is NaN or Inf at step 3" in str(failure.value)
    assert f"reset seed {derive_seed(play.SEED, 'episode', 3, 1)}" in str(failure.value), "its second episode"
    assert "--nonfinite drop" in str(failure.value)
    group.close()


@pytest.mark.parametrize("vectorization", VECTORIZATIONS)
@pytest.mark.parametrize("mode", ["disabled", "next_step", "same_step"])
@pytest.mark.parametrize("what", ["observation", "reward"])
@pytest.mark.parametrize("at", [3, 5])  # in the middle, and in the step that ends the episode
def test_dropped_episodes_are_cut_before_the_bad_number_counted_and_left_out_of_statistics(
    what: str, at: int, mode: str, vectorization: str
) -> None:
    spec = toy(
        "Spoils",
        {"what": what, "at": at, "first": 1},
        autoreset=mode,
        nonfinite="drop",
        vectorization=vectorization,
    )
    group = play.make(spec)
    group.start()
    episodes, dropped_rows = [], 0
    for _ in range(24):
        before = group.observation["a"]
        result = group.step(still(group))
        episodes += result.episodes
        assert np.isfinite(group.observation["a"]).all()
        assert np.isfinite(result.final_observation["a"]).all()
        assert np.isfinite(result.reward).all()
        dropped = ~result.valid & result.truncated
        if dropped.any():
            dropped_rows += int(dropped.sum())
            assert not (result.terminated & dropped).any()
            assert np.array_equal(result.final_observation["a"][dropped], before[dropped])
            assert group.episode_start[dropped].all()
            assert (group.observation["a"][dropped] == 0).all(), "a fresh episode began"
    assert dropped_rows == group.dropped == 2
    assert any("dropped" in warning for warning in group.warnings)
    assert len(episodes) >= 6
    assert {(episode.return_, episode.length) for episode in episodes} == {(15.0, 5)}
    group.close()


@pytest.mark.parametrize("mode", ["disabled", "same_step"])
def test_a_nan_in_the_first_observation_of_an_episode_is_dropped_too(mode: str) -> None:
    group = play.make(toy("Spoils", {"at": 0, "first": 1}, nonfinite="drop", autoreset=mode))
    group.start()
    lengths = [episode.length for _ in range(10) for episode in group.step(still(group)).episodes]
    assert lengths == [5, 5, 5, 5]
    assert group.dropped == 2
    group.close()


def test_an_env_that_only_gives_nan_fails_instead_of_resetting_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import toy_envs

    monkeypatch.setattr(toy_envs.Spoils, "observe", lambda self: {"a": np.array([np.nan])})
    group = play.make(toy("Spoils", nonfinite="drop"))
    with pytest.raises(RunFailed, match="first observations of 10 episodes in a row were NaN or Inf"):
        group.start()
    group.close()
