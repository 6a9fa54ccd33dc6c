"""The learner's moments: of observations (for the next snapshot of the policy) and of discounted returns (for rewards).

Both are pooled over all env groups in their fixed order, in float64, once an iteration. Observation
moments are frozen while an iteration is collected; reward moments include the fragment they scale.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from distrl.maths.statistics import Moments
from distrl.policies.observe import CLIP, Observe
from distrl.trajectory import Trajectory
from distrl.trees import tree_map


class ObservationMoments:
    """Moments of the vector features [F], published into the policy's `Observe`."""

    def __init__(self, observe: Observe) -> None:
        self.observe = observe
        self.moments = Moments.zeros((observe.num_features,))

    def include(self, trajectory: Trajectory) -> None:
        """Pool the valid rows in and freeze the result for the next iteration."""
        device = self.observe.mean.device
        rows = tree_map(
            lambda leaf: torch.from_numpy(leaf[trajectory.valid]).to(device), trajectory.observation
        )
        with torch.no_grad():
            features = self.observe.features(rows).cpu().numpy()
        self.moments = self.moments.merge(Moments.of(features))
        self.observe.set_moments(self.moments.mean, self.moments.variance)

    def state(self) -> dict[str, Any]:
        return {"count": self.moments.count, "mean": self.moments.mean, "m2": self.moments.m2}

    def load_state(self, state: dict[str, Any]) -> None:
        self.moments = Moments(state["count"], state["mean"], state["m2"])


class RewardScale:
    """Rewards divided by the deviation of the discounted return, clipped to +-10 (Engstrom et al. 2020, sec. 2).

    Each env carries its own R_t = gamma R_{t-1} + r_t along its episodes, across fragments. The mean is not
    subtracted: that would change the task.
    """

    def __init__(self, num_envs: int, gamma: float) -> None:
        self.gamma = gamma
        self.moments = Moments.zeros()
        self.running = np.zeros(num_envs, np.float64)

    def scale(
        self, reward: NDArray[np.float32], done: NDArray[np.bool_], valid: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """The scaled rewards [T, N], float32; the moments include them."""
        discounted, self.running = _running_returns(
            reward.astype(np.float64), done, valid, self.running, self.gamma
        )
        # what is not finite makes the learner skip its minibatches; here it would stay for good
        self.moments = self.moments.merge(Moments.of(discounted[valid & np.isfinite(discounted)]))
        scaled = reward / np.sqrt(self.moments.variance + 1e-8)
        return np.clip(scaled, -CLIP, CLIP).astype(np.float32)

    def state(self) -> dict[str, Any]:
        m = self.moments
        return {"count": m.count, "mean": m.mean, "m2": m.m2, "running": self.running}

    def load_state(self, state: dict[str, Any]) -> None:
        self.moments = Moments(state["count"], state["mean"], state["m2"])
        self.running = np.array(state["running"])


@numba.njit(cache=True)
def _running_returns(reward, done, valid, running, gamma):  # type: ignore[no-untyped-def]
    num_steps, num_envs = reward.shape
    out = np.empty_like(reward)
    running = running.copy()
    for t in range(num_steps):
        for n in range(num_envs):
            if valid[t, n]:
                running[n] = gamma * running[n] + reward[t, n]
            out[t, n] = running[n]
            if done[t, n]:
                running[n] = 0.0
    return out, running
