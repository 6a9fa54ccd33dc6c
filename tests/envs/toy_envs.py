"""Small environments, each with one trait that a group must cope with; ids `toy_envs:Toy/<Name>-v0`."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Counts(gym.Env[Any, Any]):
    """Observes the step number; rewards it; ends after `length` steps, by truncation where `truncates`.

    Subclasses change one thing each.
    """

    def __init__(self, length: int = 5, truncates: bool = False) -> None:
        self.observation_space: Any = spaces.Box(0, 1000, (2,), np.float64)
        self.action_space: Any = spaces.Discrete(2)
        self.length, self.truncates, self.t = length, truncates, 0
        self.resets = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        self.resets += 1
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        over = self.t >= self.length
        info = {"progress": self.t / self.length, "nested": {"t": self.t}, "name": "toy"}
        return self.observe(), float(self.t), over and not self.truncates, over and self.truncates, info

    def observe(self) -> Any:
        return np.array([self.t, 1.0], np.float64)


class Nested(Counts):
    """Dict and Tuple observations, a MultiDiscrete action, an action mask, episodes of random length."""

    def __init__(self, ends: int = 8) -> None:
        super().__init__(ends)
        self.observation_space = spaces.Dict(
            camera=spaces.Box(0, 255, (4, 4, 1), np.uint8),
            body=spaces.Tuple((spaces.Discrete(9), spaces.Box(-10, 10, (3,), np.float64))),
            flags=spaces.MultiBinary(2),
        )
        self.action_space = spaces.MultiDiscrete([3, 2], start=np.array([1, -1]))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        _, info = super().reset(seed=seed)
        self.length = int(self.np_random.integers(2, 9))
        return self.observe(), {**info, "action_mask": self.mask()}

    def step(self, action: Any) -> Any:
        assert action in self.action_space, action
        observation, reward, terminated, truncated, info = super().step(action)
        return (
            observation,
            reward + int(action[0]),
            terminated,
            truncated,
            {**info, "action_mask": self.mask()},
        )

    def mask(self) -> Any:
        return np.array([1, self.t % 2, 1, 1, 1], np.int8)

    def observe(self) -> Any:
        noise = self.np_random.normal(size=3).clip(-5, 5)
        return {
            "camera": np.full((4, 4, 1), self.t, np.uint8),
            "body": (min(self.t, 8), noise),
            "flags": np.array([self.t % 2, 1], np.int8),
        }


class Masks(Counts):
    """Gives its first action mask in the info of a step (`where` is "step") or of its second reset ("reset")."""

    def __init__(self, where: str = "step") -> None:
        super().__init__(3)
        self.where = where

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, info = super().reset(seed=seed)
        return observation, {
            "action_mask": np.ones(2, np.int8)
        } if self.where == "reset" and self.resets > 1 else info

    def step(self, action: Any) -> Any:
        *result, info = super().step(action)
        return *result, {**info, "action_mask": np.ones(2, np.int8)} if self.where == "step" else info


class Own(Counts):
    """Snapshots of its own; its state is not a function of seed and actions, so a replay would fail."""

    built = 0

    def __init__(self, length: int = 7) -> None:
        super().__init__(length)
        Own.built += 1
        self.luck = float(Own.built)

    def observe(self) -> Any:
        return np.array([self.t, self.luck + self.np_random.random()], np.float64)

    def snapshot(self) -> dict[str, Any]:
        return {"t": self.t, "luck": self.luck}

    def restore(self, state: dict[str, Any]) -> None:
        self.t, self.luck = state["t"], state["luck"]


class Drifts(Counts):
    """Observes how many of it were ever built: a replay sees something else."""

    built = 0

    def __init__(self, length: int = 20) -> None:
        super().__init__(length)
        Drifts.built += 1
        self.number = Drifts.built

    def observe(self) -> Any:
        return np.array([self.t, self.number], np.float64)


class Raises(Counts):
    """Raises in step `at` (0: in reset) of its episodes: `times` times in all, counted in files `tally-...`."""

    def __init__(self, at: int = 3, times: int = 1000, tally: str = "", length: int = 6) -> None:
        super().__init__(length)
        self.at, self.times, self.tally = at, times, tally

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        result = super().reset(seed=seed, options=options)
        self.maybe_raise()
        return result

    def step(self, action: Any) -> Any:
        result = super().step(action)
        self.maybe_raise()
        return result

    def maybe_raise(self) -> None:
        if self.t != self.at:
            return
        if self.may_raise():
            raise ArithmeticError(f"the simulator broke at step {self.t}")

    def may_raise(self) -> bool:
        if not self.tally:
            return self.times > 0
        for number in range(self.times):
            try:  # one file a time: envs in other processes count in the same
                Path(f"{self.tally}-{number}").touch(exist_ok=False)
                return True
            except FileExistsError:
                continue
        return False

    def observe(self) -> Any:
        return np.array([self.t, self.np_random.random()], np.float64)


class OwnRaises(Raises):
    """The same with snapshots of its own."""

    def snapshot(self) -> dict[str, Any]:
        return {"t": self.t}

    def restore(self, state: dict[str, Any]) -> None:
        self.t = state["t"]


class Hangs(Counts):
    """Never returns from step `at`; with the GIL held where `holds_gil`, as a loop in C would."""

    def __init__(self, at: int = 2, holds_gil: bool = False) -> None:
        super().__init__(50)
        self.at, self.holds_gil = at, holds_gil

    def step(self, action: Any) -> Any:
        if self.t + 1 == self.at:
            ctypes.PyDLL(None).sleep(600) if self.holds_gil else time.sleep(600)
        return super().step(action)


class Spoils(Counts):
    """`what` ("observation", "reward") is `value` at step `at` of episodes `first`, `first` + 1, ..."""

    def __init__(self, what: str = "observation", value: float = np.nan, at: int = 3, first: int = 1) -> None:
        super().__init__(5)
        self.observation_space = spaces.Dict(a=spaces.Box(-np.inf, np.inf, (1,), np.float64))
        self.what, self.value, self.at, self.first = what, value, at, first

    def spoilt(self, what: str) -> bool:
        return self.what == what and self.t == self.at and self.resets == self.first + 1

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, self.value if self.spoilt("reward") else reward, *rest

    def observe(self) -> Any:
        return {"a": np.array([self.value if self.spoilt("observation") else self.t], np.float64)}


class Lies(Counts):
    """From step `at` on, what it observes is not in its space: `how` is "shape", "dtype", "bounds" or "keys"."""

    def __init__(self, how: str = "shape", at: int = 0) -> None:
        super().__init__(9)
        self.how, self.at = how, at
        self.observation_space = spaces.Box(0, 100, (2,), np.float32)
        if how == "keys":
            self.observation_space = spaces.Dict(a=spaces.Discrete(3))

    def observe(self) -> Any:
        if self.t < self.at:
            return np.zeros(2, np.float32)
        return {
            "shape": np.zeros(3, np.float32),
            "dtype": np.zeros(2, np.complex64),
            "bounds": np.full(2, -7, np.float32),
            "keys": {"b": 0},
        }[self.how]


class Acts(Counts):
    """Takes any action space; observes the last action."""

    def __init__(self, space: str = "box") -> None:
        super().__init__(9)
        self.action_space = {
            "box": spaces.Box(
                np.full((2, 3), -1, np.float64), np.full((2, 3), 2, np.float64), dtype=np.float64
            ),
            "discrete": spaces.Discrete(3, start=-1),
            "multi_binary": spaces.MultiBinary((2, 2)),
            "dict": spaces.Dict(a=spaces.Discrete(2)),
        }[space]
        self.observation_space = spaces.Box(-9, 9, self.action_space.shape or (1,), np.float64)
        self.last = np.zeros(self.observation_space.shape)

    def step(self, action: Any) -> Any:
        assert action in self.action_space, (action, getattr(action, "dtype", None))
        self.last = np.asarray(action, np.float64).reshape(self.observation_space.shape)
        return super().step(action)

    def observe(self) -> Any:
        return self.last.copy()


class Remembers(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper without snapshots whose memory dies with the episode: replay goes through it."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.total = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.total = 0.0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = self.env.step(action)
        self.total += float(np.sum(observation))
        return observation, self.total, terminated, truncated, info


def wrong_wrapper(env: gym.Env[Any, Any]) -> str:
    return "not an env"


for _class in (Counts, Nested, Masks, Own, Drifts, Raises, OwnRaises, Hangs, Spoils, Lies, Acts):
    gym.register(f"Toy/{_class.__name__}-v0", _class)
