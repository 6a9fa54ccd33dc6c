"""Where a response's score comes from: a reward model, a Python function, or a weighted sum of several.

What travels to a reward's workers is a `RewardSource`; there it is built into a `Scorer`. A score of NaN means that
there is none: that response is left out of the batch.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.machinery import PathFinder
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from distrl.checkpoint.files import replace_durable
from distrl.errors import BadInput, translated
from distrl.named import function_part, is_file
from distrl.policies.lm import ScalarModel
from distrl.rlhf.data import Prompt
from distrl.rlhf.given_functions import given
from distrl.rlhf.models import ModelParts, filled_aside, read_scalar, save
from distrl.rlhf.opinions import Part, scores
from distrl.rlhf.pulse import beat
from distrl.rlhf.responses import Responses
from distrl.rlhf.reward_calls import Outcome, Row
from distrl.rlhf.reward_pool import Pool
from distrl.rlhf.reward_process import FunctionProcess
from distrl.rlhf.scoring import OfPrompts, RewardSource, Scorer
from distrl.rlhf.written import ends_of, response_text

SCALE_FILE = "reward_scale.json"
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
    name: str = "model"  # of its metric, score/<name>

    def build(self, device: str) -> Scorer:
        """On a worker."""
        return _ModelScorer(self, device)


class _ModelScorer:
    def __init__(self, source: ModelReward, device: str) -> None:
        self.scale, self.name = source.scale, source.name
        self.model = ScalarModel(source.parts.build(device).requires_grad_(False)).eval()

    def models(self) -> list[nn.Module]:
        """What lies on the device."""
        return [self.model]

    def score(self, responses: Responses, columns: Columns) -> Part:
        said = scores(self.model, responses, columns)
        with np.errstate(all="ignore"):
            normal = (said.said.astype(np.float64) - self.scale.mean) / self.scale.deviation
        part = _as_float32(said.columns, normal, "the reward model's score is not finite in float32")
        return replace(part, named={self.name: part.said})


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
    """A Python function as `distrl.rlhf.reward_calls` describes it: `module:name`, `file.py:name`, or the object `given`.

    A call that raises, takes longer than `timeout_sec`, ends its process, or gives no finite number masks its responses
    alone: how many may is for those to say who see the whole batch. Once more than `max_timeouts` calls for a batch have
    timed out, the whole batch is lost whoever has the others: the rest is not called, and counts as unanswered. A
    function of one response is called `concurrency` times at once; one of a batch is called once for all responses, by
    every worker that scores some of them. `prompts` are the run's, by number; `end_tokens` are no part of a text.
    """

    function: str
    prompts: tuple[Prompt, ...]
    tokenizer: Any
    timeout_sec: float = 10.0
    max_timeouts: int | None = None
    concurrency: int = 1
    given: Callable[..., Any] | None = None
    end_tokens: tuple[int, ...] = ()
    name: str = ""  # of its metric, score/<name>; default: the function's

    @property
    def title(self) -> str:
        """Of its metric."""
        return self.name or self.function.rpartition(":")[2]

    def build(self, device: str) -> Scorer:
        """On a worker: starts the function's process. BadInput where the function cannot be loaded."""
        return FunctionScorer(self)


class FunctionScorer:
    """`FunctionReward` at work; `close` ends its process, as the end of this one does."""

    def __init__(self, source: FunctionReward) -> None:
        self.source = source
        self.pool = Pool(source.function, source.given, source.timeout_sec, source.concurrency, beat)
        self.ends = ends_of(source.tokenizer, source.end_tokens)

    def score(self, responses: Responses, columns: Columns) -> Part:
        mine = np.concatenate([np.zeros(0, np.int64), *columns])
        batch = self.pool.form.batch
        called = np.arange(responses.num_responses) if batch and len(mine) else mine
        rows = [self._row(responses, column) for column in called.tolist()]
        requests = ([rows] if rows else []) if batch else [[row] for row in rows]
        answers, timeouts = self.pool.run(requests, responses.version, self.source.max_timeouts)
        outcomes = dict(zip(called.tolist(), (one for some, _ in answers for one in some), strict=True))
        logged = [one for _, some in answers for one in some.items()]
        return self._part(mine, [outcomes[column] for column in mine.tolist()], logged, timeouts)

    def _part(
        self, mine: NDArray[np.int64], outcomes: list[Outcome], logged: list[tuple[str, float]], timeouts: int
    ) -> Part:
        named, title = _named(self.source.title, outcomes), f"reward function {self.source.function}"
        for name, value in logged:  # of the whole call: a constant of its rows
            named[f"{self.source.title}/{name}"] = np.full(len(mine), value, np.float64)
        faults = [
            (column, f"{title}: {one.fault}")
            for column, one in zip(mine.tolist(), outcomes, strict=True)
            if one.fault is not None
        ]
        skipped = np.array([one.skipped for one in outcomes], bool)
        said = named[self.source.title].astype(np.float32)
        return Part(mine, said, min(faults, default=None), timeouts, named, skipped)

    def _row(self, responses: Responses, column: int) -> Row:
        prompt = self.source.prompts[int(responses.prompt[column])]
        tokens = responses.token[column, len(prompt.tokens) : int(responses.length[column])].tolist()
        text = response_text(self.source.tokenizer, prompt.tokens, tokens, self.ends)
        return Row(prompt.text, text, prompt.fields, prompt.messages, prompt.conversational, tokens)

    def close(self) -> None:
        """Ends the function's process."""
        self.pool.close()


