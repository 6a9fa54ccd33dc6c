"""A model tried on a few tokens: what training relies on, whatever its family's code does.

    forward      logits of the whole text, finite, one for every row of the vocabulary
    head         the trunk's hidden states through the head are those logits
    causality    what comes later changes nothing before it
    padding      nor does what else is in the batch, and how long it is
    generation   tokens written with a cache have the log-probs that the whole text gives them

Reading a model tries it so (`try_causal`, `try_scalar`): a family that fails a part is refused by the name of that part, before
a run begins. The doctor makes the same comparisons on responses of the user's own (`distrl.stages.doctor`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from distrl.errors import BadInput, translated
from distrl.policies.lm import LanguagePolicy, ScalarModel, core, trunk_hidden
from distrl.rlhf.generation import CachedGenerator, respond
from distrl.rlhf.opinions import join, log_probs
from distrl.rlhf.responses import Ints, Responses

NUM_PADS = 7
CLOSE = 1e-4  # of log-probs in float32 in batches of other shapes: a fault moves them by more than 1e-2
ROUNDED = 1e-3  # of log-probs: what rounding may do in a large model; more are two functions, not one
TEMPERATURE = 0.7  # not 1, so that a forgotten division shows
LENGTH, PREFIX = 8, 5  # tokens of a text that is tried, and of those that what comes later must not change
# experts are chosen by a comparison, which rounding may turn: a fault shows in every text, a turn in hardly two
TRIES = 2


def try_causal(model: nn.Module, where: str, writes: bool = False, length: int | None = None) -> None:
    """BadInput where a causal LM fails a part. `writes`: it has to generate too. `length`: the longest text it reads."""

    def fault(texts: Tensor) -> str | None:
        found = _causal_fault(model, texts)
        if found is None and writes and texts.shape[1] == LENGTH:
            with translated(f"{where}: a {_family(model)} model cannot be used here: cached generation"):
                found = _writing_fault(model, texts)
        return found

    _tried(model, where, length, fault)


def try_scalar(model: nn.Module, where: str, length: int | None = None) -> None:
    """BadInput where a sequence classifier with one label fails a part."""
    _tried(model, where, length, lambda texts: _scalar_fault(model, texts))


def _tried(model: nn.Module, where: str, length: int | None, fault: Callable[[Tensor], str | None]) -> None:
    own = cast(Any, core(model))
    what = f"{where}: a {_family(model)} model cannot be used here"
    found = None
    with torch.inference_mode(), translated(what):
        for attempt in range(TRIES):
            if (found := fault(_texts(own, attempt, length))) is None:
                return
    raise BadInput(f"{what}: {found}")


def _family(model: nn.Module) -> str:
    return str(cast(Any, core(model)).config.model_type)


def _texts(own: Any, attempt: int, length: int | None) -> Tensor:
    """[2, S] of ordinary tokens; the two begin alike and end differently."""
    rows = int(own.get_input_embeddings().weight.shape[0])
    config = own.config.get_text_config()
    special = {getattr(config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    ids = [row for row in range(min(rows, 4096)) if row not in special] or [0]
    size = min(LENGTH, length or LENGTH)
    place = torch.arange(2 * LENGTH) * 5 + 3 * attempt
    token_NS = torch.tensor(ids)[place % len(ids)].view(2, LENGTH)[:, :size]
    token_NS[1, :PREFIX] = token_NS[0, :PREFIX]
    return token_NS.to(own.device)


def _causal_fault(model: nn.Module, texts: Tensor) -> str | None:
    own = cast(Any, core(model))
    rows = own.get_output_embeddings()
    if rows is None:
        return "head: it has no output embeddings, so no distribution over tokens"
    logits = own(input_ids=texts, use_cache=False).logits
    if logits.shape != (*texts.shape, rows.weight.shape[0]):
        return f"forward: its logits are {list(logits.shape)}, not {[*texts.shape, rows.weight.shape[0]]}"
    if not bool(torch.isfinite(logits).all()):
        return "forward: its logits are not finite; are its weights whole?"
    policy = LanguagePolicy(model, None, TEMPERATURE)
    told = _log_probs(policy, texts)
    if (off := sees_ahead(told)) > CLOSE:
        return (
            f"causality: tokens that come later move the log-probs of earlier ones by {off:.1e}; it is not a causal LM"
            + _advice(own.config)
        )
    own_told = torch.log_softmax(logits.float() / TEMPERATURE, -1)
    if (off := _distance(told, own_told)) > ROUNDED:
        return f"head: log-probs are {off:.1e} from those of its own forward pass"
    if (off := _distance(told[1:, :PREFIX], _log_probs(policy, texts[1:, :PREFIX]))) > ROUNDED:
        return f"padding: log-probs move by {off:.1e} with what stands behind a text"
    return None


def _scalar_fault(model: nn.Module, texts: Tensor) -> str | None:
    own = cast(Any, core(model))
    if not isinstance(getattr(own, "score", None), nn.Module):
        return "head: its classifier has no `score` layer that reads one token; use a reward model on a causal LM's trunk"
    told = ScalarModel(model)(texts)
    if not bool(torch.isfinite(told).all()):
        return "forward: its scores are not finite; are its weights whole?"
    scale = 1 + float(told.abs().max())
    if (off := sees_ahead(told.unsqueeze(-1))) > CLOSE * scale:
        return f"causality: tokens that come later move the scores of earlier ones by {off:.1e}" + _advice(
            own.config
        )
    if (off := _distance(told[1:, :PREFIX], ScalarModel(model)(texts[1:, :PREFIX]))) > ROUNDED * scale:
        return f"padding: scores move by {off:.1e} with what stands behind a text"
    return None


def _advice(config: Any) -> str:
    if getattr(config, "is_decoder", True) is False:
        return "; where it was trained as a decoder, set is_decoder to true in its config.json"
    return ""


def _log_probs(policy: LanguagePolicy, token_NS: Tensor) -> Tensor:
    """Of every next token, [N, S, V]."""
    hidden = trunk_hidden(cast(nn.Module, policy.actor), token_NS)
    logits = policy.logits(hidden.flatten(0, 1)).view(*token_NS.shape, -1)
    return torch.log_softmax(logits.float() / policy.temperature, -1)


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def sees_ahead(told_NSV: Tensor) -> float:
    """How far two texts that begin alike differ where they are alike."""
    return _distance(told_NSV[0, :PREFIX], told_NSV[1, :PREFIX])


def _writing_fault(model: nn.Module, texts: Tensor) -> str | None:
    """Prompts of two lengths, so that one is padded."""
    policy = LanguagePolicy(model, None, TEMPERATURE)
    prompts = [texts[0, :PREFIX].tolist(), texts[1, PREFIX:].tolist()]
    generator = CachedGenerator(model, (), TEMPERATURE)
    written = respond(generator, prompts, range(2), 0, 0, range(2), LENGTH - PREFIX, 0)
    if (off := off_ratio(all_log_probs(policy, written, [np.arange(2)]), written)) > ROUNDED:
        return f"cached generation: ratios are {off:.1e} from 1, so what it writes is not what the whole text gives"
    return None


def off_ratio(log_prob_TN: np.ndarray, responses: Responses) -> float:
    """How far the ratio of any decision, these log-probs to those it was sampled with, is from 1."""
    ratio_TN = np.exp(log_prob_TN.astype(np.float64) - responses.log_prob)
    return float(np.abs(ratio_TN - 1)[responses.valid].max())


def all_log_probs(policy: LanguagePolicy, responses: Responses, pieces: Sequence[Ints]) -> np.ndarray:
    """Of each decision, [T, N], by the update's own pass over texts in these pieces."""
    return join([log_probs(policy, responses, pieces)], responses.num_responses)


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
