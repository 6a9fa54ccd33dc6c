"""What `make train` promises, whatever the seed."""

from __future__ import annotations

from pathlib import Path

import pytest

import distrl


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_the_defaults_alone_solve_cartpole(tmp_path: Path, seed: int) -> None:
    run = distrl.train(workers=0, seed=seed, tensorboard=False, run_dir=str(tmp_path / "run"))
    assert run.summary["evaluation"]["return_mean"] >= 475
