"""A generator of one's own, which has `generate` alone, in the place of the cached one."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small import SMALL_PPO, HereStage, models, play, spec

from distrl.rlhf.generation import Written, pick
from distrl.rlhf.role_spec import ROLES, RoleSpec
from distrl.runtime.placement import hosts_for
from distrl.runtime.roles import Roles, start_roles


class Plain:
    """No cache, no batch: the whole text again for every token."""

    def __init__(self, model: Any, spec: RoleSpec) -> None:
        self.model, self.spec = model, spec

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], uniform_NT: NDArray[np.float32]) -> list[Written]:
        return [
            self._one(list(prompt), uniform_T) for prompt, uniform_T in zip(prompts, uniform_NT, strict=True)
        ]

    def _one(self, text: list[int], uniform_T: NDArray[np.float32]) -> Written:
        tokens: list[int] = []
        said: list[float] = []
        for uniform in uniform_T:
            logits = self.model(input_ids=torch.tensor([text + tokens]), use_cache=False).logits[:, -1]
            log_probs = torch.log_softmax(logits / self.spec.recipe.temperature, -1)
            token = int(pick(log_probs, torch.tensor([uniform])))
            tokens.append(token)
            said.append(float(log_probs[0, token]))
            if token in self.spec.end_tokens:
                break
        return Written(tokens, said, tokens[-1] in self.spec.end_tokens)


def plain(model: Any, spec: RoleSpec) -> Plain:
    return Plain(model, spec)


RECIPE = replace(
    SMALL_PPO, exact_ratio=True, temperature=0.8
)  # log-probs that differ in rounding change nothing


def digests(run: RoleSpec, host: Any) -> list[dict[str, str]]:
    return [one.digests for one in play(start_roles(run, models(), None, [host]), 3)]


@pytest.mark.parametrize("offload", [(), ROLES])
def test_a_generator_of_ones_own_writes_the_same_tokens_and_so_the_same_run(offload: Any) -> None:
    (host,) = hosts_for("in-process", RECIPE)
    run = spec(RECIPE)
    assert digests(replace(run, generator=plain), replace(host, offload=offload)) == digests(run, host)


def test_it_travels_to_a_worker_of_its_own_and_has_the_weights_of_each_update() -> None:
    run = pickle.loads(pickle.dumps(replace(spec(RECIPE), generator=plain)))
    hosts = hosts_for({"actor": {}, "generator": {}}, RECIPE)
    apart = Roles(run, HereStage(run, hosts))
    (host,) = hosts_for("in-process", RECIPE)
    assert [one.digests for one in play(apart, 3)] == digests(spec(RECIPE), host)
    assert isinstance(cast(Any, apart.of["generator"]).workers[0].generator, Plain)
