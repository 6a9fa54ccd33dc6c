"""Generation in fixed shapes: a token is one fixed list of kernels, which a GPU replays as one launch.

    |prompts, pick|step|step|step|step|step|step|step|step|step| ...     step: one token of each row through the model, pick
    rows      64                  64   |          32          | ...      looked at every LOOK_EVERY tokens: the host waits
    graph     -    captured once for each number of rows, replayed

The twin of `CachedGenerator`'s loop, with the same numbers picking the same tokens. All that a step reads or writes
stays where it is: keys and values have room for the longest text, the column of the new ones is a tensor, keys not
written yet are masked. Rows that have ended are written on and what they say is dropped, until so many have ended that
the others fit the next smaller number of rows; those are moved to the front. Without a GPU the same steps run one by
one.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distrl.policies.lm import core, reads_ids, trunk
from distrl.rlhf.cache import fixed_cache, read_prompts
from distrl.rlhf.fast_paths import FIXED, attending

Pick = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # `distrl.rlhf.generation.Picker`
LOOK_EVERY = 8  # tokens
ROOM = 64  # texts have room for a multiple of it, so that few shapes are met
SIZES = 4  # numbers of rows: all, a half, a quarter, an eighth
MAX_LANES = 2  # shapes that keep their memory and their graphs
MAX_SHAPES = 64  # that are compiled in a process
WARM_UP = 3  # steps before a capture, for what is made at first use


# A token is written by: the plain loop; steps in fixed shapes, as they are (for tests), through torch.compile, or on a GPU
# captured as CUDA graphs.
Steps = Literal["plain", "fixed", "compiled", "captured"]


class Said(NamedTuple):
    """Tokens and their log-probs of each row as far as it was written; what comes behind an end of text is no part of it."""

    token_NT: NDArray[np.int64]
    log_prob_NT: NDArray[np.float32]


def why_not_fixed(config: Any) -> str | None:
    """What in a model's configuration keeps its steps from having fixed shapes; None: nothing."""
    config = config.get_text_config()
    windows = getattr(config, "sliding_window", None) or set(getattr(config, "layer_types", None) or ()) - {
        "full_attention"
    }
    if windows:
        return "layers that attend within a window"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "attention with a soft cap"
    if fixed_cache(config, 0, torch.zeros(1, dtype=torch.long)) is None:
        return "layers that are no plain attention"
    return None


def why_not(steps: Steps, config: Any, device: str) -> str | None:
    """What keeps a model of that configuration from being written with by such steps on a device; None: nothing."""
    if steps == "plain":
        return None
    reason = why_not_fixed(config)
    if reason is not None:
        return f"a step must have fixed shapes, and a {config.model_type} model has {reason}; give --generation plain"
    if steps == "captured" and device == "cpu":
        return "CUDA graphs want a GPU; give --generation compiled or plain"
    compiler = os.environ.get("CXX", "g++")  # as torch.compile takes it
    if steps == "compiled" and device == "cpu" and shutil.which(compiler) is None:
        return (
            f"wants a C++ compiler on a CPU, and there is no {compiler}; install g++, name another in CXX, or give "
            "--generation plain"
        )
    return None


@cache
def _compiled_step() -> Callable[[_Lane, int], None]:
    """`_Lane._step` compiled, anew for each shape; torch keeps what it made until the process ends."""
    return torch.compile(_Lane._step, dynamic=False)


