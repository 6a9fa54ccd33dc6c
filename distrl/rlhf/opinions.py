"""What models say of responses: log-probs of the actor and the reference, values of the critic, scores.

Texts go through a model in pieces of a fixed size, sorted by length. Which worker takes which piece changes no bit of
it; `join` puts what several workers said back in the order of the responses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distrl.maths.pieces import by_length
from distrl.policies.lm import LanguagePolicy, ScalarModel
from distrl.rlhf.responses import Ints, Responses, share_of

Fault = tuple[int, str]  # a column, and why it has no score
SKIPPED = "every reward function returned None, which leaves a response without a score"


@dataclass(frozen=True)
class Part:
    """What one worker said of some columns; `said` is [..., n] in their order.

    `fault`: the first of its columns that a reward has no score for, and why. `timeouts`: calls of a reward function that
    gave no answer in time. `named`: each reward's score by its name, and what it returned beside it, [n]. `skipped`: that
    it does not score the column, which is no fault where another reward does, [n].
    """

    columns: Ints
    said: NDArray[Any]
    fault: Fault | None = None
    timeouts: int = 0
    named: dict[str, NDArray[Any]] = field(default_factory=dict)
    skipped: NDArray[np.bool_] | None = None


def pieces(responses: Responses, size: int, share: int, num_shares: int, device: str = "cpu") -> list[Ints]:
    """The columns that one worker looks at on such a device, in pieces."""
    every = by_length(responses.length, size, torch.device(device).type)
    return [every[i] for i in share_of(len(every), share, num_shares)]


def join(parts: Sequence[Part], num_responses: int) -> NDArray[Any]:
    """[..., N] of what all workers said. ValueError where a response is missing or told twice."""
    columns = np.concatenate([part.columns for part in parts])
    if len(columns) != num_responses or len(np.unique(columns)) != num_responses:
        raise ValueError(
            f"the parts must cover {num_responses} responses once each, got {len(columns)} columns"
        )
    said = np.concatenate([part.said for part in parts], axis=-1)
    joined = np.empty_like(said)
    joined[..., columns] = said
    return joined


def first_fault(parts: Sequence[Part]) -> Fault | None:
    """That of the lowest column, whoever told it; that no reward scores a column is one too."""
    faults = [part.fault for part in parts if part.fault is not None]
    for part in parts:
        if part.skipped is not None and part.skipped.any():
            faults.append((int(part.columns[part.skipped].min()), SKIPPED))
    return min(faults, key=itemgetter(0), default=None)


def named_scores(parts: Sequence[Part], num_responses: int) -> dict[str, NDArray[np.float64]]:
    """[N] of each reward by name, in the order of the responses; NaN where it has none."""
    found: dict[str, NDArray[np.float64]] = {}
    for part in parts:
        for name, said in part.named.items():
            found.setdefault(name, np.full(num_responses, np.nan))[part.columns] = said
    return dict(sorted(found.items()))


def _each(
    responses: Responses, pieces: Sequence[Ints], shape: tuple[int, ...], look: Callable[[Responses], Tensor]
) -> Part:
    """`look` at each piece; what it says of shape [..., n] is padded with zeros to `shape`."""
    said = np.zeros((*shape, sum(len(piece) for piece in pieces)), np.float32)
    at = 0
    with torch.no_grad():
        for piece in pieces:
            found = look(responses.take(piece)).float().cpu().numpy()
            said[(*(slice(size) for size in found.shape[:-1]), slice(at, at + len(piece)))] = found
            at += len(piece)
    return Part(np.concatenate(pieces) if pieces else np.zeros(0, np.int64), said)


def _there(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _rows(responses: Responses) -> int:
    """Rows that are a decision in any column."""
    return int(responses.valid.any(axis=1).sum())


def log_probs(policy: LanguagePolicy, responses: Responses, pieces: Sequence[Ints]) -> Part:
    """Of each decision, [T, n], by the very `evaluate` of the update: its ratio on the first minibatch is 1."""
    device = next(cast(nn.Module, policy.actor).parameters()).device

    def look(some: Responses) -> Tensor:
        rows = _rows(some)
        state = {"token": _there(some.token, device), "length": _there(some.length, device)}
        return policy.evaluate(
            _there(some.position[:rows], device), _there(some.action[:rows], device), None, state, None
        ).log_prob

    return _each(responses, pieces, (len(responses.action),), look)


def values(policy: LanguagePolicy, responses: Responses, pieces: Sequence[Ints]) -> Part:
    """V at each decision, and in the row after a response's last one V of the whole text, [T + 1, n]."""
    device = next(cast(nn.Module, policy.critic).parameters()).device

    def look(some: Responses) -> Tensor:
        position = np.vstack([some.position, np.zeros_like(some.position[:1])])
        columns = np.arange(some.num_responses)
        position[some.num_actions, columns] = some.length - 1
        used = np.vstack([some.valid, np.zeros_like(some.valid[:1])])
        used[some.num_actions, columns] = True
        rows = int(used.any(axis=1).sum())
        token = some.token[:, : int(some.length.max())]
        value_NS = policy.values(_there(token, device))
        value_TN = value_NS[torch.arange(len(columns), device=device), _there(position[:rows], device)]
        return torch.where(_there(used[:rows], device), value_TN, 0.0)

    return _each(responses, pieces, (len(responses.action) + 1,), look)


def scores(model: ScalarModel, responses: Responses, pieces: Sequence[Ints]) -> Part:
    """Of each text, read at its last token, [n]."""
    device = next(model.parameters()).device

    def look(some: Responses) -> Tensor:
        token = some.token[:, : int(some.length.max())]
        said = model(_there(token, device))
        return said[torch.arange(len(said), device=device), _there(some.length - 1, device)]

    return _each(responses, pieces, (), look)
