"""Situations: environments as people bring them."""

from __future__ import annotations

import datetime
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import distrl as package
from distrl.errors import BadInput, RunFailed
from tests.wild import toy_envs
from tests.wild.situation import Ended, Expected, Situation, distrl

QUICK = (
    "--workers", "0", "--num-envs", "4", "--groups", "2", "--num-steps", "16", "--total-steps", "128", "--minibatches", "2",
    "--eval-episodes", "2", "--no-tensorboard", "--run-dir", "run",
)  # fmt: skip


def train(env: str, *flags: str) -> Callable[[Path], Ended]:
    """`distrl train` of a toy, with `flags` beside those that make it short."""
    return lambda folder: distrl(folder, "train", "--env", f"tests.wild.toy_envs:{env}", *QUICK, *flags)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    return found


def whole_episodes(folder: Path, ended: Ended) -> None:
    """No row was dropped: the episodes are 6 steps long."""
    for record in records(folder):
        assert record["episode_length_mean"] == 6.0
        assert record["env_steps"] == 64 * record["iteration"]


def every_number(folder: Path, ended: Ended) -> None:
    last = records(folder)[-1]
    expected = {"np_bool": 1.0, "zero_d": 2.5, "tensor": 3.5, "nested/inner": 0.5}
    assert {name: last[f"info/{name}"] for name in expected} == expected


def mixed_means(folder: Path) -> Ended:
    """The mean of an int in one env and a float in another, by groups of 1 and of 4."""
    ended = Ended(1, "", "")
    means = []
    for groups in ("4", "1"):
        toy_envs.Numbers.made = 0
        ended = train("Numbers", "--groups", groups, "--run-dir", f"run{groups}")(folder)
        lines = (folder / f"run{groups}" / "metrics.jsonl").read_text().splitlines()
        means.append([json.loads(line)["info/mixed"] for line in lines])
    assert means[0] == means[1], means
    assert 1.0 < means[0][0] < 1.5
    return ended


def evaluated(env: str) -> Callable[[Path], Ended]:
    def run(folder: Path) -> Ended:
        train(env)(folder)
        return distrl(folder, "eval", "run", "--episodes", "2", "--json")

    return run


def json_alone(folder: Path, ended: Ended) -> None:
    assert set(json.loads(ended.out)) >= {"return_mean", "episodes"}


def same_task(folder: Path, ended: Ended) -> None:
    assert records(folder)[-1]["episode_return_mean"] == 6.0


def with_return(mean: float) -> Callable[[Path, Ended], None]:
    def check(folder: Path, ended: Ended) -> None:
        assert records(folder)[-1]["episode_return_mean"] == mean

    return check


def value_means_agree(folder: Path) -> Ended:
    """An env's own array, in every autoreset mode that resets inside a step or outside of it."""
    ended, means = Ended(1, "", ""), []
    for mode in ("disabled", "same_step"):
        flags = ("--autoreset", mode, "--groups", "1", "--run-dir", f"run-{mode}")
        ended = train("OwnArray", *flags)(folder)
        lines = (folder / f"run-{mode}" / "metrics.jsonl").read_text().splitlines()
        means.append([json.loads(line)["value_mean"] for line in lines])
    assert means[0] == means[1], means
    return ended


def is_unknown(why: str) -> Callable[[Path, Ended], None]:
    def check(folder: Path, ended: Ended) -> None:
        assert summary(folder)["reproducibility"] == "unknown"
        assert any(why in warning for warning in summary(folder)["warnings"]), summary(folder)["warnings"]

    return check


def is_exact(folder: Path, ended: Ended) -> None:
    assert summary(folder)["reproducibility"] == "exact"


def warned(*words: str) -> Callable[[Path, Ended], None]:
    def check(folder: Path, ended: Ended) -> None:
        text = ended.err + " ".join(summary(folder)["warnings"])
        assert all(word in text for word in words), text

    return check


def nothing_left(folder: Path, ended: Ended) -> None:
    assert not list((folder / "locks").glob("*.lock"))


def undisturbed(folder: Path) -> Ended:
    before = signal.getsignal(signal.SIGINT), os.getcwd()
    ended = train("Disturbs")(folder)
    assert (signal.getsignal(signal.SIGINT), os.getcwd()) == before
    assert (folder / "run" / "summary.json").exists()
    return ended


def from_python(**fields: Any) -> Callable[[Path], Ended]:
    """`distrl.train`, with its errors as the command line tells them."""

    def run(folder: Path) -> Ended:
        given = {
            "workers": 0, "num_envs": 4, "groups": 2, "num_steps": 16, "total_steps": 128, "minibatches": 2,
            "eval_episodes": 2, "tensorboard": False, "run_dir": folder / "run", **fields,
        }  # fmt: skip
        try:
            return Ended(package.train(**given).exit_status, "", "")
        except (BadInput, RunFailed) as error:
            return Ended(error.exit_status, "", str(error))

    return run


