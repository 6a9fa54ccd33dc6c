"""Times CleanRL's own ppo.py (as patched by patch_cleanrl.py) on CartPole-v1.

Usage: benchmarks/peers/.envs/cleanrl/bin/python benchmarks/peers/cleanrl_speed.py --num-envs 64

The file runs as it is, under another log: its per-update log line is the iteration boundary, and ends the
run. `--vector-env sync` is CleanRL's own loop; the default and fastest, `native`, puts gymnasium's batched
CartPoleVectorEnv in the place of its SyncVectorEnv (NEXT_STEP autoreset, which the file does not mask:
right for timing, not for learning).
"""

import contextlib
import io
import os
import runpy
import sys
import types
from pathlib import Path
from typing import Any

from speed import RECIPE, Window, arguments, minibatch_size, report

PPO = Path(__file__).resolve().parent / ".envs" / "cleanrl" / "src" / "ppo.py"


class WindowClosed(Exception):
    """Ends CleanRL's loop from inside its log call."""


def log_with(window: Window) -> types.ModuleType:
    """Returns a module to stand for `episode_log`, whose writer closes `window` instead of writing."""

    class SummaryWriter:
        def __init__(self, _log_dir: str) -> None: ...

        def episode(self, *_: Any) -> None: ...

        def add_text(self, *_: Any) -> None: ...

        def add_scalar(self, name: str, _value: float, global_step: int) -> None:
            # charts/SPS is the last thing that the file logs in every update.
            if name == "charts/SPS" and window.boundary(global_step):
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


def main() -> None:
    parser = arguments(__doc__, num_envs=64)
    parser.add_argument("--vector-env", choices=["native", "sync"], default="native")
    options = parser.parse_args()
    minibatch_size(options)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    if options.vector_env == "native":
        use_native_vector_env()
    window = Window(options.warmup, options.seconds)
    sys.modules["episode_log"] = log_with(window)
    settings = {
        "num-envs": options.num_envs,
        "num-steps": options.num_steps,
        "update-epochs": options.epochs,
        "num-minibatches": options.minibatches,
        "learning-rate": RECIPE["lr"],
        "total-timesteps": 10**9,
        "cuda": False,
    }
    sys.argv = [str(PPO), *(text for key, value in settings.items() for text in (f"--{key}", str(value)))]
    with contextlib.suppress(WindowClosed), contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path(str(PPO), run_name="__main__")
    report("cleanrl", "cleanrl", options, window, {"vector_env": options.vector_env, "value_clip": 0.2})


if __name__ == "__main__":
    main()
