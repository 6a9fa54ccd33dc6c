"""From responses to a trajectory and what an update makes of it: scores on the last action, ends that are ends, ratio 1
at first, a reference that stays, and gradients that no split of the batch changes."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from distrl.learner import Learner, digest
from distrl.maths.pieces import by_length
from distrl.policies.lm import NO_ACTION, LanguagePolicy, ScalarModel
from distrl.policies.protocol import parameters_and_buffers
from distrl.rlhf.experience import Opinions, experience, summary
from distrl.rlhf.opinions import Part
from distrl.rlhf.recipes import GRPO, RLHF_PPO
from distrl.rlhf.responses import Responses, share_of
from distrl.rlhf.role_spec import ROLES, RoleSpec
from distrl.rlhf.roles import RoleWorker
from distrl.trajectory import Trajectory
from distrl.updates.shares import SharedUpdate, joined
from tests import reference
from tests.rlhf.small_models import causal, decisions, scalar, texts

LENGTHS = ((3, 5), (1, 2), (4, 1), (2, 4), (2, 3), (3, 5), (1, 1), (2, 2))  # those of 5 tokens were cut


def opinions(responses: Responses, seed: int = 0) -> Opinions:
    rng = np.random.default_rng(seed)
    rows, columns = responses.action.shape

    def some(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    return Opinions(some(rows, columns), some(rows, columns), some(columns), some(rows + 1, columns))


def total(reward: Any, n: int) -> float:
    return float(reward[:, n].sum(dtype=np.float64))


def test_rewards_of_a_response_sum_to_its_score_less_beta_times_its_summed_kl():
    responses = texts(lengths=LENGTHS)
    said, beta = opinions(responses), 0.3
    made = experience(responses, said, RLHF_PPO, beta)
    assert said.log_prob is not None
    for n in range(responses.num_responses):
        count = int(responses.num_actions[n])
        own, ref = said.log_prob[:count, n].tolist(), said.reference[:count, n].tolist()
        expected = reference.shaped_rewards(float(said.score[n]), own, ref, beta)
        np.testing.assert_allclose(made.reward[:count, n], expected, rtol=1e-5, atol=1e-6)
        assert not made.reward[count:, n].any()
        kl = float(np.subtract(own, ref).sum())
        assert abs(total(made.reward, n) - (float(said.score[n]) - beta * kl)) < 1e-5


def test_the_score_is_on_the_slot_of_the_end_of_text_and_the_kl_in_the_loss_leaves_it_alone():
    responses = texts(lengths=LENGTHS)
    said = opinions(responses)
    made = experience(responses, said, GRPO, beta=0.3)
    expected = np.zeros_like(made.reward)
    expected[responses.num_actions - 1, np.arange(8)] = said.score
    np.testing.assert_array_equal(made.reward, expected)
    late = np.zeros_like(
        made.reward
    )  # one slot after: beyond the array for the longest, on padding for the others
    inside = responses.num_actions < 5
    late[responses.num_actions[inside], np.flatnonzero(inside)] = said.score[inside]
    assert not np.allclose(made.reward.sum(axis=0), np.where(responses.valid, late, 0).sum(axis=0))


def test_a_scored_response_is_terminal_at_the_length_limit_and_bootstraps_nothing():
    responses = texts(lengths=LENGTHS)
    assert responses.ended.tolist() == [False, True, True, True, True, False, True, True]
    made = experience(responses, opinions(responses), RLHF_PPO, 0.1)
    np.testing.assert_array_equal(made.terminated, responses.last)
    np.testing.assert_array_equal(made.done, responses.last | ~responses.valid)


def test_a_penalty_takes_the_place_of_the_score_where_the_limit_cut():
    responses = texts(lengths=LENGTHS)
    said = opinions(responses)
    recipe = replace(RLHF_PPO, cut_off="penalty", cut_off_penalty=-3.0)
    made = experience(responses, said, recipe, 0.0)
    np.testing.assert_array_equal(made.reward.sum(axis=0), np.where(responses.ended, said.score, -3.0))
    np.testing.assert_array_equal(made.terminated, responses.last)


def test_bootstrapping_takes_the_critic_s_value_beyond_a_cut_and_no_score():
    responses = texts(lengths=LENGTHS)
    said = opinions(responses)
    made = experience(responses, said, replace(RLHF_PPO, cut_off="bootstrap"), 0.0)
    np.testing.assert_array_equal(made.reward.sum(axis=0), np.where(responses.ended, said.score, 0.0))
    np.testing.assert_array_equal(made.terminated, responses.last & responses.ended)
    assert said.value is not None
    for n in np.flatnonzero(~responses.ended):
        assert made.next_value[4, n] == said.value[5, n]


def test_a_response_without_a_score_has_no_valid_row_and_says_so():
    responses = texts(lengths=LENGTHS)
    said = opinions(responses)
    said.score[3] = np.nan
    made = experience(responses, said, RLHF_PPO, 0.1)
    assert not made.valid[:, 3].any() and not made.terminated[:, 3].any() and made.done[:, 3].all()
    assert not made.reward[:, 3].any() and made.num_valid == responses.valid.sum() - responses.num_actions[3]
    assert summary(responses, said, RLHF_PPO, 0.1)["unscored"] == 1


def test_the_summary_counts_the_kl_in_nats_a_response_and_logs_the_largest_mismatch():
    responses = texts(lengths=LENGTHS)
    said = opinions(responses)
    assert said.log_prob is not None
    told = summary(responses, said, RLHF_PPO, 0.2)
    each = [
        float((said.log_prob - said.reference)[:count, n].sum(dtype=np.float64))
        for n, count in enumerate(responses.num_actions)
    ]
    np.testing.assert_allclose(told["kl"], np.mean(each), rtol=1e-6)
    token_mean = float((said.log_prob - said.reference)[responses.valid].mean())
    assert abs(told["kl"] - token_mean) > 0.01
    np.testing.assert_allclose(told["objective"], np.mean(said.score - 0.2 * np.array(each)), rtol=1e-5)
    mismatch = np.abs(said.log_prob - responses.log_prob)[responses.valid].max()
    np.testing.assert_allclose(told["sampling_mismatch"], mismatch, rtol=1e-6)
    assert told["ended_fraction"] == 6 / 8 and told["response_length_mean"] == 23 / 8


# responses as arrays


@pytest.mark.parametrize("cut_off", ["penalty", "bootstrap"])
def test_the_objective_is_of_the_scores_that_are_learned_from(cut_off):
    responses = texts(lengths=LENGTHS)
    said = opinions(responses)
    recipe = replace(RLHF_PPO, cut_off=cut_off, cut_off_penalty=-30.0)
    told = summary(responses, said, recipe, 0.2)
    made = experience(responses, said, recipe, 0.2)
    has_one = responses.ended if cut_off == "bootstrap" else np.ones(8, bool)
    np.testing.assert_allclose(told["objective"], made.reward.sum(axis=0)[has_one].mean(), rtol=1e-5)
    np.testing.assert_allclose(told["score_mean"], said.score.mean(), rtol=1e-5)


def test_responses_side_by_side_are_padded_to_the_longest_and_keep_their_tokens():
    parts = [texts(lengths=LENGTHS[:3]), replace(texts(1, ((2, 2), (1, 1))), version=4)]
    parts[0] = replace(parts[0], version=5)
    whole = Responses.concatenate(parts)
    assert whole.num_responses == 5 and whole.version == 4, "the oldest"
    columns = iter(range(5))
    for part in parts:
        for n in range(part.num_responses):
            i, count, length = next(columns), int(part.num_actions[n]), int(part.length[n])
            assert whole.num_actions[i] == count and whole.length[i] == length
            np.testing.assert_array_equal(whole.token[i, :length], part.token[n, :length])
            for name in ("action", "position", "log_prob"):
                column = getattr(whole, name)[:, i]
                np.testing.assert_array_equal(column[:count], getattr(part, name)[:count, n])
            assert (whole.action[count:, i] == NO_ACTION).all() and not whole.token[i, length:].any()


def test_an_action_is_the_token_after_the_last_one_seen():
    responses = texts(lengths=LENGTHS)
    for t, n in decisions(responses):
        assert responses.action[t, n] == responses.token[n, responses.position[t, n] + 1]
        assert responses.position[t, n] == LENGTHS[n][0] - 1 + t


@pytest.mark.parametrize(("prompt", "own"), [([], [True]), ([1], [False])])
def test_a_text_without_a_prompt_or_without_a_decision_is_refused(prompt, own):
    with pytest.raises(ValueError, match="response 0 must have a prompt and a token of the policy's own"):
        Responses.write([prompt], [[2]], [[-1.0]], [True], [0], own=[own])


def test_pieces_hold_every_text_once_the_long_ones_together_and_workers_take_neighbours():
    length = texts(lengths=LENGTHS).length
    every = by_length(length, 3)
    assert sorted(np.concatenate(every).tolist()) == list(range(8))
    assert [sorted(length[piece].tolist(), reverse=True) for piece in every] == [[8, 8, 6], [5, 5, 4], [3, 2]]
    for workers in (1, 2, 3, 5):
        shares = [share_of(7, one, workers) for one in range(workers)]
        assert [i for share in shares for i in share] == list(range(7))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


# with models


@dataclass(frozen=True)
class EvenTokens:
    """A reward: the share of a response's tokens that are even."""

    def build(self, device: str) -> EvenTokens:
        return self

    def score(self, responses: Responses, columns: Any) -> Part:
        even = ((responses.action % 2 == 0) & responses.valid).sum(axis=0) / responses.num_actions
        mine = np.concatenate(columns)
        return Part(mine, even[mine].astype(np.float32))