def resumed_with_arguments(folder: Path) -> Ended:
    kwargs = {
        "shape": (3, 4), "day": datetime.date(2024, 1, 31), "mode": "none", "my-key": 1,
        "inner": {"use-lidar": True, "pair": (1, [2])},
    }  # fmt: skip
    from_python(env=toy_envs.Takes, env_kwargs=kwargs)(folder)
    return distrl(folder, "train", "--resume", "run", "--total-steps", "192")


def arguments_of_toml(folder: Path) -> Ended:
    (folder / "run.toml").write_text(
        '[env_kwargs]\nshape = [3, 4]\nday = 2024-01-31\nmode = "none"\n"my-key" = 1\n'
        "inner = {use-lidar = true, pair = [1, [2]]}\n"
    )
    return train("TakesLists", "--config", "run.toml")(folder)


def grown(*command: str, variable: str = "TOY_SIZE") -> Callable[[Path], Ended]:
    """A run of an env whose observation has another shape afterwards, or its actions another start (TOY_START)."""

    def run(folder: Path) -> Ended:
        with pytest.MonkeyPatch.context() as patch:
            train("Grows")(folder)
            patch.setenv(variable, "5")
            return distrl(folder, *command)

    return run


def silent_about(word: str) -> Callable[[Path, Ended], None]:
    def check(folder: Path, ended: Ended) -> None:
        assert word not in ended.err

    return check


def hanging_close(folder: Path) -> Ended:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distrl.envs.calls.LONGEST_SEC", 0.2)
        patch.setattr("distrl.envs.vector.LONGEST_SEC", 0.2)
        patch.setattr("distrl.envs.trial.LONGEST_CLOSE_SEC", 0.2)
        ended = train("Locks", "--env-kwargs", '{folder = "locks", close = "hangs"}')(folder)
    assert any("did not return within 0.2 s" in one for one in summary(folder)["warnings"])
    nothing_left(folder, ended)
    return ended


def case(
    name: str,
    run: Callable[[Path], Ended],
    expected: Expected = "works",
    says: tuple[str, ...] = (),
    check: Callable[[Path, Ended], None] | None = None,
) -> Situation:
    return Situation("environments", name, run, expected, says, check)


