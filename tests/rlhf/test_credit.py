"""Credit for responses: what padding, tools and unscored responses must not touch, and whitening once for all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from distrl.credit import give_credit, importance_weighted, whitened
from distrl.rlhf.experience import Opinions, experience
from distrl.rlhf.recipes import GRPO, RLHF_PPO, RLHF_REINFORCE, RLOO
from distrl.rlhf.responses import Responses
from tests import reference
from tests.rlhf.small_models import texts

LENGTHS = ((3, 5), (1, 2), (4, 1), (2, 4), (2, 3), (3, 5), (1, 1), (2, 2))


def said_of(responses: Responses, seed: int = 0, score: Any = None, values: bool = True) -> Opinions:
    """Random opinions; NaN wherever nobody may look: rows that are no decision."""
    rng = np.random.default_rng(seed)
    rows, columns = responses.action.shape

    def some(count: int, seen: Any) -> Any:
        return np.where(seen, rng.standard_normal((count, columns)), np.nan).astype(np.float32)

    beyond = np.arange(rows + 1)[:, None] <= responses.num_actions
    scores = rng.standard_normal(columns).astype(np.float32)
    return Opinions(
        some(rows, responses.valid),
        some(rows, responses.valid),
        scores if score is None else np.asarray(score, np.float32),
        some(rows + 1, beyond) if values else None,
    )


def credit_of(responses: Responses, said: Opinions, recipe: Any = RLHF_PPO, beta: float = 0.1) -> Any:
    """(trajectory, advantage, target) before whitening."""
    trajectory = experience(responses, said, recipe, beta)
    return trajectory, *give_credit(recipe, trajectory, trajectory.reward)


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_gae_of_padded_responses_equals_that_of_each_one_s_actions_alone(gamma, lam):
    recipe = replace(RLHF_PPO, gamma=gamma, lam=lam)
    responses = texts(lengths=LENGTHS)
    said = said_of(responses)
    trajectory, advantage, target = credit_of(responses, said, recipe)
    assert said.log_prob is not None and said.value is not None
    for n in range(responses.num_responses):
        count = int(responses.num_actions[n])
        rewards = reference.shaped_rewards(
            float(said.score[n]), said.log_prob[:count, n].tolist(), said.reference[:count, n].tolist(), 0.1
        )
        values = said.value[:count, n].tolist()
        expected = reference.response_gae(rewards, values, 0.0, gamma, lam)
        np.testing.assert_allclose(advantage[:count, n], expected, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(target[:count, n], expected + values, rtol=2e-5, atol=2e-5)
        leaked = reference.response_gae(rewards, values, float(said.value[count, n]), gamma, lam)
        assert not np.allclose(advantage[:count, n], leaked, atol=1e-3), "V beyond the end would be seen"
    assert trajectory.terminated.sum() == responses.num_responses


def with_a_tool(responses: Responses, words: list[int]) -> Responses:
    """The same responses with `words` of somebody else's put in before each one's last token, masked out."""
    n = range(responses.num_responses)
    count = responses.num_actions
    prompts = [responses.token[i, : responses.length[i] - count[i]].tolist() for i in n]
    answers, own = [], []
    for i in n:
        answer = responses.token[i, responses.length[i] - count[i] : responses.length[i]].tolist()
        answers.append([*answer[:-1], *words, answer[-1]])
        own.append([*[True] * (len(answer) - 1), *[False] * len(words), True])
    log_probs = [responses.log_prob[: count[i], i].tolist() for i in n]
    return Responses.write(prompts, answers, log_probs, responses.ended, responses.prompt, own=own)


def test_tokens_of_a_tool_change_the_text_and_nothing_else():
    plain = texts(lengths=LENGTHS)
    tooled = with_a_tool(plain, [7, 8, 9])
    assert (tooled.length == plain.length + 3).all()
    last = plain.num_actions - 1
    np.testing.assert_array_equal(tooled.position[last, range(8)], plain.position[last, range(8)] + 3)
    for name in ("action", "log_prob", "valid", "last", "num_actions", "ended"):
        np.testing.assert_array_equal(getattr(tooled, name), getattr(plain, name), err_msg=name)
    said = said_of(plain)
    one, other = (credit_of(responses, said) for responses in (plain, tooled))
    for name in ("reward", "terminated", "done", "valid"):
        np.testing.assert_array_equal(getattr(one[0], name), getattr(other[0], name), err_msg=name)
    for mine, theirs in zip(one[1:], other[1:], strict=True):
        np.testing.assert_array_equal(mine[plain.valid], theirs[plain.valid])


def test_a_tool_s_tokens_taken_for_the_policy_s_own_would_change_its_credit():
    plain = texts(lengths=LENGTHS)
    masked = with_a_tool(plain, [7, 8])
    taken = Responses.write(
        [masked.token[i, : n - c - 2].tolist() for i, (n, c) in enumerate(zip(masked.length, masked.num_actions))],
        [masked.token[i, n - c - 2 : n].tolist() for i, (n, c) in enumerate(zip(masked.length, masked.num_actions))],
        [[-1.0] * (c + 2) for c in masked.num_actions], masked.ended, masked.prompt,
    )  # fmt: skip
    assert taken.valid.sum() == plain.valid.sum() + 16
    mine, theirs = (credit_of(r, said_of(r), replace(RLHF_PPO, lam=0.9))[1] for r in (masked, taken))
    assert not np.allclose(mine[0], theirs[0])


def test_without_values_and_at_lambda_one_the_advantage_is_the_return():
    responses = texts(lengths=LENGTHS)
    said = said_of(responses, values=False)
    trajectory, advantage, target = credit_of(responses, said, replace(RLHF_PPO, lam=1.0))
    for n in range(responses.num_responses):
        count = int(responses.num_actions[n])
        to_go = np.cumsum(trajectory.reward[:count, n][::-1].astype(np.float64))[::-1]
        np.testing.assert_allclose(advantage[:count, n], to_go, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(advantage[:count, n], target[:count, n])


def test_whitening_is_numpy_s_over_the_valid_values_of_the_whole_batch_and_reads_no_other():
    rng = np.random.default_rng(0)
    advantage = (1000 + rng.standard_normal((6, 8))).astype(np.float32)
    valid = rng.random((6, 8)) < 0.6
    advantage[~valid] = np.nan
    found = whitened(advantage, valid)
    flat = advantage[valid].astype(np.float64)
    np.testing.assert_allclose(found[valid], (flat - flat.mean()) / (flat.std() + 1e-8), rtol=1e-6)
    assert not found[~valid].any()
    padded = np.where(valid, advantage, 0.0)
    assert not np.allclose(found[valid], ((padded - padded.mean()) / padded.std())[valid], atol=0.1)
    shards = np.concatenate([whitened(advantage[:, part], valid[:, part]) for part in (slice(0, 4), slice(4, 8))], 1)  # fmt: skip
    assert not np.allclose(found[valid], shards[valid], atol=1e-3), "per worker it would be another"


def test_the_only_response_of_a_batch_is_not_whitened():
    advantage = np.array([[0.5, 9.0], [0.7, 9.0], [1.0, 9.0]], np.float32)
    valid = np.array([[True, False]] * 3)
    np.testing.assert_array_equal(whitened(advantage, valid), np.where(valid, advantage, 0))


def test_whitening_of_nothing_or_of_one_alike_gives_zeros():
    assert not whitened(np.full((2, 2), np.nan, np.float32), np.zeros((2, 2), bool)).any()
    assert not whitened(np.full((2, 2), 3.0, np.float32), np.ones((2, 2), bool)).any()


@pytest.mark.parametrize("recipe", [RLHF_REINFORCE, replace(RLOO, group_size=4), replace(GRPO, group_size=4)])
def test_relative_credit_of_responses_equals_the_sums_written_out_for_each_of_their_actions(recipe):
    responses = texts(lengths=LENGTHS)
    said = said_of(responses, values=False)
    trajectory, advantage, target = credit_of(responses, said, recipe)
    return_N = np.where(responses.valid, trajectory.reward, 0).sum(axis=0, dtype=np.float64)
    size = {"batch": 8}.get(recipe.credit, 4)
    baseline = "others" if recipe.credit == "others" else "mean"
    expected = reference.group_relative(return_N, size, baseline, recipe.credit == "group")
    np.testing.assert_allclose(
        advantage, np.where(responses.valid, expected, 0), rtol=1e-4, atol=1e-5, err_msg=recipe.credit
    )
    np.testing.assert_allclose(target, np.where(responses.valid, return_N, 0), rtol=1e-6)
    if recipe.kl_in == "loss":
        np.testing.assert_allclose(return_N, said.score, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("recipe", [RLHF_REINFORCE, replace(RLOO, group_size=4), replace(GRPO, group_size=4)])
def test_a_response_without_a_score_counts_in_no_mean_and_gets_nothing(recipe):
    responses = texts(lengths=LENGTHS)
    score = np.arange(8, dtype=np.float32)
    score[[1, 4, 5, 6]] = np.nan  # of the second group one alone is left
    said = said_of(responses, score=score, values=False)
    trajectory, advantage, _ = credit_of(responses, said, recipe)
    return_N = trajectory.reward.sum(axis=0, dtype=np.float64)
    scored = [0, 2, 3, 7] if recipe.credit == "batch" else [0, 2, 3]
    expected = np.zeros(8)
    baseline = "others" if recipe.credit == "others" else "mean"
    expected[scored] = reference.group_relative(
        return_N[scored], len(scored), baseline, recipe.credit == "group"
    )
    np.testing.assert_allclose(advantage, np.where(trajectory.valid, expected, 0), rtol=1e-4, atol=1e-5)
    assert not trajectory.valid[:, [1, 4, 5, 6]].any() and np.isfinite(trajectory.reward).all()


def test_a_response_without_a_score_changes_nothing_of_the_others_advantages():
    responses = texts(lengths=LENGTHS)
    said = said_of(responses)
    without = Opinions(said.log_prob, said.reference, said.score.copy(), said.value)
    without.score[2] = np.nan
    _, whole, _ = credit_of(responses, said)
    trajectory, rest, _ = credit_of(responses, without)
    kept = np.delete(np.arange(8), 2)
    np.testing.assert_array_equal(
        rest[:, kept][responses.valid[:, kept]], whole[:, kept][responses.valid[:, kept]]
    )
    assert not trajectory.valid[:, 2].any()
    assert np.isfinite(whitened(rest, trajectory.valid)).all()


def test_importance_weights_are_cut_from_above_alone_and_read_no_padding():
    responses = texts(lengths=LENGTHS)
    trajectory = experience(responses, said_of(responses), RLHF_PPO, 0.1)
    advantage = np.where(trajectory.valid, 2.0, 0.0).astype(np.float32)
    found = importance_weighted(advantage, trajectory, 1.5)
    weight = np.exp(np.float64(trajectory.log_prob) - responses.log_prob)[trajectory.valid]
    np.testing.assert_allclose(found[trajectory.valid], 2 * np.minimum(weight, 1.5), rtol=1e-5)
    assert (weight > 1.5).any() and (weight < 1).any()
    assert not found[~trajectory.valid].any()
