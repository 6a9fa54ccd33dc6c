"""How a model is written with: the ways there are, and which of them gives what a full forward gives, tried on the model.

    stored        keys and values in arrays with room from the start; rows leave           plain attention
    padded        transformers' cache, prompts left-padded                                  attention within windows
    joined        prompts of one length are read together, states joined; rows leave       states of recurrences
    by length     prompts of one length are written together; rows leave                    windows beside recurrences
    staying       the same, and rows stay until all have ended                              states that are not taken apart
    recomputed    no cache: the whole text for every token                                  any causal model

The first one whose log-probs are a full forward's is taken, so that what is sampled is what learns. Twins of slow places
(`fast_paths`) are proved alike, or not taken. A function of the model and its configuration alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from distrl.errors import BadInput, cause
from distrl.maths.random import stream
from distrl.policies.lm import causal_head, context_length, core, trunk, trunk_hidden
from distrl.rlhf.fixed import Steps
from distrl.rlhf.states import cache_name

Reading = Literal["stored", "padded", "joined", "by length", "staying", "recomputed"]
PROMPTS = (7, 3, 7, 4)  # tokens of the texts that are tried
STEPS = 10
# of log-probs, as shares of their deviation over the vocabulary where that is below 1: what passes for rounding in any
# model, and at most, by the dtype; between the two it is NOISE times what a batch of other shape changes in the model itself
ALWAYS = {torch.float32: 5e-5, torch.bfloat16: 0.3}
AT_MOST = {torch.float32: 1e-3, torch.bfloat16: 0.3}
NOISE = 30.0


@dataclass(frozen=True)
class Way:
    """How a model is written with."""

    reading: Reading = "stored"
    fast: bool = True  # `fast_paths.decoding`
    notes: tuple[str, ...] = ()  # what was not taken, and why

    @property
    def one_length(self) -> bool:
        """Prompts that are written together have one length."""
        return self.reading in ("by length", "staying")

    @property
    def name(self) -> str:
        """For a run's records."""
        return self.reading + (", one-query attention" if self.fast else "")


