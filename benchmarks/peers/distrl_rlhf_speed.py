"""distrl's RLHF: response tokens a second of generation, of whole PPO or GRPO iterations, and of their floor.

Usage: .venv/bin/python benchmarks/peers/distrl_rlhf_speed.py generate|ppo|grpo|ppo-floor|grpo-floor [--threads 2] [--compile]

The floor of an iteration is the sum of its bare passes, each measured alone in the same process: generation by our plain
loop over a cache, a forward pass of each frozen model and of the critic, and for every epoch a forward pass, a
backward pass and Adam's step of each model that learns; no trajectory, no credit, no roles, no bookkeeping.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rlhf_work import (
    GROUP,
    GRPO_BETA,
    NEW,
    PROMPT,
    RECIPE,
    RESPONSES,
    arguments,
    causal,
    prompts,
    scalar,
    small_token_share,
    tell,
)
from speed import Window

sys.path.insert(0, str(Path(__file__).parents[2]))

from distrl.policies.lm import ScalarModel
from distrl.rlhf.generation import CachedGenerator, uniforms
from distrl.rlhf.models import ModelParts
from distrl.rlhf.opinions import Part, scores
from distrl.rlhf.recipes import GRPO, RLHF_PPO, ResponseRecipe
from distrl.rlhf.role_spec import ROLES, RoleSpec
from distrl.runtime.roles import Host, Roles, start_roles


class SmallTokens:
    """The reward as a function of the tokens: source and scorer in one."""

    def build(self, device: str) -> SmallTokens:
        return self

    def score(self, responses: Any, columns: Any) -> Part:
        mine = np.concatenate(columns)
        told = [small_token_share(responses.action[:, n].tolist()) for n in mine]
        return Part(mine, np.asarray(told, np.float32))


class Model:
    """A reward model, as it is."""

    def __init__(self, parts: ModelParts) -> None:
        self.parts = parts

    def build(self, device: str) -> Model:
        self.model = ScalarModel(self.parts.build(device))
        return self

    def score(self, responses: Any, columns: Any) -> Part:
        return scores(self.model, responses, columns)


def recipe_of(algo: str, epochs: int) -> ResponseRecipe:
    if algo == "ppo":
        return replace(
            RLHF_PPO,
            epochs=epochs,
            minibatches=1,
            max_response=NEW,
            learning_rate=RECIPE["lr"],
            beta=RECIPE["kl"],
        )
    return replace(
        GRPO,
        epochs=epochs,
        minibatches=1,
        max_response=NEW,
        learning_rate=RECIPE["lr"],
        beta=GRPO_BETA,
        group_size=GROUP,
    )


def roles_of(algo: str, options: argparse.Namespace) -> Roles:
    recipe = recipe_of(algo, options.epochs)
    ppo = algo == "ppo"
    actor = ModelParts.of(causal(), "causal")
    spec = RoleSpec(
        recipe=recipe, seed=options.seed, prompts=tuple(map(tuple, prompts(4096))),
        num_prompts=RESPONSES // recipe.group_size, end_tokens=(),
        reward=Model(ModelParts.of(scalar(), "scalar")) if ppo else SmallTokens(),
        generation_batch=RESPONSES, forward_batch=options.forward_batch, micro_batch=options.micro_batch, threads=options.threads,
        generation="compiled" if options.compile else "plain",
    )  # fmt: skip
    models = {
        "actor": actor,
        "reference": ModelParts.of(causal(), "causal"),
        "critic": ModelParts.of(scalar(5), "scalar"),
    }
    roles = tuple(role for role in ROLES if ppo or role != "critic")
    return start_roles(spec, models, None, [Host(roles, workers=0)])


def iterate(roles: Roles, options: argparse.Namespace) -> Window:
    roles.publish()
    roles.write(0)  # what is compiled is, now
    window = Window(options.warmup, options.seconds)
    iteration, over, beta = 0, False, roles.recipe.beta
    while not over:
        written = roles.write(iteration)
        roles.learn(0.0, beta, written, roles.opinions(written))
        roles.publish()
        iteration += 1
        over = window.boundary(iteration * RESPONSES * NEW)
    return window


def generator_of(model: Any, options: argparse.Namespace) -> CachedGenerator:
    """As a run makes it; what is compiled is, now."""
    generator = CachedGenerator(
        model, (), steps="compiled" if options.compile else "plain", longest=PROMPT + NEW
    )
    generator.generate(prompts(RESPONSES), uniforms(1, 0, range(RESPONSES), NEW))
    return generator


def generate(options: argparse.Namespace) -> Window:
    generator = generator_of(ModelParts.of(causal(), "causal").build(), options)
    data = prompts(64 * RESPONSES)
    window = Window(options.warmup, options.seconds)
    turn, over = 0, False
    while not over:
        first = turn % 64 * RESPONSES
        generator.generate(data[first : first + RESPONSES], uniforms(1, turn, range(RESPONSES), NEW))
        turn += 1
        over = window.boundary(turn * RESPONSES * NEW)
    return window


def floor(algo: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each bare pass of an iteration, the median of some turns."""
    # as a run builds them, with the same fast paths
    actor, reference = (ModelParts.of(causal(), "causal").build() for _ in range(2))
    critic, reward = (ModelParts.of(scalar(seed), "scalar").build() for seed in (5, 2))
    generator = generator_of(actor, options)
    uniform = uniforms(1, 0, range(RESPONSES), NEW)
    ids = torch.randint(0, 500, (RESPONSES, 16 + NEW))
    if algo == "grpo":  # a group answers one prompt, which is read once
        ids[:, :16] = ids[::GROUP, :16].repeat_interleave(GROUP, dim=0)
    learners = (actor, critic) if algo == "ppo" else (actor,)
    adams = {id(one): torch.optim.Adam(one.parameters(), lr=1e-6, eps=1e-5, fused=True) for one in learners}

    def bare_generation() -> None:
        generator.generate(ids[:, :16].tolist(), uniform)

    def log_probs(model: Any) -> Any:
        hidden = model.transformer(ids).last_hidden_state[:, 15:-1]
        return model.lm_head(hidden).log_softmax(-1).gather(-1, ids[:, 16:].unsqueeze(-1)).squeeze(-1)

    def numbers(model: Any) -> Any:
        return model.score(model.transformer(ids).last_hidden_state)

    def frozen(look: Callable[[Any], Any], model: Any) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                look(model)

        return run

    def learning(look: Callable[[Any], Any], model: Any) -> Callable[[], None]:
        def run() -> None:
            adams[id(model)].zero_grad(set_to_none=True)
            look(model).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adams[id(model)].step()

        return run

    parts = {
        "generation": (1, bare_generation),
        "reference": (1, frozen(log_probs, reference)),
        "actor": (options.epochs, learning(log_probs, actor)),
    }
    if algo == "ppo":
        parts |= {
            "reward": (1, frozen(numbers, reward)), "values": (1, frozen(numbers, critic)),
            "critic": (options.epochs, learning(numbers, critic)),
        }  # fmt: skip
    taken: dict[str, list[float]] = {name: [] for name in parts}
    until = time.perf_counter() + options.warmup + options.seconds
    while time.perf_counter() < until:
        for name, (_, run) in parts.items():
            begun = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - begun)
    return {name: parts[name][0] * float(np.median(taken[name][1:])) for name in parts}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("what", choices=("generate", "ppo", "grpo", "ppo-floor", "grpo-floor"))
    parser.add_argument("--forward-batch", type=int, default=RESPONSES)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--compile", action="store_true", help="generation's step by torch.compile")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    algo = options.what.removesuffix("-floor")
    if options.what == "generate":
        window = generate(options)
    elif options.what == algo:
        window = iterate(roles_of(algo, options), options)
    else:
        seconds = floor(algo, options)
        window = Window(options.warmup, options.seconds)
        window.seconds, window.env_steps = sum(seconds.values()), RESPONSES * NEW
        options.parts_sec = seconds
    tell(f"distrl {options.what}", "distrl", window, options)


if __name__ == "__main__":
    main()
