"""Writing as a Gymnasium env: the observation is the text so far, the action the next token, the reward comes at the end."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

VOCABULARY, ROOM, LIMIT, END = 23, 12, 6, 4


def score(token: Any) -> float:
    """Of a whole text: anything that depends on all of its tokens."""
    weight = np.sin(np.arange(1, len(token) + 1))
    return float(np.float32((np.asarray(token) % 7 - 3) @ weight))


class Text(gym.Env[Any, Any]):
    """A prompt of its seed's; a response of LIMIT tokens at most, which END ends. The limit is part of the task: the env
    terminates there."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {
                "token": spaces.Box(0, VOCABULARY - 1, (ROOM,), np.int64),
                "length": spaces.Box(1, ROOM, (), np.int64),
            }
        )
        self.action_space = spaces.Discrete(VOCABULARY)

    def _seen(self) -> dict[str, Any]:
        token = np.zeros(ROOM, np.int64)
        token[: len(self.text)] = self.text
        return {"token": token, "length": np.array(len(self.text), np.int64)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.prompt = int(self.np_random.integers(1, ROOM - LIMIT))
        self.text = self.np_random.integers(0, VOCABULARY, self.prompt).tolist()
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        self.text.append(int(action))
        over = int(action) == END or len(self.text) - self.prompt == LIMIT
        return self._seen(), score(self.text) if over else 0.0, over, False, {}


gym.register("Tokens/Text-v0", Text)
