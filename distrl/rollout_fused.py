"""The fused twin of `distrl.rollout.Collector`: for a native env and the compiled MLP, no Python for a step.

It plays the same episodes with the same noise and the same kernels, so a fragment has the same bits. What is not
its: envs that are not native, other policies, rows that are dropped (`--nonfinite drop`).
"""

from __future__ import annotations

import copy
import math
from itertools import repeat
from time import perf_counter
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from distrl.envs import EnvGroup, EnvSpec
from distrl.envs.group import HOW_TO_GO_ON
from distrl.envs.native.fused import EVERY_PART, REWARD, Actor, Block, Envs, Parts, Room, fused_kernel
from distrl.errors import BadInput, RunFailed
from distrl.inference import CompiledInference
from distrl.maths.mlp_heads import GAUSSIAN
from distrl.maths.mlp_policy import empty_mask
from distrl.maths.random import stream
from distrl.maths.random_kernels import purpose_words
from distrl.policies.compiled import CompiledMLP
from distrl.policies.observe import CLIP
from distrl.rollout import NOISE_BLOCK, Collector, EpisodeRecord, Fragment, Stopped
from distrl.telemetry.spans import span
from distrl.trajectory import Trajectory

Array = NDArray[Any]


def why_not_fused(spec: EnvSpec) -> str | None:
    """What of the envs only the stepwise rollout does, as the end of a sentence; None where there is nothing."""
    if not spec.is_native:
        return f"the env's backend is {spec.backend}"
    if spec.nonfinite != "fail":
        return f"--nonfinite {spec.nonfinite} drops rows"
    return None


class FusedCollector(Collector):
    """A `Collector` whose steps are one compiled loop. Its inference is a `CompiledInference`."""

    def __init__(self, group: EnvGroup, *arguments: Any, **named: Any) -> None:
        super().__init__(group, *arguments, **named)
        if not isinstance(self.inference, CompiledInference):
            raise BadInput("a fused rollout computes with the compiled kernels: use --inference compiled")
        self.view = self.inference.view.beside()  # groups may be played by several threads
        self.block = fused_kernel(group.native.env)
        self.room = _room(group, self.view)
        self._compile()

    def _compile(self) -> None:
        """Here, and not in a step that the watchdog times: compiles, or reads Numba's cache, by playing no step."""
        group = self.group
        noise = np.zeros((0, group.num_envs * int(self.view.network.actor[-1])), np.float32)
        alive = np.ones(group.num_envs, np.bool_)
        block = _empty_block(group, self.view, 0)
        self.block(_envs(group), self._actor(), noise, alive, False, self.room, block, EVERY_PART)

    def _collect(self, iteration: int, version: int) -> Fragment:
        whole = self.collects == "episodes"
        alive = np.ones(self.group.num_envs, np.bool_)
        blocks: list[Block] = []
        lasts: list[Array] = []
        while alive.any() if whole else len(blocks) * NOISE_BLOCK < self.num_steps:
            if self.stopped():
                raise Stopped
            number = len(blocks)
            wanted = NOISE_BLOCK if whole else min(NOISE_BLOCK, self.num_steps - number * NOISE_BLOCK)
            block, last = self._play(iteration, number, wanted, alive, whole)
            blocks.append(block)
            lasts.append(last)
        rows = _joined(blocks)
        with span("rollout: evaluate"):
            trajectory = self._trajectory(rows, np.concatenate(lasts), whole, version)
        return Fragment(trajectory, self._episodes(rows), self.group.dropped)

    def _play(
        self, iteration: int, number: int, num_steps: int, alive: Array, whole: bool
    ) -> tuple[Block, Array]:
        """Noise block `number`: its rows, cut where no env is left, and what truncated episodes saw last."""
        group = self.group
        noise = self._noise_rows(iteration, number, num_steps)
        block = self._begun_block(num_steps)
        with span("rollout: fused"):
            played, num_last, bad, env = group.watched(
                self.block, _envs(group), self._actor(), noise, alive, whole, self.room, block, EVERY_PART
            )
        if bad:
            what = "reward" if bad == REWARD else "observation"
            raise RunFailed(group.not_finite(env, what) + HOW_TO_GO_ON)
        group.observation, group.episode_start = block.observation[played].copy(), block.start[played].copy()
        group.native.observation[...] = group.observation
        return _cut(block, played), block.last[:num_last].copy()

    def _noise_rows(self, iteration: int, number: int, num_steps: int) -> Array:
        generator = stream(self.seed, "action", self.group.index, iteration, number)
        # the first rows of what a whole block would be
        noise: Array = self.view.distribution.noise(generator, (num_steps, self.group.num_envs))
        return noise.reshape(num_steps, -1)

    def _begun_block(self, num_steps: int) -> Block:
        block = _empty_block(self.group, self.view, num_steps)
        block.observation[0] = self.group.observation
        block.start[0] = self.group.episode_start
        return block

    def seconds_apart(self, num_steps: int) -> tuple[float, float, float]:
        """What the parts of so many steps take, each alone in the loop: inference, picking actions, env steps.

        The envs stay where they stand: copies of them play the steps, then play them again by the same actions.
        """
        noise, block = self._noise_rows(0, 0, num_steps), self._begun_block(num_steps)

        def play(parts: Parts) -> float:
            envs = copy.deepcopy(_envs(self.group))
            alive = np.ones(self.group.num_envs, np.bool_)
            begun = perf_counter()
            self.block(envs, self._actor(), noise, alive, False, self.room, block, parts)
            return perf_counter() - begun

        play(EVERY_PART)
        one_each = (Parts(True, False, False), Parts(False, True, False), Parts(False, False, True))
        infer, pick, step = (play(parts) for parts in one_each)
        return infer, pick, step

    def _actor(self) -> Actor:
        view, space = self.view, cast(Any, self.group.action_space)
        none = np.zeros(0, np.float32)
        is_box = view.network.kind == GAUSSIAN
        normalize = view.policy.observe.normalize
        return Actor(
            view.params,
            view.network,
            view.mean if normalize else none,
            view.std if normalize else none,
            CLIP,
            0 if is_box else int(space.start),
            self.to_env.low.astype(np.float32),
            self.to_env.high.astype(np.float32),
            self.to_env.center,
            self.to_env.half_width,
            self.to_env.least,
            self.to_env.most,
        )

    def _episodes(self, rows: Block) -> list[EpisodeRecord]:
        """The valid episodes that ended, in the order of rows and envs."""
        first = self.group.first_env
        steps, envs = np.nonzero(rows.done & rows.valid)
        returns, lengths = rows.episode_return[steps, envs], rows.episode_length[steps, envs]
        columns = (steps.tolist(), (first + envs).tolist(), returns.tolist(), lengths.tolist())
        # one for all: thousands of objects are what holds Python's lock here
        no_info: repeat[dict[str, float]] = repeat({}, len(steps))
        return list(map(EpisodeRecord._make, zip(*columns, no_info, strict=True)))

    def _trajectory(self, rows: Block, last: Array, whole: bool, version: int) -> Trajectory:
        view = self.view
        observation = rows.observation[:-1]
        num_steps, num_envs = rows.reward.shape
        value = view.value(observation.reshape(-1, *observation.shape[2:])).reshape(num_steps, num_envs)
        next_value = np.zeros_like(value)
        next_value[:-1] = value[1:]
        truncated = rows.done & ~rows.terminated & rows.valid
        if len(last):
            next_value[truncated] = view.value(last.reshape(-1, *observation.shape[2:]))
        if not whole and not rows.done[-1].all():
            going_on = ~rows.done[-1]
            next_value[-1, going_on] = view.value(rows.observation[-1][going_on])
        done = rows.done
        done[:-1] |= done[1:] & ~rows.valid[1:]
        if view.network.kind == GAUSSIAN:
            action = rows.vector.reshape(num_steps, num_envs, *view.distribution.action_shape)
        else:
            action = rows.integer
        return Trajectory(
            observation=observation,
            action=action,
            reward=rows.reward,
            terminated=rows.terminated,
            done=done,
            valid=rows.valid,
            episode_start=rows.start[:-1],
            value=value,
            next_value=next_value,
            log_prob=rows.log_prob,
            version=version,
        )


