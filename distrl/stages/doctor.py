"""`distrl doctor --model FOLDER --data FILE`: RLHF's invariants on a user's own model, before compute is spent.

Each check really does what it names, on a few responses that the model writes to the data's first prompts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from distrl.doctor import Finding
from distrl.errors import BadInput, RunFailed
from distrl.machine import resolve_device
from distrl.maths.pieces import by_length
from distrl.policies.lm import LanguagePolicy, core
from distrl.rlhf.data import DataSet, Prompt, read_prompts
from distrl.rlhf.generation import CachedGenerator, respond
from distrl.rlhf.models import Dtype, ModelParts, context_length, read_causal
from distrl.rlhf.opinions import first_fault, join, log_probs
from distrl.rlhf.responses import Responses
from distrl.rlhf.reward_trial import try_function
from distrl.rlhf.rewards import FunctionReward
from distrl.rlhf.scoring import RewardSource
from distrl.rlhf.templates import TemplateOptions, check_template, read_arguments
from distrl.rlhf.tokenizers import (
    check_rows,
    check_vocabulary,
    end_tokens,
    read_tokenizer,
    usable_ids,
    vocabulary_size,
)
from distrl.stages.materials import reward_model

NUM_PROMPTS = 8
NUM_PADS = 7
ON_RATIO = 1e-5  # in float32, what a ratio may start off 1
ROUNDED = 1e-3  # that is further than rounding takes it in a large model: two functions, not one
CLOSE = 1e-4  # of log-probs in float32 in batches of other shapes: a fault moves them by more than 1e-2


@dataclass(frozen=True)
class Patient:
    """What the doctor is shown."""

    model: str
    data: str
    reward: tuple[str, ...] = ()
    reward_function: tuple[str, ...] = ()
    temperature: float = 0.7  # not 1, so that a forgotten division shows
    max_response: int = 32
    chat: bool = False
    chat_kwargs: str | None = None  # arguments of the chat template, as JSON
    seed: int = 0
    device: str = "auto"
    threads: int = 1
    reward_timeout_sec: float = 60.0
    dtype: Dtype = "float32"  # of what writes and of rewards, as `distrl rlhf ppo --dtype`


def examine_model(patient: Patient) -> Iterator[Finding]:
    """All findings, each as soon as it is known; what needs something that failed is left out.

    Raises BadInput at once where there is no such device.
    """
    return _findings(patient, resolve_device(patient.device))


def _findings(patient: Patient, device: str) -> Iterator[Finding]:
    torch.set_num_threads(patient.threads)
    tokenizer = yield from _try("tokenizer", lambda: read_tokenizer(patient.model), _describe_tokenizer)
    if tokenizer is None:
        return
    yield _pad(tokenizer)
    parts = yield from _try(
        "model", lambda: read_causal(patient.model), lambda found: type(found.config).__name__
    )
    prompts = yield from _try("data", lambda: _prompts(patient, tokenizer), _describe_prompts)
    if parts is None or prompts is None:
        return
    fits = yield from _try("vocabulary", lambda: _vocabulary(tokenizer, parts, prompts, patient.model), str)
    yield _context(parts, prompts, patient)
    limit = context_length(parts.config)
    rows = [row for row in prompts.rows if limit is None or len(row.tokens) < limit]
    if fits is None or not rows:
        return
    policy = LanguagePolicy(
        parts.build(device), None, patient.temperature, usable_ids(tokenizer, parts.config)
    )
    ends = end_tokens(tokenizer, parts.generation)
    writer = replace(parts, dtype=patient.dtype).build(device)
    responses = _write(policy, writer, prompts, rows[:NUM_PROMPTS], ends, patient)
    yield _end(responses)
    yield from invariants(policy, responses, patient.dtype)
    for folder in patient.reward:
        yield _reward(
            folder,
            partial(reward_model, folder, tokenizer, dtype=patient.dtype, prompts=prompts.rows),
            responses,
            device,
        )
    for function in patient.reward_function:
        make = partial(_function, function, prompts, tokenizer, patient.reward_timeout_sec)
        yield _reward(function, make, responses, device)


def invariants(
    policy: LanguagePolicy, responses: Responses, written_in: Dtype = "float32"
) -> Iterator[Finding]:
    """What PPO relies on: the same log-prob however a token's text is computed."""
    pieces = by_length(responses.length, responses.num_responses)
    again = join([log_probs(policy, responses, pieces)], responses.num_responses)
    valid = responses.valid
    ratio = np.exp(again.astype(np.float64) - responses.log_prob)[valid]
    off = float(np.abs(ratio - 1).max())
    if written_in == "float32":
        yield _ratio(off)
    else:
        told = (
            f"{off:.1e} of the first minibatch from 1: written in {written_in} and learned from in float32; "
        )
        yield Finding(
            "warn", "ratio", f"{told}--exact-ratio starts at 1, --importance-cap 2 weighs what was sampled"
        )
    twice = join([log_probs(policy, responses, pieces)], responses.num_responses)
    yield _close(
        "dropout",
        float(np.abs(twice - again).max()),
        "between two passes",
        "the model is random by itself; is a dropout on that evaluation does not turn off?",
    )
    yield _close(
        "padding", float(np.abs(padded_log_probs(policy, responses) - again)[valid].max()),
        f"between texts in a batch and alone with {NUM_PADS} pads behind each", "the model's "
        "attention sees what comes later; is it a causal one?"
    )  # fmt: skip
    yield _close(
        "temperature", float(np.abs(own_log_probs(policy, responses) - again)[valid].max()),
        f"from the model's own logits / {policy.temperature:g}", "what is learned from is not what the model's own "
        "forward pass says at that temperature; tell us of its family",
    )  # fmt: skip


