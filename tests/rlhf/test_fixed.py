"""Generation in fixed shapes, its steps run one by one: the same tokens as the plain loop's, whoever ends when."""

from __future__ import annotations

import gc
import shutil
import weakref
from typing import Any, cast

import numpy as np
import pytest
import torch

from distrl.errors import BadInput
from distrl.policies.lm import core
from distrl.rlhf import fixed
from distrl.rlhf.fixed import LOOK_EVERY, MAX_LANES, sizes, why_not
from distrl.rlhf.generation import CachedGenerator, Written, uniforms
from distrl.rlhf.models import LoraOptions, with_lora
from tests.rlhf.small_models import VOCABULARY, causal

SERVED = ["gpt2", "llama", "qwen2", "gpt-neox", "cohere", "granite"]
LIMIT = 3 * LOOK_EVERY + 2
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5], [3, 5]] * 4
RANDOM = uniforms(0, 0, range(len(PROMPTS)), LIMIT)
ENDS = [4, 9]


def both(model: torch.nn.Module, ends: list[int], **options: Any) -> tuple[CachedGenerator, CachedGenerator]:
    return tuple(CachedGenerator(model, ends, steps=one, **options) for one in ("plain", "fixed"))  # type: ignore[return-value]


def assert_alike(one: list[Written], other: list[Written]) -> None:
    assert [row.tokens for row in one] == [row.tokens for row in other]
    assert [row.ended for row in one] == [row.ended for row in other]
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(mine.log_probs, theirs.log_probs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", SERVED)
@pytest.mark.parametrize(
    "how", [{"greedy": True}, {"temperature": 1.5}, {"vocabulary": VOCABULARY - 3}], ids=str
)
def test_fixed_shapes_write_the_plain_loops_tokens_token_for_token(family: str, how: dict[str, Any]) -> None:
    plain, static = both(causal(family).build(), ENDS, **how)
    wanted = plain.generate(PROMPTS, RANDOM)
    assert_alike(static.generate(PROMPTS, RANDOM), wanted)
    assert static.lanes.lanes and not plain.lanes.lanes
    lengths = {len(row.tokens) for row in wanted}
    assert len(lengths) > 2 or how.get("greedy"), "rows end at several times"


def test_rows_that_have_ended_leave_by_halves_and_when_all_have_nothing_more_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[int] = []
    real = fixed._Lane._step

    def seen(lane: Any, n: int) -> None:
        steps.append(n)
        real(lane, n)

    monkeypatch.setattr(fixed._Lane, "_step", seen)
    model = causal().build()
    plain, static = both(model, ENDS)
    lengths = np.array([len(row.tokens) for row in plain.generate(PROMPTS, RANDOM)])
    static.generate(PROMPTS, RANDOM)
    expected, n = [], len(PROMPTS)
    for written in range(1, LIMIT):
        if written % LOOK_EVERY == 0:
            running = int((lengths > written).sum())
            if not running:
                break
            n = min(n, min(size for size in sizes(len(PROMPTS)) if size >= running))
        expected.append(n)
    assert steps == expected
    assert len(set(steps)) > 1, "some did leave"
    steps.clear()
    CachedGenerator(model, list(range(VOCABULARY)), steps="fixed").generate(PROMPTS, RANDOM)
    assert len(steps) == LOOK_EVERY - 1, "all ended at once, and it was seen at the first look"


def test_sizes_are_halves_of_the_rows_there_are() -> None:
    assert sizes(64) == [64, 32, 16, 8]
    assert sizes(5) == [5, 3, 2, 1]
    assert sizes(1) == [1]


def test_a_shape_is_made_once_and_what_was_written_before_is_not_seen() -> None:
    model = causal("llama").build()
    plain, static = both(model, ENDS)
    other = [[7, 7], [1, 2, 3, 4, 5, 6], [8], [9, 9]] * 4
    random = uniforms(5, 1, range(len(PROMPTS)), LIMIT)
    for prompts, numbers in ((PROMPTS, RANDOM), (other, random), (PROMPTS, random)):
        assert_alike(static.generate(prompts, numbers), plain.generate(prompts, numbers))
    assert len(static.lanes.lanes) == 1
    for count in range(1, MAX_LANES + 3):
        some = PROMPTS[:count]
        assert_alike(static.generate(some, RANDOM[:count]), plain.generate(some, RANDOM[:count]))
    assert len(static.lanes.lanes) == MAX_LANES


def test_weights_that_change_in_place_are_the_ones_that_write_and_moved_ones_are_found() -> None:
    model = with_lora(causal("qwen2"), LoraOptions(rank=2), 0).build()
    plain, static = both(model, ENDS)
    before = static.generate(PROMPTS, RANDOM)
    (lane,) = static.lanes.lanes.values()
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.05)
    after = static.generate(PROMPTS, RANDOM)
    assert after != before
    assert_alike(after, plain.generate(PROMPTS, RANDOM))
    assert [*static.lanes.lanes.values()] == [lane], "its graphs read the weights where they are"
    for one in model.parameters():
        one.data = one.data.clone()
    assert_alike(static.generate(PROMPTS, RANDOM), after)
    assert [*static.lanes.lanes.values()] != [lane], "graphs of the place where they were are gone"


