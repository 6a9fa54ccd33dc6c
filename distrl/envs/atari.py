"""The standard Atari preprocessing, with a lost life as a flag and not as an end of the game.

Follows the nine wrappers of "The 37 implementation details of PPO" (Huang et al. 2022), after Mnih et al.
2015. The reward stays raw: the group clips what is learned from and counts whole games.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from distrl.envs.infos import GAME
from distrl.errors import BadInput

NOOP, FIRE, SECOND = 0, 1, 2


class AtariGame(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An ALE game with `frameskip=1` below: uint8 observations [frame_stack, 84, 84], oldest first.

    Up to `noop_max` no-ops after a reset; each action for 4 frames, of which the last two are joined by
    their maximum; gray, 84x84; FIRE after a reset in games that wait for it.

    A lost life (with others left) ends an episode for learning and not the game: the step that loses it
    goes on by itself with a no-op and FIRE, returns the observation from there with a fresh stack and
    `terminated` False, and says so in the info, under a key that no env has (`infos.GAME`): `life_lost` True and
    `life_final_obs`, where the life ended. No reset is involved, so it is the same in all autoreset modes and in a replay. Rewards of
    frames that no action of the agent chose come as `unlearned_reward`.

    Sticky actions (Machado et al. 2018: with probability `sticky`, each frame repeats the action of the one
    before) are drawn here and not in ALE, which keeps that action outside of its snapshots.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        frame_stack: int = 4,
        noop_max: int = 30,
        frame_skip: int = 4,
        size: int = 84,
        sticky: float = 0.0,
    ) -> None:
        super().__init__(env)
        base: Any = env.unwrapped
        if not hasattr(base, "ale"):
            raise BadInput(f"atari must be off for {env.spec.id if env.spec else env}: it is not an ALE game")
        if getattr(base, "_frameskip", 1) != 1 or getattr(base, "_obs_type", "") not in ("grayscale", "rgb"):
            raise BadInput(
                "Atari preprocessing needs frameskip 1 and an image in env_kwargs, got "
                f"frameskip={base._frameskip}, obs_type={base._obs_type!r}; leave them out, or turn atari off"
            )
        if getattr(base, "continuous", False):
            raise BadInput("Atari preprocessing needs discrete actions: leave continuous out of env_kwargs")
        if base._obs_type == "rgb":
            env = self.env = gymnasium.wrappers.GrayscaleObservation(env)
        self._ale = base.ale
        meanings = base.get_action_meanings()
        self._needs_fire = len(meanings) >= 3 and meanings[FIRE] == "FIRE"
        self._noop_max, self._skip, self._size, self._sticky = (noop_max, frame_skip, size, sticky)
        self._begun: tuple[Any, NDArray[np.uint8]] | None = (
            None  # ALE's state and first frame, ROM just loaded
        )
        self._held = NOOP  # the action of the frame before
        self._lives = 0
        self._frames = np.zeros((frame_stack, size, size), np.uint8)
        self.observation_space = gymnasium.spaces.Box(0, 255, self._frames.shape, np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        frame = self._begin(seed, options)
        unlearned = 0.0
        for _ in range(
            int(self.unwrapped.np_random.integers(1, self._noop_max + 1)) if self._noop_max else 0
        ):
            frame, reward, terminated, truncated, _ = self._frame(NOOP)
            unlearned += float(reward)
            if terminated or truncated:
                frame, unlearned = self._begin(None, options), 0.0
        picture = self._shrink(frame)
        for action in (FIRE, SECOND) if self._needs_fire else ():
            picture, reward, terminated, truncated = self._act(action)
            unlearned += reward
            if terminated or truncated:
                picture, unlearned = self._shrink(self._begin(None, options)), 0.0
        self._frames[:] = picture
        self._lives = self._ale.lives()
        return self._frames.copy(), {GAME: {"unlearned_reward": unlearned}} if unlearned else {}

    def step(self, action: Any) -> Any:
        picture, reward, terminated, truncated = self._act(action)
        self._frames[:-1] = self._frames[1:]
        self._frames[-1] = picture
        lives = self._ale.lives()
        info: dict[Any, Any] = {}
        if 0 < lives < self._lives and not (terminated or truncated):
            game: dict[str, Any] = {"life_lost": True, "life_final_obs": self._frames.copy()}
            terminated, truncated = self._next_life(game)
            info = {GAME: game}
        elif terminated or truncated:
            info = {"episode_frames": self._ale.getEpisodeFrameNumber()}
        self._lives = self._ale.lives()
        return self._frames.copy(), reward, terminated, truncated, info

    def snapshot_layer(self) -> dict[str, Any]:
        """What it remembers between steps, as a state tree."""
        return {"frames": self._frames.copy(), "lives": int(self._lives), "held": int(self._held)}

    def restore_layer(self, state: dict[str, Any]) -> None:
        """Back to what `snapshot_layer` gave."""
        self._frames[:] = state["frames"]
        self._lives, self._held = state["lives"], state["held"]

    def _begin(self, seed: int | None, options: dict[str, Any] | None) -> NDArray[np.uint8]:
        """The game's first frame, always that of a ROM just loaded.

        ALE loads the ROM for each seed, at the price of 200 steps, and comes to the same state, as it draws nothing
        without sticky actions: so once, and from then on that state is put back. Without a seed it would not
        load, and some games (BeamRider) begin otherwise after a first one.
        """
        self._held = NOOP
        if self._begun is None:
            frame, _ = self.env.reset(seed=0 if seed is None else seed, options=options)
            self._begun = self._ale.cloneState(include_rng=True), frame.copy()
        else:
            self.env.reset(options=options)
            self._ale.restoreState(self._begun[0])
        if seed is not None:
            gymnasium.Env.reset(self.unwrapped, seed=seed)  # only its generator, which ours are drawn from
        return self._begun[1].copy()

    def _next_life(self, game: dict[str, Any]) -> tuple[bool, bool]:
        unlearned, terminated, truncated = 0.0, False, False
        for action in (NOOP, FIRE, SECOND) if self._needs_fire else (NOOP,):
            picture, reward, terminated, truncated = self._act(action)
            unlearned += reward
            self._frames[:] = picture
            if terminated or truncated:
                break
        if unlearned:
            game["unlearned_reward"] = unlearned
        return terminated, truncated

    def _act(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool]:
        total, before, frame = 0.0, None, None  # type: float, Any, Any
        for _ in range(self._skip):
            before = frame
            frame, reward, terminated, truncated, _ = self._frame(action)
            total += float(reward)
            if terminated or truncated:
                break
        return (
            self._shrink(frame if before is None else np.maximum(before, frame)),
            total,
            terminated,
            truncated,
        )

    def _frame(self, action: Any) -> Any:
        if not self._sticky or self.unwrapped.np_random.random() >= self._sticky:
            self._held = action
        return self.env.step(self._held)

    def _shrink(self, frame: Any) -> NDArray[np.uint8]:
        import cv2

        return np.asarray(cv2.resize(frame, (self._size, self._size), interpolation=cv2.INTER_AREA), np.uint8)
