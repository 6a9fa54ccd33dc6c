"""Where a response's score comes from: a reward model, a Python function, or a weighted sum of several.

What travels to a reward's workers is a `RewardSource`; there it is built into a `Scorer`. A score of NaN means that
there is none: that response is left out of the batch.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from distrl.checkpoint.files import replace_durable
from distrl.errors import BadInput
from distrl.policies.lm import ScalarModel
from distrl.rlhf.data import Prompt
from distrl.rlhf.models import ModelParts, filled_aside, read_scalar, save
from distrl.rlhf.opinions import Part, first_fault, scores
from distrl.rlhf.responses import Responses
from distrl.rlhf.reward_process import Fault, FunctionProcess
from distrl.rlhf.scoring import RewardSource, Scorer

SCALE_FILE = "reward_scale.json"
LARGEST = float(np.finfo(np.float32).max)
Columns = Sequence[NDArray[np.int64]]


@dataclass(frozen=True)
class ScoreScale:
    """Mean and deviation of a reward model's scores on reference samples: scores are told in those units."""

    mean: float = 0.0
    deviation: float = 1.0
    num_samples: int = 0


@dataclass(frozen=True)
class ModelReward:
    """A reward model's score at the last token of a text, normalised."""

    parts: ModelParts
    scale: ScoreScale = ScoreScale()

    def build(self, device: str) -> Scorer:
        """On a worker."""
        return _ModelScorer(self, device)


class _ModelScorer:
    def __init__(self, source: ModelReward, device: str) -> None:
        self.scale = source.scale
        self.model = ScalarModel(source.parts.build(device).requires_grad_(False)).eval()

    def models(self) -> list[nn.Module]:
        """What lies on the device."""
        return [self.model]

    def score(self, responses: Responses, columns: Columns) -> Part:
        said = scores(self.model, responses, columns)
        with np.errstate(all="ignore"):
            normal = (said.said.astype(np.float64) - self.scale.mean) / self.scale.deviation
        return _as_float32(said.columns, normal, "the reward model's score is not finite in float32")


def save_reward(parts: ModelParts, scale: ScoreScale, folder: str | Path, tokenizer: Any = None) -> None:
    """A reward model's folder: a sequence classifier's as transformers has it, and SCALE_FILE beside; whole, as `save`."""
    with filled_aside(Path(folder)) as aside:
        save(parts, aside, tokenizer)
        write_scale(scale, aside)


def write_scale(scale: ScoreScale, folder: str | Path) -> None:
    """SCALE_FILE of a reward model's folder, whole or not at all."""
    text = json.dumps({"schema": 1, **asdict(scale)}, indent=2) + "\n"
    replace_durable(Path(folder) / SCALE_FILE, [text.encode()])


def read_reward(folder: str | Path) -> ModelReward:
    """The reward model of a folder; one without SCALE_FILE is taken as it is. Raises BadInput."""
    return ModelReward(read_scalar(folder), read_scale(folder))


def read_scale(folder: str | Path) -> ScoreScale:
    """A reward model's normalisation; none, mean 0 and deviation 1, where its folder keeps none."""
    path = Path(folder) / SCALE_FILE
    if not path.is_file():
        return ScoreScale()
    try:
        found = json.loads(path.read_text())
        scale = ScoreScale(float(found["mean"]), float(found["deviation"]), int(found["num_samples"]))
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} must have mean, deviation and num_samples: {error}") from error
    if not (np.isfinite(scale.mean) and np.isfinite(scale.deviation) and scale.deviation > 0):
        raise BadInput(
            f"{path}: deviation must be positive and both finite, got {scale.mean}, {scale.deviation}"
        )
    return scale


@dataclass(frozen=True)
class FunctionReward:
    """`module:name`, called as f(prompt, response, **fields) -> float, the fields those of the prompt's line.

    It gets the fields that it has parameters for, or all if it takes **fields. A call that raises, takes longer than
    `timeout_sec`, ends the process, or gives no finite number masks its response alone: how many may is for those to
    say who see the whole batch. Once more than `max_timeouts` calls for a batch have timed out, the whole batch is lost
    whoever has the others: the rest is not called, and counts as unanswered. `prompts` are the run's, by number.
    """

    function: str
    prompts: tuple[Prompt, ...]
    tokenizer: Any
    timeout_sec: float = 10.0
    max_timeouts: int | None = None

    def build(self, device: str) -> Scorer:
        """On a worker: starts the function's process. BadInput where the function cannot be loaded."""
        return FunctionScorer(self)