def worker(family: str = "llama", micro_batch: int | None = None, **changed: Any) -> RoleWorker:
    """All roles in one; prompts and responses of many lengths."""
    plain: dict[str, Any] = {"max_response": 6, "learning_rate": 1e-2, "epochs": 1, "minibatches": 1}
    recipe = replace(RLHF_PPO, **(plain | changed))
    prompts = ((3, 1, 4, 1, 5), (9,), (2, 6, 5), (3, 5))
    spec = RoleSpec(
        recipe,
        3,
        prompts,
        12,
        (7, 8, 9),
        EvenTokens(),
        generation_batch=5,
        forward_batch=4,
        micro_batch=micro_batch,
    )
    actor = causal(family)
    models = {"actor": actor, "reference": actor, "critic": scalar("llama", initial_std=0.0)}
    return RoleWorker(spec, ROLES, models)


def opinions_of(one: RoleWorker, written: Any) -> dict[str, Part]:
    said = {
        "reference": one.reference_log_probs(written),
        "reward": one.scores(written),
        "critic": one.values(written),
    }
    return said | ({"actor": one.actor_log_probs(written)} if one.spec.recipe.exact_ratio else {})


def learn(one: RoleWorker, iteration: int = 0, beta: float = 0.1) -> Any:
    written = one.write(iteration)
    said = opinions_of(one, written)
    layout = (("written", 1), *((name, 1) for name in said))
    report = one.learn(0.0, beta, layout, written, *said.values())
    one.load_writer(None)
    return report.metrics


