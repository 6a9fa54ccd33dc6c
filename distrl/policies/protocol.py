"""What a policy is: `act` collects, `evaluate` trains. B rows of a flat batch, T steps, N envs.

A policy draws nothing at random itself. The caller gives `noise` from a keyed stream, so that an
action depends on (parameters, observation, noise) alone, whichever process computes it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from distrl.errors import BadInput
from distrl.policies.distributions import Distribution
from distrl.trees import Tree


class Evaluation(NamedTuple):
    """What the update needs of each row: all of the leading shape of the action ([B] or [T, N])."""

    log_prob: Tensor
    entropy: Tensor
    value: Tensor


@runtime_checkable
class Policy(Protocol):
    """An `nn.Module` with these members; one's own goes in by `--policy module:function`.

    The function is called as `function(observation_space, action_space, **policy_kwargs)`.
    """

    recurrent: bool  # carries a state along time: minibatches are whole columns
    distribution: Distribution  # of the action space

    def initial_state(self, num_envs: int) -> Tree:
        """State at an episode's start: zeros [N, ...], which a reset puts back; None for a policy without memory."""
        ...

    def act(
        self, observation: Tree, state: Tree, noise: Tensor | None, action_mask: Tensor | None
    ) -> tuple[Tensor, Tree]:
        """Action [N, ...] and the state after it. `noise` None takes the most likely action."""
        ...

    def value(self, observation: Tree, state: Tree) -> Tensor:
        """V [B] of observations [B, ...] met with states [B, ...]."""
        ...

    def evaluate(
        self,
        observation: Tree,
        action: Tensor,
        action_mask: Tensor | None,
        state: Tree,
        episode_start: Tensor | None,
    ) -> Evaluation:
        """Without memory: rows [B, ...]. Recurrent: columns [T, N, ...], `state` [N, ...] before row 0,
        reset wherever `episode_start` [T, N]."""
        ...


def rescales_action(policy: Any) -> bool:
    """Whether its Box actions lie in [-1, 1] and are rescaled to the bounds: what `make_policy` settles for the
    built-in ones; a custom policy may set `rescales_action` itself."""
    return bool(getattr(policy, "rescales_action", False))


def parameters_and_buffers(policy: nn.Module) -> dict[str, np.ndarray]:
    """Copies of all parameters and buffers, by name, on the CPU."""
    return host_arrays(policy.state_dict())


def host_arrays(tensors: dict[str, Tensor], copied: bool = True) -> dict[str, np.ndarray]:
    """The tensors on the CPU; those that lie there are themselves if not `copied`. For a GPU the host waits once."""
    own = {name: tensor.detach() for name, tensor in tensors.items()}
    if not any(tensor.is_cuda for tensor in own.values()):
        return {name: tensor.numpy().copy() if copied else tensor.numpy() for name, tensor in own.items()}
    import torch

    copies = {
        name: torch.empty(one.shape, dtype=one.dtype, pin_memory=True).copy_(one, non_blocking=True)
        for name, one in own.items()
    }
    torch.cuda.current_stream().synchronize()
    return {name: copy.numpy().copy() if copied else copy.numpy() for name, copy in copies.items()}


def load_parameters(policy: nn.Module, arrays: dict[str, Any]) -> None:
    """Put `arrays` back, in place. ValueError names what is missing, unknown or of another shape."""
    load_tensors(policy.state_dict(), arrays)


def load_tensors(own: dict[str, Tensor], arrays: dict[str, Any]) -> None:
    """As `load_parameters`, into these tensors."""
    import torch

    problems = [f"{name} is missing" for name in own if name not in arrays]
    problems += [f"{name} is not the policy's" for name in arrays if name not in own]
    problems += [
        f"{name} has shape {tuple(arrays[name].shape)}, the policy's is {tuple(own[name].shape)}"
        for name in own
        if name in arrays and tuple(arrays[name].shape) != tuple(own[name].shape)
    ]
    if problems:
        raise BadInput("these parameters do not fit the policy: " + "; ".join(problems))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(torch.from_numpy(np.array(arrays[name])))
