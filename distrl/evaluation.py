"""Evaluation: whole episodes with a frozen policy, from seeds of their own, in-process and without Ray."""

from __future__ import annotations

import dataclasses
import time
import warnings
from contextlib import nullcontext
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
from distrl.errors import BadInput, RunFailed, translated
from distrl.inference import Inference, TorchInference, make_inference
from distrl.maths.random import derive_seed, stream
from distrl.policies import load_parameters, make_policy, rescales_action
from distrl.rollout import reset_where
from distrl.trees import tree_map
from distrl.video import VideoWriter, fps_of, require_video, video

NUM_ENVS = 10  # columns of a round of episodes; part of each episode's seed, so not an option
MOST_DROPPED = 100  # episodes with a NaN or Inf for each one asked for: more of them never end


@dataclass(frozen=True)
class Limits:
    """Where an evaluation ends at the latest, whatever the env and the policy do."""

    max_steps: int = 100_000  # of each episode
    timeout_sec: float = 3600.0  # of the whole evaluation


@dataclass(frozen=True)
class Evaluation:
    """Raw returns and lengths of whole episodes, in the order of their seeds.

    `unfinished` are those that a limit ended: their return and length are what they had by then. `timed_out`: that was
    the clock, so that another machine would find other numbers.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    unfinished: NDArray[np.bool_]
    timed_out: bool = False

    def summary(self) -> dict[str, float | int]:
        """The figures of `distrl eval --json`; the deviation is the population's."""
        return {
            "return_mean": float(self.returns.mean()),
            "return_std": float(self.returns.std()),
            "length_mean": float(self.lengths.mean()),
            "episodes": len(self.returns),
            "unfinished_share": float(self.unfinished.mean()),
        }

    def caveat(self, limits: Limits) -> str | None:
        """What a reader of the figures must know of unfinished episodes, in one line; None where there are none."""
        count = int(self.unfinished.sum())
        if self.timed_out:
            return (
                f"the evaluation stopped after {limits.timeout_sec:g} s (--eval-timeout-sec): {count} of "
                f"{len(self.returns)} episodes are unfinished, their return so far counts"
            )
        if not count:
            return None
        return (
            f"{count} of {len(self.returns)} evaluation episodes were not over after {limits.max_steps:,} steps "
            "(--eval-max-steps), their return so far counts; does the env need --max-episode-steps?"
        )


