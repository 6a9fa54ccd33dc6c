"""What an env says and gives: its info stays its own, its arrays are copied, its numbers are read in every form."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from distrl.envs import EnvGroup, EnvSpec, closing
from distrl.envs.infos import GAME, SAID, numbers_of, told
from distrl.envs.observations import Ranges, Taker, flag_of, reward_of
from distrl.envs.trial import state_problem, try_entry_point, try_env
from distrl.errors import BadInput, RunFailed
from tests.wild import toy_envs


def spec(name: str, **fields: Any) -> EnvSpec:
    return EnvSpec(f"tests.wild.toy_envs:{name}", **fields)


def test_the_numbers_of_an_info_are_read_in_every_form_and_all_else_is_left_out() -> None:
    info = {
        "int": 3, "bool": True, "np": np.float32(0.5), "np_bool": np.bool_(False), "zero_d": np.array(2), "one": np.ones(1),
        "tensor": torch.tensor(1.5, requires_grad=True), 2**80: 2**80, "nested": {"a": {1: 2}}, "text": "3", "none": None,
        "array": np.ones(2), "list": [1], "beyond": 10**400, "complex": 1j, "date": np.datetime64("2024-01-01"),
        "timedelta": np.timedelta64(3, "s"), "action_mask": 1, GAME: {"life_lost": True},
    }  # fmt: skip
    expected = {
        "int": 3.0, "bool": 1.0, "np": 0.5, "np_bool": 0.0, "zero_d": 2.0, "one": 1.0, "tensor": 1.5,
        str(2**80): float(2**80), "nested/a/1": 2.0,
    }  # fmt: skip
    assert numbers_of(info) == expected


def test_an_info_reaches_the_vector_env_under_one_key_and_only_where_it_says_something() -> None:
    assert told({"final_obs": 1, "x": 2}, over=False) == {}
    assert told(None, over=False) == {}
    (key,) = told({"final_obs": 1, "x": 2}, over=True)
    assert key == SAID
    assert told({"final_obs": 1, "x": 2}, over=True)[SAID].numbers == {"final_obs": 1.0, "x": 2.0}


@pytest.mark.parametrize("mode", ["disabled", "next_step", "same_step"])
def test_an_env_s_own_array_gives_the_same_transitions_in_every_autoreset_mode(mode: str) -> None:
    group = EnvGroup(spec("OwnArray", autoreset=mode), 0, 2, 0, 1)
    group.start()
    finals = []
    for _ in range(13):
        result = group.step(np.zeros(2, np.int64))
        finals += [result.final_observation[slot, 0] for slot in np.flatnonzero(result.terminated)]
    assert finals == [6.0] * 4
    group.close()


def test_what_an_env_does_to_its_action_changes_no_replay() -> None:
    groups = [EnvGroup(spec("ScalesAction"), 0, 2, 0, 1) for _ in range(2)]
    groups[0].start()
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 2, 2)).astype(np.float32)
    for action in actions[:3]:
        groups[0].step(action.copy())
    groups[1].restore(groups[0].snapshot())
    assert groups[1].reproducibility == "exact"
    for action in actions[3:]:
        one, two = (group.step(action.copy()) for group in groups)
        assert np.array_equal(one.reward, two.reward)
        assert np.array_equal(groups[0].observation, groups[1].observation)
    for group in groups:
        group.close()


@pytest.mark.parametrize("num_envs", [1, 3])
def test_options_are_none_in_every_reset(num_envs: int) -> None:
    group = EnvGroup(spec("Options"), 0, num_envs, 0, 1)
    group.start()
    rewards = [group.step(np.zeros(num_envs, np.int64)).reward for _ in range(14)]
    assert np.unique(rewards).tolist() == [1.0]
    group.close()


@pytest.mark.parametrize(
    ("given", "number"),
    [(1.5, 1.5), (2, 2.0), (np.array([3.0]), 3.0), (torch.tensor(0.5), 0.5), (True, 1.0), (2**70, 2.0**70), (np.float32(1), 1.0)],
)  # fmt: skip
def test_a_reward_is_one_number_in_any_form(given: Any, number: float) -> None:
    assert reward_of(given, "env 0") == number


@pytest.mark.parametrize("given", [None, "1", [1, 2], np.ones(2), 1j, {}])
def test_what_is_no_number_is_no_reward(given: Any) -> None:
    with pytest.raises(RunFailed, match="env 0: the reward must be one number, got"):
        reward_of(given, "env 0")


def test_flags_are_bools_in_any_form() -> None:
    assert [flag_of(flag, "terminated", "env 0") for flag in (np.bool_(True), 1, 0, np.array([1]))] == [
        True,
        True,
        False,
        True,
    ]
    with pytest.raises(RunFailed, match="env 0: terminated must be a bool, got NoneType"):
        flag_of(None, "terminated", "env 0")


def test_an_observation_is_copied_and_keeps_the_env_s_own_dtype() -> None:
    space = spaces.Dict(
        a=spaces.Box(-1, 1, (2,), np.float32), b=spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2)))
    )
    given = {"b": (np.int64(1), [1, 0]), "a": np.zeros(2)}
    taken = Taker(space, "env 0")(given)
    given["a"][:] = 5
    assert list(taken) == ["a", "b"]
    assert taken["a"].dtype == np.float64 and taken["a"].tolist() == [0, 0]
    with pytest.raises(RunFailed, match=r"env 0: observation.* is outside its space: .*got keys \['a'\]"):
        Taker(space, "env 0")({"a": np.zeros(2)})


@pytest.mark.parametrize(
    ("space", "right", "wrong"),
    [
        (spaces.Discrete(3, start=-1), [-1, 1], [0, 2]),
        (spaces.MultiDiscrete([2, 3]), [[1, 2], [0, 0]], [[1, 2], [0, 3]]),
        (spaces.MultiBinary(2), [[1, 0], [0, 1]], [[1, 0], [0, 2]]),
        (spaces.Box(0, 1, (2,), np.float32), [[0, 1], [1 + 5e-7, np.nan]], [[0, 1], [1.1, 0]]),
        (spaces.Box(np.array([0, -np.inf]), np.array([np.inf, 5]), dtype=np.float64), [[9, -9], [0, 5]], [[0, 0], [-1, 0]]),
        (spaces.Box(0, 10, (2,), np.uint8), [[0, 10], [1, 1]], [[0, 10], [11, 0]]),
    ],
)  # fmt: skip
def test_ranges_are_of_the_space(space: Any, right: Any, wrong: Any) -> None:
    ranges = Ranges(space)
    assert ranges.outside(np.array(right, space.dtype)) is None
    found = ranges.outside(np.array(wrong, space.dtype))
    assert found is not None and found.slot == 1
    assert found.is_box == isinstance(space, spaces.Box)


def test_bytes_of_the_whole_range_cost_nothing() -> None:
    assert Ranges(spaces.Box(0, 255, (84, 84, 4), np.uint8))._leaves == []


@pytest.mark.parametrize(
    ("name", "reproducibility", "own"),
    [("Task", "exact", True), ("GlobalGenerator", "unknown", True), ("SeedsGlobal", "unknown", True),
     ("DataclassSnapshot", "exact", False), ("UnrelatedSnapshot", "exact", False), ("ForgetfulSnapshot", "exact", False)],
)  # fmt: skip
def test_claims_are_tried(name: str, reproducibility: str, own: bool) -> None:
    env = spec(name).make_one()
    verdict = try_env(spec(name), env, 0.0, seed=1)
    assert (verdict.reproducibility, verdict.own_snapshots) == (reproducibility, own), verdict.notes
    assert bool(verdict.notes) == (reproducibility != "exact" or not own)
    env.close()


def test_an_env_that_is_slow_to_make_is_not_tried_and_says_so() -> None:
    env = spec("Task").make_one()
    verdict = try_env(spec("Task"), env, 60.0, seed=1)
    assert verdict.reproducibility == "unknown" and "slow" in verdict.notes[0]


def test_a_state_that_no_checkpoint_can_hold_is_named() -> None:
    assert state_problem({"a": [1, np.ones(2), "x", None, np.float32(1)]}) is None
    assert "state['a'][0] holds a tests.wild.toy_envs.State" in str(state_problem({"a": [toy_envs.State(1)]}))
    assert "array of object" in str(state_problem({"a": np.array([None])}))


@pytest.mark.parametrize("in_main", [True, False])
def test_a_close_that_hangs_or_raises_is_a_line_and_the_others_are_closed(
    in_main: bool, tmp_path: Path
) -> None:
    made = [
        gymnasium.vector.SyncVectorEnv(
            [lambda how=how: toy_envs.Locks(str(tmp_path), how) for how in ("hangs", "works")]
        )
    ]  # type: ignore[misc]
    before = signal.getsignal(signal.SIGALRM)
    began = time.monotonic()
    close = lambda: closing.close_vector(made[0], "env group 0", 0.3)  # noqa: E731
    with pytest.warns(RuntimeWarning, match=r"env group 0: close\(\) did not return within 0.3 s"):
        if in_main:
            close()
        else:
            thread = threading.Thread(target=close)
            thread.start()
            thread.join()
    assert time.monotonic() - began < 20
    assert not list(tmp_path.glob("*.lock"))
    assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_envs_are_closed_where_another_one_of_the_group_fails(vectorization: str, tmp_path: Path) -> None:
    kwargs = {"folder": str(tmp_path)}
    group = EnvGroup(spec("Locks", kwargs=kwargs, vectorization=vectorization), 0, 3, 0, 1)
    group.start()
    assert len(list(tmp_path.glob("*.lock"))) >= 3
    with pytest.raises(RunFailed):
        group.watched(group.calls.vector.call, "no_such_method")
    group.close()
    assert not list(tmp_path.glob("*.lock"))


def test_the_third_env_that_cannot_be_made_leaves_none_of_the_first_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = toy_envs.Locks.__init__
    made = []

    def limited(self: Any, **kwargs: Any) -> None:
        if len(made) == 2:
            raise OSError("no more licences")
        made.append(self)
        begin(self, **kwargs)

    monkeypatch.setattr(toy_envs.Locks, "__init__", limited)
    with pytest.raises(BadInput, match="OSError: no more licences"):
        EnvGroup(spec("Locks", kwargs={"folder": str(tmp_path)}), 0, 3, 0, 1)
    assert not list(tmp_path.glob("*.lock"))


class Line(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """A vector entry point: counts its steps. `how` its snapshot goes wrong."""

    def __init__(self, num_envs: int = 1, how: str = "right", **others: Any) -> None:
        self.num_envs, self.how = num_envs, how
        self.metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}
        self.single_observation_space = spaces.Box(0, 99, (1,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = spaces.Box(0, 99, (num_envs, 1), np.float32)
        self.action_space = spaces.MultiDiscrete([2] * num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.t = np.zeros((self.num_envs, 1), np.float32)
        return self.t.copy(), {"forced": np.ones(self.num_envs), "life_lost": np.ones(self.num_envs)}

    def step(self, actions: Any) -> Any:
        self.t += 1
        flags = np.zeros(self.num_envs, np.bool_)
        return (
            self.t.copy(),
            np.ones(self.num_envs),
            flags,
            flags,
            {"forced": ~flags, "life_lost": ~flags, "x": self.t[:, 0]},
        )

    def snapshot(self) -> Any:
        return {"right": {"t": self.t.copy()}, "forgets": {}, "object": {"t": toy_envs.State(1)}}[self.how]

    def restore(self, state: Any) -> None:
        self.t = np.array(state.get("t", self.t))


gymnasium.register("Line-v0", vector_entry_point=Line)


@pytest.mark.parametrize("how", ["right", "forgets", "object"])
def test_the_snapshot_of_a_vector_entry_point_is_tried_too(how: str) -> None:
    made = EnvSpec("Line-v0", {"how": how}, vectorization="vector_entry_point", autoreset="next_step")
    verdict = try_entry_point(made, seed=1)
    assert verdict.own_snapshots == (how == "right"), verdict.notes
    group = EnvGroup(dataclasses.replace(made, own_snapshots=verdict.own_snapshots), 0, 2, 0, 1)
    assert group.reproducibility == ("exact" if how == "right" else "episode")
    group.close()


def test_a_vector_entry_point_s_infos_are_its_own() -> None:
    group = EnvGroup(
        EnvSpec("Line-v0", vectorization="vector_entry_point", autoreset="next_step"), 0, 2, 0, 1
    )
    group.start()
    result = group.step(np.zeros(2, np.int64))
    assert result.valid.all() and not result.terminated.any() and (result.reward == 1).all()
    group.close()
