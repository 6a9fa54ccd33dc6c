"""A policy asked for actions, values and log-probs, by one of two twins: arrays in, arrays out.

`TorchInference` serves any policy. `CompiledInference` serves an MLP with Discrete or Box actions, several times
as fast on the few rows of an env group, and by the kernels that the compiled update evaluates with: the first
minibatch's ratio is then exactly 1.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distrl.policies.compiled import CompiledMLP
from distrl.trees import Tree, tree_leaves, tree_map
from distrl.updates.torch import to_device

Array = NDArray[Any]
IMAGES_AT_A_TIME = 256


class Evaluated(NamedTuple):
    """Of rows [T, N]: each float32 and of that shape."""

    log_prob: NDArray[np.float32]
    value: NDArray[np.float32]


class Inference(Protocol):
    """What a rollout asks of a policy. `state` is the policy's memory: torch tensors [N, ...], or None."""

    def load(self) -> None:
        """To be called after the policy's parameters were changed."""
        ...

    def act(
        self, observation: Tree, state: Tree, noise: Array | None, action_mask: Array | None
    ) -> tuple[Array, Tree]:
        """Actions [N, ...] that `noise` picks, the most likely ones without, and the state after them."""
        ...

    def evaluate(self, rows: dict[str, Tree], action_mask: Array | None, initial_state: Tree) -> Evaluated:
        """All rows [T, N] of a fragment, whole columns where the policy has a memory."""
        ...

    def value(self, observation: Tree, state: Tree) -> NDArray[np.float32]:
        """V [B] of observations [B, ...] met with states [B, ...]."""
        ...


def make_inference(policy: nn.Module, kind: Literal["torch", "compiled"]) -> Inference:
    """The twin of that name. BadInput where the compiled one does not serve the policy."""
    return CompiledInference(policy) if kind == "compiled" else TorchInference(policy)


class TorchInference:
    """`Inference` by the policy's own methods, on the policy's device; what comes back is on the CPU."""

    def __init__(self, policy: nn.Module) -> None:
        self.policy = cast(Any, policy)
        parameter = next(policy.parameters(), None)
        self.device = torch.device("cpu") if parameter is None else parameter.device

    def load(self) -> None:
        """Nothing is kept beside the policy."""

    def _there(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(array) if self.device.type == "cpu" else to_device(array, self.device)

    def _state_there(self, state: Tree) -> Tree:
        return tree_map(lambda leaf: leaf.to(self.device), state)

    def act(
        self, observation: Tree, state: Tree, noise: Array | None, action_mask: Array | None
    ) -> tuple[Array, Tree]:
        action, state = self.policy.act(
            tree_map(self._there, observation),
            self._state_there(state),
            None if noise is None else self._there(noise),
            None if action_mask is None else self._there(action_mask),
        )
        return action.cpu().numpy(), tree_map(lambda leaf: leaf.cpu(), state)

    def evaluate(self, rows: dict[str, Tree], action_mask: Array | None, initial_state: Tree) -> Evaluated:
        def tensor(array: Array) -> torch.Tensor:
            return self._there(np.ascontiguousarray(array))

        observation, action = tree_map(tensor, rows["observation"]), tensor(rows["action"])
        mask = None if action_mask is None else tensor(action_mask)
        shape = rows["reward"].shape
        if self.policy.recurrent:
            state, starts = tree_map(tensor, initial_state), tensor(rows["episode_start"])
            found = self.policy.evaluate(observation, action, mask, state, starts)
            return Evaluated(*(part.cpu().numpy() for part in (found.log_prob, found.value)))
        columns = tree_map(lambda leaf: leaf.flatten(0, 1), (observation, action, mask))
        num_rows = len(columns[1])
        block = IMAGES_AT_A_TIME if self._sees_images(observation) else max(num_rows, 1)
        parts = [
            self.policy.evaluate(*_rows(columns, begin, begin + block), None, None)
            for begin in range(0, num_rows, block)
        ]
        log_prob, value = (
            torch.cat(told) for told in zip(*((p.log_prob, p.value) for p in parts), strict=True)
        )
        return Evaluated(log_prob.cpu().numpy().reshape(shape), value.cpu().numpy().reshape(shape))

    def _sees_images(self, observation: Tree) -> bool:
        """On a CPU, where the activations of many do not fit the cache (measured: 256 at a time take 2/3 of the time)."""
        return self.device.type == "cpu" and any(leaf.dim() >= 5 for leaf in tree_leaves(observation))

    def value(self, observation: Tree, state: Tree) -> NDArray[np.float32]:
        value = self.policy.value(tree_map(self._there, observation), self._state_there(state))
        told: NDArray[np.float32] = value.cpu().numpy()
        return told


def _rows(columns: Tree, begin: int, end: int) -> Tree:
    return tree_map(lambda leaf: leaf[begin:end], columns)


class CompiledInference:
    """`Inference` by the compiled kernels, row-exact: a group's rows may be batched with any others."""

    def __init__(self, policy: nn.Module) -> None:
        self.view = CompiledMLP(policy)
        self._warm()

    def _warm(self) -> None:
        """Compiles, or reads Numba's cache: a batch of no rows."""
        n = int(self.view.network.actor[-1])
        features = np.zeros((0, int(self.view.network.actor[0])), np.float32)
        self.view.act_on(features, np.zeros((0, n), np.float32), None)
        index, vector = self.view.split_action(np.zeros((0, n), np.float32))
        self.view.log_prob_of(features, index, vector, None)
        self.view.value_of(features)

    def load(self) -> None:
        self.view.load()

    def act(
        self, observation: Tree, state: Tree, noise: Array | None, action_mask: Array | None
    ) -> tuple[Array, Tree]:
        return self.view.act(observation, noise, action_mask), None

    def evaluate(self, rows: dict[str, Tree], action_mask: Array | None, initial_state: Tree) -> Evaluated:
        def flat(leaf: Array) -> Array:
            return leaf.reshape(-1, *leaf.shape[2:])

        shape = rows["reward"].shape
        mask = None if action_mask is None else flat(action_mask)
        observation = tree_map(flat, rows["observation"])
        log_prob, value = self.view.evaluate(observation, flat(rows["action"]), mask)
        return Evaluated(log_prob.reshape(shape), value.reshape(shape))

    def value(self, observation: Tree, state: Tree) -> NDArray[np.float32]:
        return self.view.value(observation)
