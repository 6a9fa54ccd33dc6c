"""The compiled view of an MLP policy: its parameters as the nopython kernels want them, and observations in NumPy.

view = CompiledMLP(policy)      refuses what `why_not_compiled` names
view.load()                     parameters and moments from the policy, after they changed there
view.act / evaluate / value     the twins of the policy's own, arrays in, arrays out
view.store()                    parameters back into the policy
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from distrl.errors import BadInput
from distrl.maths.mlp import RELU, TANH, sizes_of, views
from distrl.maths.mlp_heads import CATEGORICAL, GAUSSIAN
from distrl.maths.mlp_policy import (
    choose_actions,
    empty_mask,
    log_probs,
    make_network,
    num_parameters,
    policy_scratch_size,
    values,
)
from distrl.policies.build import PolicySpec, network_of
from distrl.policies.distributions import Categorical, DiagonalGaussian
from distrl.policies.mlp import MLPPolicy
from distrl.policies.observe import CLIP, Observe, has_embedding, leaves_of
from distrl.policies.reading import Reading
from distrl.trees import Tree

Array = NDArray[Any]
Places = list[list[tuple[int, NDArray[np.float32]]]]  # of each parameter: first row, and where its rows lie


def why_not_compiled(
    spec: PolicySpec, observation_space: spaces.Space, action_space: spaces.Space
) -> str | None:
    """What of a policy the kernels do not serve, as the end of a sentence; None where they serve it."""
    if spec.policy is not None:
        return f"--policy {spec.policy} is one's own"
    if spec.precision != "fp32":
        return f"the precision is {spec.precision}"
    network = network_of(spec, observation_space)
    if has_embedding(observation_space, spec.observation_scale):
        return "an observation is an embedding"
    if network != "mlp":
        return f"the network is a {network}, not an mlp"
    if isinstance(action_space, (spaces.Discrete, spaces.Box)):
        return None
    return f"the actions are {action_space}, not Discrete or Box"


class CompiledMLP:
    """A policy's parameters, flat, in one array that update and rollout compute with.

    BadInput where the policy is not an `MLPPolicy` on the CPU with a Categorical or DiagonalGaussian.
    """

    def __init__(self, policy: Any) -> None:
        distribution = getattr(policy, "distribution", None)
        if not isinstance(policy, MLPPolicy) or not isinstance(distribution, (Categorical, DiagonalGaussian)):
            raise BadInput(
                f"the compiled path wants an MLP policy with Discrete or Box actions, got {type(policy).__name__} "
                f"with {type(distribution).__name__}: use --learner torch --inference torch"
            )
        if next(policy.parameters()).device.type != "cpu":
            raise BadInput("the compiled path wants the policy on the CPU: use --device cpu")
        self.policy = policy
        self.distribution: Any = distribution
        named = {name: tensor.detach().numpy() for name, tensor in policy.named_parameters()}
        self.arrays = [named[name] for name in named]  # share their memory with the policy's tensors
        self._names = list(named)
        self.trained_without_value = [not name.startswith("critic") for name in named]
        actor, critic = (sizes_of(_layers(named, part, "weight")) for part in ("actor", "critic"))
        self.network = make_network(
            actor,
            critic,
            RELU if any(isinstance(layer, torch.nn.ReLU) for layer in policy.actor.modules()) else TANH,
            GAUSSIAN if isinstance(distribution, DiagonalGaussian) else CATEGORICAL,
        )
        self.params = np.zeros(num_parameters(self.network), np.float32)
        self.places = self.places_in(self.params)
        self.scratch = np.zeros(policy_scratch_size(self.network), np.float32)
        self.load()

    def beside(self) -> CompiledMLP:
        """The same parameters and moments, with scratch of its own: for another thread. `load` is the first one's."""
        other = copy.copy(self)
        other.scratch = np.zeros_like(self.scratch)
        return other

    def places_in(self, flat: NDArray[np.float32]) -> Places:
        """Views of an array laid out as `params`, one list for each of the policy's parameters, in their order."""
        network = self.network
        by_name: dict[str, list[tuple[int, NDArray[np.float32]]]] = {}
        for part, sizes, start in (
            ("actor", network.actor, 0),
            ("critic", network.critic, network.critic_start),
        ):
            for layer, (bias, weight) in enumerate(views(flat[start:], sizes)):
                by_name[f"{part}.{2 * layer}.bias"] = [(0, bias)]
                by_name[f"{part}.{2 * layer}.weight"] = weight
        if network.kind == GAUSSIAN:
            start, count = network.log_std_start, int(network.actor[-1])
            by_name["distribution.log_std"] = [(0, flat[start : start + count])]
        return [by_name[name] for name in self._names]

    def load(self) -> None:
        """Take parameters and observation moments over from the policy."""
        put(self.arrays, self.places)
        if self.policy.observe.normalize:
            self.mean, self.std = self.policy.observe.mean.numpy(), self.policy.observe.std.numpy()

    def store(self) -> None:
        """Give the parameters to the policy, in place."""
        take(self.places, self.arrays)

    def features(self, observation: Tree) -> NDArray[np.float32]:
        """Rows [B, ...] of observations as what the networks see, [B, inputs], a new or the same array."""
        observe = self.policy.observe
        features = features_of(observe, observation)
        if observe.normalize:
            features = np.clip((features - self.mean) / self.std, np.float32(-CLIP), np.float32(CLIP))
        return np.ascontiguousarray(features)

    def act(self, observation: Tree, noise: Array | None, action_mask: Array | None) -> Array:
        """Actions [B, ...]; `noise` as the distribution draws it, None for the most likely action."""
        return self.act_on(self.features(observation), noise, action_mask)

    def act_on(self, features: NDArray[np.float32], noise: Array | None, action_mask: Array | None) -> Array:
        """`act` on rows [B, inputs]."""
        count, n = len(features), int(self.network.actor[-1])
        action, vector = np.empty(count, np.int64), np.empty(count * n, np.float32)
        flat_noise = np.zeros(count * n, np.float32) if noise is None else writable(noise, np.float32)
        mask, masked = _flat_mask(action_mask)
        choose_actions(
            self.params, self.network, features, flat_noise, mask, masked, np.empty((count, n), np.float32),
            action, vector, self.scratch,
        )  # fmt: skip
        if self.network.kind == GAUSSIAN:
            return vector.reshape(count, *self.distribution.action_shape)
        return action

    def value(self, observation: Tree) -> NDArray[np.float32]:
        """V [B]."""
        return self.value_of(self.features(observation))

    def value_of(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """V [B] of rows [B, inputs]."""
        value = np.empty(len(features), np.float32)
        values(self.params, self.network, features, value, self.scratch)
        return value

    def evaluate(
        self, observation: Tree, action: Array, action_mask: Array | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """log-prob and V of rows, [B] each."""
        features = self.features(observation)
        log_prob = self.log_prob_of(features, *self.split_action(action), action_mask)
        return log_prob, self.value_of(features)

    def log_prob_of(
        self,
        features: NDArray[np.float32],
        index: NDArray[np.int64],
        vector: NDArray[np.float32],
        action_mask: Array | None,
    ) -> NDArray[np.float32]:
        """log-probs [B] of rows [B, inputs]; the actions as `split_action` gives them."""
        count, n = len(features), int(self.network.actor[-1])
        log_prob = np.empty(count, np.float32)
        mask, masked = _flat_mask(action_mask)
        log_probs(
            self.params, self.network, features, index, vector, mask, masked, np.empty((count, n), np.float32),
            log_prob, self.scratch,
        )  # fmt: skip
        return log_prob

    def split_action(self, action: Array) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The actions of rows as the kernels read them: an index each, or one flat array of vectors."""
        if self.network.kind == GAUSSIAN:
            return np.zeros(0, np.int64), writable(action, np.float32)
        return writable(action, np.int64), np.zeros(0, np.float32)


def put(arrays: list[Any], places: Places) -> None:
    """Copy parameters, in torch's layout, where `places` says."""
    for array, parts in zip(arrays, places, strict=True):
        for first, part in parts:
            part[...] = array[first : first + len(part)]


def take(places: Places, arrays: list[Any]) -> None:
    """Copy from `places` into arrays of torch's layout."""
    for array, parts in zip(arrays, places, strict=True):
        for first, part in parts:
            array[first : first + len(part)] = part


def writable(array: Array, dtype: Any) -> Array:
    """Flat, contiguous, of that type and not read-only: the one type that the kernels are compiled for."""
    flat = np.ascontiguousarray(array, dtype).reshape(-1)
    return flat if flat.flags.writeable else flat.copy()


def _flat_mask(action_mask: Array | None) -> tuple[NDArray[np.bool_], bool]:
    return (empty_mask(), False) if action_mask is None else (writable(action_mask, np.bool_), True)


def _layers(named: dict[str, Array], part: str, kind: str) -> list[Array]:
    return [array for name, array in named.items() if name.startswith(part) and name.endswith(kind)]


def features_of(observe: Observe, observation: Tree) -> NDArray[np.float32]:
    """The twin of `Observe.features` with images flattened: float32 [B, F], not normalised."""
    if isinstance(observation, np.ndarray):
        return _features(observe.readings[0], observation)
    leaves = leaves_of(observe.space, observation)
    return np.concatenate(
        [_features(one, leaf) for one, leaf in zip(observe.readings, leaves, strict=True)], axis=1
    )


def _features(reading: Reading, leaf: Array) -> NDArray[np.float32]:
    space = reading.space
    if isinstance(space, spaces.Discrete):
        return _one_hot(leaf - space.start, int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        columns = (leaf - space.start).reshape(len(leaf), space.nvec.size)
        return np.concatenate(
            [_one_hot(columns[:, k], int(size)) for k, size in enumerate(space.nvec.flat)], axis=1
        )
    features = leaf.reshape(len(leaf), math.prod(space.shape or ())).astype(np.float32)
    if reading.low:
        features = features - np.float32(reading.low)
    return features / np.float32(reading.scale) if reading.scale != 1.0 else features


def _one_hot(index: Array, size: int) -> NDArray[np.float32]:
    rows = np.zeros((len(index), size), np.float32)
    rows[np.arange(len(index)), index] = 1.0
    return rows
