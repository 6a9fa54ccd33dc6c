"""Generation: a policy writes responses to prompts, behind one narrow protocol.

`CachedGenerator` is a plain loop over a key-value cache that has its room from the start. Rows that have ended leave
the batch. A row's tokens are picked by uniform numbers of its own, drawn beforehand from a keyed stream; the rows of a
batch are a fixed group of the configuration's, so who generates changes no token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distrl.errors import BadInput
from distrl.maths.random import stream
from distrl.policies.lm import causal_head, core
from distrl.rlhf.batches import start
from distrl.rlhf.fast_paths import decoding
from distrl.rlhf.fixed import LOOK_EVERY, Lanes, Steps, why_not
from distrl.rlhf.responses import Responses
from distrl.rlhf.ways import Way, way_of


@dataclass(frozen=True)
class Written:
    """An answer to one prompt: its tokens, with the end of text where it ended of itself, and their log-probs."""

    tokens: list[int]
    log_probs: list[float]
    ended: bool


class Generator(Protocol):
    """What RLHF asks of whoever samples. One's own, an inference server say, needs this method alone.

    `RoleSpec.generator` makes it, of the model that it is to write with: whose parameters are changed in place after an
    update, while no call is under way. With log-probs that differ from the learner's in more than rounding, ask for
    `exact_ratio`.
    """

    def generate(self, prompts: Sequence[Sequence[int]], uniform_NT: NDArray[np.float32]) -> list[Written]:
        """One answer to each prompt; token t of row n is the one that `uniform_NT[n, t]` picks.

        Log-probs are those of the distribution sampled from, at its temperature. T is the length limit.
        """
        ...


def uniforms(seed: int, iteration: int, rows: Sequence[int], max_response: int) -> NDArray[np.float32]:
    """[N, T] in [0, 1), each row from the stream of its place in the run's batch."""
    return np.stack(
        [stream(seed, "token", iteration, row).random(max_response, dtype=np.float32) for row in rows]
    )


def pick(log_probs_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """The token where the cumulative probability passes u, [N]: the inverse of the distribution function."""
    cumulative_NV = log_probs_NV.exp().cumsum(-1)
    threshold_N1 = (uniform_N * cumulative_NV[:, -1]).unsqueeze(-1)
    # at most the last token with a probability, where rounding puts the threshold on the sum itself
    return (
        torch.searchsorted(cumulative_NV, threshold_N1, right=True)
        .squeeze(-1)
        .clamp(max=log_probs_NV.shape[1] - 1)
    )


@dataclass(frozen=True)
class Picker:
    """The next token after texts whose last hidden states are given, and its log-prob at the temperature."""

    head: Callable[[Tensor], Tensor]
    temperature: float
    greedy: bool
    choose: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, hidden_NH: Tensor, uniform_N: Tensor) -> tuple[Tensor, Tensor]:
        """[N] each."""
        logits = self.head(hidden_NH).float()
        log_probs = torch.log_softmax(logits if self.temperature == 1 else logits / self.temperature, dim=-1)
        chosen = log_probs.argmax(-1) if self.greedy else self.choose(log_probs, uniform_N)
        return chosen, log_probs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