OLD = "old gym API"
SITUATIONS: list[Situation] = [
    # what is said in infos
    case("info with every private name", train("PrivateNames"), check=whole_episodes),
    case("the same, reset inside a step", train("PrivateNames", "--autoreset", "same_step"), check=whole_episodes),
    case("the same, reset by a step", train("PrivateNames", "--autoreset", "next_step")),
    case("info of varying types and lengths", train("Wild"), check=whole_episodes),
    case("the same, in subprocesses", train("Wild", "--vectorization", "async"), check=whole_episodes),
    case("numbers of every kind in infos", train("Numbers"), check=every_number),
    case("an int in one env, a float in another", mixed_means),
    case("None for an info", train("NoInfo"), check=whole_episodes),
    case("an env that prints, evaluated with --json", evaluated("Prints"), check=json_alone),
    # how it is called
    case("a task that options change", train("Options"), check=same_task),
    case("the same, in one group", train("Options", "--groups", "1"), check=same_task),
    case("one array for all observations", value_means_agree),
    case("an env that writes into its action", train("ScalesAction"), check=is_exact),
    *(case(f"reward as {kind}", train("Rewards", "--env-kwargs.kind", kind)) for kind in ("array", "tensor", "int", "flags")),
    case("reward of 1e39", train("Rewards", "--env-kwargs.kind", "huge"), "ended", ("reward is 1e+39", "float32")),
    case("reward None", train("Rewards", "--env-kwargs", '{kind = "none"}'), "ended", ("reward must be one number", "None")),
    case("reward as text", train("Rewards", "--env-kwargs.kind", "text"), "ended", ("reward must be one number", "'1.0'")),
    case("reward of two", train("Rewards", "--env-kwargs.kind", "two"), "ended", ("reward must be one number", "(2,)")),
    # what it observes
    *(
        case(f"observation outside: {kind}", train("Outside", "--env-kwargs.kind", kind), "ended", ("outside its space", says))
        for kind, says in (("category", "got -1"), ("multi", "got 4"), ("bits", "got 2"), ("shape", "(3,)"), ("bytes", "int64"))
    ),
    case("observation beyond its bounds", train("Outside", "--env-kwargs.kind", "bounds"),
         check=warned("leaves its space", "[0, 1]", "got 50000")),
    case("the same, as an error", train("Outside", "--env-kwargs.kind", "bounds", "--check-observations", "error"), "ended",
         ("outside its space", "got 50000")),
    case("the same, not looked at", train("Outside", "--env-kwargs", '{kind = "bounds", at = 0}', "--check-observations", "off")),
    # other APIs
    case("step of four values", train("FourValues"), "refused", ("4 values", OLD)),
    case("step of four values, with a time limit", train("FourValues", "--max-episode-steps", "4"), "refused", ("4 values", OLD)),
    case("reset without seed", train("NoSeed"), "refused", ("seed and options", OLD)),
    case("reset without options", train("NoOptions"), "refused", ("options",)),
    case("reset of an observation alone", train("ObservationAlone"), "refused", ("(observation, info)", OLD)),
    case("no observation space", train("NoSpaces"), "refused", ("observation_space must be set",)),
    case("a tuple for a space", train("TupleSpace"), "refused", ("gymnasium.spaces", "Tuple")),
    case("spaces after the first reset", train("LateSpaces"), "refused", ("before the first reset",)),
    case("a bare assert in the constructor", train("Asserts"), "refused", ("assert size > 5", "toy_envs.py:")),
    case("a constructor that exits", train("Exits"), "refused", ("no licence for this simulator",)),
    case("a class that is no Env", train("NotAnEnv"), "refused", ("gymnasium.Env",)),
    # claims
    case("a global generator", train("GlobalGenerator"), check=is_unknown("different observations")),
    case("a global generator that reset seeds", train("SeedsGlobal"), check=is_unknown("differs at step")),
    case("a dataclass as snapshot", train("DataclassSnapshot", "--checkpoint-every", "1"),
         check=warned("snapshot() and restore(state) are not used", "State")),
    case("methods named snapshot and restore", train("UnrelatedSnapshot", "--checkpoint-every", "1"), check=is_exact),
    case("a snapshot that forgets", train("ForgetfulSnapshot"), check=warned("plays on differently")),
    case("one env at a time", train("Alone", "--num-envs", "1", "--groups", "1", "--eval-episodes", "0"), check=is_unknown("second env")),
    # what it leaves behind
    case("lock files", train("Locks", "--env-kwargs.folder", "locks"), check=nothing_left),
    case("lock files, in subprocesses", train("Locks", "--env-kwargs.folder", "locks", "--vectorization", "async"),
         check=nothing_left),
    case("a close that raises", train("Locks", "--env-kwargs", '{folder = "locks", close = "raises"}'),
         check=warned("close() raised OSError")),
    case("a constructor that changes the process", undisturbed),
    # how it is named and made
    case("a factory function", train("make_task"), check=lambda folder, _: with_length(folder, 4)),
    case("a class from Python", from_python(env=toy_envs.Task), check=whole_episodes),
    case("a lambda from Python", from_python(env=lambda: toy_envs.Task()), check=whole_episodes),
    case("an env itself from Python", from_python(env=toy_envs.Task()), "refused", ("class or a function",)),
    case("a lambda from Python as a wrapper, with workers", from_python(env=toy_envs.Task, workers=1, wrapper=lambda env: env),
         "refused", ("wrapper", "module")),
    case("arguments that JSON lacks, resumed", resumed_with_arguments),
    case("arguments of TOML", arguments_of_toml),
    case("no metadata", train("NoMetadata"), "refused", ("metadata",)),
    case("a close that needs a reset", evaluated("ClosesLate"), check=silent_about("close()")),
    case("resets that change the process", train("Wanders"), check=whole_episodes),
    case("an alarm of its own", train("Alarmed"), check=whole_episodes),
    case("a step that leaves Python", train("ExitsLater"), "ended", ("SystemExit", "restarts")),
    case("spaces that differ from env to env", train("DifferentSpaces"), "refused", ("observation_space must be the same",)),
    case("a wrapper that raises", train("Task", "--wrapper", "tests.wild.toy_envs:wraps_badly"), "refused", ("wraps_badly", "camera")),
    case("a wrapper of the old API", train("Task", "--wrapper", "tests.wild.toy_envs:wraps_for_old"), "refused", ("options",)),
    case("a close that hangs", hanging_close),
    case(
        "resume with actions that begin elsewhere",
        grown("train", "--resume", "run", "--total-steps", "256", variable="TOY_START"), "refused", ("from 5",),
    ),
    case("resume with another shape", grown("train", "--resume", "run", "--total-steps", "256"), "refused", ("(3,)", "(5,)")),
    case("eval with another shape", grown("eval", "run"), "refused", ("(3,)", "(5,)")),
]  # fmt: skip


def with_length(folder: Path, steps: int) -> None:
    assert records(folder)[-1]["episode_length_mean"] == steps