def evaluate_policy(
    policy: nn.Module,
    spec: EnvSpec,
    episodes: int,
    seed: int,
    greedy: bool = True,
    video_file: Path | None = None,
    inference: Inference | None = None,
    num_envs: int = NUM_ENVS,
    limits: Limits = Limits(),
) -> Evaluation:
    """Play `episodes` episodes, episode k from a seed of (seed, k) alone; `greedy` takes the most likely action.

    `inference` is asked for the actions, and has to be loaded with the policy; without one, torch's. At most `num_envs`
    envs exist at a time, which changes no episode. With `video_file`, the first episode's frames are written there.
    The policy's moments stay as they are.
    """
    if video_file is not None:
        require_video(video_file)
    columns = min(episodes, NUM_ENVS)
    turns = [
        (number, first, min(columns - first, episodes - number * columns - first))
        for number in range(-(-episodes // columns))
        for first in _firsts(columns, num_envs, spec)
        if number * columns + first < episodes
    ]
    group = evaluation_group(spec, episodes, seed, num_envs, pictures=video_file is not None)
    player = _Player(policy, inference or TorchInference(policy), group, seed, greedy, columns)
    deadline = time.monotonic() + limits.timeout_sec
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    played: dict[int, _Played] = {}
    try:
        for number, first, wanted in turns:
            filmed = video_file is not None and not played
            with (
                video(video_file, fps_of(group.metadata)) if filmed and video_file else nullcontext() as film
            ):
                ended = player.play(
                    number, first, min(wanted, group.num_envs), limits.max_steps, deadline, film
                )
            played |= {number * columns + env: one for env, one in ended.items()}
            if time.monotonic() > deadline:
                break
    finally:
        torch.set_num_threads(threads)
        group.close()
    order = [played[k] for k in sorted(played)]
    return Evaluation(
        np.array([one.return_ for one in order]),
        np.array([one.length for one in order]),
        np.array([one.unfinished for one in order]),
        timed_out=len(order) < episodes
        or any(one.unfinished and one.length < limits.max_steps for one in order),
    )


def evaluation_group(
    spec: EnvSpec, episodes: int, seed: int, num_envs: int = NUM_ENVS, pictures: bool = False
) -> EnvGroup:
    """The envs of an evaluation, at most `num_envs`, `episodes` or NUM_ENVS."""
    spec = dataclasses.replace(spec, autoreset="disabled", vectorization="sync")
    if pictures:
        spec = dataclasses.replace(spec, kwargs={**spec.kwargs, "render_mode": "rgb_array"})
    firsts = _firsts(min(episodes, NUM_ENVS), num_envs, spec)
    return EnvGroup(spec, index=0, num_envs=firsts.step, first_env=0, seed=derive_seed(seed, "evaluation"))


def _firsts(columns: int, num_envs: int, spec: EnvSpec) -> range:
    """The first column of each turn of as many envs as there may be at once, all about alike.

    A pool plays its envs together, and seeds them by their place in it.
    """
    turns = 1 if spec.is_pool else -(-columns // min(num_envs, columns))
    return range(0, columns, -(-columns // turns))


@dataclass(frozen=True)
class _Played:
    """One episode, whole or as far as it was let."""

    return_: float
    length: int
    unfinished: bool


@dataclass
class _Player:
    """A policy and the envs that it is evaluated in. Column c of round r is episode r * columns + c."""

    policy: Any
    inference: Inference
    group: EnvGroup
    seed: int
    greedy: bool
    columns: int

    def play(
        self, number: int, first: int, wanted: int, max_steps: int, deadline: float, film: VideoWriter | None
    ) -> dict[int, _Played]:
        """Round `number` in columns `first ...`, until the first `wanted` are over or a limit is there: column -> episode."""
        group = self.group
        group.first_env = first
        group.reset_all(number)
        state = tree_map(lambda leaf: leaf.cpu(), self.policy.initial_state(group.num_envs))
        to_env = ActionMap(group.action_space, rescales_action(self.policy))
        ended: dict[int, _Played] = {}
        step, dropped_before = 0, group.dropped
        with torch.inference_mode():
            while len(ended) < wanted and step < max_steps and (not step or time.monotonic() < deadline):
                if film is not None and first not in ended:
                    with translated("--video: the env's render()"):
                        film.add(group.render())
                state = reset_where(group.episode_start, state)
                noise = self._noise(number, first, step)
                action, state = self.inference.act(group.observation, state, noise, group.action_mask)
                for record in group.step(to_env(action)).episodes:
                    if record.env < first + wanted:
                        ended.setdefault(record.env, _Played(record.return_, record.length, False))
                step += 1
                if group.dropped - dropped_before > MOST_DROPPED * wanted:
                    raise RunFailed(
                        f"the evaluation dropped {group.dropped - dropped_before} episodes with a NaN or Inf and finished "
                        f"{len(ended)} of {wanted}; fix the env, or leave the evaluation out with --eval-episodes 0"
                    )
        for env in range(first, first + wanted):
            if env not in ended:
                so_far = float(group.running_return[env - first]), int(group.running_length[env - first])
                ended[env] = _Played(*so_far, unfinished=True)
        return ended

    def _noise(self, number: int, first: int, step: int) -> NDArray[np.float32] | None:
        """What sampled actions are drawn by: that of a column, however many envs there are."""
        if self.greedy:
            return None
        generator = stream(self.seed, "evaluation action", number, step)
        noise = self.policy.distribution.noise(generator, (self.columns,))
        return np.take(noise, np.arange(first, first + self.group.num_envs) % self.columns, axis=0)


@dataclass(frozen=True)
class Loaded:
    """A policy from a run directory, with what is needed to play it."""

    policy: nn.Module
    env: EnvSpec
    config: TrainConfig
    checkpoint: Checkpoint
    inference: Literal["torch", "compiled"] = "torch"  # the twin that the run's rollouts took
    spaces: tuple[Any, Any] = (None, None)  # of observations and of actions


def limits_of(config: TrainConfig) -> Limits:
    """Those of a run's evaluations."""
    return Limits(config.eval_max_steps, config.eval_timeout_sec)


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
    max_steps: int | None = None,
    timeout_sec: float | None = None,
) -> dict[str, Any]:
    """`distrl eval`: the figures of contract.md's JSON object. The limits are the run's, where none are given.

    Unfinished episodes are said in a RuntimeWarning too.
    """
    if video is not None:
        require_video(video)
    loaded = load_run(run_dir, checkpoint, trust_run)
    inference = make_inference(loaded.policy, loaded.inference)
    limits = limits_of(loaded.config)
    limits = Limits(max_steps or limits.max_steps, timeout_sec or limits.timeout_sec)
    num_envs = loaded.config.recipe.num_envs
    result = evaluate_policy(
        loaded.policy, loaded.env, episodes, seed, greedy, video, inference, num_envs, limits
    )
    if (caveat := result.caveat(limits)) is not None:
        warnings.warn(caveat, RuntimeWarning, stacklevel=2)
    return result.summary() | {"seed": seed, "checkpoint": str(loaded.checkpoint.folder)}
