"""Supervised fine-tuning against a float64 twin, its state, and what it does for held-out demonstrations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distrl.errors import BadInput, RunFailed
from distrl.learner import digest
from distrl.policies.protocol import parameters_and_buffers
from distrl.rlhf.data import Demonstration
from distrl.rlhf.generation import CachedGenerator
from distrl.rlhf.models import LoraOptions, ModelParts, new_causal, read_causal, save, with_lora
from distrl.rlhf.sft import Imitation, sft_trainer, train_sft
from distrl.rlhf.tokenizers import read_tokenizer
from distrl.rlhf.training import TrainOptions, learning_rate, steps
from tests.rlhf.conftest import family_config

OPTIONS = TrainOptions(learning_rate=3e-3, epochs=3, batch_size=8)


def toy(count: int = 48, seed: int = 0) -> list[Demonstration]:
    """Prompts `... a 3`, answered by a + 1 twice and an end."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        prompt = generator.integers(5, 15, int(generator.integers(1, 7))).tolist()
        rows.append(Demonstration((*prompt, 3, prompt[-1] + 1, prompt[-1] + 1, 2), len(prompt) + 1))
    return rows


def small_parts(seed: int = 0) -> ModelParts:
    return new_causal(family_config("llama", 64), seed)


def twin_loss(parts: ModelParts, rows: list[Demonstration]) -> float:
    """From the family's own logits in float64, text by text: minus log-prob of completion tokens, over their number."""
    model = parts.build().double()
    total, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            log_probs = torch.log_softmax(model(torch.tensor([row.tokens])).logits[0], dim=-1)
        for place in range(row.num_prompt, len(row.tokens)):
            total -= float(log_probs[place - 1, row.tokens[place]])
            count += 1
    return total / count


def test_the_loss_is_the_mean_over_completion_tokens_alone(family_folder: Path) -> None:
    parts = read_causal(family_folder)
    rows = toy(9)
    objective = Imitation(parts.build(), rows)
    every = np.arange(9)
    loss, _ = objective.losses(every)
    assert objective.count(every) == 27
    assert float(loss.detach()) / 27 == pytest.approx(twin_loss(parts, rows), rel=1e-5)


def test_a_step_is_the_same_for_any_micro_batch() -> None:
    after = []
    for size in (None, 1, 3):
        trainer = sft_trainer(
            small_parts(), toy(8), options=replace(OPTIONS, micro_batch=size, adam_eps=1e-3)
        )
        told = trainer.step()
        after.append((parameters_and_buffers(trainer.model), told["loss"]))
    (whole, loss), *others = after
    assert loss == pytest.approx(twin_loss(small_parts(), toy(8)), rel=1e-5)
    for arrays, other_loss in others:
        assert other_loss == pytest.approx(loss, rel=1e-5)
        for name in whole:
            np.testing.assert_allclose(arrays[name], whole[name], atol=2e-6)


def test_held_out_loss_falls_and_the_task_is_learned() -> None:
    told: list[dict[str, float]] = []
    rows, held_out = toy(400), toy(32, seed=1)
    options = replace(OPTIONS, learning_rate=1e-2, epochs=6, batch_size=16, evaluate_every=40)
    trained = train_sft(small_parts(), rows, held_out, options, on_step=told.append)
    held = [one["held_out_loss"] for one in told if "held_out_loss" in one]
    assert [one["step"] for one in told if "held_out_loss" in one] == [0, 40, 80, 120, 150]
    assert held[0] == pytest.approx(twin_loss(small_parts(), held_out), rel=1e-4)
    assert held[-1] == pytest.approx(twin_loss(trained, held_out), rel=1e-3, abs=1e-5)
    assert held[-1] < 0.1 < 3.0 < held[0]
    written = CachedGenerator(trained.build(), (2,), greedy=True).generate(
        [row.tokens[: row.num_prompt] for row in held_out], np.zeros((32, 8), np.float32)
    )
    right = [
        tuple(one.tokens) == row.tokens[row.num_prompt :] for one, row in zip(written, held_out, strict=True)
    ]
    assert np.mean(right) > 0.9


def test_a_trainer_that_was_put_back_goes_on_with_the_same_bits() -> None:
    def fresh() -> Any:
        return sft_trainer(small_parts(), toy(20), toy(5, 1), OPTIONS)

    whole = fresh()
    told = list(steps(whole))
    first = fresh()
    before = [first.step() for _ in range(4)]  # in the middle of the second epoch
    second = fresh()
    second.load_state(first.state())
    after = list(steps(second))
    assert [*before, *after] == told[1:]
    assert digest(parameters_and_buffers(second.model)) == digest(parameters_and_buffers(whole.model))
    other = sft_trainer(small_parts(), toy(20), toy(5, 1), replace(OPTIONS, seed=1))
    list(steps(other))
    assert digest(parameters_and_buffers(other.model)) != digest(parameters_and_buffers(whole.model))


def test_with_adapters_the_model_below_stays_and_the_loss_falls(gpt2_folder: Path) -> None:
    plain = read_causal(gpt2_folder)
    adapted = with_lora(plain, LoraOptions(rank=4), seed=0)
    rows = toy(64)
    options = replace(OPTIONS, learning_rate=2e-2)
    trained = train_sft(adapted, rows, options=options)
    changed = {
        name for name in trained.arrays if not np.array_equal(trained.arrays[name], adapted.arrays[name])
    }
    assert changed == {name for name in trained.arrays if "lora_" in name}
    assert twin_loss(trained, rows) < 0.8 * twin_loss(plain, rows)


def test_a_trained_model_is_a_folder_as_transformers_has_it(gpt2_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = read_tokenizer(gpt2_folder)
    adapted = with_lora(read_causal(gpt2_folder), LoraOptions(rank=4), seed=0)
    trained = train_sft(adapted, toy(16), options=replace(OPTIONS, learning_rate=2e-2))
    save(trained, tmp_path, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    found = twin_loss(ModelParts.of(model, "causal"), toy(16))
    assert found == pytest.approx(twin_loss(trained, toy(16)), rel=1e-4)
    assert read_tokenizer(tmp_path).chat_template == tokenizer.chat_template
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


def test_gradients_that_are_not_finite_are_skipped_counted_and_too_many_end_the_run() -> None:
    parts = small_parts()
    broken = parts.with_arrays(parts.arrays | {"lm_head.weight": parts.arrays["lm_head.weight"] * np.nan})
    trainer = sft_trainer(broken, toy(48), options=replace(OPTIONS, max_skipped_updates=3))
    before = digest(parameters_and_buffers(trainer.model))
    assert [trainer.step()["skipped_updates"] for _ in range(2)] == [1.0, 2.0]
    assert digest(parameters_and_buffers(trainer.model)) == before
    with pytest.raises(RunFailed, match="3 steps in a row had a NaN or Inf gradient"):
        trainer.step()


def test_the_learning_rate_rises_and_falls_linearly() -> None:
    options = TrainOptions(learning_rate=1.0, warmup=0.2)
    rates = [learning_rate(options, step, 10) for step in range(10)]
    np.testing.assert_allclose(rates, [1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert learning_rate(replace(options, warmup=0.0), 0, 1) == 1.0


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(BadInput, match="there must be a row"):
        sft_trainer(small_parts(), [])
