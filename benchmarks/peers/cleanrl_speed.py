"""Times CleanRL's own PPO files (as patched by patch_cleanrl.py): CartPole-v1, HalfCheetah-v5, Breakout.

Usage: benchmarks/peers/.envs/cleanrl/bin/python benchmarks/peers/cleanrl_speed.py --num-envs 64
       benchmarks/peers/.envs/envpool/bin/python benchmarks/peers/cleanrl_speed.py --num-envs 512 --vector-env envpool

The file runs as it is, under another log: its per-update log line is the iteration boundary, and ends the run.
`--vector-env sync` is CleanRL's own loop; `native` puts gymnasium's batched CartPoleVectorEnv in the place of its
SyncVectorEnv, `envpool` is its EnvPool loop: both have NEXT_STEP autoreset, which the files do not mask: right for
timing, not for learning. The rows that only reset are not counted as env steps.
"""

import contextlib
import io
import os
import runpy
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speed import Window, arguments, minibatch_size, only, report

SOURCE = Path(sys.prefix) / "src"


class WindowClosed(Exception):
    """Ends CleanRL's loop from inside its log call."""


def file_of(env: str, vector_env: str) -> str:
    """Returns which of CleanRL's files trains on `env`; ValueError where a vector env is not for it."""
    if vector_env != "sync" and env != "CartPole-v1":
        raise ValueError(f"--vector-env must be sync for {env}, got {vector_env}")
    if vector_env == "envpool":
        return "ppo_atari_envpool.py"
    if env == "CartPole-v1":
        return "ppo.py"
    return "ppo_atari.py" if "NoFrameskip" in env else "ppo_continuous_action.py"


def log_with(window: Window, resets_have_rows: bool, rollout_only: bool) -> types.ModuleType:
    """Returns a module to stand for `episode_log`, whose writer closes `window` instead of writing."""

    class SummaryWriter:
        reset_rows = 0

        def __init__(self, _log_dir: str) -> None: ...

        def episode(self, global_step: int, episode_return: float, _length: int) -> None:
            if window.episodes([episode_return], global_step):
                raise WindowClosed

        def add_text(self, *_: Any) -> None: ...

        def rollout_begins(self) -> None:
            window.enter()

        def rollout_ends(self) -> None:
            if rollout_only:
                window.leave()

        def add_scalar(self, name: str, _value: float, global_step: int) -> None:
            # charts/SPS is the last thing that the file logs in every update.
            if name == "charts/SPS":
                if resets_have_rows:
                    self.reset_rows += int(sys._getframe(1).f_globals["dones"].sum())
                if window.boundary(global_step - self.reset_rows):
                    raise WindowClosed

    module = types.ModuleType("episode_log")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    return module


def use_native_vector_env() -> None:
    """Makes CleanRL's SyncVectorEnv(...) call build gymnasium's CartPoleVectorEnv with episode statistics."""
    import gymnasium as gym

    def native(env_fns: list[Any], **_: Any) -> Any:
        env = gym.make_vec("CartPole-v1", num_envs=len(env_fns), vectorization_mode="vector_entry_point")
        return gym.wrappers.vector.RecordEpisodeStatistics(env)

    gym.vector.SyncVectorEnv = native  # type: ignore[misc, assignment]


def call_at_reset(begin: Callable[[], None]) -> None:
    """Calls `begin` before CleanRL resets its SyncVectorEnv, which is the first thing of its training."""
    import gymnasium as gym

    class Begins(gym.vector.SyncVectorEnv):
        def reset(self, **options: Any) -> Any:
            begin()
            return super().reset(**options)

    gym.vector.SyncVectorEnv = Begins  # type: ignore[misc]


def main() -> None:
    parser = arguments(__doc__, num_envs=64)
    parser.add_argument("--vector-env", choices=["native", "sync", "envpool"], default="native")
    options = parser.parse_args()
    minibatch_size(options)
    file = SOURCE / file_of(options.env, options.vector_env)
    if options.vector_env != "envpool":
        only(options, rollout_only=False)
    if options.vector_env != "sync":
        only(options, until_return=None)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    window = Window.of(options)
    if options.vector_env == "native":
        use_native_vector_env()
    elif options.vector_env == "sync":
        call_at_reset(window.begin)
    sys.modules["episode_log"] = log_with(window, options.vector_env != "sync", options.rollout_only)
    settings = {
        "env-id": options.env,
        "seed": options.seed,
        "num-envs": options.num_envs,
        "num-steps": options.num_steps,
        "update-epochs": options.epochs,
        "num-minibatches": options.minibatches,
        "learning-rate": options.learning_rate,
        "gamma": options.gamma,
        "gae-lambda": options.lam,
        "clip-coef": options.clip,
        "ent-coef": options.entropy_coef,
        "total-timesteps": options.total_steps,
        "cuda": False,
    }
    sys.argv = [str(file), *(text for key, value in settings.items() for text in (f"--{key}", str(value)))]
    with contextlib.suppress(WindowClosed), contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path(str(file), run_name="__main__")
    report(
        "cleanrl", "cleanrl", options, window,
        {"file": file.name, "vector_env": options.vector_env, "value_clip": options.clip},
    )  # fmt: skip


if __name__ == "__main__":
    main()
