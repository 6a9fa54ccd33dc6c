"""Samples of a run: responses to the same few prompts, from time to time, with what each reward says of them.

    samples.jsonl   a line a sample: schema, iteration, prompt, response, score, scores, kl, tokens, ended

They are written and scored by the roles themselves, so no model is held twice, with noise that is the samples' own and
the same each time: the run's numbers do not change, and two samples of a prompt differ by the policy alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from distrl.maths.kl import kl_per_response
from distrl.rlhf.opinions import join, named_scores
from distrl.rlhf.responses import Responses
from distrl.rlhf.written import ends_of, response_text
from distrl.runtime.roles import Roles
from distrl.stages.materials import PPOMaterials
from distrl.stages.ppo_config import PPOConfig
from distrl.telemetry.sinks.samples import SCHEMA


def is_due(config: PPOConfig, iteration: int) -> bool:
    """After the first iteration, every `sample_every`, and after the last."""
    every = config.sample_every
    return bool(every) and (iteration in (1, config.iterations) or iteration % every == 0)


def sample(roles: Roles, materials: PPOMaterials, iteration: int) -> list[dict[str, Any]]:
    """The samples of an iteration, by the policy as it was published last."""
    generator, reference, reward = (roles.of[role] for role in ("generator", "reference", "reward"))
    handle = generator.first("write_samples")
    asked = reference.call("reference_log_probs", handle), reward.call("scores", handle)
    responses = Responses.concatenate(generator.get([handle])[0])
    count = responses.num_responses
    its, parts = reference.get(asked[0]), reward.get(asked[1])
    kl_N = kl_per_response(responses.log_prob - join(its, count), responses.valid)
    score_N, named = join(parts, count), named_scores(parts, count)
    tokenizer, ends = materials.tokenizer, ends_of(materials.tokenizer, materials.end_tokens)
    found = []
    for n in range(count):
        prompt = materials.prompts.rows[int(responses.prompt[n])]
        tokens = responses.token[n, len(prompt.tokens) : int(responses.length[n])].tolist()
        found.append(
            {
                "schema": SCHEMA,
                "iteration": iteration,
                "number": int(responses.prompt[n]),
                "prompt": prompt.text,
                "response": response_text(tokenizer, prompt.tokens, tokens, ends),
                "score": _number(score_N[n]),
                "scores": {name: _number(said[n]) for name, said in named.items()},
                "kl": float(kl_N[n]),
                "tokens": int(responses.num_actions[n]),
                "ended": bool(responses.ended[n]),
            }
        )
    return found


def _number(value: np.floating[Any]) -> float | None:
    return float(value) if math.isfinite(value) else None


def printed(one: dict[str, Any]) -> str:
    """A sample for the terminal."""
    score = "none" if one["score"] is None else f"{one['score']:.3f}"
    several = "".join(f", {name} {value:.3f}" for name, value in one["scores"].items() if value is not None)
    end = "" if one["ended"] else ", cut"
    head = f"sample {one['iteration']}/{one['number']}  score {score}{several}  KL {one['kl']:.2f}  {one['tokens']} tokens{end}"
    return f"{head}\n  {one['prompt']!r} -> {one['response']!r}"
