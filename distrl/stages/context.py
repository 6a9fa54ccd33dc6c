"""Whether all texts of a stage fit the models that read them, before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from distrl.errors import BadInput
from distrl.rlhf.data import DataSet
from distrl.rlhf.models import ModelParts, context_length
from distrl.rlhf.rewards import ModelReward, Weighted
from distrl.rlhf.scoring import RewardSource


@dataclass(frozen=True)
class Longest:
    """The longest text of some files: where it is, `file:line`, and its tokens."""

    where: str
    tokens: int


def longest(files: Iterable[DataSet[Any] | None], length: Callable[[Any], int]) -> Longest:
    """Over all rows of the files; there must be one."""
    every = [
        Longest(one.where[row] if one.where else one.path, length(one.rows[row]))
        for one in files
        if one is not None
        for row in range(len(one.rows))
    ]
    return max(every, key=lambda text: text.tokens)


def require_fit(
    models: Mapping[str, ModelParts], text: Longest, limit_flag: str | None, response: int | None = None
) -> None:
    """BadInput for each model, named by its flag, that reads fewer tokens than the text has.

    `response`: tokens that are written behind it, --max-response; `limit_flag` is the flag that leaves long texts out, if there
    is one.
    """
    problems = []
    for name, parts in models.items():
        limit = context_length(parts.config)
        if limit is None or text.tokens + (response or 0) <= limit:
            continue
        if response is None:
            told, over = f"{text.where} has {text.tokens} tokens", text.tokens - limit
            room = limit
            shorter = ""
        else:
            told = f"{text.where} has {text.tokens} tokens + --max-response {response} = {text.tokens + response} tokens"
            over, room = text.tokens + response - limit, limit - response
            shorter = f"--max-response {limit - text.tokens}" if text.tokens < limit else ""
        dropped = f"{limit_flag} {room} --too-long drop" if room > 0 and limit_flag else ""
        advice = " or ".join(filter(None, (shorter, dropped))) or f"a --max-response below {limit}"
        problems.append(f"{name}: {told}, and the model reads {limit}: {over} too many; use {advice}")
    if problems:
        raise BadInput(*problems)


def reward_models(source: RewardSource) -> dict[str, ModelParts]:
    """Reward models that read the actor's own tokens, by flag."""
    sources = [one for _, one in source.sources] if isinstance(source, Weighted) else [source]
    models = [one.parts for one in sources if type(one) is ModelReward]
    return {f"--reward {i + 1}" if len(models) > 1 else "--reward": parts for i, parts in enumerate(models)}
