"""Situations: envs that an evaluation has trouble with, wrappers with memory, and videos."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.wild.situation import Ended, Situation, distrl

ENVS = "tests.wild.evaluation_envs"
SMALL = (
    "--workers", "0", "--num-envs", "2", "--groups", "1", "--num-steps", "8", "--minibatches", "2",
    "--total-steps", "32", "--no-tensorboard", "--eval-episodes", "3", "--run-dir", "run",
)  # fmt: skip


def train(*flags: str, env: str = "Short-v0") -> Callable[[Path], Ended]:
    return lambda folder: distrl(folder, "train", "--env", f"{ENVS}:{env}", *SMALL, *flags)


def filmed(file: str, *flags: str) -> Callable[[Path], Ended]:
    """A run, and a video of one of its episodes."""

    def run(folder: Path) -> Ended:
        trained = train("--eval-episodes", "0", *flags)(folder)
        assert trained.status == 0, trained.err
        (folder / "taken").write_text("a file")
        return distrl(folder, "eval", "run", "--episodes", "2", "--video", file)

    return run


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    return found


def never_ends(folder: Path, ended: Ended) -> None:
    evaluation = summary(folder)["evaluation"]
    assert (evaluation["length_mean"], evaluation["unfinished_share"]) == (40, 1.0)
    assert any("3 of 3 evaluation episodes" in line for line in summary(folder)["warnings"])


def ends(folder: Path, ended: Ended) -> None:
    evaluation = summary(folder)["evaluation"]
    assert (evaluation["return_mean"], evaluation["unfinished_share"]) == (20, 0.0)


def closes_badly(folder: Path, ended: Ended) -> None:
    ends(folder, ended)
    assert any("close() raised RuntimeError" in line for line in summary(folder)["warnings"])


def is_film(height: int, width: int) -> Callable[[Path, Ended], None]:
    def check(folder: Path, ended: Ended) -> None:
        import imageio.v3 as imageio

        (file,) = (folder / "films").iterdir()
        frames = imageio.imread(file, index=None)
        assert frames.shape[-3:] == (height, width, 3), frames.shape
        assert frames.shape[0] == 20, frames.shape

    return check


def nothing_left(folder: Path, ended: Ended) -> None:
    assert not (folder / "films").exists() or not [*(folder / "films").iterdir()]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def on_a_port(*flags: str) -> Callable[[Path], Ended]:
    return lambda folder: train("--num-envs", "1", "--env-kwargs.port", free_port(), *flags)(folder)


def one(name: str, run: Callable[[Path], Ended], **more: Any) -> Situation:
    return Situation("environments", f"evaluation: {name}", run, **more)


PICTURES = {"list": "list", "grey": "grey", "rgba": "rgba", "float": "float"}

SITUATIONS: list[Situation] = [
    one("an env without an end", train("--eval-max-steps", "40", env="Stay-v0"), check=never_ends),
    one("an env with a time limit", train(), check=ends),
    one("an env that binds a port", on_a_port(), check=ends),
    one(
        "an env that binds a port, evaluated on the way", on_a_port("--eval-every", "2"),
        expected="ended", says=("--eval-every 0", "Address already in use"),
    ),
    one(
        "every episode is dropped", train("--nonfinite", "drop", "--env-kwargs.nan-reward", "true"),
        expected="ended", says=("the evaluation dropped", "--eval-episodes 0"),
    ),
    one("close() raises", train("--env-kwargs.close-raises", "true"), check=closes_badly),
    one(
        "NormalizeObservation as a wrapper", train("--wrapper", f"{ENVS}:normalized"),
        expected="refused", says=("--normalize-observation", "NormalizeObservation"),
    ),
    one(
        "NormalizeReward below another wrapper", train("--wrapper", f"{ENVS}:scaled_reward"),
        expected="refused", says=("--normalize-reward", "NormalizeReward"),
    ),
    one(
        "a copied running mean in a wrapper", train("--wrapper", f"{ENVS}:OwnNormalize"),
        expected="refused", says=("OwnNormalize", "--normalize-observation"),
    ),
    one("NormalizeObservation by fixed numbers", train("--wrapper", f"{ENVS}:fixed"), check=ends),
    one("a video of odd pictures without fps", filmed("films/a.mp4"), check=is_film(32, 46)),
    one(
        "a video of pictures that grow", filmed("films/a.mp4", "--env-kwargs.grows", "true"), check=is_film(32, 46)
    ),
    *(
        one(f"a video of {kind} pictures", filmed("films/a.mp4", "--env-kwargs.pictures", kind), check=is_film(32, 46))
        for kind in PICTURES
    ),
    *(
        one(
            f"a video of {kind} pictures", filmed("films/a.mp4", "--env-kwargs.pictures", kind),
            expected="refused", says=("--video", "[height, width, 3]"), check=nothing_left,
        )
        for kind in ("dict", "empty", "too-large")
    ),
    one("a video in a folder that is a file", filmed("taken/a.mp4"), expected="refused", says=("--video", "taken")),
    one("a video of an unknown kind", filmed("films/a.webm"), expected="refused", says=(".mp4 or .gif",)),
]  # fmt: skip
