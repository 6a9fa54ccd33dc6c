"""MaskFromObservation: an action mask that an env gives under a key of its observation, as its info."""

from __future__ import annotations

from typing import Any

import gymnasium

from distrl.envs.masks import KEY
from distrl.errors import BadInput
from distrl.named import nearest


class MaskFromObservation(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Moves `observation[key]` to `info["action_mask"]`: the policy acts by it and does not see it.

    BadInput where the observation is no Dict with that key and another.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], key: str) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, gymnasium.spaces.Dict):
            raise BadInput(
                f"mask_key={key!r} must be a key of a Dict observation, which is {space} here; leave it out, or give "
                "the mask in info['action_mask'] or by action_masks()"
            )
        if key not in space.spaces:
            raise BadInput(
                f"mask_key={key!r} must be a key of the observation, which has {', '.join(map(repr, space.spaces))}"
                + nearest(key, space.spaces)
            )
        self._key = key
        rest = {name: inner for name, inner in space.spaces.items() if name != key}
        if not rest:
            raise BadInput(
                f"mask_key={key!r} is the only key of the observation: there is nothing left to see"
            )
        self.observation_space = gymnasium.spaces.Dict(rest)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._moved(observation, info)

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        observation, info = self._moved(observation, info)
        return observation, reward, terminated, truncated, info

    def _moved(self, observation: Any, info: Any) -> tuple[Any, Any]:
        if not isinstance(observation, dict) or self._key not in observation:
            return observation, info  # outside its space: told by the check of observations
        rest = {name: value for name, value in observation.items() if name != self._key}
        return rest, {**(info or {}), KEY: observation[self._key]}
