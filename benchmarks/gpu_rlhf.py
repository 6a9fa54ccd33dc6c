"""What gpu_check.py checks and times of RLHF: generation in fixed shapes, and steps of PPO and GRPO.

A random-weight model of Qwen2's shape at 0.5 B, made from its configuration. The limit of a generated token is the
bytes of all weights and of the keys and values of the texts so far, over the rate of a copy on the device that the
same run measures.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu_cases import SEED
from benchmarks.gpu_timing import Rates, median_seconds
from distrl.rlhf.fixed import Steps
from distrl.rlhf.generation import CachedGenerator, Written, uniforms
from distrl.rlhf.models import ModelParts, scalar_from
from distrl.rlhf.opinions import Part
from distrl.rlhf.recipes import GRPO, RLHF_PPO, ResponseRecipe
from distrl.rlhf.responses import Responses
from distrl.rlhf.role_spec import ROLES, RoleSpec
from distrl.runtime.roles import Host, LocalStage, Roles
from distrl.telemetry import spans

CLOSE = {"cpu": 1e-4, "cuda": 1e-3}  # of log-probs in float32
# a token whose uniform number falls on a boundary may be another one by rounding, and all behind it in its row
SAME_ROWS = {"cpu": 1.0, "cuda": 0.9}
HALF_BILLION: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip
TINY: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Prompts, their tokens, and new tokens of each."""

    rows: int
    prompt: int
    new: int


SIZES = (Size(64, 16, 32), Size(16, 16, 128), Size(64, 16, 128), Size(256, 16, 128))


@dataclass(frozen=True)
class EvenTokens:
    """The share of even tokens in a response: a reward that costs nothing."""

    def build(self, device: str) -> EvenTokens:
        return self

    def score(self, responses: Responses, columns: Sequence[NDArray[np.int64]]) -> Part:
        """[n]."""
        mine = np.concatenate([np.zeros(0, np.int64), *columns])
        even = ((responses.action % 2 == 0) & responses.valid).sum(0) / np.maximum(responses.num_actions, 1)
        return Part(mine, even.astype(np.float32)[mine])


