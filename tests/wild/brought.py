"""Situations: masked envs that refuse an illegal action, and envs that end the process, before the doctor and a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from tests.wild.situation import Ended, Expected, Situation, distrl

HERE = "tests.wild.brought"
QUICK = (
    "--workers", "0", "--num-envs", "2", "--num-steps", "16", "--total-steps", "64", "--minibatches", "2",
    "--eval-episodes", "2", "--no-tensorboard", "--run-dir", "run",
)  # fmt: skip


class Masked(gymnasium.Env[Any, Any]):
    """Seven steps long; an action that its mask forbids ends the program, as in a card game."""

    action_space: spaces.Space[Any] = spaces.MultiDiscrete([2, 3], start=[5, -1])
    mask: Any = (np.array([1, 0], np.int8), np.array([0, 1, 1], np.int8))

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.length = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.length = 0
        return self.see(), self.say()

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action) and self.is_legal(action), action
        self.length += 1
        return self.see(), 1.0, self.length == 7, False, self.say()

    def see(self) -> Any:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def say(self) -> dict[str, Any]:
        return {"action_mask": self.mask}

    def is_legal(self, action: Any) -> bool:
        return bool(action[0] == 5 and action[1] >= 0)


class MaskedBits(Masked):
    """Its second bit may not be 1."""

    action_space: spaces.Space[Any] = spaces.MultiBinary(3)
    mask = (1, 0, 1)

    def is_legal(self, action: Any) -> bool:
        return bool(action[1] == 0)


class MaskedInObservation(Masked):
    """The mask is a part of the observation, as PettingZoo gives it."""

    action_space = spaces.Discrete(3)
    mask = np.array([1, 0, 1], np.int8)

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict(  # type: ignore[assignment]
            observation=self.observation_space, action_mask=spaces.Box(0, 1, (3,), np.int8)
        )

    def see(self) -> Any:
        return {"observation": super().see(), "action_mask": self.mask}

    def say(self) -> dict[str, Any]:
        return {}

    def is_legal(self, action: Any) -> bool:
        return bool(action != 1)


class MasksAsProperty(MaskedInObservation):
    """`action_masks` is a property, which is there after the first reset; the mask of its observation is no use."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.legal = [True, False, True]
        return super().reset(seed=seed)

    @property
    def action_masks(self) -> list[bool]:
        return self.legal


class NothingLegal(MaskedBits):
    """In the fourth step of an episode nothing is legal."""

    action_space = spaces.Discrete(3)

    def say(self) -> dict[str, Any]:
        return {"action_mask": np.full(3, self.length != 3)}

    def is_legal(self, action: Any) -> bool:
        return True


class OnlyTogether(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Steps its envs together, four steps an episode; there is no single one."""

    def __init__(self, num_envs: int = 1, **others: Any) -> None:
        self.metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}
        self.num_envs, self.lengths = num_envs, np.zeros(num_envs, np.int64)
        self.single_observation_space = spaces.Box(0, 9, (1,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = spaces.Box(0, 9, (num_envs, 1), np.float32)
        self.action_space = spaces.MultiDiscrete([2] * num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.lengths[:] = 0
        return self.lengths[:, None].astype(np.float32), {}

    def step(self, actions: Any) -> Any:
        began = self.lengths == 4
        self.lengths = np.where(began, 0, self.lengths + 1)
        ended = self.lengths == 4
        return self.lengths[:, None].astype(np.float32), 1.0 - began, ended, ended & False, {}


gymnasium.register("OnlyTogether-v0", vector_entry_point=f"{HERE}:OnlyTogether")
TOGETHER = ("--vectorization", "vector_entry_point", "--autoreset", "next_step")


class Exits(MaskedBits):
    """Ends the program in its third step."""

    def step(self, action: Any) -> Any:
        if self.length == 2:
            sys.exit(3)
        return super().step(action)


def doctor(env: str, *flags: str) -> Callable[[Path], Ended]:
    return lambda folder: distrl(folder, "doctor", "--env", f"{HERE}:{env}", *flags)


def train(env: str, *flags: str) -> Callable[[Path], Ended]:
    return lambda folder: distrl(folder, "train", "--env", f"{HERE}:{env}", *QUICK, *flags)


def is_exact(folder: Path, ended: Ended) -> None:
    assert json.loads((folder / "run" / "summary.json").read_text())["reproducibility"] == "exact"


def says_the_key(folder: Path, ended: Ended) -> None:
    assert "--mask-key action_mask masks the actions by it" in " ".join(ended.err.split())


def _situation(
    name: str, run: Callable[[Path], Ended], expected: Expected = "works", **rest: Any
) -> Situation:
    return Situation("environments", name, run, expected, **rest)


MASKED = [
    ("Masked",),
    ("MaskedBits",),
    ("MasksAsProperty",),
    ("MaskedInObservation", "--mask-key", "action_mask"),
]
SITUATIONS: list[Situation] = [
    *[_situation(f"{env} before the doctor", doctor(env, *flags)) for env, *flags in MASKED],
    _situation("a mask in the observation that nothing reads", train("MasksAsProperty"), check=says_the_key),
    *[_situation(f"{env} in a run, exact", train(env, *flags), check=is_exact) for env, *flags in MASKED],
    _situation(
        "a vector entry point alone, evaluated",
        train("OnlyTogether-v0", *TOGETHER),
        "refused",
        says=("--eval-episodes 0",),
    ),
    _situation(
        "a vector entry point alone, not evaluated",
        train("OnlyTogether-v0", *TOGETHER, "--eval-episodes", "0"),
    ),
    _situation("a step without a legal action before the doctor", doctor("NothingLegal"), "ended"),
    _situation("an env that exits before the doctor", doctor("Exits"), "ended"),
]