def readings(config: Any, of_text: nn.Module) -> tuple[Reading, ...]:
    """Those that may fit a model, the fastest first."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionCacheLayerMixin

    name = cache_name(of_text)
    if name is None or _clamps(of_text):
        return ("recomputed",)
    last: tuple[Reading, ...] = ("by length", "staying", "recomputed")
    if name != "past_key_values":
        return ("joined", *last)
    layers = DynamicCache(config=config).layers
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers):
        return ("joined", *last)
    if all(type(layer) is DynamicLayer for layer in layers):
        return ("stored", "joined", *last)
    return ("padded", *last)


def _clamps(of_text: nn.Module) -> bool:
    """Whether it has Mamba-2 layers that keep their time step within limits, as Nemotron-H's and Zamba2's are.

    transformers does so in a pass over a text and not in a step of one token, which differ where a limit is met.
    """
    limits = (getattr(module, "time_step_limit", None) for module in of_text.modules())
    return any(limit is not None and (limit[0] > 0 or limit[1] < float("inf")) for limit in limits)


def way_of(model: nn.Module, fast: bool = True, vocabulary: int | None = None, required: bool = False) -> Way:
    """The first way that gives what a full forward gives; where none does, the first of all, or BadInput if `required`."""
    own = cast(Any, core(model))
    trials = Trials(model, vocabulary)
    failed: list[str] = []
    every = readings(own.config, trunk(model))
    for reading in every:
        why = trials.why_not(Way(reading, fast=False))
        if why is None:
            return _with_fast(trials, reading, fast, failed)
        failed.append(f"{reading}: {why}")
    told = f"no way of generating with a {own.config.model_type} model gives what its full forward pass gives ({'; '.join(failed)})"
    if required:
        raise BadInput(f"{told}; is it a causal LM? `distrl doctor --model` says what is wrong with it")
    return Way(every[0], fast=False, notes=(told,))


def _with_fast(trials: Trials, reading: Reading, fast: bool, failed: Sequence[str]) -> Way:
    config = cast(Any, core(trials.model)).config
    family = config.model_type
    notes = []
    if reading == "recomputed":
        why_not = failed[-1] if failed else "it has none, or clamps its time step in a full forward alone"
        notes.append(
            f"no cache of the family {family} gives what a full forward gives ({why_not}): every token is computed from the "
            "whole text, which takes longer"
        )
    elif reading in ("by length", "staying"):
        notes.append(
            f"prompts of one length are written together: the states of a {family} model cannot be padded"
        )
    fast &= (
        reading != "recomputed" and config._attn_implementation == "sdpa"
    )  # else it is no path of this model's
    why = trials.why_not(Way(reading)) if fast else None
    if why is not None:
        notes.append(
            f"the fast path of attention on a CPU does not fit the family {family} ({why}): not taken"
        )
    return Way(reading, fast and why is None, tuple(notes))


class Trials:
    """Trials of one model. Experts are chosen by a comparison, which rounding may turn: a fault shows in every trial."""

    def __init__(self, model: nn.Module, vocabulary: int | None, tries: int = 2) -> None:
        self.model, self.vocabulary, self.tries = model, vocabulary, tries
        self.made: list[Trial] = []

    def why_not(self, way: Way, steps: Steps = "plain") -> str | None:
        """What keeps that way, of those steps, from giving what a full forward gives; None: nothing."""
        why = None
        for attempt in range(self.tries):
            if attempt == len(self.made):
                self.made.append(Trial.of(self.model, self.vocabulary, attempt))
            why = self.made[attempt].why_not(way, steps)
            if why is None:
                return None
        return why


@dataclass(frozen=True)
class Trial:
    """Texts that are given, not sampled, and their log-probs by a full forward, text by text."""

    model: nn.Module
    vocabulary: int | None
    prompts: list[list[int]]
    answers: list[list[int]]  # of STEPS tokens; the second one ends before
    end: int
    expected: list[np.ndarray]  # of each answer's tokens
    spread: float  # deviation of log-probs over the vocabulary
    noise: float  # how far the log-probs are from those of the texts together

    @classmethod
    @torch.inference_mode()
    def of(cls, model: nn.Module, vocabulary: int | None, attempt: int = 0) -> Trial:
        head = causal_head(model, vocabulary)
        device = next(model.parameters()).device
        lengths, steps = _sizes(cast(Any, core(model)).config)
        prompts, answers, end = _texts(head.vocabulary, lengths, steps, attempt)
        expected, spreads = [], []
        for prompt, answer in zip(prompts, answers, strict=True):
            text = torch.tensor([prompt + answer], device=device)
            hidden = trunk_hidden(model, text)[0, len(prompt) - 1 : -1]
            log_probs = torch.log_softmax(head(hidden).float(), -1)
            spreads.append(float(log_probs.std(-1).mean()))
            expected.append(log_probs.gather(-1, text[0, len(prompt) :, None])[:, 0].cpu().numpy())
        spread = float(np.mean(spreads))
        noise = _noise(model, head, prompts, answers, expected)
        return cls(model, vocabulary, prompts, answers, end, expected, spread, noise)

    @property
    def bound(self) -> float:
        """How far log-probs may be off."""
        found = next(self.model.parameters()).dtype
        dtype = found if found in ALWAYS else torch.bfloat16
        scale = min(1.0, self.spread)
        return min(max(ALWAYS[dtype] * scale, NOISE * self.noise), AT_MOST[dtype] * scale)

    def why_not(self, way: Way, steps: Steps = "plain") -> str | None:
        """As `Trials.why_not`, of these texts."""
        from distrl.rlhf.generation import CachedGenerator

        try:
            generator = CachedGenerator(
                self.model, [self.end], choose=_given, vocabulary=self.vocabulary, steps=steps, look_every=1, way=way
            )  # fmt: skip
            written = generator.generate(self.prompts, self._as_uniforms())
        except (
            Exception
        ) as error:  # a family's code may raise anything where it is used otherwise than it was written for
            return cause(error)
        off = 0.0
        for one, answer, expected in zip(written, self.answers, self.expected, strict=True):
            length = answer.index(self.end) + 1 if self.end in answer else len(answer)
            if one.tokens != answer[:length]:
                return "other tokens"
            off = max(off, float(np.abs(np.array(one.log_probs) - expected[:length]).max()))
        return None if off <= self.bound else f"log-probs are {off:.2g} off"

    def _as_uniforms(self) -> np.ndarray:
        """[N, T]: the tokens themselves, which `_given` reads back; integers below 2^24 are exact in float32."""
        return np.array(self.answers, np.float32)


def _noise(
    model: nn.Module,
    head: Callable[[Tensor], Tensor],
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    expected: Sequence[np.ndarray],
) -> float:
    """The largest difference of the expected from the same texts right-padded in one batch."""
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    longest = max(map(len, texts))
    rows = [text + [0] * (longest - len(text)) for text in texts]
    token = torch.tensor(rows, device=next(model.parameters()).device)
    hidden, off = trunk_hidden(model, token), 0.0
    for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        first = len(prompt) - 1
        log_probs = torch.log_softmax(head(hidden[n, first : first + len(answer)]).float(), -1)
        said = log_probs.gather(-1, torch.tensor(answer, device=token.device)[:, None])[:, 0]
        off = max(off, float(np.abs(said.cpu().numpy() - expected[n]).max()))
    return off


def _given(log_probs_NV: Tensor, uniform_N: Tensor) -> Tensor:
    return uniform_N.long()


def _sizes(config: Any) -> tuple[list[int], int]:
    """Lengths of prompts and steps, in a context that may be short."""
    limit = context_length(config)
    if limit is None or limit >= max(PROMPTS) + STEPS:
        return [*PROMPTS], STEPS
    steps = max(limit // 2, 1)
    return [max(min(length, limit - steps), 1) for length in PROMPTS], steps


def _texts(
    rows: int, lengths: Sequence[int], steps: int, attempt: int
) -> tuple[list[list[int]], list[list[int]], int]:
    """Tokens from all over the vocabulary; the second text has the end in its second place, where no other has it."""
    end = max(rows - 1, 0)
    count = sum(lengths) + steps * len(lengths)
    drawn = iter(stream(0, "trial", attempt).integers(max(rows - 1, 1), size=count).tolist())
    prompts = [[next(drawn) for _ in range(length)] for length in lengths]
    answers = [[next(drawn) for _ in range(steps)] for _ in lengths]
    if steps > 1 and rows > 1:
        answers[1][1] = end
    return prompts, answers, end
