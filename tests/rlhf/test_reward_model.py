"""The reward model against a float64 twin; a planted preference is found; scores are normalised on samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distrl.errors import RunFailed
from distrl.learner import digest
from distrl.maths.pieces import by_length
from distrl.policies.lm import core
from distrl.policies.protocol import parameters_and_buffers
from distrl.rlhf.data import Preference
from distrl.rlhf.models import LoraOptions, ModelParts, new_causal, read_causal, with_lora
from distrl.rlhf.responses import Responses
from distrl.rlhf.reward_model import (
    Comparison,
    accuracy_error,
    new_reward_model,
    reference_samples,
    reward_trainer,
    score_scale,
    train_reward_model,
)
from distrl.rlhf.rewards import ScoreScale, read_reward, save_reward
from distrl.rlhf.training import TrainOptions, steps
from tests.rlhf.conftest import family_config

OPTIONS = TrainOptions(learning_rate=3e-3, epochs=2, batch_size=16)
GOOD = 7


def planted(count: int, seed: int = 0) -> list[Preference]:
    """Texts of two lengths; preferred is the one with more tokens GOOD in its answer."""
    generator = np.random.default_rng(seed)
    rows = []
    while len(rows) < count:
        prompt = generator.integers(10, 30, int(generator.integers(1, 5))).tolist()
        answers = [
            np.where(generator.random(size) < 0.4, GOOD, generator.integers(10, 30, size)).tolist()
            for size in (5, 7)
        ]
        better = [answer.count(GOOD) for answer in answers]
        if better[0] == better[1]:
            continue
        one, other = ((*prompt, *answer, 2) for answer in answers)
        rows.append(Preference(*((one, other) if better[0] > better[1] else (other, one)), len(prompt)))
    return rows


def small_reward(seed: int = 0) -> ModelParts:
    return new_reward_model(new_causal(family_config("llama", 64), seed), seed)


def twin_score(parts: ModelParts, text: tuple[int, ...]) -> float:
    """At the last token, alone and in float64, by the trunk and the head."""
    model: Any = core(parts.build().double())
    with torch.no_grad():
        hidden = model.base_model(torch.tensor([text]), use_cache=False).last_hidden_state
        return float(model.score(hidden)[0, -1, 0])


def samples(count: int = 24) -> Responses:
    rows = planted(count, seed=5)
    prompts = [row.chosen[: row.num_prompt] for row in rows]
    answers = [row.chosen[row.num_prompt :] for row in rows]
    return Responses.write(
        prompts, answers, [[0.0] * len(one) for one in answers], [True] * count, range(count)
    )


def test_loss_and_accuracy_are_bradley_terrys(family_folder: Path) -> None:
    parts = new_reward_model(read_causal(family_folder), seed=1)
    rows = planted(10)
    loss, sums = Comparison(parts.build(), rows).losses(np.arange(10))
    margins = np.array([twin_score(parts, row.chosen) - twin_score(parts, row.rejected) for row in rows])
    wanted = -np.log(1 / (1 + np.exp(-margins)))
    assert float(loss.detach()) == pytest.approx(wanted.sum(), rel=1e-4)
    assert float(sums["accuracy"]) == (margins > 0).sum()
    assert float(sums["margin"]) == pytest.approx(margins.sum(), rel=1e-3, abs=1e-4)


def test_the_head_starts_with_a_deviation_of_one_over_the_root_of_width_and_one() -> None:
    parts = small_reward()
    drawn = np.concatenate(
        [
            new_reward_model(new_causal(family_config("llama", 64), 0), seed).arrays["score.weight"].ravel()
            for seed in range(30)
        ]
    )
    assert parts.arrays["score.weight"].shape == (1, 32)
    assert np.std(drawn) == pytest.approx(33**-0.5, rel=0.08)
    assert abs(np.std(drawn) - 1 / 33) > 0.1, "and not of one over width and one"


def test_a_model_that_says_nothing_is_right_in_half_of_the_pairs() -> None:
    parts = small_reward()
    flat = parts.with_arrays(parts.arrays | {"score.weight": np.zeros((1, 32), np.float32)})
    told = reward_trainer(flat, planted(8), planted(20, 1), OPTIONS).evaluate()
    assert told["held_out_accuracy"] == 0.5
    assert told["held_out_loss"] == pytest.approx(np.log(2))
    assert told["held_out_accuracy_error"] == pytest.approx(np.sqrt(0.25 / 20))


def test_a_planted_preference_is_found_in_pairs_that_were_held_out() -> None:
    told: list[dict[str, float]] = []
    options = replace(OPTIONS, learning_rate=5e-3, epochs=3)
    trained = train_reward_model(small_reward(), planted(320), planted(100, 1), options, on_step=told.append)
    first, last = told[0], told[-1]
    assert last["held_out_accuracy"] > 0.9 > 0.75 > first["held_out_accuracy"]
    assert last["held_out_accuracy_error"] == pytest.approx(accuracy_error(last["held_out_accuracy"], 100))
    by_twin = np.mean(
        [twin_score(trained, row.chosen) > twin_score(trained, row.rejected) for row in planted(100, 1)]
    )
    assert by_twin == pytest.approx(last["held_out_accuracy"], abs=0.011)


def test_a_reward_trainer_that_was_put_back_goes_on_with_the_same_bits() -> None:
    def fresh() -> Any:
        return reward_trainer(small_reward(), planted(40), planted(10, 1), OPTIONS)

    whole = fresh()
    told = list(steps(whole))
    first, second = fresh(), fresh()
    before = [first.step() for _ in range(2)]
    second.load_state(first.state())
    assert [*before, *steps(second)] == told[1:]
    assert digest(parameters_and_buffers(second.model)) == digest(parameters_and_buffers(whole.model))


def test_with_adapters_the_head_and_they_are_learned() -> None:
    adapted = with_lora(small_reward(), LoraOptions(rank=2), seed=0)
    trained = train_reward_model(adapted, planted(48), options=OPTIONS)
    changed = {
        name for name in trained.arrays if not np.array_equal(trained.arrays[name], adapted.arrays[name])
    }
    assert changed == {name for name in trained.arrays if "lora_" in name or "modules_to_save" in name}


def test_scores_are_normalised_on_samples_and_stay_so_in_the_folder(tmp_path: Path) -> None:
    parts = small_reward()
    some = samples()
    scale = score_scale(parts, some, forward_batch=5)
    raw = [
        twin_score(parts, tuple(text[:length])) for text, length in zip(some.token, some.length, strict=True)
    ]
    assert scale.mean == pytest.approx(np.mean(raw), abs=1e-5)
    assert scale.deviation == pytest.approx(np.std(raw), rel=1e-4)
    assert scale.num_samples == 24
    save_reward(parts, scale, tmp_path)
    said = read_reward(tmp_path).build("cpu").score(some, by_length(some.length, 7)).said
    assert np.mean(said) == pytest.approx(0.0, abs=1e-5)
    assert np.std(said) == pytest.approx(1.0, abs=1e-4)


def test_scores_that_are_all_alike_cannot_be_normalised() -> None:
    parts = small_reward()
    flat = parts.with_arrays(parts.arrays | {"score.weight": np.zeros((1, 32), np.float32)})
    with pytest.raises(RunFailed, match="scores of 24 samples have mean 0 and deviation 0"):
        score_scale(flat, samples())


def test_a_reward_model_of_transformers_own_is_read_and_not_scaled(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    config = family_config("qwen3", 64, num_labels=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path)
    reward = read_reward(tmp_path)
    assert reward.scale == ScoreScale()
    texts = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        wanted = float(model(texts).logits)
    some = Responses.write([[5, 6]], [[7, 8, 9]], [[0.0] * 3], [True], [0])
    said = reward.build("cpu").score(some, [np.array([0])]).said
    assert said[0] == pytest.approx(wanted, abs=1e-5)


def test_reference_samples_are_the_policys_answers_alike_for_a_seed(gpt2_folder: Path) -> None:
    policy = read_causal(gpt2_folder)
    prompts = [[5, 6], [7, 8, 9], [10], [11, 12]]
    one, same, other = (
        reference_samples(policy, prompts, (2,), 6, seed, generation_batch=3) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.token, same.token)
    assert one.num_responses == 4 and not np.array_equal(one.action, other.action)
    for prompt, text in zip(prompts, one.token, strict=True):
        assert text[: len(prompt)].tolist() == prompt
