"""What a reward is: a source that travels to the reward's workers, and the scorer that is built of it there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from distrl.rlhf.opinions import Part
from distrl.rlhf.responses import Responses


class Scorer(Protocol):
    """What gives responses a score; made on the worker by `RewardSource.build`."""

    def score(self, responses: Responses, columns: Sequence[NDArray[np.int64]]) -> Part:
        """Of the responses in `columns` (pieces), [n]; NaN where there is none.

        A scorer that has models on a device names them by a method `models()`, so that they may take turns there.
        """
        ...


class RewardSource(Protocol):
    """What travels to the reward's workers."""

    def build(self, device: str) -> Scorer: ...


@runtime_checkable
class OfPrompts(RewardSource, Protocol):
    """A source that knows the prompts, by number."""

    def with_prompts(self, prompts: Sequence[Any]) -> RewardSource: ...
