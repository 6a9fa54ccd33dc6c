"""The certificate: PPO on a task small enough to know its optimum, and how much of the way there it goes.

The objective of RLHF, J(pi) = E_pi[r(x)] - beta KL(pi || pi_ref) over whole responses x, has a closed optimum:

    pi*(x) = pi_ref(x) exp(r(x) / beta) / Z        J* = beta log Z,   Z = sum_x pi_ref(x) exp(r(x) / beta)
    J* - J(pi) = beta KL(pi || pi*)

(Ziegler et al. 2019, arXiv 1909.08593; Korbak et al. 2022, arXiv 2205.11275.) With 8 tokens and 4 of them to a response
there are 4,096 responses: every sum above is a sum, and no estimate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from distrl.learner import Learner
from distrl.maths.pieces import by_length
from distrl.maths.random import derive_seed, stream
from distrl.policies.lm import LanguagePolicy
from distrl.rlhf.models import ModelParts, empty_model, scalar_from
from distrl.rlhf.opinions import Part, log_probs
from distrl.rlhf.recipes import RLHF_PPO, ResponseRecipe
from distrl.rlhf.responses import Responses
from distrl.rlhf.role_spec import ROLES, RoleSpec
from distrl.rlhf.roles import RoleWorker

Float64 = NDArray[np.float64]
PROMPT = (0,)


@dataclass(frozen=True)
class TableReward:
    """The reward of every response, by its tokens read as digits: a `RewardSource` and its own scorer."""

    table: tuple[float, ...]
    vocabulary: int

    def build(self, device: str) -> TableReward:
        return self

    def score(self, responses: Responses, columns: Sequence[NDArray[np.int64]]) -> Part:
        """Looked up."""
        place = np.zeros(responses.num_responses, np.int64)
        for token_N in responses.action:
            place = place * self.vocabulary + token_N
        mine = np.concatenate(columns) if columns else np.zeros(0, np.int64)
        return Part(mine, np.asarray(self.table, np.float32)[place[mine]])


class EnumerableTask:
    """All responses of `length` tokens, a small GPT for pi_ref, and a reward of terms and pairs; all from `seed`.

    The reward is a term for each token at its place and one for each pair of places, of mean 0 and deviation 1 under
    pi_ref.
    """

    def __init__(self, seed: int, vocabulary: int = 8, length: int = 4, width: int = 32) -> None:
        self.seed, self.vocabulary, self.length = seed, vocabulary, length
        self.reference = _small_gpt(seed, vocabulary, length, width)
        self.log_ref = self.log_distribution(self._policy(self.reference))
        generator = stream(seed, "certificate reward")
        raw = sum(generator.normal(size=vocabulary)[self.tokens[:, place]] for place in range(length)) + sum(
            generator.normal(size=(vocabulary, vocabulary))[self.tokens[:, one], self.tokens[:, other]]
            for one in range(length)
            for other in range(one + 1, length)
        )
        ref = np.exp(self.log_ref)
        mean = (ref * raw).sum()
        self.reward: Float64 = (raw - mean) / np.sqrt((ref * (raw - mean) ** 2).sum())

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """[V^L, L]: every response."""
        grid = np.indices((self.vocabulary,) * self.length).reshape(self.length, -1)
        return np.ascontiguousarray(grid.T.astype(np.int64))

    @cached_property
    def every(self) -> Responses:
        """All of them as `Responses`."""
        n = len(self.tokens)
        nothing = np.zeros(self.length).tolist()
        return Responses.write([PROMPT] * n, self.tokens.tolist(), [nothing] * n, [False] * n, [0] * n)

    def _policy(self, parts: ModelParts) -> LanguagePolicy:
        return LanguagePolicy(parts.build(), None)

    def log_distribution(self, policy: LanguagePolicy) -> Float64:
        """log pi(x) of every response, [V^L]."""
        part = log_probs(policy, self.every, by_length(self.every.length, 4096))
        log_prob = np.empty_like(part.said)
        log_prob[:, part.columns] = part.said
        return log_prob.astype(np.float64).sum(axis=0)

    def kl(self, log_pi: Float64) -> float:
        """KL(pi || pi_ref), nats a response."""
        return float((np.exp(log_pi) * (log_pi - self.log_ref)).sum())

    def objective(self, log_pi: Float64, beta: float) -> float:
        """J(pi)."""
        return float((np.exp(log_pi) * self.reward).sum()) - beta * self.kl(log_pi)

    def log_optimum(self, beta: float) -> Float64:
        """log pi*(x), [V^L]."""
        logits = self.log_ref + self.reward / beta
        most = logits.max()
        found: Float64 = logits - (most + np.log(np.exp(logits - most).sum()))
        return found

    def best(self, beta: float) -> float:
        """J*."""
        logits = self.log_ref + self.reward / beta
        most = logits.max()
        return float(beta * (most + np.log(np.exp(logits - most).sum())))


@dataclass(frozen=True)
class Gap:
    """Where the policy stands after an iteration; `closed` is the share of J* - J(pi_ref) that is behind it."""

    iteration: int
    objective: float
    best: float
    kl: float
    closed: float


# near the optimum every sampled advantage is noise, and a batch is followed as far as the clip lets it: so the clip
# falls with the learning rate, or J stays a tenth short of J* where beta is large
CERTIFICATE_PPO = replace(
    RLHF_PPO,
    max_response=4,
    learning_rate=2e-3,
    clip=0.1,
    clip_schedule="linear",
    value_coef=0.5,
    clip_value=None,
    epochs=4,
    minibatches=4,
    lam=1.0,
)


def make_worker(
    task: EnumerableTask, beta: float, seed: int, num_responses: int, recipe: ResponseRecipe = CERTIFICATE_PPO
) -> RoleWorker:
    """All four roles in one, at the task's reference; `recipe` may be any of RLHF's."""
    recipe = replace(recipe, beta=beta, max_response=task.length)
    spec = RoleSpec(
        recipe=recipe,
        seed=derive_seed(seed, "certificate"),
        prompts=(PROMPT,),
        num_prompts=num_responses // recipe.group_size,
        end_tokens=(),
        reward=TableReward(tuple(task.reward.tolist()), task.vocabulary),
        generation_batch=num_responses,
        forward_batch=num_responses,
    )
    models = {"actor": task.reference, "reference": task.reference, "critic": scalar_from(task.reference)}
    return RoleWorker(spec, ROLES, models)


def stand(task: EnumerableTask, worker: RoleWorker, iteration: int) -> Gap:
    """Where the worker's actor stands, by sums over all responses."""
    learner, recipe = cast(Learner, worker.learner), worker.spec.recipe
    log_pi = task.log_distribution(LanguagePolicy(cast(Any, learner.policy).actor, None))
    found, best = task.objective(log_pi, recipe.beta), task.best(recipe.beta)
    begun = task.objective(task.log_ref, recipe.beta)
    return Gap(iteration, found, best, task.kl(log_pi), (found - begun) / (best - begun))


