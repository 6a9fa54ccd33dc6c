"""From a specification to a policy: the three that are built in, or one's own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from gymnasium import spaces
from torch import nn

from distrl.errors import BadInput
from distrl.maths.random import derive_seed
from distrl.named import load_function
from distrl.policies.cnn import CNNPolicy
from distrl.policies.lstm import LSTMPolicy
from distrl.policies.mlp import MLPPolicy
from distrl.policies.observe import has_image
from distrl.policies.precision import set_precision
from distrl.policies.reading import Reading, Scale, readings
from distrl.trees import tree_leaves


@dataclass(frozen=True)
class PolicySpec:
    """All that makes a policy but its parameters."""

    network: str = "auto"
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    lstm_size: int = 128
    normalize_observation: bool = False
    rescale_action: bool = False
    observation_scale: Scale = "bytes"
    precision: str = "fp32"
    policy: str | None = None
    policy_kwargs: dict[str, Any] = field(default_factory=dict)


def make_policy(
    spec: PolicySpec, observation_space: spaces.Space, action_space: spaces.Space, seed: int
) -> nn.Module:
    """A policy with parameters drawn from `seed`, whatever the process did before.

    BadInput names the space, module or function that does not serve.
    """
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(derive_seed(seed, "parameters"))
        try:
            policy = _build(spec, observation_space, action_space)
            if spec.policy is None:
                policy.rescales_action = spec.rescale_action  # type: ignore[assignment]
            set_precision(policy, spec.precision)
            return policy
        except ValueError as error:
            raise BadInput(str(error)) from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread inside: the QR behind an orthogonal matrix, say, gives other bits with other counts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _build(spec: PolicySpec, observation_space: spaces.Space, action_space: spaces.Space) -> nn.Module:
    if spec.policy is not None:
        return _custom(spec, observation_space, action_space)
    network, scale = network_of(spec, observation_space), spec.observation_scale
    if network == "cnn":
        asked = spec.network == "cnn" and scale != "bytes"
        if not has_image(observation_space, scale, asked):
            raise BadInput(
                f"--network cnn wants an image (a Box of 2 to 4 dimensions, 3 pixels a side at least) in "
                f"{observation_space}: use mlp"
            )
        return CNNPolicy(observation_space, action_space, spec.normalize_observation, scale, asked)
    if network == "lstm":
        return LSTMPolicy(
            observation_space,
            action_space,
            spec.hidden_sizes,
            spec.activation,
            spec.lstm_size,
            spec.normalize_observation,
            scale,
        )
    return MLPPolicy(
        observation_space, action_space, spec.hidden_sizes, spec.activation, spec.normalize_observation, scale
    )


def network_of(spec: PolicySpec, observation_space: spaces.Space) -> str:
    """`mlp`, `cnn` or `lstm`: the one asked for, else cnn where there is an image."""
    if spec.network != "auto":
        return spec.network
    return "cnn" if has_image(observation_space, spec.observation_scale) else "mlp"


def readings_of(spec: PolicySpec, observation_space: spaces.Space) -> list[Reading]:
    """How the policy reads each leaf; of a custom one nothing is known."""
    network, scale = network_of(spec, observation_space), spec.observation_scale
    asked = spec.network == "cnn" and scale != "bytes"
    return readings(observation_space, scale, asked, flatten=network == "mlp")


def _custom(spec: PolicySpec, observation_space: spaces.Space, action_space: spaces.Space) -> nn.Module:
    assert spec.policy is not None
    function = load_function(spec.policy, "--policy")
    try:
        inspect.signature(function).bind(observation_space, action_space, **spec.policy_kwargs)
    except TypeError as error:
        raise BadInput(
            f"--policy {spec.policy} is called with (observation_space, action_space, **policy_kwargs), "
            f"policy_kwargs {spec.policy_kwargs}: {error}"
        ) from error
    policy = function(observation_space, action_space, **spec.policy_kwargs)
    wanted = ("recurrent", "distribution", "initial_state", "act", "value", "evaluate")
    missing = [name for name in wanted if not hasattr(policy, name)]
    if missing or not isinstance(policy, nn.Module):
        what = f"has no {', '.join(missing)}" if missing else "is no torch.nn.Module"
        raise BadInput(
            f"--policy {spec.policy} must return a Policy (distrl/policies/protocol.py): it {what}"
        )
    if any(bool(leaf.any()) for leaf in tree_leaves(cast(Any, policy).initial_state(1))):
        raise BadInput(
            f"--policy {spec.policy}: initial_state must be zeros, which is what a reset puts back; "
            "add a learned first state to it inside act, value and evaluate"
        )
    if spec.normalize_observation and not hasattr(policy, "observe"):
        raise BadInput(
            f"--normalize-observation wants the policy to have `observe` (distrl.policies.Observe); {spec.policy}'s has none"
        )
    return policy
