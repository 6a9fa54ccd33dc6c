"""One epoch of an MLP policy's update in nopython code: gather, forward, losses, backward, clip, Adam.

    a minibatch's rows -> at most SLOTS equal parts, a number set by the rows alone
    each part, in blocks of BLOCK rows: forward and backward, its own sum of gradients
    the parts joined in a fixed tree -> global norm -> clip -> Adam (Kingma and Ba 2015, algorithm 1)

Threads share the parts among them and meet at barriers. Who computes a part does not enter its sum, so 1, 2
and 4 threads give the same bits. A minibatch whose norm is not finite changes nothing and is reported.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distrl.maths.mlp import BLOCK, padded
from distrl.maths.mlp_backward import (
    CONSTANTS,
    backward,
    delta_size,
    forward_kept,
    kept_size,
    turn,
    turned_size,
)
from distrl.maths.mlp_heads import GAUSSIAN
from distrl.maths.mlp_policy import Network, num_parameters
from distrl.maths.mlp_tiles import LANES, add_16, dot
from distrl.maths.ppo_rows import SUMS, advantage_moments, policy_rows, value_rows
from distrl.maths.threads import wait_for_all
from distrl.nopython import kernel

SLOTS = 8  # parts of a minibatch at most: more threads than that find no work
SLOT_ROWS = 64  # rows that make a part worth its own sum of gradients
CHUNK = 1024  # parameters that are joined, measured and stepped together

BETA1, BETA2 = 0.9, 0.999


class Parameters(NamedTuple):
    """Parameters and Adam's moments, flat [size] float32; `step` [1], float64, counts the steps taken."""

    params: NDArray[np.float32]
    moment1: NDArray[np.float32]
    moment2: NDArray[np.float32]
    step: NDArray[np.float64]


class Adam(NamedTuple):
    """`max_norm` infinite: no clip."""

    learning_rate: float
    epsilon: float
    max_norm: float


class Work(NamedTuple):
    """Room to work in. Shared: gradient, norms, sums, arrived. A row for each thread: all else."""

    gradient: NDArray[np.float32]  # [SLOTS * size]
    norms: NDArray[np.float64]  # of each chunk, the sum of squares
    sums: NDArray[np.float64]  # [SLOTS, SUMS]
    arrived: NDArray[np.int64]  # [1]
    features: NDArray[np.float32]
    kept: NDArray[np.float32]
    delta: NDArray[np.float32]
    turned: NDArray[np.float32]
    constants: NDArray[np.float32]
    scratch: NDArray[np.float32]


def make_parameters(params: NDArray[np.float32]) -> Parameters:
    """With moments of zero, before the first step."""
    return Parameters(params, np.zeros_like(params), np.zeros_like(params), np.zeros(1))