def certify(
    task: EnumerableTask,
    beta: float,
    seed: int,
    iterations: int = 80,
    num_responses: int = 1024,
    recipe: ResponseRecipe = CERTIFICATE_PPO,
    look_every: int = 1,
    worker: RoleWorker | None = None,
) -> Iterator[Gap]:
    """Trains with the KL in the reward and says where the policy stands, before the first iteration and on the way.

    Learning rate and clip fall to 0 at the end. `worker`: one that `make_worker` made, to be trained instead.
    """
    if worker is None:
        worker = make_worker(task, beta, seed, num_responses, recipe)
    yield stand(task, worker, 0)
    for iteration in range(iterations):
        step(worker, iteration, iteration / iterations, beta)
        if (iteration + 1) % look_every == 0 or iteration + 1 == iterations:
            yield stand(task, worker, iteration + 1)


def step(worker: RoleWorker, iteration: int, progress: float, beta: float) -> dict[str, float]:
    """One iteration with all roles in one worker."""
    recipe = worker.spec.recipe
    written = worker.write(iteration)
    said = {"reference": worker.reference_log_probs(written), "reward": worker.scores(written)}
    if recipe.trains_value:
        said["critic"] = worker.values(written)
    if recipe.exact_ratio:
        said["actor"] = worker.actor_log_probs(written)
    report = worker.learn(
        progress, beta, (("written", 1), *((name, 1) for name in said)), written, *said.values()
    )
    worker.load_writer(None)
    return report.metrics


def _small_gpt(seed: int, vocabulary: int, length: int, width: int) -> ModelParts:
    """GPT-2 of two layers with weights wide enough that its distribution is far from uniform."""
    from transformers import GPT2Config

    config = GPT2Config(
        vocab_size=vocabulary, n_positions=length + 1, n_embd=width, n_layer=2, n_head=2, initializer_range=0.2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "certificate reference"))
        return ModelParts.of(empty_model("causal", config), "causal")
