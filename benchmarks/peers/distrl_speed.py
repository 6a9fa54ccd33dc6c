"""Times distrl's PPO, in-process or on Ray workers, by the protocol of the peers' runners.

Usage: .venv/bin/python benchmarks/peers/distrl_speed.py --num-envs 64 [--workers 2 --groups 2]

What runs is what `distrl train` runs: run directory, metrics.jsonl and checkpoints every 50 iterations are inside
the window. Only TensorBoard's events, the display and the evaluation at the end are off, as the peers' are. Value
clipping is on, as in CleanRL. Every other flag of `distrl train` is passed on: `--env-backend gymnasium`,
`--learner torch`, `--overlap 1`, `--normalize-observation`. Without them the run chooses its paths itself, and what
it chose is in the settings. Rows that only reset an env are not counted as env steps.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from speed import RECIPE, Window, arguments, minibatch_size, report

# the runners' names of what distrl's configuration calls the same
SHARED = (
    "env", "num_envs", "num_steps", "epochs", "minibatches", "learning_rate", "gamma", "lam", "clip",
    "entropy_coef", "seed", "total_steps",
)  # fmt: skip


def fields_of(options: Any, more: list[str], run_dir: Path) -> dict[str, Any]:
    """Returns the flat fields of the run: everyone's work, and `more`, which is distrl's own flags.

    Raises distrl's BadInput with all that is wrong in `more`.
    """
    from distrl.cli.parsing import parse
    from distrl.errors import BadInput

    parsed = parse(more, {})
    if parsed.problems:
        raise BadInput("\n".join(parsed.problems))
    ours = {
        "algo": "ppo",
        "workers": 0,
        "clip_value": options.clip,
        "value_coef": RECIPE["value_coef"],
        "max_grad_norm": RECIPE["max_grad_norm"],
        "learner_threads": options.threads,
        "device": "cpu",
        "tensorboard": False,
        "eval_episodes": 0,
        "run_dir": str(run_dir),
    }
    # gymnasium's own vector env has no other autoreset mode that it can be held in
    if parsed.flags.get("vectorization") == "vector_entry_point":
        ours["autoreset"] = "next_step"
    return {name: getattr(options, name) for name in SHARED} | ours | parsed.flags


def main() -> None:
    parser = arguments(__doc__, num_envs=64)
    parser.add_argument("--profile", type=Path, help="write the window's cProfile there (in-process only)")
    options, more = parser.parse_known_args()
    minibatch_size(options)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    window = Window.of(options)
    folder = Path(tempfile.mkdtemp(prefix="distrl-speed-"))
    try:
        fields = fields_of(options, more, folder / "run")
        if options.rollout_only and (int(fields["workers"]) or int(fields.get("overlap", 0))):
            parser.error("--rollout-only wants --workers 0 and --overlap 0")
        settings = train(options, fields, window)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report("distrl", "distrl", options, window, settings | {"value_clip": options.clip, "flags": more})


def train(options: Any, fields: dict[str, Any], window: Window) -> dict[str, Any]:
    """Trains as `distrl train` does, until the window closes; returns what the run was."""
    from distrl import session
    from distrl.resolve import resolve
    from distrl.run import Run

    class Timed(Run):
        """The run with a look at the clock after each iteration, and an end when it is time."""

        over = False
        profiler: Any = None

        @property
        def progress(self) -> float:
            window.begin()
            return 1.0 if self.over else super().progress

        def keep(self, collected: Any, updated: Any) -> None:
            super().keep(collected, updated)
            ended = sorted(
                (one for told in collected for one in told.episodes), key=lambda e: (e.step, e.env)
            )
            raced = window.episodes((one.return_ for one in ended), self.state.env_steps)
            self.over = window.boundary(self.state.env_steps) or raced
            if options.profile is not None:
                self.profile()

        def profile(self) -> None:
            if window.started and self.profiler is None:
                import cProfile

                self.profiler = cProfile.Profile(time.process_time)  # others may be busy
                self.profiler.enable()
            elif self.over:
                self.profiler.disable()
                self.profiler.dump_stats(options.profile)

    if options.rollout_only:

        def rollouts(runtime: Any, _run: Any) -> None:
            """Fragment after fragment with the first policy; what the learner would get is thrown away."""
            steps, fragment, over = 0, 0, False
            while not over:
                runtime.submit(fragment, 0)
                steps += sum(told.env_steps for told in runtime.collected())
                runtime.in_flight.pop(fragment)
                over, fragment = window.boundary(steps), fragment + 1
            runtime.states_ahead = runtime.group_states

        session.train_synchronous = rollouts
    resolved = resolve(fields, None)
    outcome = session.run_training(resolved, quiet=True, run_type=Timed)
    config = resolved.config
    return {
        "workers": config.workers,
        "groups": config.num_groups,
        "overlap": config.overlap,
        "vectorization": config.vectorization,
        "paths": outcome.summary.get("paths"),
        "reproducibility": outcome.summary.get("reproducibility"),
    }


if __name__ == "__main__":
    sys.exit(main())