def first_ratios(one: RoleWorker) -> Any:
    """Of the first minibatch: pi / pi_old of each decision, as the update computes it."""
    written = one.write(0)
    said = opinions_of(one, written)
    one.begin(0.0, 0.1, (("written", 1), *((name, 1) for name in said)), written, *said.values())
    learner, seen = one.learner, []
    assert learner is not None

    class Watched(SharedUpdate):
        def _loss_of(self, evaluation: Any, rows: Any, clip: Any, count: Any = None) -> Any:
            seen.append(torch.exp(evaluation.log_prob - rows.log_prob).detach()[rows.valid])
            return super()._loss_of(evaluation, rows, clip, count)

    watched = Watched(learner.policy, learner.recipe, one.spec.micro_batch)
    watched.gradient(learner.task.batch, learner.minibatches(0)[0], learner.task.rates)
    return torch.cat(seen)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "cohere"])
def test_the_ratio_on_the_first_minibatch_is_one_within_1e_5_with_log_probs_of_sampling(family):
    ratio = first_ratios(worker(family, temperature=0.7))
    assert len(ratio) > 12 and (ratio - 1).abs().max() < 1e-5
    logged = learn(worker(family, temperature=0.7))
    assert logged["first_ratio_deviation"] == pytest.approx((ratio - 1).abs().max().item(), abs=1e-9)
    assert np.isnan(logged["sampling_mismatch"])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "cohere"])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_the_ratio_on_the_first_minibatch_is_exactly_one_where_log_probs_are_computed_again(
    family, micro_batch
):
    """In the update's own pieces: in others, a matrix product may round otherwise."""
    ratio = first_ratios(worker(family, micro_batch, exact_ratio=True, temperature=0.7, minibatches=2))
    assert len(ratio) > 6 and (ratio - 1).abs().max() == 0
    logged = learn(worker(family, micro_batch, exact_ratio=True, temperature=0.7, minibatches=2))
    assert logged["first_ratio_deviation"] == 0 < logged["ratio_deviation"], "later minibatches have moved"
    assert 0 < logged["sampling_mismatch"] < 1e-4, "what the other mode would have had"


