"""The twins of slow places: the same numbers, and off where they do not serve."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import GPT2Config, GPT2LMHeadModel

from distrl.rlhf import generation
from distrl.rlhf.certificate import EnumerableTask, certify, make_worker
from distrl.rlhf.data import Prompt
from distrl.rlhf.fast_paths import DECODE, DECODE_PADDED, decoding, few_queries, fused_activations
from distrl.rlhf.models import read_causal, scalar_from
from distrl.rlhf.rewards import ScoreScale, save_reward
from distrl.rlhf.role_spec import ROLES
from distrl.rlhf.roles import RoleWorker
from distrl.stages.evaluation import Evaluator
from distrl.stages.materials import reward_model


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)).eval()


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_few_queries_attend_as_torch_does_also_where_heads_share_keys(
    heads: tuple[int, int], masked: bool, num_rows: int
) -> None:
    torch.manual_seed(2)
    num_queries, num_keys = heads
    query = torch.randn(3, num_queries, num_rows, 8)
    key, value = torch.randn(3, num_keys, 5, 8), torch.randn(3, num_keys, 5, 8)
    mask = torch.rand(3, 1, num_rows, 5) > 0.4 if masked else None
    if mask is not None:
        mask[..., 0] = True
    found = few_queries(query, key, value, mask, 0.3)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_the_mask_is_looked_at() -> None:
    query, key, value = torch.ones(1, 1, 1, 2), torch.ones(1, 1, 2, 2), torch.tensor([[[[1.0], [9.0]]]])
    seen = torch.tensor([[[[True, False]]]])
    assert few_queries(query, key, value, seen, 1.0).item() == 1.0
    assert few_queries(query, key, value, None, 1.0).item() == 5.0


def test_fused_activations_are_gpt2s_own_within_rounding_forward_and_back() -> None:
    slow, tokens = gpt2(), torch.arange(20).reshape(2, 10)
    fast = fused_activations(copy.deepcopy(slow))
    assert any(isinstance(module, torch.nn.GELU) for module in fast.modules())
    gradients = []
    for model in (slow, fast):
        model(tokens).logits.square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(fast(tokens).logits, slow(tokens).logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-7)


def test_decoding_is_on_inside_alone_and_leaves_models_that_attend_otherwise_as_they_are() -> None:
    model = gpt2()
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(KeyError), decoding(model, padded=False):
        assert model.config._attn_implementation == DECODE
        raise KeyError
    assert model.config._attn_implementation == "sdpa"
    with decoding(model, padded=True):
        assert model.config._attn_implementation == DECODE_PADDED
    with decoding(model, padded=True, fast=False):
        assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    with decoding(model, padded=False):
        assert model.config._attn_implementation == "eager"


def test_a_run_without_fast_paths_uses_transformers_own_and_learns_the_same_within_rounding() -> None:
    task = EnumerableTask(1, vocabulary=4, length=2, width=8)
    first = make_worker(task, 0.5, 1, 32)
    models = {"actor": task.reference, "reference": task.reference, "critic": scalar_from(task.reference)}
    stands = []
    for fast in (True, False):
        worker = RoleWorker(replace(first.spec, fast_paths=fast), ROLES, models)
        assert any(isinstance(module, torch.nn.GELU) for module in worker.writer.modules()) == fast
        stands.append(
            [one.objective for one in certify(task, 0.5, 1, iterations=2, num_responses=32, worker=worker)]
        )
    assert stands[0] == pytest.approx(stands[1], abs=1e-4)
    assert stands[0][-1] != stands[1][-1], "they are two computations"


@pytest.mark.parametrize("fast", [True, False])
def test_a_look_at_a_policy_and_its_reward_take_the_fast_paths_that_the_run_takes(
    fast: bool, gpt2_folder: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, seen = read_causal(gpt2_folder), []

    def watched(model: Any, padded: bool, asked: bool = True) -> Any:
        seen.append(asked)
        return decoding(model, padded, asked)

    monkeypatch.setattr(generation, "decoding", watched)
    save_reward(scalar_from(parts), ScoreScale(), tmp_path / "reward")
    reward = reward_model(str(tmp_path / "reward"), tokenizer, fast)
    prompts = (Prompt("a", (5, 6), {}),)
    evaluator = Evaluator(prompts, parts, reward, (3,), max_response=2, fast_paths=fast)
    evaluator.evaluate(parts)
    scorer, reference = cast(Any, evaluator._scorer).model, cast(Any, evaluator._reference)
    assert seen[-1] == fast and any(seen) == fast, "the fast path was tried first"
    for model in (scorer, reference, evaluator._built(parts)):
        assert any(isinstance(one, torch.nn.GELU) for one in model.modules()) == fast