def make_work(network: Network, num_threads: int) -> Work:
    """For `num_threads` threads; arrays of one thread are rows."""
    size, actor, critic = num_parameters(network), network.actor, network.critic

    def rows(length: int) -> NDArray[np.float32]:
        return np.zeros((num_threads, max(length, 1)), np.float32)

    return Work(
        gradient=np.zeros(SLOTS * size, np.float32),
        norms=np.zeros(-(-size // CHUNK)),
        sums=np.zeros((SLOTS, SUMS)),
        arrived=np.zeros(1, np.int64),
        features=rows(BLOCK * int(actor[0])),
        kept=rows(max(kept_size(actor), kept_size(critic))),
        delta=rows(max(delta_size(actor), delta_size(critic))),
        turned=rows(turned_size(actor) + turned_size(critic)),
        constants=np.tile(CONSTANTS, (num_threads, 1)),
        scratch=rows(2 * int(actor[-1])),
    )


@kernel()
def _num_slots(num_rows):  # type: ignore[no-untyped-def]
    return min(max(num_rows // SLOT_ROWS, 1), SLOTS)


@kernel()
def _accumulate(rank, rows, count, mean, deviation, first, sums, batch, losses, network, parameters, work, turned_critic):  # type: ignore[no-untyped-def]  # fmt: skip
    """One part of a minibatch: its gradient from gradient[first:], its sums of metrics."""
    inputs, n = network.actor[0], network.actor[-1]
    params, gradient = parameters.params, work.gradient
    features, kept, delta, turned, constants = (
        work.features[rank], work.kept[rank], work.delta[rank], work.turned[rank], work.constants[rank]
    )  # fmt: skip
    log_std = params[network.log_std_start : network.log_std_start + n]
    log_std_slope = gradient[first + network.log_std_start : first + network.log_std_start + n]
    if network.kind == GAUSSIAN:
        log_std_slope[:] = np.float32(0)
    sums[:] = 0.0
    for begin in range(0, len(rows), BLOCK):
        block = rows[begin : begin + BLOCK]
        for r in range(len(block)):
            for i in range(inputs):
                features[r * inputs + i] = batch.features[block[r] * inputs + i]
        output = forward_kept(params, 0, network.actor, network.activation, features, len(block), kept)
        policy_rows(
            batch, losses, network.kind, block, count, mean, deviation, kept, output, n, log_std,
            delta, log_std_slope, work.scratch[rank], sums,
        )  # fmt: skip
        backward(
            params, 0, turned, 0, network.actor, network.activation, features, kept, len(block),
            delta, gradient, first, begin > 0, constants,
        )  # fmt: skip
        if losses.trains_value:
            start = network.critic_start
            output = forward_kept(params, start, network.critic, network.activation, features, len(block), kept)  # fmt: skip
            value_rows(batch, losses, block, count, kept, output, delta, sums)
            backward(
                params, start, turned, turned_critic, network.critic, network.activation, features, kept, len(block),
                delta, gradient, first + start, begin > 0, constants,
            )  # fmt: skip


@kernel()
def _join(gradient, size, num_slots, begin, end):  # type: ignore[no-untyped-def]
    """Sums the parts' gradients in pairs, pairs of pairs, ..., into the first; returns its sum of squares there."""
    stride = 1
    while stride < num_slots:
        for slot in range(0, num_slots - stride, 2 * stride):
            into, other = slot * size, (slot + stride) * size
            for i in range(begin, end, LANES):
                add_16(gradient, into + i, other + i)
        stride *= 2
    return np.float64(dot(gradient, begin, gradient, begin, end - begin))


@kernel(error_model="numpy")
def _step(parameters, gradient, scale, adam, begin, end):  # type: ignore[no-untyped-def]
    """Adam on parameters[begin:end], the gradient scaled first; moments and arithmetic in float32, as torch's."""
    step = parameters.step[0] + 1.0
    rate = np.float32(adam.learning_rate / (1.0 - BETA1**step))
    root = np.float32(np.sqrt(1.0 - BETA2**step))
    keep1, new1, keep2, new2 = (
        np.float32(BETA1),
        np.float32(1 - BETA1),
        np.float32(BETA2),
        np.float32(1 - BETA2),
    )
    epsilon = np.float32(adam.epsilon)
    params, moment1, moment2 = (
        parameters.params[begin:end], parameters.moment1[begin:end], parameters.moment2[begin:end]
    )  # fmt: skip
    slope = gradient[begin:end]
    for i in range(end - begin):
        g = slope[i] * scale
        moment1[i] = keep1 * moment1[i] + new1 * g
        moment2[i] = keep2 * moment2[i] + new2 * g * g
        params[i] -= rate * moment1[i] / (np.sqrt(moment2[i]) / root + epsilon)


@kernel(error_model="numpy")
def run_epoch(rank, num_threads, index, ends, batch, losses, network, parameters, adam, work, results):  # type: ignore[no-untyped-def]
    """Every minibatch of one epoch, one after another; called by each thread with its own `rank`.

    Args:
        index: rows of the batch in the epoch's order, int64; minibatch m ends before index[ends[m]].
        work: `arrived` is 0.
        results: [minibatches, SUMS + 1] float64: the means of the metrics, then 1 where it was skipped.
    """
    size = len(parameters.params)
    goal, begin = num_threads, 0
    turned_critic = 0
    for number in range(1, len(network.actor) - 1):
        turned_critic += network.actor[number + 1] * padded(network.actor[number])
    for m in range(len(ends)):
        rows = index[begin : ends[m]]
        begin = ends[m]
        count = len(rows)
        mean, deviation = advantage_moments(batch.advantage, batch.episode, rows)
        turn(parameters.params, 0, network.actor, work.turned[rank], 0)
        turn(parameters.params, network.critic_start, network.critic, work.turned[rank], turned_critic)
        num_slots = _num_slots(count)
        for slot in range(rank, num_slots, num_threads):
            part = rows[slot * count // num_slots : (slot + 1) * count // num_slots]
            _accumulate(
                rank, part, count, mean, deviation, slot * size, work.sums[slot],
                batch, losses, network, parameters, work, turned_critic,
            )  # fmt: skip
        goal = wait_for_all(work.arrived, goal, num_threads)
        for chunk in range(rank, len(work.norms), num_threads):
            first = chunk * CHUNK
            work.norms[chunk] = _join(work.gradient, size, num_slots, first, min(first + CHUNK, size))
        goal = wait_for_all(work.arrived, goal, num_threads)
        norm = np.sqrt(work.norms.sum())
        taken = np.isfinite(norm)
        if taken:
            scale = np.float32(min(1.0, adam.max_norm / (norm + 1e-6)))
            for chunk in range(rank, len(work.norms), num_threads):
                first = chunk * CHUNK
                _step(parameters, work.gradient, scale, adam, first, min(first + CHUNK, size))
        if rank == 0:
            for metric in range(SUMS):
                total = 0.0
                for slot in range(num_slots):
                    total += work.sums[slot, metric]
                results[m, metric] = total / count
            results[m, SUMS] = not taken
        goal = wait_for_all(work.arrived, goal, num_threads)
        if rank == 0 and taken:
            parameters.step[0] += 1.0  # read by others only after the next barrier