def test_one_token_and_no_ends_are_fine_too() -> None:
    plain, static = both(causal().build(), [])
    assert_alike(static.generate(PROMPTS, RANDOM[:, :1]), plain.generate(PROMPTS, RANDOM[:, :1]))
    alone = [[4]]
    assert_alike(static.generate(alone, RANDOM[:1]), plain.generate(alone, RANDOM[:1]))


def test_a_family_without_fixed_shapes_is_refused_and_says_why() -> None:
    told = {family: why_not("fixed", causal(family).config, "cpu") for family in (*SERVED, "gemma2")}
    assert [family for family, reason in told.items() if reason is not None] == ["gemma2"]
    assert why_not("plain", causal("gemma2").config, "cpu") is None
    with pytest.raises(
        BadInput, match=r"--generation fixed: .* gemma2 model has .*; give --generation plain"
    ):
        CachedGenerator(causal("gemma2").build(), ENDS, steps="fixed")
    with pytest.raises(BadInput, match=r"--generation captured: CUDA graphs want a GPU"):
        CachedGenerator(causal().build(), ENDS, steps="captured")


def test_what_a_generator_keeps_goes_with_it() -> None:
    """Memory and graphs on a GPU that waited for a collection of cycles would fill it."""
    generator = CachedGenerator(causal().build(), ENDS, steps="fixed")
    generator.generate(PROMPTS, RANDOM)
    (lane,) = map(weakref.ref, generator.lanes.lanes.values())
    gc.disable()
    try:
        del generator
        assert lane() is None
    finally:
        gc.enable()


def test_on_a_cpu_the_plain_loop_writes_unless_it_is_asked_otherwise() -> None:
    generator = CachedGenerator(causal().build(), ENDS)
    generator.generate(PROMPTS, RANDOM)
    assert not generator.lanes.lanes


def test_the_deterministic_setting_and_the_attention_are_put_back() -> None:
    model: Any = causal().build()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        CachedGenerator(model, ENDS, steps="fixed").generate(PROMPTS, RANDOM)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("every", [2, LOOK_EVERY, 1000])
def test_the_plain_loop_that_looks_for_ends_less_often_says_the_same(every: int) -> None:
    model = causal("gemma2").build()
    wanted = CachedGenerator(model, ENDS).generate(PROMPTS, RANDOM)
    assert_alike(CachedGenerator(model, ENDS, look_every=every).generate(PROMPTS, RANDOM), wanted)
    assert len({len(row.tokens) for row in wanted}) > 2


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


def count_of_compiled_steps() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@needs_compiler
@pytest.mark.parametrize(
    ("family", "ends"),
    [("gpt2", []), *(pytest.param(family, ENDS, marks=pytest.mark.slow) for family in SERVED)],
)
def test_a_compiled_step_writes_the_plain_loops_tokens(
    family: str, ends: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = causal(family).build()
    longest = max(map(len, PROMPTS)) + LIMIT + 3
    compiled = CachedGenerator(model, ends, steps="compiled", longest=longest)
    sizes_met: list[int] = []
    real = fixed._Lane._next

    def counted(lane: Any, n: int) -> None:
        sizes_met.append(n)
        real(lane, n)

    monkeypatch.setattr(fixed._Lane, "_next", counted)
    wanted = CachedGenerator(model, ends).generate(PROMPTS, RANDOM)
    for few in (PROMPTS, [[7]] * len(PROMPTS)):  # shorter texts have the same room
        told = compiled.generate(few, RANDOM)
        if few is PROMPTS:
            assert_alike(told, wanted)
    (lane,) = compiled.lanes.lanes.values()
    assert len(lane.column_S) == longest
    assert count_of_compiled_steps() == len(set(sizes_met)), (
        "one graph for each number of rows, none left uncompiled"
    )


def test_a_compiler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match=r"--generation compiled: .*no-such-compiler.*--generation plain"):
        CachedGenerator(causal().build(), ENDS, steps="compiled")


def test_a_buffer_that_moved_is_not_read_where_it_was() -> None:
    """A graph reads parameters and buffers at the addresses that it was captured with."""
    model: Any = causal("llama").build()
    static = CachedGenerator(model, ENDS, steps="fixed")
    static.generate(PROMPTS, RANDOM)
    (before,) = static.lanes.lanes.values()
    rotary = cast(Any, core(model)).base_model.rotary_emb
    kept = rotary.inv_freq  # its place is not given to another
    rotary.inv_freq = kept.clone()
    static.generate(PROMPTS, RANDOM)
    (after,) = static.lanes.lanes.values()
    assert after is not before


def test_a_nan_that_one_batch_left_reaches_no_later_one() -> None:
    model = causal().build()
    plain, static = both(model, ENDS)
    wanted = plain.generate(PROMPTS, RANDOM)
    static.generate(PROMPTS, RANDOM)
    (lane,) = static.lanes.lanes.values()
    with torch.inference_mode():
        for store in (store for layer in lane.cache.layers for store in layer.store):
            store.fill_(torch.nan)
    assert_alike(static.generate(PROMPTS, RANDOM), wanted)


def test_at_rest_a_generator_keeps_nothing() -> None:
    generator = CachedGenerator(causal().build(), ENDS, steps="fixed")
    generator.generate(PROMPTS, RANDOM)
    generator.rest()
    assert not generator.lanes.lanes
