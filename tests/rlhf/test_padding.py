"""Padding is not computed on: what a trunk is given, position by position, is counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from distrl.policies.lm import core
from distrl.rlhf.generation import CachedGenerator
from distrl.rlhf.opinions import log_probs, pieces
from distrl.rlhf.responses import Responses
from distrl.rlhf.roles import RoleWorker
from tests.rlhf.small_models import VOCABULARY, causal, policy_of
from tests.roles.small import SMALL_PPO, models, spec

RANDOM = np.random.default_rng(0)
SHORT, LONG = 3, 40


@contextmanager
def positions(model: nn.Module) -> Iterator[list[int]]:
    """Of each pass through the trunk of `model`: rows times positions."""
    seen: list[int] = []

    def count(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        given = kwargs.get("inputs_embeds", kwargs.get("input_ids", args[0] if args else None))
        assert isinstance(given, torch.Tensor)
        seen.append(given.shape[0] * given.shape[1])

    handle = core(model).base_model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def prompt(length: int) -> list[int]:
    return [3, *RANDOM.integers(3, VOCABULARY, length - 1).tolist()]


def texts() -> Responses:
    """Eight short ones and eight long ones, one after the other."""
    lengths = [SHORT, LONG] * 8
    responses = [[4] * (length - 2) for length in lengths]
    return Responses.write(
        [[3, 5]] * 16, responses, [[-1.0] * len(one) for one in responses], [True] * 16, range(16)
    )


def test_short_texts_are_not_padded_to_the_long_ones_where_nothing_is_learned():
    some = texts()
    policy = policy_of(causal("gpt2"))
    with positions(policy.actor) as seen:
        log_probs(policy, some, pieces(some, 64, 0, 1))
    assert sum(seen) == int(some.length.sum()) == 8 * (SHORT + LONG)


def test_short_texts_are_not_padded_to_the_long_ones_where_it_is_learned():
    worker = RoleWorker(spec(SMALL_PPO, micro_batch=None), ("actor", "critic", "reference"), models())
    update = worker.learner.shared
    some = texts()
    cut = update.pieces(some.length, np.arange(16))
    assert sum(len(piece) * int(some.length[piece].max()) for piece in cut) == int(some.length.sum())


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("steps", ["plain", "fixed"])
def test_prompts_are_read_once_each_and_short_ones_are_not_padded_to_the_long_ones(family, steps):
    model = causal(family).build()
    prompts = [prompt(length) for length in [SHORT, 24] * 8] * 2
    generator = CachedGenerator(model, [], steps=steps)  # which tries the model
    with positions(model) as seen:
        generator.generate(prompts, RANDOM.random((32, 2)).astype(np.float32))
    distinct = {tuple(one) for one in prompts}
    assert sum(seen) == sum(map(len, distinct)) + 32  # and one step


@pytest.mark.parametrize("steps", ["plain", "fixed"])
def test_a_row_says_what_it_would_say_alone_whoever_shares_its_prompt_or_pads_it(steps):
    model = causal("gpt2").build()
    prompts = [prompt(SHORT), prompt(24), prompt(5)] * 2 + [prompt(24) for _ in range(10)]
    uniform = RANDOM.random((len(prompts), 6)).astype(np.float32)
    together = CachedGenerator(model, [], steps=steps).generate(prompts, uniform)
    for row, one in enumerate(prompts):
        alone = CachedGenerator(model, []).generate([one], uniform[row : row + 1])[0]
        assert together[row].tokens == alone.tokens
        np.testing.assert_allclose(together[row].log_probs, alone.log_probs, atol=2e-5)