def qwen2(described: dict[str, Any], device: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model of random weights, drawn where it lies."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    torch.manual_seed(SEED)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(Qwen2Config(**described, **ids), dtype=dtype)
    return model.eval().requires_grad_(False)


def prompts_of(size: Size, vocabulary: int, ragged: bool = False) -> list[list[int]]:
    """Random ids; of 1 to `size.prompt` tokens if `ragged`."""
    rng = np.random.default_rng(SEED)
    lengths = rng.integers(1, size.prompt + 1, size.rows) if ragged else np.full(size.rows, size.prompt)
    return [rng.integers(2, vocabulary, length).tolist() for length in lengths]


def steps_on(device: str) -> Steps:
    """Fixed shapes: on a GPU captured."""
    return "captured" if device == "cuda" else "fixed"


def check_generation(checks: Any, device: str) -> None:
    """Fixed shapes beside the plain loop, greedy and sampled, with ends; on a GPU graphs beside the steps without."""
    size, model = Size(16, 9, 30), qwen2(TINY, device)
    prompts = prompts_of(size, TINY["vocab_size"], ragged=True)
    random = uniforms(SEED, 0, range(size.rows), size.new)
    for how, options in (("greedy", {"greedy": True}), ("sampled", {"temperature": 0.8})):
        plain, fixed = (
            CachedGenerator(model, (4, 9), steps=one, **options) for one in ("plain", steps_on(device))
        )  # type: ignore[arg-type]
        wanted, found = (one.generate(prompts, random) for one in (plain, fixed))
        same, apart = compared(wanted, found)
        name = f"generation, {how}: fixed shapes as the plain loop on {device}"
        ends = len({len(one.tokens) for one in wanted})
        holds = same >= SAME_ROWS[device] and apart <= CLOSE[device] and ends > 1
        checks.add(name, holds, rows_alike=same, log_probs_apart=apart)
        if device == "cuda":
            stepwise = CachedGenerator(model, (4, 9), steps="fixed", **options)  # type: ignore[arg-type]
            (lane,) = fixed.lanes.lanes.values()
            again = fixed.generate(prompts, random)  # replayed alone
            alike = stepwise.generate(prompts, random) == found == again
            checks.add(f"generation, {how}: captured as without graphs", alike, graphs=len(lane.graphs))


def compared(wanted: Sequence[Written], found: Sequence[Written]) -> tuple[float, float]:
    """Share of the rows with the same tokens, and the most that their log-probs differ by."""
    same = [one for one in zip(wanted, found, strict=True) if one[0].tokens == one[1].tokens]
    apart = [np.abs(np.subtract(mine.log_probs, theirs.log_probs)).max() for mine, theirs in same]
    return len(same) / len(wanted), float(max(apart, default=np.inf))


def time_generation(
    described: dict[str, Any],
    sizes: Sequence[Size],
    device: str,
    rates: Rates | None,
    budget_sec: float = 5.0,
) -> list[dict[str, Any]]:
    """Seconds of distrl's generation, in fixed shapes and by the plain loop, and of transformers' generate(), sampled."""
    model = qwen2(described, device, torch.bfloat16)
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    rows = []
    for size in sizes:
        prompts = prompts_of(size, described["vocab_size"])
        random = uniforms(SEED, 0, range(size.rows), size.new)
        token = torch.tensor(prompts, device=device)
        plain, fixed = (CachedGenerator(model, (), steps=one) for one in ("plain", steps_on(device)))

        def theirs(token: torch.Tensor = token, new: int = size.new) -> object:
            return model.generate(
                token, attention_mask=torch.ones_like(token), do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
                min_new_tokens=new, max_new_tokens=new, pad_token_id=0,
            )  # fmt: skip

        calls = {
            "fixed": lambda one=fixed, given=(prompts, random): one.generate(*given),
            "plain": lambda one=plain, given=(prompts, random): one.generate(*given),
            "generate()": theirs,
        }
        with torch.inference_mode():
            seconds = {name: median_seconds(call, device, budget_sec) for name, call in calls.items()}
        limit = bytes_read(described, weights, size) / rates["memory_bytes"] if rates is not None else None
        for name, taken in seconds.items():
            row: dict[str, Any] = {"how": name, **vars(size), "seconds": taken}
            row["tokens_per_sec"] = size.rows * size.new / taken["median"]
            row["times_generate"] = seconds["generate()"]["median"] / taken["median"]
            if limit is not None:
                row |= {"limit_sec": limit, "share_of_limit": limit / taken["median"]}
            rows.append(row)
            told = f"  {row['share_of_limit']:6.1%} of the limit" if limit is not None else ""
            print(
                f"write  {size.rows:4d} x {size.prompt} + {size.new} {name:10s} {taken['median'] * 1e3:10.1f} ms"
                f"  {row['tokens_per_sec']:12,.0f} tokens/s  {row['times_generate']:6.2f} x generate(){told}",
                flush=True,
            )
    return rows


def bytes_read(described: dict[str, Any], weights: int, size: Size) -> float:
    """Of a batch's generation in bfloat16: all weights at every token, and the keys and values of the texts so far."""
    heads = described["num_key_value_heads"]
    width = described["hidden_size"] // described["num_attention_heads"]
    of_token = described["num_hidden_layers"] * 2 * heads * width * 2
    seen = sum(size.prompt + t for t in range(size.new))
    return float(size.new * weights + size.rows * seen * of_token)


def time_steps(
    described: dict[str, Any], size: Size, device: str, micro_batch: int = 16
) -> list[dict[str, Any]]:
    """Seconds of an iteration of PPO with a critic of its own (4 epochs) and of GRPO, part by part; float32 learns."""
    source = qwen2(described, "cpu")
    actor = ModelParts.of(source, "causal")
    rows = []
    for name, base in (("ppo", RLHF_PPO), ("grpo", GRPO)):
        recipe = replace(base, max_response=size.new)
        models = {"actor": actor, "reference": actor}
        if recipe.trains_value:
            models["critic"] = scalar_from(actor)
        spec = _spec(recipe, size, described, device, micro_batch)
        hosted = tuple(role for role in ROLES if role != "critic" or recipe.trains_value)
        roles = Roles(spec, LocalStage(spec, models, Host(hosted, workers=0)))
        taken: list[dict[str, float]] = []
        for iteration in range(3):
            spans.start("other")
            taken.append(_iterate(roles, iteration, device))
        named = (
            spans.current().take_totals().seconds()
        )  # of the last; on a GPU kernels run on behind their spans
        roles.close()
        best = {part: min(one[part] for one in taken[1:]) for part in taken[0]}
        rows.append(
            {
                "algo": name,
                **vars(size),
                "seconds": best,
                "micro_batch": micro_batch,
                "last_iteration_spans": named,
            }
        )
        told = "  ".join(f"{part} {seconds:.3f}" for part, seconds in best.items())
        print(f"step   {name:5s} {size.rows} x {size.prompt} + {size.new}  {told} s", flush=True)
    return rows


def _spec(
    recipe: ResponseRecipe, size: Size, described: dict[str, Any], device: str, micro_batch: int
) -> RoleSpec:
    prompts = prompts_of(size, described["vocab_size"])
    return RoleSpec(
        recipe=recipe,
        seed=SEED,
        prompts=tuple(map(tuple, prompts)),
        num_prompts=size.rows // recipe.group_size,
        end_tokens=(),
        reward=EvenTokens(),
        generation_batch=size.rows,
        forward_batch=size.rows,
        micro_batch=micro_batch,
        dtype="bfloat16",
        devices=dict.fromkeys(ROLES, device),
    )


def _iterate(roles: Roles, iteration: int, device: str) -> dict[str, float]:
    """Seconds of one, part by part, the device's work included."""
    taken: dict[str, float] = {}
    begin = time.perf_counter()

    def since(part: str) -> None:
        nonlocal begin
        if device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        taken[part], begin = now - begin, now

    written = roles.write(iteration)
    since("write")
    said = roles.opinions(written)
    since("look")
    roles.learn(0.0, roles.recipe.beta, written, said)
    since("learn")
    roles.publish()
    since("publish")
    return taken | {"whole": sum(taken.values())}
