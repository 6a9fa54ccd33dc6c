"""The loop of a fused rollout: policy, sampling, env step, resets and accounting of a block of steps in nopython.

It is compiled for each native env, around whose functions it is built. K steps of a block, N envs, D... an
observation's shape and F its size, n the policy's outputs.

    for each step:   actor on row t [N] -> action and its log-prob from the noise -> in the env's format
        for each env:    step -> reward, flags -> where over: note the episode, keep what was seen last,
                         begin the next one from its own seed -> row t+1
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from distrl.envs.native.protocol import NativeEnv
from distrl.maths.mlp_heads import GAUSSIAN, exp32, gaussian_log_prob, log32
from distrl.maths.mlp_policy import actor_outputs, choose_from
from distrl.maths.random_kernels import derive_seed, seed_generator

Array = NDArray[Any]

OBSERVATION, REWARD = 1, 2  # what was NaN or Inf


class Envs(NamedTuple):
    """A group's envs; changed in place. limit: steps of an episode, 0 for none. before: `purpose_words` of the run."""

    state: Array  # [N, S]
    rng: Array  # [N, 4]
    elapsed: Array  # [N]
    limit: int
    before: Array
    first_env: int
    episode: Array  # [N] number of the running one
    return_: Array  # [N] float64, of the running one so far
    length: Array  # [N]


class Actor(NamedTuple):
    """The policy, and what its actions become. start: the first action of a Discrete space; low, high [n] of a Box.
    mean, std [F]: of normalised observations, empty where they are not; clip: what they are clipped to."""

    params: Array
    network: Any
    mean: Array
    std: Array
    clip: float
    start: int
    low: Array
    high: Array
    center: Array  # float64 [n], of a Box that is rescaled from [-1, 1] (`distrl.envs.actions`); else empty
    half_width: Array
    least: Array  # the env's own bounds, float64 [n]
    most: Array


class Parts(NamedTuple):
    """Which of a step's parts are done. A rollout does all; one alone, on rows that were played, tells what it costs."""

    infers: bool = True
    picks: bool = True
    steps: bool = True


EVERY_PART = Parts()


class Room(NamedTuple):
    """What a step needs for a moment. env_action is `integer` [N] or a view of `vector` in the space's shape [N, ...]."""

    features: Array  # [N, F]
    integer: Array  # int64 [N]
    vector: Array  # [N, n]
    output: Array  # [N, n] of the actor
    highest: Array  # [N]
    total: Array  # [N]
    env_action: Array
    no_mask: Array
    scratch: Array


class Block(NamedTuple):
    """The rows, written. Row 0 of observation and start is given; row K is where the next block begins."""

    observation: Array  # [K + 1, N, D...]
    flat: Array  # the same, [K + 1, N, F]
    start: Array  # bool [K + 1, N]
    integer: Array  # int64 [K, N]: actions of a Discrete space
    vector: Array  # float32 [K, N * n]: actions of a Box
    log_prob: Array  # [K, N]
    reward: Array
    terminated: Array
    done: Array
    valid: Array
    episode_return: Array  # float64 [K, N], where a valid row is done
    episode_length: Array  # int64 [K, N], likewise
    last: Array  # [K * N, F] what was seen last in truncated episodes, in the order of rows


