"""What gpu_check.py learns from: policies over several spaces, each with random batches of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from distrl.learner import Learner
from distrl.policies import PolicySpec, make_policy
from distrl.recipes import PPO, Recipe
from distrl.trajectory import Trajectory
from distrl.trees import tree_map

SEED = 3

VECTOR = spaces.Box(-np.inf, np.inf, (4,), np.float32)
TREE = spaces.Dict({"where": spaces.Box(-1, 1, (3,), np.float32), "phase": spaces.Discrete(5)})
IMAGE = spaces.Box(0, 255, (4, 84, 84), np.uint8)  # as Atari preprocessing gives it


@dataclass(frozen=True)
class Case:
    """A policy, its spaces, and the shape [T, N] of a batch."""

    name: str
    network: str
    observation: spaces.Space[Any]
    action: spaces.Space[Any]
    shape_TN: tuple[int, int]
    normalise: bool = False
    masked: bool = False
    learning_rate: float = 2.5e-4
    hidden_sizes: tuple[int, ...] = (64, 64)
    precision: str = "fp32"

    @property
    def recipe(self) -> Recipe:
        num_steps, num_envs = self.shape_TN
        return replace(
            PPO,
            num_envs=num_envs,
            num_steps=num_steps,
            clip_value=0.2,
            entropy_coef=0.01,
            learning_rate=self.learning_rate,
        )

    def policy(self) -> Any:
        """With the same first parameters each time, on the CPU."""
        spec = PolicySpec(
            network=self.network,
            hidden_sizes=self.hidden_sizes,
            normalize_observation=self.normalise,
            precision=self.precision,
        )
        return make_policy(spec, self.observation, self.action, SEED)

    def learner(self, device: str, update: Any = "torch", capture: bool = True) -> Learner:
        """A new learner: the same first parameters on every device. `capture` False: a captured one without graphs."""
        learner = Learner(
            self.policy(), self.recipe, SEED, device, self.normalise, self.normalise, update=update
        )
        if not capture:
            learner.optimisation.capture = False  # type: ignore[attr-defined]
        return learner

    def trajectories(self, iteration: int) -> list[Trajectory]:
        """An iteration's batch as two groups: random observations and rewards, values and log-probs of the first policy."""
        num_steps, num_envs = self.shape_TN
        half = num_envs // 2
        policy = self.policy()
        rng = np.random.default_rng((SEED, iteration))
        return [_trajectory(self, policy, num_steps, n, rng) for n in (half, num_envs - half)]


CASES = (
    Case("mlp, normalised", "mlp", VECTOR, spaces.Discrete(2), (128, 8), normalise=True),
    Case("mlp, Box action", "mlp", VECTOR, spaces.Box(-1, 1, (3,), np.float32), (128, 8)),
    Case("mlp, tree and action mask", "mlp", TREE, spaces.MultiDiscrete([3, 4]), (64, 8), masked=True),
    Case("lstm", "lstm", VECTOR, spaces.Discrete(2), (64, 8), normalise=True),
    # on pictures of noise, larger steps make an update of its rounding errors: CPU and CPU would not agree either
    Case("cnn", "cnn", IMAGE, spaces.Discrete(4), (16, 8), learning_rate=1e-5),
)


def _observation(space: spaces.Space[Any], shape: tuple[int, int], rng: np.random.Generator) -> Any:
    if isinstance(space, spaces.Dict):
        return {name: _observation(inner, shape, rng) for name, inner in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return rng.integers(0, space.n, shape)
    assert isinstance(space, spaces.Box)
    if space.dtype == np.uint8:
        return rng.integers(0, 256, (*shape, *space.shape), dtype=np.uint8)
    return rng.standard_normal((*shape, *space.shape), dtype=np.float32)


def _action(space: spaces.Space[Any], shape: tuple[int, int], rng: np.random.Generator) -> Any:
    if isinstance(space, spaces.Discrete):
        return rng.integers(0, space.n, shape)
    if isinstance(space, spaces.MultiDiscrete):
        return rng.integers(0, space.nvec, (*shape, len(space.nvec)))
    return rng.standard_normal((*shape, *(space.shape or ())), dtype=np.float32)


def _mask(space: spaces.MultiDiscrete, action: Any, rng: np.random.Generator) -> Any:
    """Random masks that allow what was done."""
    columns = []
    for part, size in enumerate(space.nvec):
        mask = rng.random((*action.shape[:2], size)) < 0.7
        np.put_along_axis(mask, action[..., part : part + 1], True, axis=-1)
        columns.append(mask)
    return np.concatenate(columns, axis=-1)


def _trajectory(
    case: Case, policy: Any, num_steps: int, num_envs: int, rng: np.random.Generator
) -> Trajectory:
    shape = (num_steps, num_envs)
    observation, action = _observation(case.observation, shape, rng), _action(case.action, shape, rng)
    terminated = rng.random(shape) < 0.03
    done = terminated | (rng.random(shape) < 0.02)
    episode_start = np.zeros(shape, bool)
    episode_start[1:] = done[:-1]
    valid = rng.random(shape) < 0.95
    mask = _mask(case.action, action, rng) if case.masked else None  # type: ignore[arg-type]
    initial = tree_map(lambda leaf: leaf.numpy(), policy.initial_state(num_envs))
    value, log_prob = _evaluate(policy, observation, action, mask, initial, episode_start)
    next_value = np.concatenate([value[1:], rng.standard_normal((1, num_envs), dtype=np.float32)])
    next_value[terminated] = np.nan  # a terminated row has no future: nobody may look
    return Trajectory(
        observation=observation,
        action=action,
        reward=rng.standard_normal(shape, dtype=np.float32),
        terminated=terminated,
        done=done,
        valid=valid,
        episode_start=episode_start,
        value=value,
        next_value=next_value,
        log_prob=log_prob,
        initial_state=initial,
        extra={} if mask is None else {"action_mask": mask},
    )


def _evaluate(
    policy: Any, observation: Any, action: Any, mask: Any, initial: Any, episode_start: Any
) -> tuple[Any, Any]:
    """(values, log-probs) [T, N] by the first parameters, on the CPU."""
    columns = policy.recurrent

    def tensor(array: Any) -> torch.Tensor:
        return torch.from_numpy(array if columns else array.reshape(-1, *array.shape[2:]))

    with torch.no_grad():
        told = policy.evaluate(
            tree_map(tensor, observation),
            tensor(action),
            None if mask is None else tensor(mask),
            tree_map(torch.from_numpy, initial),
            torch.from_numpy(episode_start) if columns else None,
        )
    return told.value.numpy().reshape(episode_start.shape), told.log_prob.numpy().reshape(episode_start.shape)