def sizes(num_rows: int) -> list[int]:
    """Numbers of rows that steps are made for, the largest first."""
    return list(dict.fromkeys(-(-num_rows // 2**half) for half in range(SIZES)))


class Lanes:
    """Writes responses in fixed shapes. What it keeps between calls is memory and graphs.

    `longest` is the length of the longest text that may come, where it is known. Compiled steps then all have room for it,
    so that one is compiled for each number of rows alone.
    """

    def __init__(
        self,
        model: nn.Module,
        pick: Pick,
        end_tokens: Sequence[int],
        steps: Steps,
        longest: int | None = None,
        fast: bool = True,
    ) -> None:
        self.model, self.pick, self.end_tokens, self.fast = model, pick, end_tokens, fast
        self.steps = steps
        self.longest = longest
        self.lanes: dict[tuple[Any, ...], _Lane] = {}
        self.places: tuple[int, ...] = ()  # of parameters and buffers: graphs read them there

    def write(self, prompts: Sequence[Sequence[int]], uniform_NT: NDArray[np.float32]) -> Said:
        """As `CachedGenerator.generate`, within `torch.inference_mode`."""
        device = next(self.model.parameters()).device
        places = tuple(one.data_ptr() for one in (*self.model.parameters(), *self.model.buffers()))
        if places != self.places:  # moved to the device and back, say
            self.lanes.clear()
            self.places = places
        limit = uniform_NT.shape[1]
        needed = max(map(len, prompts)) + limit
        most = max(needed, self.longest or sys.maxsize)
        room = most if self.steps == "compiled" and self.longest else min(-(-needed // ROOM) * ROOM, most)
        key = (len(prompts), room, limit, device)
        lane = self.lanes.pop(key, None)
        if lane is None:
            lane = _Lane(self, *key)
        self.lanes[key] = lane  # the last one used is the last to go
        while len(self.lanes) > MAX_LANES:
            del self.lanes[next(iter(self.lanes))]
        return lane.write(prompts, uniform_NT)


class _Lane:
    """The memory of N rows, their steps, and the steps' graphs."""

    def __init__(self, of: Lanes, num_rows: int, room: int, limit: int, device: torch.device) -> None:
        self.model, self.pick, self.fast = of.model, of.pick, of.fast
        own = cast(Any, core(self.model))
        self.config, self.trunk, self.embed = own.config, trunk(own), own.get_input_embeddings()
        self.by_ids = reads_ids(own)
        self.steps = of.steps
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        # of all graphs, which run one at a time: what one leaves there, none reads
        self.pool = torch.cuda.graph_pool_handle() if self.steps == "captured" else None
        self.sizes = sizes(num_rows)
        self.guarded: set[int] = (
            set()
        )  # numbers of rows whose step was held against what it was compiled for, in this call
        self.column = torch.zeros(1, dtype=torch.long, device=device)  # where a step writes its keys
        self.cache: Any = fixed_cache(self.config, room, self.column)
        self.column_S = torch.arange(room, device=device)
        self.ends = torch.tensor(of.end_tokens, dtype=torch.long, device=device)

        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.at = zeros(1)  # tokens written of each row
        self.token, self.position, self.pads, self.row = (zeros(num_rows) for _ in range(4))
        self.done = zeros(num_rows, dtype=torch.bool)
        self.uniform = zeros(num_rows, limit, dtype=torch.float32)
        self.tokens, self.log_probs = zeros(num_rows, limit), zeros(num_rows, limit, dtype=torch.float32)
        # by the rows' own numbers
        self.told = torch.zeros_like(self.tokens), torch.zeros_like(self.log_probs)

    @property
    def _by_row(self) -> tuple[Tensor, ...]:
        return (
            self.token, self.position, self.pads, self.row, self.done, self.uniform, self.tokens, self.log_probs
        )  # fmt: skip

    def write(self, prompts: Sequence[Sequence[int]], uniform_NT: NDArray[np.float32]) -> Said:
        limit = uniform_NT.shape[1]
        self._begin(prompts, uniform_NT)
        num_rows, written = len(prompts), 1
        with self._fixed():
            while written < limit:
                if len(self.ends) and written % LOOK_EVERY == 0:
                    running = (~self.done[:num_rows]).nonzero().squeeze(-1)  # the host waits
                    if not len(running):
                        break
                    num_rows = self._fit(running, num_rows)
                self._run(num_rows)
                written += 1
        self._tell(num_rows)
        token_NT, log_prob_NT = (told[:, :written].cpu().numpy() for told in self.told)
        return Said(token_NT, log_prob_NT)

    def _begin(self, prompts: Sequence[Sequence[int]], uniform_NT: NDArray[np.float32]) -> None:
        """The prompts through the model; the first token of each row."""
        lengths = np.array([len(prompt) for prompt in prompts])
        self.uniform.copy_(torch.from_numpy(np.ascontiguousarray(uniform_NT)))
        self.position.copy_(torch.from_numpy(lengths))
        self.pads.copy_(int(lengths.max()) - self.position)
        torch.arange(len(prompts), out=self.row)
        self.done.zero_()
        self.at.zero_()
        self.guarded.clear()
        self._pick(read_prompts(self.model, prompts, self.cache, self.fast), len(prompts))

    def _forward(self, token: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        found = self.trunk(
            **({"input_ids": token} if self.by_ids else {"inputs_embeds": self.embed(token)}),
            attention_mask=mask,
            position_ids=position,
            past_key_values=self.cache,
            use_cache=True,
        )
        return cast(Tensor, found.last_hidden_state)[:, -1]

    def _pick(self, hidden: Tensor, n: int) -> None:
        uniform_N = self.uniform[:n].index_select(1, self.at).squeeze(1)
        chosen, log_prob = self.pick(hidden, uniform_N)
        self.token[:n].copy_(chosen)
        self.tokens[:n].index_copy_(1, self.at, chosen.unsqueeze(1))
        self.log_probs[:n].index_copy_(1, self.at, log_prob.unsqueeze(1))
        self.done[:n].logical_or_((chosen.unsqueeze(1) == self.ends).any(1))
        self.at.add_(1)

    def _step(self, n: int) -> None:
        """One more token of the first n rows; nothing in it hangs on the host."""
        seen = (self.column_S >= self.pads[:n].unsqueeze(1)) & (self.column_S <= self.column)
        found = self._forward(
            self.token[:n].unsqueeze(1), self.position[:n].unsqueeze(1), seen[:, None, None]
        )
        self._pick(found, n)
        self.position[:n].add_(1)
        self.column.add_(1)

    def _next(self, n: int) -> None:
        if self.steps != "compiled":
            self._step(n)
            return
        # a twelfth of a step: whether the model is still the one that was compiled, once a call for each number of rows
        with torch.compiler.set_stance(skip_guard_eval_unsafe=n in self.guarded):
            _compiled_step()(self, n)
        self.guarded.add(n)

    def _run(self, n: int) -> None:
        if self.steps != "captured":
            self._next(n)
            return
        if n not in self.graphs:
            self.graphs[n] = self._captured(n)
        self.graphs[n].replay()

    @contextmanager
    def _fixed(self) -> Iterator[None]:
        """Attention of one query to all keys, and torch's plain kernels: one index is written, in any order the same."""
        before = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        torch.use_deterministic_algorithms(False)
        shapes = (
            torch._dynamo.config.patch(recompile_limit=MAX_LANES * SIZES)
            if self.steps == "compiled"
            else nullcontext()
        )
        try:
            with attending(self.config, FIXED), shapes:
                yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])

    def _captured(self, n: int) -> torch.cuda.CUDAGraph:
        """The graph of a step. What runs before it is taken back; keys and values that it leaves are written again."""
        changed = (*self._by_row, self.at, self.column)
        kept = [one.clone() for one in changed]
        before, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(before)
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                self._next(n)
                for one, was in zip(changed, kept, strict=True):
                    one.copy_(was)
        before.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            self._next(n)
        return graph

    def _fit(self, running: Tensor, n: int) -> int:
        """The rows that steps are made for from now on: where fewer do, the running ones are moved to the front."""
        fewer = min(size for size in self.sizes if size >= len(running))
        if fewer >= n:
            return n
        self._tell(n)
        ended = self.done[:n].nonzero().squeeze(-1)
        kept = torch.cat([running, ended])[:fewer]
        for one in self._by_row:
            one[:fewer] = one[kept]
        self.cache.batch_select_indices(kept)
        return fewer

    def _tell(self, n: int) -> None:
        for told, said in zip(self.told, (self.tokens, self.log_probs), strict=True):
            told[self.row[:n]] = said[:n]
