"""An MLP policy in nopython code: actor, critic and distribution over one flat array of parameters.

    params = [actor | critic | log_std of GAUSSIAN], each network as `distrl.maths.mlp.pack` lays it out

Row-exact throughout: what a row gives does not depend on the rows beside it. The log-prob of a row is
therefore the same to the bit in a rollout and in the update's first minibatch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from distrl.maths.mlp import Sizes, forward, packed_size, padded, scratch_size
from distrl.maths.mlp_heads import (
    GAUSSIAN,
    categorical_choose,
    categorical_log_probs,
    gaussian_choose,
    gaussian_log_prob,
)
from distrl.nopython import kernel


class Network(NamedTuple):
    """The two networks and where they lie in `params`."""

    actor: Sizes
    critic: Sizes
    activation: int  # TANH or RELU
    kind: int  # CATEGORICAL or GAUSSIAN
    critic_start: int
    log_std_start: int


def make_network(actor: Sizes, critic: Sizes, activation: int, kind: int) -> Network:
    """The layout of a policy whose networks have these sizes."""
    critic_start = packed_size(actor)
    return Network(actor, critic, activation, kind, critic_start, critic_start + packed_size(critic))


def num_parameters(network: Network) -> int:
    """float32 elements of `params`, padded to vectors."""
    more = padded(int(network.actor[-1])) if network.kind == GAUSSIAN else 0
    return network.log_std_start + more


def policy_scratch_size(network: Network) -> int:
    """float32 elements of scratch that the functions below want."""
    return max(scratch_size(network.actor), scratch_size(network.critic))


@kernel()
def choose_actions(params, network, features, noise, mask, masked, output, action, vector, scratch):  # type: ignore[no-untyped-def]
    """The actions that `noise` picks, for rows [B, inputs].

    Args:
        noise: flat [B * n]: Gumbel's for CATEGORICAL, standard normal for GAUSSIAN; zeros: the most likely one.
        mask: flat bool [B * n], read if `masked`.
        output: [B, n], room for the actor's outputs.
        action: int64 [B], written for CATEGORICAL.
        vector: flat float32 [B * n], written for GAUSSIAN.
    """
    actor_outputs(params, network, features, output, scratch)
    choose_from(params, network, output, noise, mask, masked, action, vector)


@kernel()
def actor_outputs(params, network, features, output, scratch):  # type: ignore[no-untyped-def]
    """What the distribution is made of, of rows [B, inputs], into output [B, n]."""
    forward(params[: network.critic_start], network.actor, network.activation, features, output, scratch)


@kernel()
def choose_from(params, network, output, noise, mask, masked, action, vector):  # type: ignore[no-untyped-def]
    """The second half of `choose_actions`, given the actor's outputs [B, n]."""
    n = network.actor[-1]
    flat = output.reshape(-1)
    log_std = params[network.log_std_start :]
    for row in range(len(output)):
        at = row * n
        if network.kind == GAUSSIAN:
            gaussian_choose(flat, at, n, noise, at, log_std, vector, at)
        else:
            action[row] = categorical_choose(flat, at, n, noise, at, mask, at, masked)


@kernel()
def values(params, network, features, value, scratch):  # type: ignore[no-untyped-def]
    """V of rows [B, inputs], into value [B]."""
    critic = params[network.critic_start : network.log_std_start]
    forward(critic, network.critic, network.activation, features, value.reshape(-1, 1), scratch)


@kernel()
def log_probs(params, network, features, action, vector, mask, masked, output, log_prob, scratch):  # type: ignore[no-untyped-def]
    """log pi(action | row) into log_prob [B]; other arguments as of `choose_actions`."""
    actor_outputs(params, network, features, output, scratch)
    n, flat = network.actor[-1], output.reshape(-1)
    log_std = params[network.log_std_start :]
    for row in range(len(features)):
        at = row * n
        if network.kind == GAUSSIAN:
            log_prob[row] = gaussian_log_prob(flat, at, n, vector, at, log_std)
        else:
            categorical_log_probs(flat, at, n, mask, at, masked, scratch)
            log_prob[row] = scratch[action[row]]


def empty_mask() -> np.ndarray:
    """The mask where there is none."""
    return np.zeros(0, np.bool_)
