"""Workers and the envs of the driver's script: ids that only it registered, and what their `close` takes away."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = '''
import os, sys
from pathlib import Path

import gymnasium
import numpy as np

import distrl


class Simulator(gymnasium.Env):
    """Holds a lock file while it lives."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, folder):
        self.lock = Path(folder) / f"{os.getpid()}-{id(self)}.lock"
        self.lock.touch()
        (Path(folder) / f"{os.getpid()}.made").touch()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), float(action), self.t == 5, False, {}

    def close(self):
        self.lock.unlink(missing_ok=True)


if __name__ == "__main__":
    env = Simulator
    if sys.argv[2] == "registered":
        gymnasium.register("Simulator-v0", entry_point=Simulator)
        env = "Simulator-v0"
    distrl.train(
        env=env, env_kwargs={"folder": sys.argv[1]}, workers=2, num_envs=4, groups=2, num_steps=8, total_steps=64,
        minibatches=2, eval_episodes=2, run_dir=Path(sys.argv[1]) / "run", tensorboard=False,
    )
'''  # fmt: skip


@pytest.mark.ray
@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", ["registered", "class"])
def test_an_env_of_the_script_runs_in_workers_which_close_it(how: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), how],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["exit_reason"] == "finished"
    assert summary["reproducibility"] == "exact", summary["warnings"]
    assert len(list(tmp_path.glob("*.made"))) == 3, "the driver's and two workers'"
    assert not list(tmp_path.glob("*.lock"))
