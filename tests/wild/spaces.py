"""Situations: observations, actions and masks of every kind of space."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from tests.wild import space_envs  # noqa: F401 — registers them
from tests.wild.situation import Ended, Situation, distrl

SEES, ACTS = "tests.wild.space_envs:Wild/Says-v0", "tests.wild.space_envs:Wild/Aims-v0"
MASKED = "tests.wild.space_envs:Wild/Masked-v0"
SHORT = (
    "--workers",
    "0",
    "--no-tensorboard",
    "--gamma",
    "0.5",
    "--epochs",
    "6",
    "--learning-rate",
    "3e-3",
    "--num-envs",
    "8",
)


def train(folder: Path, env: str, *more: str, steps: int = 4096, **kwargs: Any) -> Ended:
    arguments = [f"--env-kwargs.{name}={value}" for name, value in kwargs.items()]
    return distrl(
        folder, "train", "--env", env, *arguments, *SHORT, "--num-steps", "64", "--total-steps", str(steps),
        "--run-dir", "run", *more,
    )  # fmt: skip


def reaches(least: float) -> Any:
    def check(folder: Path, ended: Ended) -> None:
        found = re.search(r"evaluation (-?[\d.]+)", ended.err)
        assert found and float(found[1]) >= least, ended.err[-500:]

    return check


def sees(space: str, *more: str, slow: bool = False, **named: Any) -> Situation:
    """A policy that learned to say what it sees is right nearly always; chance is 2.5 of 10."""
    return Situation(
        "environments",
        f"an observation of {space}" + "".join(f" {one}" for one in more),
        lambda folder: train(folder, SEES, *more, space=space, **named),
        check=reaches(7.0),
        slow=slow,
    )


def acts(space: str, least: float = 2.4, *more: str, slow: bool = False, **named: Any) -> Situation:
    """Every action is inside the space, or the env raises; what is loaded plays what evaluation played. The middle of the
    space gives 2, the target 4."""

    def check(folder: Path, ended: Ended) -> None:
        import distrl as package

        reaches(least)(folder, ended)
        policy = package.load(folder / "run")
        rows = np.zeros((3, 2), np.float32)
        for greedy in (True, False):
            action, _ = policy.predict(rows[0], deterministic=greedy)
            assert policy.action_space.contains(action), action
            actions, _ = policy.predict(rows, deterministic=greedy)
            assert all(policy.action_space.contains(one) for one in actions)
        import torch

        given, _ = policy.act(torch.from_numpy(rows), policy.initial_state(3), None, None)
        np.testing.assert_allclose(given.numpy(), policy.predict(rows)[0], rtol=1e-3, atol=1e-3)

    return Situation(
        "environments",
        f"actions of {space}" + "".join(f" {one}" for one in more),
        lambda folder: train(folder, ACTS, *more, space=space, **named),
        check=check,
        slow=slow,
    )


def _says(ended: Ended, word: str) -> None:
    assert word in ended.err, ended.err[-1500:]


def refused(name: str, *says: str, env: str = ACTS, more: tuple[str, ...] = (), **kwargs: Any) -> Situation:
    return Situation(
        "environments", name, lambda folder: train(folder, env, *more, **kwargs), "refused", says=says
    )


def masks(form: str, space: str = "discrete", *more: str, slow: bool = False) -> Situation:
    """Six legal actions in every episode, or the env raises."""
    return Situation(
        "environments",
        f"a mask of {space} as {form}" + "".join(f" {one}" for one in more),
        lambda folder: train(folder, MASKED, *more, steps=1024, form=form, space=space),
        check=reaches(6.0),
        slow=slow,
    )


def bad_mask(form: str, *says: str, space: str = "discrete") -> Situation:
    return Situation(
        "environments",
        f"a mask of {space} as {form}",
        lambda folder: train(folder, MASKED, steps=1024, form=form, space=space),
        "ended",
        says=says,
    )


SITUATIONS: list[Situation] = [
    *(
        sees(space)
        for space in (
            "board uint8", "board bool", "board float32", "board int64", "planes uint8", "codes uint8", "scalar",
            "uint16", "discrete", "multi discrete 2d", "multi binary", "nested",
        )
    ),
    sees("scalar", "--normalize-observation", "--learner", "torch"),
    sees("scalar", "--network", "lstm", "--minibatches", "4"),
    sees("planes uint8", "--network", "cnn"),
    *(
        sees(space, slow=True)
        for space in (
            "board float64", "picture", "picture first", "picture float", "picture many", "picture mask", "small picture",
            "frames", "scalar float64", "int64", "int8", "uint32", "uint64", "float16", "unbounded", "huge", "constant",
            "discrete int32", "many", "multi discrete", "multi discrete many", "picture and numbers",
        )
    ),
    *(
        acts(space)
        for space in (
            "5..10", "wide", "float64", "int64", "each its own", "discrete int32", "multi discrete 2d",
        )
    ),
    acts("half infinite", 0.0),
    acts("5..10", 2.4, "--inference", "torch", "--learner", "torch"),
    acts("5..10", 2.4, "--network", "lstm", "--minibatches", "4"),
    acts("5..10", -2.0, "--no-rescale-action"),
    *(
        acts(space, slow=True)
        for space in ("unit", "float16", "uint8", "scalar", "matrix", "multi discrete", "multi binary")
    ),
    refused("actions in a Dict", "action space must be", space="dict"),
    refused("actions in a Tuple", "action space must be", space="tuple"),
    refused("actions of no dimension", "at least one entry", space="empty"),
    *(
        refused(f"an observation that cannot be read: {seen}", "observation", says, seen=seen)
        for seen, says in (
            ("text", "must be Box"), ("sequence", "['b']"), ("graph", "must be Box"), ("empty box", "at least one entry"),
            ("empty dict", "at least one entry"), ("empty tuple", "at least one entry"), ("empty part", "['b']"),
        )
    ),
    *(masks(form) for form in ("list", "tuple", "float", "bool", "method", "missing", "reset")),
    masks("key", "discrete", "--mask-key", "legal"),
    masks("list", "discrete", "--network", "lstm", "--minibatches", "4"),
    masks("parts", "multi discrete"),
    masks("method", "multi discrete"),
    masks("key", "multi discrete", "--mask-key", "legal", "--vectorization", "async"),
    masks("half", "multi binary"),
    masks("pairs", "multi binary"),
    masks("parts", "multi discrete", "--autoreset", "next_step"),
    masks("parts", "multi discrete", "--autoreset", "same_step"),
    *(masks(form, slow=True) for form in ("int list",)),
    *(masks(form, "multi discrete", slow=True) for form in ("part lists", "float", "list")),
    bad_mask("long", "env ", "step 2", "shape (6,)", "(5,)"),
    bad_mask("no legal", "env ", "step 3", "no legal action"),
    bad_mask("no legal", "env ", "step 3", "no legal action in dimension", space="multi discrete"),
    bad_mask("words", "0s and 1s"),
    bad_mask("twos", "0s and 1s"),
    bad_mask("late", "first action_mask"),
    Situation(
        "environments",
        "a mask of a Box",
        lambda folder: train(folder, MASKED, steps=512, space="box"),
        check=lambda folder, ended: _says(ended, "ignored"),
    ),
    refused("a mask key that is not there", "mask_key", "legal", env=MASKED, more=("--mask-key", "legla"), form="key"),
    refused("a mask key of no Dict", "mask_key", env=MASKED, more=("--mask-key", "legal")),
]  # fmt: skip