def _named(title: str, outcomes: Sequence[Outcome]) -> dict[str, NDArray[np.float64]]:
    """The scores and what was returned beside them, by name, NaN where there is none."""
    names = dict.fromkeys(name for one in outcomes for name in one.extras)
    found = {title: np.array([one.score for one in outcomes], np.float64)}
    for name in names:
        found[f"{title}/{name}"] = np.array([one.extras.get(name, np.nan) for one in outcomes], np.float64)
    return found


def check_function(function: str) -> None:
    """BadInput where a reward function cannot be loaded: tried in a process of its own, before a run begins."""
    if given(function) is None:
        FunctionProcess(function, timeout_sec=10.0).close()


def function_rewards(
    functions: Sequence[str], prompts: Sequence[Prompt], tokenizer: Any, **more: Any
) -> list[FunctionReward]:
    """Those of a configuration, each with what was given for it as an object.

    BadInput for an object that this process was not given.
    """
    return [
        FunctionReward(function, tuple(prompts), tokenizer, given=given(function), **more)
        for function in functions
    ]


def require_portable(source: FunctionReward) -> None:
    """BadInput for a Python object that cannot travel to a worker's process."""
    if source.given is None:
        return
    import cloudpickle

    with translated(
        f"reward function {source.function!r} cannot be sent to workers",
        "use --placement in-process, or name it as module:function",
    ):
        cloudpickle.dumps(source.given)


def function_file(function: str) -> Path | None:
    """The file that its module is in, found without running it; None where it is in none."""
    if is_file(function):
        return Path(function.rpartition(":")[0])
    found, path, name = None, [one or os.getcwd() for one in ("", *sys.path)], ""
    for part in function.partition(":")[0].split("."):
        name = f"{name}.{part}".lstrip(".")
        found = PathFinder.find_spec(name, path)
        if found is None:
            return None
        path = list(found.submodule_search_locations or ())
    file = None if found is None or not found.has_location else found.origin
    return Path(file) if file else None


def changed_files(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Functions whose file is another one, by digests of then and now; one of another place is found by its name."""

    def digests(function: str) -> list[str]:
        if function in now:
            return [now[function]]
        name = function_part(function)
        return [digest for one, digest in now.items() if one not in before and function_part(one) == name]

    return [function for function, digest in before.items() if digest not in digests(function)]


@dataclass(frozen=True)
class Weighted:
    """sum of weight * score over several that score a response; NaN where one of them fails, or none scores it."""

    sources: tuple[tuple[float, RewardSource], ...]

    def build(self, device: str) -> Scorer:
        """On a worker."""
        return _WeightedScorer([(weight, source.build(device)) for weight, source in self.sources])


def for_a_look(source: RewardSource, prompts: Sequence[Prompt]) -> RewardSource:
    """The same reward of responses to other prompts, which numbers them anew."""
    if isinstance(source, FunctionReward):
        return replace(source, prompts=tuple(prompts))
    if isinstance(source, OfPrompts):
        return source.with_prompts(prompts)
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
        total, scored = np.zeros(len(parts[0][1].columns)), np.zeros(len(parts[0][1].columns), bool)
        with np.errstate(all="ignore"):
            for weight, part in parts:
                mine = np.ones_like(scored) if part.skipped is None else ~part.skipped
                total[mine] += np.float64(weight) * part.said[mine].astype(np.float64)
                scored |= mine
        columns_n = parts[0][1].columns
        whole = _as_float32(columns_n, total, "the weighted sum of its rewards is not finite in float32")
        whole.said[~scored] = np.nan
        # where a column has no score from one of them, that one's cause is told
        faults = [part.fault for part in (*(part for _, part in parts), whole) if part.fault is not None]
        named = {name: one for _, part in parts for name, one in part.named.items()}
        timeouts = sum(part.timeouts for _, part in parts)
        return Part(
            columns_n, whole.said, min(faults, key=itemgetter(0), default=None), timeouts, named, ~scored
        )


def _as_float32(columns: NDArray[np.int64], score: NDArray[np.float64], why: str) -> Part:
    """Scores as the run has them; `why` is the fault of one that is not finite then."""
    with np.errstate(all="ignore"):
        said = score.astype(np.float32)
    bad = columns[~np.isfinite(said)]
    return Part(columns, said, (int(bad.min()), why) if len(bad) else None)
