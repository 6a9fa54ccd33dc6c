"""FrameStack: the last k observations as one."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from distrl.envs.images import COMMON_CHANNELS, ImageBox
from distrl.errors import BadInput


class FrameStack(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Box observations only. Images with a channel axis are joined along it ([H, W, C] -> [H, W, k C],
    [C, H, W] -> [k C, H, W]); anything else gets a new leading axis ([...] -> [k, ...]). Oldest first; a
    reset fills the stack with the first observation."""

    def __init__(self, env: gymnasium.Env[Any, Any], size: int) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, gymnasium.spaces.Box):
            raise BadInput(
                f"frame_stack must be 1 where the observation is not a Box, got {size} with {space}"
            )
        self._axis = _channel_axis(space)
        self._frames: list[NDArray[Any]] = [np.zeros(space.shape, space.dtype)] * size
        low, high = self._join([space.low] * size), self._join([space.high] * size)
        if self._axis is None and len(space.shape) != 2:
            self.observation_space = gymnasium.spaces.Box(low, high, dtype=space.dtype.type)
        else:  # whose channels may be any number now
            self.observation_space = ImageBox(low, high, space.dtype.type, self._axis or 0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, info = self.env.reset(seed=seed, options=options)
        self._frames = [np.array(observation)] * len(self._frames)
        return self._join(self._frames), info

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._frames = [*self._frames[1:], np.array(observation)]
        return self._join(self._frames), reward, terminated, truncated, info

    def snapshot_layer(self) -> dict[str, Any]:
        """What it remembers between steps, as a state tree."""
        return {"frames": np.stack(self._frames)}

    def restore_layer(self, state: dict[str, Any]) -> None:
        """Back to what `snapshot_layer` gave."""
        self._frames = list(state["frames"])

    def _join(self, frames: list[NDArray[Any]]) -> NDArray[Any]:
        return np.stack(frames) if self._axis is None else np.concatenate(frames, axis=self._axis)


def _channel_axis(space: gymnasium.spaces.Box) -> int | None:
    """Where frames are joined: the axis with the channels of an image; None where it is not sure that there is one."""
    if len(space.shape) != 3:
        return None
    known: int | None = getattr(space, "channel_axis", None)
    if known is not None:
        return known
    if space.shape[-1] in COMMON_CHANNELS:
        return -1
    return 0 if space.shape[0] in COMMON_CHANNELS else None