class FunctionScorer:
    """`FunctionReward` at work; `close` ends its process, as the end of this one does."""

    def __init__(self, source: FunctionReward) -> None:
        self.source = source
        self.process = FunctionProcess(source.function, source.timeout_sec)

    def score(self, responses: Responses, columns: Columns) -> Part:
        mine = np.concatenate([np.zeros(0, np.int64), *columns])
        said = np.full(len(mine), np.nan, np.float32)
        faults, timeouts, most = [], 0, self.source.max_timeouts
        for i, column in enumerate(mine.tolist()):
            found = self._call(responses, column)
            if not isinstance(found, Fault):
                said[i] = found
                continue
            faults.append((column, f"reward function {self.source.function}: {found.cause}"))
            timeouts += found.timed_out
            if most is not None and timeouts > most:
                faults += [(rest, faults[-1][1]) for rest in mine[i + 1 :].tolist()]
                break
        return Part(mine, said, min(faults, default=None), timeouts)

    def _call(self, responses: Responses, column: int) -> float | Fault:
        prompt = self.source.prompts[int(responses.prompt[column])]
        tokens = responses.token[column, len(prompt.tokens) : int(responses.length[column])]
        response: str = self.source.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
        found = self.process.call(prompt.text, response, prompt.fields)
        if not isinstance(found, Fault) and abs(found) > LARGEST:
            return Fault(f"returned {found:g}, more than float32 holds")
        return found

    def close(self) -> None:
        """Ends the function's process."""
        self.process.close()


def check_function(function: str) -> None:
    """BadInput where a reward function cannot be loaded: tried in a process of its own, before a run begins."""
    FunctionProcess(function, timeout_sec=10.0).close()


def function_file(function: str) -> Path | None:
    """The file that its module is in, found without running it; None where it is in none."""
    found, path, name = None, [one or os.getcwd() for one in ("", *sys.path)], ""
    for part in function.partition(":")[0].split("."):
        name = f"{name}.{part}".lstrip(".")
        found = PathFinder.find_spec(name, path)
        if found is None:
            return None
        path = list(found.submodule_search_locations or ())
    file = None if found is None or not found.has_location else found.origin
    return Path(file) if file else None


@dataclass(frozen=True)
class Weighted:
    """sum of weight * score over several; NaN where one of them has none."""

    sources: tuple[tuple[float, RewardSource], ...]

    def build(self, device: str) -> Scorer:
        """On a worker."""
        return _WeightedScorer([(weight, source.build(device)) for weight, source in self.sources])


def for_a_look(source: RewardSource, prompts: Sequence[Prompt]) -> RewardSource:
    """The same reward of responses to other prompts, which numbers them anew."""
    if isinstance(source, FunctionReward):
        return replace(source, prompts=tuple(prompts))
    if isinstance(source, Weighted):
        return Weighted(tuple((weight, for_a_look(one, prompts)) for weight, one in source.sources))
    return source


class _WeightedScorer:
    def __init__(self, scorers: Sequence[tuple[float, Scorer]]) -> None:
        self.scorers = scorers

    def models(self) -> list[nn.Module]:
        """Those of all that have some."""
        return [model for _, scorer in self.scorers for model in getattr(scorer, "models", list)()]

    def score(self, responses: Responses, columns: Columns) -> Part:
        parts = [(weight, scorer.score(responses, columns)) for weight, scorer in self.scorers]
        with np.errstate(all="ignore"):
            total = sum(np.float64(weight) * part.said.astype(np.float64) for weight, part in parts)
        whole = _as_float32(
            parts[0][1].columns, np.asarray(total), "the weighted sum of its rewards is not finite in float32"
        )
        # where a column has no score from one of them, that one's cause is told
        timeouts = sum(part.timeouts for _, part in parts)
        return replace(whole, fault=first_fault([*(part for _, part in parts), whole]), timeouts=timeouts)


def _as_float32(columns: NDArray[np.int64], score: NDArray[np.float64], why: str) -> Part:
    """Scores as the run has them; `why` is the fault of one that is not finite then."""
    with np.errstate(all="ignore"):
        said = score.astype(np.float32)
    bad = columns[~np.isfinite(said)]
    return Part(columns, said, (int(bad.min()), why) if len(bad) else None)