def padded_log_probs(policy: LanguagePolicy, responses: Responses) -> np.ndarray:
    """Of each decision, [T, N], text by text with pads behind it that are not trimmed."""
    device = next(cast(nn.Module, policy.actor).parameters()).device
    found = np.zeros(responses.action.shape)
    for n in range(responses.num_responses):
        rows = int(responses.num_actions[n])
        token = np.pad(responses.token[n : n + 1, : responses.length[n]], ((0, 0), (0, NUM_PADS)))
        arrays = {
            "token": token,
            "length": responses.length[n : n + 1],
            "decision": np.stack([np.arange(rows), np.zeros(rows, np.int64)]),  # given these it trims nothing
        }
        state = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        position, action = (
            torch.from_numpy(table[:rows, n : n + 1].copy()).to(device)
            for table in (responses.position, responses.action)
        )
        with torch.no_grad():
            said = policy.evaluate(position, action, None, state, None).log_prob
        found[:rows, n] = said[:, 0].cpu().numpy()
    return found


def own_log_probs(policy: LanguagePolicy, responses: Responses) -> np.ndarray:
    """Of each decision by the family's own forward pass, text by text, [T, N], float64."""
    model = cast(Any, core(cast(Any, policy.actor)))
    found = np.zeros(responses.action.shape)
    for n in range(responses.num_responses):
        token = torch.from_numpy(responses.token[n : n + 1, : responses.length[n]]).to(model.device)
        with torch.no_grad():
            logits = model(input_ids=token, use_cache=False).logits[0].double() / policy.temperature
            logits = logits[:, : policy.vocabulary]
        said = torch.log_softmax(logits, -1).cpu().numpy()
        for t in range(int(responses.num_actions[n])):
            found[t, n] = said[responses.position[t, n], responses.action[t, n]]
    return found


def _try(what: str, check: Callable[[], Any], told: Callable[[Any], str]) -> Generator[Finding, None, Any]:
    """The finding of a check, and its result, None where it failed."""
    try:
        found = check()
    except (BadInput, RunFailed) as error:
        yield Finding("fail", what, str(error).replace("\n", "; "))
        return None
    yield Finding("pass", what, told(found))
    return found


def _describe_tokenizer(tokenizer: Any) -> str:
    return f"{vocabulary_size(tokenizer)} ids, end of text {tokenizer.eos_token!r}"


def _prompts(patient: Patient, tokenizer: Any) -> DataSet[Prompt]:
    template = TemplateOptions(patient.chat, read_arguments(patient.chat_kwargs or {}))
    check_template(tokenizer, template)
    return read_prompts(patient.data, tokenizer, template=template)


def _describe_prompts(prompts: DataSet[Prompt]) -> str:
    longest = max(len(row.tokens) for row in prompts.rows)
    return f"{len(prompts.rows)} prompts, the longest of {longest} tokens"


def _pad(tokenizer: Any) -> Finding:
    if tokenizer.pad_token_id is None:
        return Finding(
            "pass", "pad", "none; texts are padded with id 0 behind their last token, where nobody looks"
        )
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        return Finding(
            "pass", "pad", "the end of text; no harm here: lengths are counted, pads are never looked for"
        )
    return Finding("pass", "pad", repr(tokenizer.pad_token))


