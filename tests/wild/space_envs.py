"""Envs of every kind of space: the policy has to say what it sees, or to act inside of its space."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

NUM_CLASSES = 4


def shown(space: spaces.Space[Any], number: int, at: str) -> Any:
    """An observation of `space` that says `number`: in one entry by its value ("value"), or by where it is ("place")."""
    if isinstance(space, spaces.Dict):
        return {name: shown(inner, number, at) for name, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(shown(inner, number, at) for inner in space.spaces)
    if isinstance(space, spaces.Discrete):
        return space.dtype.type(int(space.start) + number * (int(space.n) // NUM_CLASSES))
    if isinstance(space, spaces.MultiDiscrete):
        return (space.start + np.minimum(number, space.nvec - 1)).astype(space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return np.array([number >> bit & 1 for bit in range(space.n)], np.int8)
    low = np.where(np.isfinite(space.low), space.low, 0)
    array = np.array(low, space.dtype)
    high = np.where(np.isfinite(space.high), space.high, np.array(1, space.dtype))
    if at == "value":
        return (low + ((high - low).astype(np.float64) * number / (NUM_CLASSES - 1))).astype(space.dtype)
    flat = array.reshape(-1)
    step = max(flat.size // NUM_CLASSES, 1)
    flat[number * step : number * step + max(step // 2, 1)] = high.reshape(-1)[0]
    return array


def observed(name: str) -> tuple[spaces.Space[Any], str]:
    """The space of that name, and how a number is shown in it."""
    return {
        "board uint8": (spaces.Box(0, 1, (8, 8), np.uint8), "place"),
        "board bool": (spaces.Box(0, 1, (8, 8), np.bool_), "place"),
        "board float32": (spaces.Box(0, 1, (8, 8), np.float32), "place"),
        "board float64": (spaces.Box(0, 1, (8, 8), np.float64), "place"),
        "board int64": (spaces.Box(0, 1, (8, 8), np.int64), "place"),
        "planes uint8": (spaces.Box(0, 1, (6, 6, 5), np.uint8), "place"),
        "codes uint8": (CODES, "codes"),
        "picture": (spaces.Box(0, 255, (40, 40, 3), np.uint8), "place"),
        "picture first": (spaces.Box(0, 255, (3, 40, 40), np.uint8), "place"),
        "picture float": (spaces.Box(0, 1, (40, 40, 3), np.float32), "place"),
        "picture many": (spaces.Box(0, 255, (48, 48, 40), np.uint8), "place"),
        "picture mask": (spaces.Box(0, 1, (40, 40), np.uint8), "place"),
        "small picture": (spaces.Box(0, 255, (20, 24, 3), np.uint8), "place"),
        "frames": (spaces.Box(0, 255, (3, 36, 36, 1), np.uint8), "place"),
        "scalar": (spaces.Box(-1, 1, (), np.float32), "value"),
        "scalar float64": (spaces.Box(-3, 3, (), np.float64), "value"),
        "int64": (spaces.Box(-5, 5, (3,), np.int64), "value"),
        "int8": (spaces.Box(-5, 5, (3,), np.int8), "value"),
        "uint16": (spaces.Box(0, 6, (3,), np.uint16), "value"),
        "uint32": (spaces.Box(0, 6, (3,), np.uint32), "value"),
        "uint64": (spaces.Box(0, 6, (3,), np.uint64), "value"),
        "float16": (spaces.Box(-1, 1, (3,), np.float16), "value"),
        "unbounded": (spaces.Box(-np.inf, np.inf, (4,), np.float32), "place"),
        "huge": (spaces.Box(-3.4e38, np.inf, (4,), np.float32), "ones"),
        "constant": (spaces.Dict(a=spaces.Box(2, 2, (2,)), b=spaces.Discrete(4)), "value"),
        "discrete": (spaces.Discrete(4, start=-2), "value"),
        "discrete int32": (spaces.Discrete(8, dtype=np.int32), "value"),
        "many": (spaces.Discrete(300_000, start=7), "value"),
        "multi discrete": (spaces.MultiDiscrete([4, 2], start=[3, -1]), "value"),
        "multi discrete 2d": (spaces.MultiDiscrete([[4, 2], [2, 4]]), "value"),
        "multi discrete many": (spaces.MultiDiscrete([10_000, 4]), "value"),
        "multi binary": (spaces.MultiBinary(2), "value"),
        "nested": (
            spaces.Dict(
                z=spaces.Tuple((spaces.Discrete(4), spaces.Box(0, 10, (5, 5, 3), np.uint8))),
                a=spaces.Dict(m=spaces.MultiBinary(2), s=spaces.Box(-1, 1, ())),
            ),
            "value",
        ),
        "picture and numbers": (
            spaces.Dict(camera=spaces.Box(0, 255, (40, 40, 1), np.uint8), speed=spaces.Box(-1, 1, (2,))),
            "place",
        ),
    }[name]


CODES = spaces.Box(0, 255, (7, 7, 3), np.uint8)


class Says(gym.Env[Any, Any]):
    """Reward 1 for the action that the observation says, 0 for the others; ten steps."""

    def __init__(self, space: str = "board uint8") -> None:
        self.observation_space, self.at = observed(space)
        self.action_space = spaces.Discrete(NUM_CLASSES)
        self.number = self.steps = 0

    def _show(self) -> Any:
        self.number = int(self.np_random.integers(NUM_CLASSES))
        if self.at == "codes":  # as MiniGrid: what, colour and state of each cell, of which one matters
            view = np.tile(np.array([1, 0, 0], np.uint8), (7, 7, 1))
            view[3, 3 + self.number // 2] = (5, 2 * (self.number % 2), 0)
            return view
        if self.at == "ones":
            return np.eye(NUM_CLASSES, dtype=np.float32)[self.number]
        return shown(self.observation_space, self.number, self.at)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._show(), {}

    def step(self, action: Any) -> Any:
        reward = float(action == self.number)
        self.steps += 1
        return self._show(), reward, self.steps >= 10, False, {}


gym.register("Wild/Says-v0", Says)


def acted(name: str) -> spaces.Space[Any]:
    """The action space of that name."""
    return {
        "5..10": spaces.Box(5, 10, (2,), np.float32),
        "wide": spaces.Box(-1000, 1000, (1,), np.float32),
        "unit": spaces.Box(-1, 1, (2,), np.float32),
        "float64": spaces.Box(-3, 7, (2,), np.float64),
        "float16": spaces.Box(-3, 7, (2,), np.float16),
        "int64": spaces.Box(0, 20, (2,), np.int64),
        "uint8": spaces.Box(0, 255, (2,), np.uint8),
        "each its own": spaces.Box(np.array([0, -5, 2]), np.array([100, -4, 2]), dtype=np.float64),
        "half infinite": spaces.Box(np.array([0.0, -np.inf]), np.array([np.inf, 3.0]), dtype=np.float64),
        "scalar": spaces.Box(2, 4, (), np.float32),
        "matrix": spaces.Box(2, 4, (2, 3), np.float32),
        "discrete int32": spaces.Discrete(3, start=-5, dtype=np.int32),
        "multi discrete": spaces.MultiDiscrete([3, 2], dtype=np.int32, start=[4, -1]),
        "multi discrete 2d": spaces.MultiDiscrete([[3, 2], [2, 4]]),
        "multi binary": spaces.MultiBinary((2, 2)),
        "dict": spaces.Dict(a=spaces.Discrete(2)),
        "tuple": spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (1,)))),
        "empty": spaces.Box(0, 1, (0,), np.float32),
    }[name]


class Aims(gym.Env[Any, Any]):
    """Reward 1 where the action is the target, less by how far it is off in the width of its space; four steps."""

    def __init__(self, space: str = "5..10", seen: str = "") -> None:
        self.action_space = acted(space)
        self.observation_space = unreadable(seen) if seen else spaces.Box(-1, 1, (2,), np.float32)
        self.steps = 0

    def _off(self, action: Any) -> float:
        space = self.action_space
        if not isinstance(space, spaces.Box):
            return float(
                np.mean(np.asarray(action) != np.asarray(space.start if hasattr(space, "start") else 0))
            )
        low, high = (np.asarray(bound, np.float64) for bound in (space.low, space.high))
        low, high = np.where(np.isfinite(low), low, high - 2), np.where(np.isfinite(high), high, low + 2)
        width = np.where(high > low, high - low, 1.0)
        return float(np.mean(np.abs((np.asarray(action, np.float64) - (low + 0.75 * (high - low))) / width)))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), (action, getattr(action, "dtype", None), self.action_space)
        self.steps += 1
        return np.zeros(2, np.float32), 1.0 - 2.0 * self._off(action), self.steps >= 4, False, {}


def unreadable(name: str) -> spaces.Space[Any]:
    """Observation spaces that nobody can learn from."""
    return {
        "text": spaces.Text(4),
        "sequence": spaces.Dict(a=spaces.Box(0, 1, (2,)), b=spaces.Sequence(spaces.Discrete(3))),
        "graph": spaces.Graph(spaces.Box(0, 1, (2,)), None),
        "empty box": spaces.Box(0, 1, (0,), np.float32),
        "empty dict": spaces.Dict({}),
        "empty tuple": spaces.Tuple(()),
        "empty part": spaces.Dict(a=spaces.Box(0, 1, (2,)), b=spaces.Box(0, 1, (2, 0))),
    }[name]


class Masked(gym.Env[Any, Any]):
    """Raises for an action that its mask forbids; gives the mask in `form`. Six steps, reward 1 for the last legal entry."""

    def __init__(self, form: str = "array", space: str = "discrete") -> None:
        self.action_space = {
            "discrete": spaces.Discrete(5, start=2),
            "multi discrete": spaces.MultiDiscrete([3, 2, 4]),
            "multi binary": spaces.MultiBinary(3),
            "box": spaces.Box(-1, 1, (2,), np.float32),
        }[space]
        self.sizes = {"discrete": [5], "multi discrete": [3, 2, 4], "multi binary": [2, 2, 2], "box": [1]}[
            space
        ]
        self.form, self.space, self.steps = form, space, 0
        seen: spaces.Space[Any] = spaces.Box(-10, 10, (3,), np.float32)
        if form == "key":
            seen = spaces.Dict(see=seen, legal=spaces.MultiBinary(sum(self.sizes)))
        self.observation_space = seen
        self.parts: list[np.ndarray] = []
        if form == "method":
            self.action_masks = lambda: np.concatenate(self.parts)

    def _draw(self) -> None:
        self.parts = []
        for size in self.sizes:
            part = self.np_random.random(size) < 0.4
            part[self.np_random.integers(size)] = True
            self.parts.append(part)

    def _given(self) -> Any:
        """The mask as the form has it; None where it gives none."""
        parts, form, over = self.parts, self.form, self.steps >= 6
        flat = np.concatenate(parts)
        if over:
            return np.zeros(len(flat), np.int8)  # nothing is legal any more, and nobody asks
        if form == "missing" and self.steps % 2:
            self.parts = [np.ones_like(part) for part in parts]
            return None
        if form in ("late", "reset") and (self.steps == 0) == (form == "late"):
            self.parts = [np.ones_like(part) for part in parts]
            return None
        if form == "no legal" and self.steps == 3:
            return np.zeros(len(flat), np.int8)
        if form == "long" and self.steps == 2:
            return np.ones(len(flat) + 1, np.int8)
        if form == "words":
            return ["yes"] * len(flat)
        if form == "twos":
            return flat.astype(np.int8) * 2
        if form == "half":  # of a MultiBinary: only whether a bit may be 1
            self.parts = [np.array([True, part[1]]) for part in parts]
            return np.array([part[1] for part in parts], np.int8)
        return {
            "list": flat.tolist(),
            "int list": flat.astype(int).tolist(),
            "tuple": tuple(flat.tolist()),
            "parts": tuple(part.astype(np.int8) for part in parts),
            "part lists": [part.tolist() for part in parts],
            "float": flat.astype(np.float32),
            "bool": flat,
            "pairs": np.array(parts, np.int8) if self.space == "multi binary" else flat,
        }.get(form, flat.astype(np.int8))

    def _show(self) -> tuple[Any, dict[str, Any]]:
        self._draw()
        seen = self.np_random.normal(size=3).clip(-9, 9).astype(np.float32)
        if self.form == "key":
            flat = np.concatenate(self.parts) if self.steps < 6 else np.zeros(sum(self.sizes))
            return {"see": seen, "legal": flat.astype(np.int8)}, {}
        given = self._given() if self.form != "method" else None
        return seen, {} if given is None else {"action_mask": given}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._show()

    def step(self, action: Any) -> Any:
        if self.space != "box":
            chosen = np.atleast_1d(np.asarray(action)) - (2 if self.space == "discrete" else 0)
            for part, entry in zip(self.parts, chosen, strict=True):
                assert part[entry], f"action {action} is illegal under {self.parts}"
        self.steps += 1
        observation, info = self._show()
        return observation, 1.0, self.steps >= 6, False, info


gym.register("Wild/Aims-v0", Aims)
gym.register("Wild/Masked-v0", Masked)