class CachedGenerator:
    """`Generator` with a transformers causal LM on any device.

    `end_tokens` end a response and belong to it. `greedy` takes the likeliest token instead. There is no
    top-k or top-p: what they leave out, log-probs of the whole vocabulary would not know. `fast`: see `fast_paths`;
    `vocabulary`: see `LanguagePolicy`. `steps` and `longest`: see `distrl.rlhf.fixed`; BadInput where such steps cannot be had.
    `look_every`: tokens between looks for ends; None: 1 on a CPU, a few on a GPU, which the host waits for.
    `way`: how the model's cache is used, `fast` in it, see `distrl.rlhf.ways`; None: tried on the model now.
    """

    def __init__(
        self,
        model: nn.Module,
        end_tokens: Sequence[int],
        temperature: float = 1.0,
        greedy: bool = False,
        fast: bool = True,
        choose: Callable[[Tensor, Tensor], Tensor] = pick,
        vocabulary: int | None = None,
        steps: Steps = "plain",
        longest: int | None = None,
        look_every: int | None = None,
        way: Way | None = None,
    ) -> None:
        self.model = model
        self.end_tokens = sorted(set(end_tokens))
        self.pick = Picker(causal_head(model, vocabulary), temperature, greedy, choose)
        self.steps = steps
        self.look_every = look_every
        reason = why_not(steps, cast(Any, core(model)).config, self.device.type)
        if reason is not None:
            raise BadInput(f"--generation {steps}: {reason}")
        if way is None:
            way = way_of(model, fast, vocabulary) if steps == "plain" else Way("stored", fast)
        self.way = way
        self.lanes = Lanes(model, self.pick, self.end_tokens, steps, longest, self.way.fast)

    @property
    def device(self) -> torch.device:
        """Where it computes now."""
        return next(self.model.parameters()).device

    def rest(self) -> None:
        """Lets go of the memory and graphs that it keeps from call to call."""
        self.lanes.lanes.clear()

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], uniform_NT: NDArray[np.float32]) -> list[Written]:
        if self.steps != "plain":
            return _cut(*self.lanes.write(prompts, uniform_NT), set(self.end_tokens))
        if not self.way.one_length:
            return self._together(prompts, uniform_NT)
        written: list[Written | None] = [None] * len(prompts)
        lengths = np.array([len(prompt) for prompt in prompts])
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            together = self._together([prompts[row] for row in rows.tolist()], uniform_NT[rows])
            for row, one in zip(rows.tolist(), together, strict=True):
                written[row] = one
        return cast(list[Written], written)

    def _together(self, prompts: Sequence[Sequence[int]], uniform_NT: NDArray[np.float32]) -> list[Written]:
        padded = len({len(prompt) for prompt in prompts}) > 1
        with decoding(self.model, padded, self.way.fast):
            return self._generate(prompts, uniform_NT)

    def _generate(self, prompts: Sequence[Sequence[int]], uniform_NT: NDArray[np.float32]) -> list[Written]:
        limit, device = uniform_NT.shape[1], self.device
        batch = start(prompts, limit, self.model, self.way)
        uniform = torch.from_numpy(np.ascontiguousarray(uniform_NT)).to(device)
        ends = torch.tensor(self.end_tokens, device=device)
        rows = torch.arange(len(prompts), device=device)  # that are still written
        running = torch.ones(len(prompts), dtype=torch.bool, device=device)
        look_every = self.look_every or (1 if device.type == "cpu" else LOOK_EVERY)
        stays = self.way.reading == "staying"
        written: list[tuple[Tensor, Tensor, Tensor]] = []  # of each step: rows, tokens, their log-probs
        for t in range(limit):
            chosen, log_prob = self.pick(batch.hidden, uniform[:, t])
            written.append((rows, chosen, log_prob))
            if len(ends):
                running = running & torch.isin(chosen, ends, invert=True)
            if len(ends) and (t + 1) % look_every == 0:
                stay = running.nonzero().squeeze(-1)  # the host waits for the device
                if not len(stay):
                    break
                if len(stay) < len(rows) and not stays:
                    rows, chosen, uniform, running = (one[stay] for one in (rows, chosen, uniform, running))
                    batch.keep(stay)
            if t + 1 < limit:
                batch.go_on(chosen)
        return _answers(written, len(prompts), set(self.end_tokens))


def _answers(written: list[tuple[Tensor, Tensor, Tensor]], num_rows: int, ends: set[int]) -> list[Written]:
    """Each row's tokens and log-probs; the host waits for the device here alone, but for rows that end."""
    tokens: list[list[int]] = [[] for _ in range(num_rows)]
    log_probs: list[list[float]] = [[] for _ in range(num_rows)]
    rows, chosen, said = (torch.cat(parts).tolist() for parts in zip(*written, strict=True))
    for row, token, log_prob in zip(rows, chosen, said, strict=True):
        tokens[row].append(token)
        log_probs[row].append(log_prob)
    return [_up_to_its_end(*one, ends) for one in zip(tokens, log_probs, strict=True)]


def _cut(token_NT: NDArray[np.int64], log_prob_NT: NDArray[np.float32], ends: set[int]) -> list[Written]:
    return [_up_to_its_end(*one, ends) for one in zip(token_NT.tolist(), log_prob_NT.tolist(), strict=True)]


def _up_to_its_end(tokens: list[int], log_probs: list[float], ends: set[int]) -> Written:
    """Without what a row wrote on before anybody looked."""
    length = next((at for at, token in enumerate(tokens, 1) if token in ends), len(tokens))
    return Written(tokens[:length], log_probs[:length], tokens[length - 1] in ends)


def respond(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int] | NDArray[np.int64],
    seed: int,
    iteration: int,
    rows: Sequence[int],
    max_response: int,
    version: int,
) -> Responses:
    """One response to each prompt. `rows` are their places in the run's batch, `numbers` the prompts' in the data."""
    written = generator.generate(prompts, uniforms(seed, iteration, rows, max_response))
    return Responses.write(
        prompts,
        [one.tokens for one in written],
        [one.log_probs for one in written],
        [one.ended for one in written],
        numbers,
        version,
    )
