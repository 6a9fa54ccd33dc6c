"""What `distrl.load` gives: a trained policy that takes the env's observations and gives the env's actions."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from distrl.envs.actions import ActionMap
from distrl.envs.masks import read_mask
from distrl.envs.spaces import ObservationReader
from distrl.inference import Inference, TorchInference, make_inference
from distrl.policies import rescales_action
from distrl.rollout import reset_where
from distrl.trees import Tree, tree_leaves, tree_map

Array = NDArray[Any]


class LoadedPolicy(nn.Module):
    """The trained module is `policy`; what is asked of this one and is not here is asked of that.

    Actions are the env's own, as an evaluation plays them: inside the action space, of its shape and dtype.
    """

    def __init__(
        self,
        policy: nn.Module,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        inference: Literal["torch", "compiled"] = "torch",
        mask_key: str | None = None,
    ) -> None:
        super().__init__()
        self.policy: Any = policy
        self.observation_space, self.action_space = observation_space, action_space
        self.generator = np.random.default_rng(0)  # of actions that are drawn
        self._reader = ObservationReader(observation_space)
        self._to_env = ActionMap(action_space, rescales_action(policy))
        self._kind, self._mask_key = inference, mask_key
        self._inference: Inference | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "policy":
                raise
            return getattr(self.policy, name)

    def state_dict(self, *arguments: Any, **named: Any) -> Any:
        """The trained module's, by its own names."""
        return self.policy.state_dict(*arguments, **named)

    def load_state_dict(self, *arguments: Any, **named: Any) -> Any:
        """Into the trained module."""
        return self.policy.load_state_dict(*arguments, **named)

    def act(
        self,
        observation: Tree,
        state: Tree = None,
        noise: Tensor | None = None,
        action_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tree]:
        """`Policy.act` on tensors [N, ...], with the env's actions [N, ...]; without `noise` the most likely ones."""
        action, state = self.policy.act(observation, state, noise, action_mask)
        return torch.from_numpy(self._to_env(action.detach().cpu().numpy())), state

    def predict(
        self,
        observation: Any,
        state: Tree = None,
        episode_start: Array | None = None,
        deterministic: bool = True,
        action_mask: Any = None,
    ) -> tuple[Any, Tree]:
        """(the env's action for one observation, or actions [N, ...] for a batch of them; the policy's memory after it).

        `state` is what the last call gave, None at the start; where `episode_start` [N] it is forgotten.
        `action_mask` is one in any form that an env may give (docs/action_masks.md), a list of them for a batch;
        with `--mask-key` the observation's own.
        Raises ValueError for an observation of another shape.
        """
        tree, single = _batch(self.observation_space, observation)
        seen, _ = self._reader.read(tree)
        count = len(next(iter(tree_leaves(seen))))
        if state is None:
            state = tree_map(lambda leaf: leaf.cpu(), self.policy.initial_state(count))
        if episode_start is not None:
            state = reset_where(np.atleast_1d(np.asarray(episode_start, bool)), state)
        mask = None
        if action_mask is None and self._mask_key is not None:
            action_mask = observation.get(self._mask_key)
        if action_mask is not None:
            masks = [action_mask] if single else list(action_mask)
            mask = np.stack([read_mask(self.action_space, one, "predict") for one in masks])
        noise = None
        if not deterministic:
            noise = self.policy.distribution.noise(self.generator, (count,))
        with torch.inference_mode():
            action, state = self._asked().act(seen, state, noise, mask)
        moved = self._to_env(action)
        return (moved[0] if single else moved), state

    def _asked(self) -> Inference:
        parameter = next(self.policy.parameters(), None)
        on_cpu = parameter is None or parameter.device.type == "cpu"
        if self._kind == "torch" or not on_cpu:
            return TorchInference(self.policy)
        if self._inference is None:
            self._inference = make_inference(self.policy, self._kind)
        self._inference.load()  # the parameters may have been changed
        return self._inference


def _batch(space: spaces.Space[Any], observation: Any) -> tuple[Tree, bool]:
    """(arrays [N, ...], whether it was a single observation)."""
    if isinstance(space, spaces.Dict):
        parts = {key: _batch(inner, observation[key]) for key, inner in space.spaces.items()}
        return {key: part[0] for key, part in parts.items()}, all(part[1] for part in parts.values())
    if isinstance(space, spaces.Tuple):
        placed = [_batch(inner, one) for inner, one in zip(space.spaces, observation, strict=True)]
        return tuple(part[0] for part in placed), all(part[1] for part in placed)
    array = np.asarray(observation, space.dtype)
    shape = tuple(space.shape or ())
    if array.shape == shape:
        return array[None], True
    if array.shape[1:] == shape and array.ndim == len(shape) + 1:
        return array, False
    batched = ", ".join(["N", *map(str, shape)]) + ("" if shape else ",")
    raise ValueError(f"observation must have shape {shape}, or ({batched}) for a batch, got {array.shape}")
