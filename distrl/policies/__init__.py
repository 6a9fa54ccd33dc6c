"""Policies: MLP, Nature CNN, LSTM, or one's own behind the same protocol."""

from distrl.policies.build import PolicySpec, make_policy
from distrl.policies.distributions import make_distribution
from distrl.policies.observe import Observe
from distrl.policies.protocol import (
    Evaluation,
    Policy,
    load_parameters,
    parameters_and_buffers,
    rescales_action,
)

__all__ = [
    "Evaluation",
    "Observe",
    "Policy",
    "PolicySpec",
    "load_parameters",
    "make_distribution",
    "make_policy",
    "parameters_and_buffers",
    "rescales_action",
]