@functools.cache
def fused_kernel(env: NativeEnv) -> Callable[..., tuple[int, int, int, int]]:
    """`block(envs, actor, noise [K, N * n], alive [N], whole, room, rows, parts)`: plays K steps.

    alive: the envs whose rows count; with `whole` an env's end is the end of its row of them, and the block ends
    where none is left. Gives (steps played, rows of `last` written, what is not finite or 0, in which env).
    """
    reset, step, observe = env.compiled
    options, stamp = env.kernel_options(infer, pick, to_env, derive_seed, seed_generator)
    compiled = numba.njit(**options)

    @compiled
    def block(envs, actor, noise, alive, whole, room, rows, parts):  # type: ignore[no-untyped-def]
        _ = stamp
        num_last, left = 0, 0
        for n in range(len(alive)):
            left += alive[n]
        for t in range(len(noise)):
            if whole and left == 0:
                return t, num_last, 0, 0
            if parts.infers:
                infer(actor, rows.flat[t], room)
            if parts.picks:
                pick(actor, noise[t], room, rows.integer[t], rows.vector[t], rows.log_prob[t])
            if not parts.steps:
                continue
            to_env(actor, rows.integer[t], rows.vector[t], room)
            for n in range(len(alive)):
                reward, terminated = step(envs.state[n], room.env_action[n], envs.rng[n])
                envs.elapsed[n] += 1
                envs.return_[n] += reward
                envs.length[n] += 1
                observe(envs.state[n], rows.observation[t + 1, n])
                seen = rows.flat[t + 1, n]
                if not _is_finite(seen):
                    return t, num_last, OBSERVATION, n
                if not np.isfinite(reward):
                    return t, num_last, REWARD, n
                done = terminated or (envs.limit > 0 and envs.elapsed[n] >= envs.limit)
                rows.reward[t, n] = reward
                rows.terminated[t, n] = terminated
                rows.done[t, n] = done
                rows.valid[t, n] = alive[n]
                rows.start[t + 1, n] = done
                if done:
                    if alive[n]:
                        rows.episode_return[t, n] = envs.return_[n]
                        rows.episode_length[t, n] = envs.length[n]
                        if not terminated:
                            for i in range(len(seen)):
                                rows.last[num_last, i] = seen[i]
                            num_last += 1
                    if whole and alive[n]:
                        alive[n] = False
                        left -= 1
                    envs.episode[n] += 1
                    envs.return_[n] = 0.0
                    envs.length[n] = 0
                    envs.elapsed[n] = 0
                    seed_generator(envs.rng[n], derive_seed(envs.before, envs.first_env + n, envs.episode[n]))
                    reset(envs.state[n], envs.rng[n])
                    observe(envs.state[n], rows.observation[t + 1, n])
                    if not _is_finite(seen):
                        return t, num_last, OBSERVATION, n
        return len(noise), num_last, 0, 0

    return block  # type: ignore[no-any-return]


@numba.njit(cache=True, nogil=True)
def _is_finite(row):  # type: ignore[no-untyped-def]
    for x in row:  # noqa: SIM110
        if not np.isfinite(x):
            return False
    return True


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def infer(actor, observed, room):  # type: ignore[no-untyped-def]
    """The actor's outputs for rows observed [N, F], into room.output."""
    features, clip = observed, np.float32(actor.clip)
    if len(actor.mean):
        features = room.features
        for row in range(len(observed)):
            for i in range(len(actor.mean)):
                x = (observed[row, i] - actor.mean[i]) / actor.std[i]
                x = -clip if x < -clip else x
                features[row, i] = clip if x > clip else x
    actor_outputs(actor.params, actor.network, features, room.output, room.scratch)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def pick(actor, noise, room, index, vector, log_prob):  # type: ignore[no-untyped-def]
    """The actions that noise picks of room.output, which is used up, and their log-probs."""
    choose_from(actor.params, actor.network, room.output, noise, room.no_mask, False, index, vector)
    if actor.network.kind == GAUSSIAN:
        n, flat = room.output.shape[1], room.output.reshape(-1)
        log_std = actor.params[actor.network.log_std_start :]
        for row in range(len(log_prob)):
            log_prob[row] = gaussian_log_prob(flat, row * n, n, vector, row * n, log_std)
    else:
        chosen_log_probs(room.output, index, room.highest, room.total, log_prob)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def to_env(actor, index, vector, room):  # type: ignore[no-untyped-def]
    """The actions in the env's format, into room.env_action."""
    if actor.network.kind == GAUSSIAN:
        n = room.output.shape[1]
        for row in range(len(room.vector)):
            for i in range(n):
                x = vector[row * n + i]
                x = actor.low[i] if x < actor.low[i] else x
                x = actor.high[i] if x > actor.high[i] else x
                room.vector[row, i] = x
                if len(actor.center):
                    wide = np.float64(x) * actor.half_width[i] + actor.center[i]
                    wide = actor.least[i] if wide < actor.least[i] else wide
                    room.vector[row, i] = actor.most[i] if wide > actor.most[i] else wide
    else:
        for row in range(len(index)):
            room.integer[row] = index[row] + actor.start


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def chosen_log_probs(output, index, highest, total, log_prob):  # type: ignore[no-untyped-def]
    """`categorical_log_probs` of the actions index [N] alone, to the bit, all rows at once: loops that become vectors.
    output [N, n] is used up; highest and total [N] are room."""
    n, flat = output.shape[1], output.reshape(-1)
    for row in range(len(index)):
        best = flat[row * n]
        for j in range(1, n):
            logit = flat[row * n + j]
            if logit > best or logit != logit:
                best = logit
        highest[row] = best
        log_prob[row] = flat[row * n + index[row]]
        for j in range(n):
            flat[row * n + j] -= best
    for i in range(len(flat)):
        flat[i] = exp32(flat[i])
    for row in range(len(index)):
        whole = np.float32(0)
        for j in range(n):
            whole += flat[row * n + j]
        total[row] = whole
    for row in range(len(index)):
        log_prob[row] -= highest[row] + log32(total[row])
