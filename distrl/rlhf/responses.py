"""Responses: texts that a policy wrote, as arrays. N responses, T decisions, S tokens of a text.

A text is a prompt and what followed, packed from the left and right-padded. Usually every token after the prompt is
the policy's own decision; where a tool wrote some of them, `position` leaves those out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrl.policies.lm import NO_ACTION

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Responses:
    """Texts and the decisions in them, in the order of the prompts, responses to one prompt side by side.

    token        [N, S]  prompt and response, right-padded with 0
    length       [N]     tokens of each text
    prompt       [N]     number of its prompt in the data
    position     [T, N]  of the last token seen when a decision was made; any position in rows that are none
    action       [T, N]  the token that was chosen; NO_ACTION in rows that are none, which all come last
    log_prob     [T, N]  of the action when it was sampled
    ended        [N]     the response ended of itself (end of text) and was not cut by the length limit
    """

    token: Ints
    length: Ints
    prompt: Ints
    position: Ints
    action: Ints
    log_prob: Floats
    ended: NDArray[np.bool_]
    version: int = 0  # of the policy that sampled them

    @property
    def valid(self) -> NDArray[np.bool_]:
        """[T, N]: the row is a decision."""
        valid: NDArray[np.bool_] = self.action != NO_ACTION
        return valid

    @property
    def num_actions(self) -> Ints:
        """[N]."""
        return np.asarray(self.valid.sum(axis=0))

    @property
    def last(self) -> NDArray[np.bool_]:
        """[T, N]: the row is the response's last decision."""
        rows = np.arange(len(self.action))[:, None]
        last: NDArray[np.bool_] = rows == self.num_actions - 1
        return last

    @property
    def num_responses(self) -> int:
        """N."""
        return len(self.length)

    def take(self, columns: Any) -> Responses:
        """Some of the responses."""
        return Responses(
            self.token[columns], self.length[columns], self.prompt[columns], self.position[:, columns],
            self.action[:, columns], self.log_prob[:, columns], self.ended[columns], self.version,
        )  # fmt: skip

    @staticmethod
    def write(
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        log_probs: Sequence[Sequence[float]],
        ended: Sequence[bool],
        numbers: Sequence[int] | Ints,
        version: int = 0,
        own: Sequence[Sequence[bool]] | None = None,
    ) -> Responses:
        """From lists of tokens. `own` says which tokens of an answer the policy chose (default: all); log_probs are of those.

        Raises ValueError for an empty prompt, or an answer without a token of the policy's own.
        """
        if own is None:
            own = [[True] * len(answer) for answer in answers]
        num_T = max((sum(mine) for mine in own), default=0)
        num_S = max((len(p) + len(a) for p, a in zip(prompts, answers, strict=True)), default=0)
        n = len(prompts)
        token, length = np.zeros((n, num_S), np.int64), np.zeros(n, np.int64)
        position, log_prob = np.zeros((num_T, n), np.int64), np.zeros((num_T, n), np.float32)
        action = np.full((num_T, n), NO_ACTION, np.int64)
        for i, (prompt, answer, mine) in enumerate(zip(prompts, answers, own, strict=True)):
            if not len(prompt) or not any(mine):
                raise ValueError(
                    f"response {i} must have a prompt and a token of the policy's own, got {len(prompt)} prompt tokens "
                    f"and {sum(mine)} of its own"
                )
            text = [*prompt, *answer]
            token[i, : len(text)], length[i] = text, len(text)
            chosen = len(prompt) + np.flatnonzero(np.asarray(mine))
            position[: len(chosen), i], action[: len(chosen), i] = chosen - 1, np.asarray(text)[chosen]
            log_prob[: len(chosen), i] = log_probs[i]
        return Responses(
            token,
            length,
            np.asarray(numbers, np.int64),
            position,
            action,
            log_prob,
            np.asarray(ended, bool),
            version,
        )

    @staticmethod
    def concatenate(parts: Sequence[Responses]) -> Responses:
        """One after the other, padded to the longest; the version is the oldest."""
        num_S = max(part.token.shape[1] for part in parts)
        num_T = max(len(part.action) for part in parts)

        def wide(array: Ints) -> Ints:
            return np.pad(array, ((0, 0), (0, num_S - array.shape[1])))

        def tall(array: Any, fill: int = 0) -> Any:
            return np.pad(array, ((0, num_T - len(array)), (0, 0)), constant_values=fill)

        return Responses(
            np.concatenate([wide(part.token) for part in parts]),
            np.concatenate([part.length for part in parts]),
            np.concatenate([part.prompt for part in parts]),
            np.concatenate([tall(part.position) for part in parts], axis=1),
            np.concatenate([tall(part.action, NO_ACTION) for part in parts], axis=1),
            np.concatenate([tall(part.log_prob) for part in parts], axis=1),
            np.concatenate([part.ended for part in parts]),
            min(part.version for part in parts),
        )


def share_of(count: int, share: int, num_shares: int) -> range:
    """Which of `count` pieces one of several workers takes: neighbours, as many as the others to within one."""
    return range(share * count // num_shares, (share + 1) * count // num_shares)