def _envs(group: EnvGroup) -> Envs:
    vector = group.native
    return Envs(
        vector.state,
        vector.rng,
        vector.elapsed,
        vector.limit,
        purpose_words(group.seed, "episode", 2),
        group.first_env,
        group.episode,
        group.running_return,
        group.running_length,
    )


def _room(group: EnvGroup, view: CompiledMLP) -> Room:
    n, count = int(view.network.actor[-1]), group.num_envs
    index, vector = np.zeros(count, np.int64), np.zeros((count, n), np.float32)
    is_box = view.network.kind == GAUSSIAN
    return Room(
        np.zeros((count, int(view.network.actor[0])), np.float32),
        index,
        vector,
        np.zeros((count, n), np.float32),
        np.zeros(count, np.float32),
        np.zeros(count, np.float32),
        vector.reshape(count, *(group.action_space.shape or ())) if is_box else index,
        empty_mask(),
        view.scratch,
    )


def _empty_block(group: EnvGroup, view: CompiledMLP, num_steps: int) -> Block:
    n, count = int(view.network.actor[-1]), group.num_envs
    shape = group.observation_space.shape or ()
    is_box = view.network.kind == GAUSSIAN
    observation = np.empty((num_steps + 1, count, *shape), np.float32)

    def rows(dtype: Any, *more: int) -> Array:
        return np.empty((num_steps, count, *more), dtype)

    return Block(
        observation=observation,
        flat=observation.reshape(num_steps + 1, count, -1),
        start=np.empty((num_steps + 1, count), np.bool_),
        integer=rows(np.int64) if not is_box else np.empty((num_steps, 0), np.int64),
        vector=np.empty((num_steps, count * n if is_box else 0), np.float32),
        log_prob=rows(np.float32),
        reward=rows(np.float32),
        terminated=rows(np.bool_),
        done=rows(np.bool_),
        valid=rows(np.bool_),
        episode_return=rows(np.float64),
        episode_length=rows(np.int64),
        last=np.empty((num_steps * count, math.prod(shape)), np.float32),
    )


_WITH_NEXT = ("observation", "flat", "start")


def _cut(block: Block, played: int) -> Block:
    """Its first rows, and the row after them where it has one."""
    if played == len(block.reward):
        return block
    return Block(
        *(
            array if name == "last" else array[: played + (name in _WITH_NEXT)]
            for name, array in block._asdict().items()
        )
    )


def _joined(blocks: list[Block]) -> Block:
    """One after the other; a block's first row is the row after the last of the one before."""
    if len(blocks) == 1:
        return blocks[0]
    joined = {}
    for name in Block._fields:
        parts = [getattr(block, name) for block in blocks]
        if name in _WITH_NEXT:
            parts = [*(part[:-1] for part in parts[:-1]), parts[-1]]
        joined[name] = parts[-1] if name == "last" else np.concatenate(parts)
    return Block(**joined)
