"""Evaluation: whole episodes with a frozen policy, from seeds of their own, in-process and without Ray."""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distrl.checkpoint import Checkpoint, checkpoint_folders, latest_checkpoint, read_checkpoint
from distrl.config import TrainConfig
from distrl.envs import EnvGroup, EnvSpec
from distrl.envs.actions import ActionMap
from distrl.errors import BadInput
from distrl.inference import Inference, TorchInference, make_inference
from distrl.maths.random import derive_seed, stream
from distrl.policies import load_parameters, make_policy, rescales_action
from distrl.rollout import reset_where
from distrl.trees import tree_map

NUM_ENVS = 10  # envs stepped side by side; part of the result's definition, so not an option


@dataclass(frozen=True)
class Evaluation:
    """Raw returns and lengths of whole episodes, in the order of their seeds."""

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]

    def summary(self) -> dict[str, float | int]:
        """The figures of `distrl eval --json`; the deviation is the population's."""
        return {
            "return_mean": float(self.returns.mean()),
            "return_std": float(self.returns.std()),
            "length_mean": float(self.lengths.mean()),
            "episodes": len(self.returns),
        }


def evaluate_policy(
    policy: nn.Module,
    spec: EnvSpec,
    episodes: int,
    seed: int,
    greedy: bool = True,
    video: Path | None = None,
    inference: Inference | None = None,
) -> Evaluation:
    """Play `episodes` episodes, episode k from a seed of (seed, k) alone; `greedy` takes the most likely action.

    `inference` is asked for the actions, and has to be loaded with the policy; without one, torch's. With `video`, the first episode's frames are written there. The policy's moments stay as they are.
    """
    num_envs = min(episodes, NUM_ENVS)
    spec = dataclasses.replace(spec, autoreset="disabled", vectorization="sync")
    if video is not None:
        require_video_writer(video)
        spec = dataclasses.replace(spec, kwargs={**spec.kwargs, "render_mode": "rgb_array"})
    group = EnvGroup(spec, index=0, num_envs=num_envs, first_env=0, seed=derive_seed(seed, "evaluation"))
    inference = inference or TorchInference(policy)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        returns: dict[int, float] = {}
        lengths: dict[int, int] = {}
        rounds = -(-episodes // num_envs)
        for episode in range(rounds):
            frames: list[NDArray[np.uint8]] | None = [] if video is not None and episode == 0 else None
            for record in _play(policy, inference, group, episode, seed, greedy, frames):
                returns[episode * num_envs + record.env] = record.return_
                lengths[episode * num_envs + record.env] = record.length
            if frames is not None and video is not None:
                write_video(video, frames, group.render_fps)
    finally:
        torch.set_num_threads(threads)
        group.close()
    order = sorted(returns)[:episodes]
    return Evaluation(np.array([returns[k] for k in order]), np.array([lengths[k] for k in order]))


def _play(
    policy: Any,
    inference: Inference,
    group: EnvGroup,
    episode: int,
    seed: int,
    greedy: bool,
    frames: list[NDArray[np.uint8]] | None,
) -> list[Any]:
    """One whole game in every env of the group."""
    group.reset_all(episode)
    state = tree_map(lambda leaf: leaf.cpu(), policy.initial_state(group.num_envs))
    to_env = ActionMap(group.action_space, rescales_action(policy))
    ended: dict[int, Any] = {}
    step = 0
    with torch.inference_mode():
        while len(ended) < group.num_envs:
            if frames is not None and group.first_env not in ended:
                frames.append(group.render())
            noise = None
            if not greedy:
                generator = stream(seed, "evaluation action", episode, step)
                noise = policy.distribution.noise(generator, (group.num_envs,))
            state = reset_where(group.episode_start, state)
            action, state = inference.act(group.observation, state, noise, group.action_mask)
            for record in group.step(to_env(action)).episodes:
                ended.setdefault(record.env, record)
            step += 1
    return [ended[env] for env in sorted(ended)]


def require_video_writer(path: Path) -> None:
    """BadInput where the writer is missing or the file's ending unknown."""
    if path.suffix not in (".mp4", ".gif"):
        raise BadInput(f"--video must end in .mp4 or .gif, got {path}")
    if importlib.util.find_spec("imageio") is None:
        raise BadInput("--video needs imageio: pip install 'distrl[video]'")


def write_video(path: Path, frames: list[NDArray[np.uint8]], fps: float) -> None:
    """An MP4 or GIF, by the file's ending."""
    import imageio.v3 as imageio

    path.parent.mkdir(parents=True, exist_ok=True)
    # a GIF's pictures have a duration in ms, a film a rate
    options: dict[str, Any] = (
        {"fps": fps, "macro_block_size": 1} if path.suffix == ".mp4" else {"duration": 1000 / fps, "loop": 0}
    )
    imageio.imwrite(path, np.stack(frames), **options)


@dataclass(frozen=True)
class Loaded:
    """A policy from a run directory, with what is needed to play it."""

    policy: nn.Module
    env: EnvSpec
    config: TrainConfig
    checkpoint: Checkpoint
    inference: Literal["torch", "compiled"] = "torch"  # the twin that the run's rollouts took
    spaces: tuple[Any, Any] = (None, None)  # of observations and of actions


def load_run(
    run_dir: Path, checkpoint: str = "latest", trust_run: bool = False, device: str = "cpu"
) -> Loaded:
    """The policy of a run directory's checkpoint: `latest`, `best`, or an iteration's number. Needs no Ray.

    BadInput where there is no such run or checkpoint.
    """
    from distrl.build import require_same_spaces, work_spec
    from distrl.resolve import read_config
    from distrl.trust import check_trust

    config = read_config(run_dir / "config.json").config
    check_trust(run_dir / "config.json", config, trust_run)
    content = find_checkpoint(run_dir, checkpoint)
    spec = work_spec(config)
    require_same_spaces(content.meta, spec, run_dir)
    policy = make_policy(spec.policy, spec.observation_space, spec.action_space, spec.seed).to(device)
    load_parameters(policy, content.trees["learner"]["policy"])
    kind = spec.path("inference") if device == "cpu" else "torch"
    return Loaded(policy, spec.env, config, content, kind, (spec.observation_space, spec.action_space))


def find_checkpoint(run_dir: Path, which: str) -> Checkpoint:
    """The checkpoint named `latest`, `best` or by its iteration. BadInput where there is none."""
    root = run_dir / "checkpoints"
    if which == "best":
        if not (run_dir / "best").is_dir():
            raise BadInput(f"--checkpoint best: {run_dir} has none; train with --eval-every")
        return read_checkpoint(run_dir / "best")
    if which != "latest":
        folders = checkpoint_folders(root) if root.is_dir() else {}
        if not which.isdecimal() or int(which) not in folders:
            kept = ", ".join(str(number) for number in sorted(folders)) or "none"
            raise BadInput(
                f"--checkpoint must be latest, best or an iteration kept in {root} ({kept}), got {which!r}"
            )
        return read_checkpoint(folders[int(which)])
    found = latest_checkpoint(root) if root.is_dir() else None
    if found is None:
        raise BadInput(f"{root} has no checkpoint: is {run_dir} a run directory?")
    return found[1]


def evaluate_run(
    run_dir: Path,
    episodes: int = 20,
    seed: int = 0,
    greedy: bool = True,
    video: Path | None = None,
    checkpoint: str = "latest",
    trust_run: bool = False,
) -> dict[str, Any]:
    """`distrl eval`: the figures of contract.md's JSON object."""
    loaded = load_run(run_dir, checkpoint, trust_run)
    inference = make_inference(loaded.policy, loaded.inference)
    result = evaluate_policy(loaded.policy, loaded.env, episodes, seed, greedy, video, inference)
    return result.summary() | {"seed": seed, "checkpoint": str(loaded.checkpoint.folder)}