def _vocabulary(tokenizer: Any, parts: ModelParts, prompts: DataSet[Prompt], folder: str) -> str:
    check_vocabulary(tokenizer, parts.config, folder)
    check_rows(tokenizer, parts.config, [row.tokens for row in prompts.rows], folder)
    return f"{vocabulary_size(tokenizer)} ids of the tokenizer's, {int(parts.config.vocab_size)} rows of the model's"


def _context(parts: ModelParts, prompts: DataSet[Prompt], patient: Patient) -> Finding:
    limit = context_length(parts.config)
    longest = max(len(row.tokens) for row in prompts.rows)
    needs = f"the longest prompt's {longest} + --max-response {patient.max_response} = {longest + patient.max_response}"
    if limit is None or longest + patient.max_response <= limit:
        return Finding("pass", "context", f"{needs} of {limit or 'any number of'} tokens")
    return Finding("fail", "context", f"{needs} tokens, and the model reads {limit}; shorten one of the two")


def _write(
    policy: LanguagePolicy,
    writer: nn.Module,
    prompts: DataSet[Prompt],
    rows: list[Prompt],
    ends: tuple[int, ...],
    patient: Patient,
) -> Responses:
    limit = context_length(cast(Any, core(cast(Any, policy.actor))).config)
    longest = max(len(row.tokens) for row in rows)
    size = patient.max_response if limit is None else max(min(patient.max_response, limit - longest), 1)
    generator = CachedGenerator(writer, ends, patient.temperature, vocabulary=policy.vocabulary)
    numbers = [prompts.rows.index(row) for row in rows]
    return respond(
        generator, [row.tokens for row in rows], numbers, patient.seed, 0, range(len(rows)), size, 0
    )


def _end(responses: Responses) -> Finding:
    share = float(responses.ended.mean())
    told = f"{share:.0%} of {responses.num_responses} responses ended by themselves"
    if share > 0:
        return Finding("pass", "ends", told)
    return Finding(
        "warn", "ends", f"{told}: raise --max-response, or has the model never learned to end a text?"
    )


def _ratio(off: float) -> Finding:
    told = f"{off:.1e} of the first minibatch from 1"
    if off <= ON_RATIO:
        return Finding("pass", "ratio", told)
    if off <= ROUNDED:
        return Finding(
            "warn",
            "ratio",
            f"{told}, more than {ON_RATIO:g}: sampling and learning round otherwise; --exact-ratio starts at 1",
        )
    return Finding(
        "fail",
        "ratio",
        f"{told}, more than rounding: sampling and learning compute two policies, which --exact-ratio would hide; do "
        "the checks below say why?",
    )


def _close(what: str, distance: float, between: str, advice: str) -> Finding:
    if distance <= CLOSE:
        return Finding("pass", what, f"{distance:.1e} {between}")
    return Finding("fail", what, f"{distance:.1e} {between}, more than {CLOSE:g}: {advice}")


def _function(name: str, prompts: DataSet[Prompt], tokenizer: Any, timeout_sec: float) -> RewardSource:
    source = FunctionReward(name, prompts.rows, tokenizer, timeout_sec)
    try_function(source)
    return source


def _reward(name: str, make: Callable[[], RewardSource], responses: Responses, device: str) -> Finding:
    """Range and speed; scores that are all alike teach nothing."""
    try:
        scorer = make().build(device)
    except (BadInput, RunFailed) as error:
        return Finding("fail", "reward", f"{name}: {error}".replace("\n", "; "))
    pieces = by_length(responses.length, responses.num_responses)
    began = time.monotonic()
    part = scorer.score(responses, pieces)
    score_N = join([part], responses.num_responses)
    rate = responses.num_responses / max(time.monotonic() - began, 1e-9)
    good = score_N[np.isfinite(score_N)]
    if len(good) < len(score_N):
        fault = first_fault([part])
        why = f"; the first: {fault[1]}" if fault is not None else ""
        return Finding(
            "fail", "reward", f"{name}: {len(score_N) - len(good)} of {len(score_N)} have no score{why}"
        )
    told = f"{name}: {good.min():.3g} to {good.max():.3g}, mean {good.mean():.3g}; {rate:.0f} responses/s"
    if np.ptp(good) == 0:
        return Finding("warn", "reward", f"{told}; all alike, so there is nothing to learn from")
    if np.abs(good).max() > 100:
        return Finding(
            "warn", "reward", f"{told}; large beside a KL of a few nats: scale it, or raise --beta"
        )
    return Finding("pass", "reward", told)
