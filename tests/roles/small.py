"""A run of RLHF small enough for tests: a GPT-2 of two layers, prompts of unlike lengths, a reward by arithmetic."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GPT2Config

from distrl.rlhf.models import ModelParts, empty_model, scalar_from
from distrl.rlhf.opinions import Part
from distrl.rlhf.recipes import RLHF_PPO, ResponseRecipe
from distrl.rlhf.responses import Responses
from distrl.rlhf.role_spec import RoleSpec
from distrl.rlhf.roles import LearnReport, RoleWorker
from distrl.runtime.roles import Host, Roles

VOCABULARY = 16
END = 1


@dataclass(frozen=True)
class OddTokens:
    """The share of odd tokens in a text: a `RewardSource` and its own scorer. `pause_in` is a file that makes it hang."""

    pause_in: str = ""

    def build(self, device: str) -> OddTokens:
        return self

    def score(self, responses: Responses, columns: Sequence[NDArray[np.int64]]) -> Part:
        while self.pause_in and Path(self.pause_in).exists():
            time.sleep(0.05)
        mine = np.concatenate(columns) if columns else np.zeros(0, np.int64)
        odd = (responses.token % 2).sum(axis=1) / responses.length
        return Part(mine, odd.astype(np.float32)[mine])


class Silent(OddTokens):
    """Says nothing of texts that end in an odd token, and why."""

    def build(self, device: str) -> Silent:
        return self

    def score(self, responses: Responses, columns: Sequence[NDArray[np.int64]]) -> Part:
        part = super().score(responses, columns)
        bad = [int(n) for n in part.columns if responses.token[n, responses.length[n] - 1] % 2]
        said = np.where(np.isin(part.columns, bad), np.float32(np.nan), part.said)
        return Part(part.columns, said, (min(bad), f"text {min(bad)} is odd") if bad else None)


class Untrue(OddTokens):
    """A reward that cannot be computed."""

    def build(self, device: str) -> Untrue:
        return self

    def score(self, responses: Responses, columns: Sequence[NDArray[np.int64]]) -> Part:
        raise ZeroDivisionError("nothing is true")


class Unfit(OddTokens):
    """A reward that a worker cannot make."""

    def build(self, device: str) -> OddTokens:
        raise OSError("no judge here")


SMALL_PPO = replace(
    RLHF_PPO, max_response=6, learning_rate=3e-3, value_coef=0.5, epochs=2, minibatches=2, temperature=0.8
)


def gpt(seed: int = 0) -> ModelParts:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ModelParts.of(empty_model("causal", config), "causal")


def models() -> dict[str, ModelParts]:
    actor = gpt()
    return {"actor": actor, "reference": actor, "critic": scalar_from(gpt(1), 0.5)}


def spec(recipe: ResponseRecipe = SMALL_PPO, **changed: Any) -> RoleSpec:
    prompts = tuple(tuple((7 * n + k) % (VOCABULARY - 2) + 2 for k in range(2 + n % 4)) for n in range(12))
    fields: dict[str, Any] = {
        "recipe": recipe,
        "seed": 5,
        "prompts": prompts,
        "num_prompts": 16 // recipe.group_size,
        "end_tokens": (END,),
        "reward": OddTokens(),
        "generation_batch": 4,
        "forward_batch": 4,
        "micro_batch": 2,
    }
    return RoleSpec(**fields | changed)


def iterate(roles: Roles, iteration: int, num_iterations: int = 10) -> LearnReport:
    """One iteration."""
    written = roles.write(iteration)
    said = roles.opinions(written)
    report = roles.learn(iteration / num_iterations, 0.1, written, said)
    roles.publish()
    return report


def play(roles: Roles, num_iterations: int) -> list[LearnReport]:
    return [iterate(roles, i, num_iterations) for i in range(num_iterations)]


def assert_same(told: Sequence[LearnReport], wanted: Sequence[LearnReport]) -> None:
    """To the bit: digests and every metric."""
    assert len(told) == len(wanted)
    for i, (one, other) in enumerate(zip(told, wanted)):
        assert one.digests == other.digests, f"iteration {i}"
        assert one.metrics.keys() == other.metrics.keys()
        for name in one.metrics:
            np.testing.assert_equal(one.metrics[name], other.metrics[name], err_msg=f"iteration {i}: {name}")
        assert (one.version, one.num_responses, one.num_tokens) == (
            other.version, other.num_responses, other.num_tokens,
        )  # fmt: skip


class Several:
    """A host's workers one beside the other in this process: what they share, without Ray."""

    def __init__(self, host: Host, workers: Sequence[RoleWorker]) -> None:
        self.host = host
        self.workers = workers

    def call(self, method: str, *args: Any) -> list[Any]:
        return [getattr(worker, method)(*args) for worker in self.workers]

    def first(self, method: str, *args: Any) -> Any:
        return getattr(self.workers[0], method)(*args)

    def get(self, handles: Sequence[Any]) -> list[Any]:
        return list(handles)


class HereStage:
    """Any hosts in this process."""

    def __init__(
        self, spec: RoleSpec, hosts: Sequence[Host], parts: dict[str, ModelParts] | None = None
    ) -> None:
        self.spec, self.hosts, self.parts = spec, hosts, parts or models()

    def start(self, states: dict[str, Any] | None) -> list[Several]:
        return [
            Several(
                host,
                [
                    RoleWorker(
                        self.spec, host.roles, self.parts, states, n, host.workers, offload=host.offload
                    )
                    for n in range(host.workers)
                ],
            )
            for host in self.hosts
        ]

    def close(self) -> None:
        pass


TABLES: dict[str, Any] = {
    "colocated": {role: {"together_with": "actor"} for role in ("critic", "reference", "reward")},
    "colocated 2": {role: {"together_with": "actor"} for role in ("critic", "reference", "reward")}
    | {"actor": {"workers": 2}},
    "separate": {},
    "separate 2": {role: {"workers": 2} for role in ("actor", "critic", "reference", "reward")},
    "generator apart": {"generator": {"workers": 1}},
    "all apart 2": {role: {"workers": 2} for role in ("generator", "actor", "critic", "reference", "reward")},
    "uneven": {"generator": {"workers": 3}, "actor": {"workers": 4}, "critic": {"together_with": "reward"}},
}
