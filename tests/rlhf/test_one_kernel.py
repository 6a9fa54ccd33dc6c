"""One trainer for a game and for a text: the same tokens through both doors get the same credit, to the bit.

    Gymnasium's   token env -> EnvGroup -> Collector -> Trajectory     observation: the text so far
    RLHF's        Responses -> opinions -> experience -> Trajectory    observation: a place in the text

From the Trajectory on it is one GAE, one whitening, one learner.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from distrl.envs import EnvSpec
from distrl.learner import Learner
from distrl.maths.kl import kl_shaped_reward
from distrl.policies import Evaluation, make_distribution
from distrl.policies.lm import NO_ACTION, LanguagePolicy, ScalarModel
from distrl.recipes import PPO
from distrl.rlhf.experience import Opinions, experience
from distrl.rlhf.opinions import log_probs, values
from distrl.rlhf.recipes import RLHF_PPO, ResponseRecipe
from distrl.rlhf.responses import Responses
from distrl.trajectory import Trajectory
from distrl.updates.shares import SharedUpdate
from tests import reference
from tests.parts import make_collector
from tests.rlhf.small_models import causal, policy_of, scalar
from tests.rlhf.token_env import END, LIMIT, VOCABULARY, score

SPEC = EnvSpec("tests.rlhf.token_env:Tokens/Text-v0")
N = 7
RECIPES = {
    "rlhf": RLHF_PPO,
    "rlhf, lambda 1": replace(RLHF_PPO, lam=1.0),
    "cartpole's gamma and lambda": replace(RLHF_PPO, gamma=PPO.gamma, lam=PPO.lam),
    "not whitened": replace(RLHF_PPO, normalize_advantage=False),
}


def answers(seed: int = 0) -> list[list[int]]:
    """The tokens to be written: some end by END, early or at the very limit, others are cut."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(END + 1, VOCABULARY, (N, LIMIT))
    tokens[0, 0] = tokens[1, 2] = tokens[2, LIMIT - 1] = tokens[3, 3] = END
    return [row[: row.index(END) + 1] if END in row else row for row in tokens.tolist()]


class Dictated(nn.Module):
    """A policy that takes the tokens dictated to it, in envs that show the text so far; `language` evaluates them."""

    recurrent = True  # so that it is asked of whole columns

    def __init__(self, language: LanguagePolicy, tokens: list[list[int]]) -> None:
        super().__init__()
        self.language = language
        self.tokens = tokens
        self.written = [0] * len(tokens)
        self.distribution = make_distribution(spaces.Discrete(VOCABULARY))

    def initial_state(self, num_envs: int) -> None:
        return None

    def act(self, observation: Any, state: Any, noise: Any, action_mask: Any) -> tuple[Tensor, None]:
        chosen = [row[min(t, len(row) - 1)] for row, t in zip(self.tokens, self.written, strict=True)]
        self.written = [t + 1 for t in self.written]
        return torch.tensor(chosen), None

    def value(self, observation: Any, state: Any) -> Tensor:
        raise AssertionError("every episode terminates: nothing lies beyond")

    def evaluate(self, observation: Any, action: Tensor, mask: Any, state: Any, start: Tensor) -> Evaluation:
        own = start.long().cumsum(0) == 1  # the first episode of each column
        last, columns = own.sum(0) - 1, torch.arange(action.shape[1])
        token, length = observation["token"][last, columns].clone(), observation["length"][last, columns]
        token[columns, length] = action[last, columns]
        return self.language.evaluate(
            torch.where(own, observation["length"] - 1, 0),
            torch.where(own, action, NO_ACTION),
            None,
            {"token": token, "length": length + 1},
            None,
        )


def language() -> LanguagePolicy:
    return LanguagePolicy(causal("llama").build(), ScalarModel(scalar("llama").build()), temperature=0.8)


def through_the_env() -> Trajectory:
    collector = make_collector(SPEC, Dictated(language(), answers()), num_envs=N, collects="episodes")
    try:
        return collector.collect(0, 0).trajectory
    finally:
        collector.group.close()