def test_log_probs_computed_again_see_the_rows_of_the_update_where_the_longest_has_no_score():
    one = worker("llama", 4, exact_ratio=True, minibatches=2)
    assert one.learner is not None
    seen: list[list[Any]] = [[]]
    own = one.learner.policy.evaluate

    def watched(position: Any, action: Any, *more: Any) -> Any:
        seen[-1].append((tuple(action.shape), action.tolist()))
        return own(position, action, *more)

    one.learner.policy.evaluate = watched
    written = one.write(0)
    said = opinions_of(one, written)
    length = np.concatenate([some.num_actions for some in written])
    said["reward"].said[np.isin(said["reward"].columns, np.flatnonzero(length == length.max()))] = np.nan
    one.begin(0.0, 0.1, (("written", 1), *((name, 1) for name in said)), written, *said.values())
    seen.append([])
    task = one.learner.task
    for index in one.learner.minibatches(0):
        one.learner.shared.gradient(task.batch, index, task.rates)
    assert seen[0] == seen[1] and len(seen[0]) == 4


def test_a_temperature_left_out_of_the_update_would_show_in_the_ratio():
    one = worker("llama", temperature=0.7)
    assert one.learner is not None
    one.learner.policy.temperature = 1.0
    assert (first_ratios(one) - 1).abs().max() > 0.05
    assert learn(one)["first_ratio_deviation"] > 0.01


def test_the_reference_stays_as_it_is_and_the_kl_to_it_is_zero_at_first_and_then_not():
    one = worker()
    before = digest(parameters_and_buffers(one.reference))
    first = learn(one, 0)
    assert abs(first["kl"]) < 1e-4
    second = learn(one, 1)
    assert abs(second["kl"]) > 1e-3
    assert digest(parameters_and_buffers(one.reference)) == before
    assert not any(parameter.requires_grad for parameter in one.reference.parameters())
    assert all(parameter.grad is None for parameter in one.reference.parameters())


def test_a_critic_that_starts_at_zero_and_lambda_one_give_the_return_as_advantage():
    one = worker(lam=1.0)
    written = one.write(0)
    said = opinions_of(one, written)
    one.begin(0.0, 0.1, (("written", 1), *((name, 1) for name in said)), written, *said.values())
    assert one.learner is not None
    task = one.learner.task
    assert not task.trajectory.value.any()
    valid, reward = task.trajectory.valid, task.trajectory.reward.astype(np.float64)
    to_go = np.cumsum(np.where(valid, reward, 0)[::-1], axis=0)[::-1]
    np.testing.assert_allclose(task.target[valid], to_go[valid], rtol=1e-5, atol=1e-6)
    flat = to_go[valid]
    np.testing.assert_allclose(task.advantage[valid], (flat - flat.mean()) / flat.std(), rtol=1e-4, atol=1e-5)


# the gradient


def learned_from(recipe: Any = RLHF_PPO) -> tuple[LanguagePolicy, Trajectory]:
    with torch.random.fork_rng(devices=[]):
        policy = LanguagePolicy(causal("llama").build(), ScalarModel(scalar("llama").build()))
    responses = texts(lengths=LENGTHS)
    return policy, experience(responses, opinions(responses), recipe, 0.1)


def gradients(recipe: Any, micro_batch: int | None, num_shares: int = 1) -> dict[str, Any]:
    """Of the one minibatch, as `num_shares` learners find it."""
    policy, trajectory = learned_from(recipe)
    update = SharedUpdate(policy, recipe, micro_batch)
    learner = Learner(policy, recipe, 0, update=update)
    task = learner.begin([trajectory], 0.0, 0.1 if recipe.kl_in == "loss" else 0.0)
    columns = np.arange(8)
    shares = [update.gradient(task.batch, columns, task.rates, one, num_shares) for one in range(num_shares)]
    return joined(shares).gradients


@pytest.mark.parametrize(
    "recipe",
    [RLHF_PPO, replace(GRPO, group_size=4), replace(GRPO, group_size=4, kl_estimator="k2")],
    ids=["ppo", "grpo", "grpo-k2"],
)
def test_any_split_into_micro_batches_gives_the_gradient_of_the_whole_and_no_token_another_weight(recipe):
    recipe = replace(recipe, minibatches=1, epochs=1)
    whole = gradients(recipe, None)
    for size in (1, 2, 3, 5, 8):
        for name, flat in gradients(recipe, size).items():
            np.testing.assert_allclose(
                flat, whole[name], rtol=1e-3, atol=2e-6 * np.abs(whole[name]).max() + 1e-7
            )


def test_a_mean_of_means_over_micro_batches_would_be_another_gradient():
    recipe = replace(RLHF_PPO, minibatches=1, epochs=1, value_coef=0.0)
    policy, trajectory = learned_from()
    learner = Learner(policy, recipe, 0, update=SharedUpdate(policy, recipe))
    task = learner.begin([trajectory], 0.0)
    update = learner.optimisation
    assert isinstance(update, SharedUpdate)
    parts = [update.gradient(task.batch, np.array([n]), task.rates).gradients["actor"] for n in range(8)]
    whole = update.gradient(task.batch, np.arange(8), task.rates).gradients["actor"]
    weight = responses_share()
    np.testing.assert_allclose(
        sum(w * part for w, part in zip(weight, parts, strict=True)), whole, rtol=1e-3, atol=1e-6
    )
    assert np.abs(np.mean(parts, axis=0) - whole).max() > 0.05 * np.abs(whole).max()


def responses_share() -> Any:
    """The share of all actions that each response has."""
    count = texts(lengths=LENGTHS).num_actions
    return count / count.sum()


def test_one_two_and_four_learners_find_the_same_gradient_to_the_bit():
    recipe = replace(RLHF_PPO, minibatches=1, epochs=1)
    alone, *shared = (gradients(recipe, 2, learners) for learners in (1, 2, 4))
    for found in shared:
        for name in alone:
            np.testing.assert_array_equal(found[name], alone[name], err_msg=name)


def test_the_gradient_of_ppo_s_first_step_is_the_token_mean_of_advantage_times_score_function():
    recipe = replace(RLHF_PPO, minibatches=1, epochs=1, value_coef=0.0, normalize_advantage=False)
    policy, trajectory = learned_from()
    twin = copy.deepcopy(policy)
    state = {name: torch.from_numpy(array) for name, array in trajectory.initial_state.items()}
    position, action = torch.from_numpy(trajectory.observation), torch.from_numpy(trajectory.action)
    with torch.no_grad():
        now = policy.evaluate(position, action, None, state, None).log_prob.numpy()
    trajectory = replace(trajectory, log_prob=now)
    update = SharedUpdate(policy, recipe)
    learner = Learner(policy, recipe, 0, update=update)
    task = learner.begin([trajectory], 0.0)
    found = update.gradient(task.batch, np.arange(8), task.rates).gradients["actor"]
    log_prob = twin.evaluate(position, action, None, state, None).log_prob
    rows = decisions(texts(lengths=LENGTHS))
    loss = -sum(log_prob[t, n] * float(task.advantage[t, n]) for t, n in rows) / len(rows)
    expected = torch.autograd.grad(loss, [*twin.actor.parameters()])
    np.testing.assert_allclose(found, torch.cat([one.flatten() for one in expected]), rtol=1e-3, atol=1e-6)