def as_responses(played: Trajectory, recipe: ResponseRecipe, beta: float) -> Trajectory:
    """The texts of `played` as RLHF's experience: prompts from its first row, tokens as dictated."""
    first = played.observation
    prompts = [first["token"][0, n, : first["length"][0, n]].tolist() for n in range(N)]
    tokens = answers()
    nothing = [[0.0] * len(row) for row in tokens]
    responses = Responses.write(prompts, tokens, nothing, [row[-1] == END for row in tokens], range(N))
    policy, whole = language(), [np.arange(N)]
    scores = np.array([score([*p, *a]) for p, a in zip(prompts, tokens, strict=True)], np.float32)
    said = Opinions(
        log_probs(policy, responses, whole).said,
        log_probs(policy_of(causal("llama", seed=1), 0.8), responses, whole).said,
        scores,
        values(policy, responses, whole).said,
    )
    return experience(responses, said, recipe, beta)


def shaped(played: Trajectory, written: Trajectory, beta: float) -> Trajectory:
    """What the env paid, less beta times the KL: the env knows its reward, the policy its KL."""
    nothing = np.zeros(N, np.float32)
    log_ratio = played.log_prob - written.extra["reference_log_prob"]
    none = np.zeros(played.valid.shape, bool)
    kl = kl_shaped_reward(nothing, log_ratio, played.valid, none, beta)
    return replace(played, reward=kl + np.where(played.valid, played.reward, 0))


def credit(policy: Any, recipe: ResponseRecipe, trajectory: Trajectory) -> Any:
    """The learner's task at the door of its first minibatch."""
    update: Any = SharedUpdate(policy, recipe) if isinstance(policy, LanguagePolicy) else "torch"
    return Learner(policy, recipe, 0, update=update).begin([trajectory], 0.0)


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_same_tokens_get_the_same_advantages_and_returns_to_the_bit_through_either_door(recipe, beta):
    played = through_the_env()
    written = as_responses(played, recipe, beta)
    played = shaped(played, written, beta)
    valid = written.valid
    np.testing.assert_array_equal(played.valid, valid)
    assert valid.sum(axis=0).tolist() == [1, 3, LIMIT, 4, LIMIT, LIMIT, LIMIT]
    for name in ("action", "reward", "terminated", "done", "value", "log_prob"):
        mine, theirs = getattr(played, name), getattr(written, name)
        np.testing.assert_array_equal(mine[valid], theirs[valid], err_msg=name)
    one = credit(Dictated(language(), answers()), recipe, played)
    other = credit(language(), recipe, written)
    for name in ("advantage", "target"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype == np.float32
        np.testing.assert_array_equal(mine[valid], theirs[valid], err_msg=name)
    assert len(np.unique(one.advantage[valid])) == valid.sum(), "they are numbers of their own"


def test_both_doors_agree_with_the_sums_written_out():
    recipe = replace(RLHF_PPO, gamma=0.9, lam=0.8, normalize_advantage=False)
    played = through_the_env()
    task = credit(Dictated(language(), answers()), recipe, played)
    for n, count in enumerate(played.valid.sum(axis=0)):
        expected = reference.response_gae(
            played.reward[:count, n].tolist(), played.value[:count, n].tolist(), 0.0, 0.9, 0.8
        )
        np.testing.assert_allclose(task.advantage[:count, n], expected, rtol=1e-5, atol=1e-5)


def test_an_env_that_cut_at_the_limit_instead_of_ending_there_would_get_other_credit():
    """So the equality above says something of ends too."""
    played = through_the_env()
    written = as_responses(played, RLHF_PPO, 0.0)
    cut = replace(written, terminated=np.zeros_like(written.terminated))
    mine, theirs = (credit(language(), RLHF_PPO, one).advantage for one in (written, cut))
    assert np.abs(mine - theirs)[written.valid].max() > 0.01


def test_values_of_another_place_would_give_other_returns():
    played = through_the_env()
    written = as_responses(played, RLHF_PPO, 0.0)
    other = replace(written, value=np.roll(written.value, 1, axis=0))
    assert (credit(language(), RLHF_PPO, other).target != credit(language(), RLHF_PPO, written).target).any()
