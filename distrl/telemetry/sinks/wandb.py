"""Weights & Biases, for `--wandb`. The only file that imports wandb.

WANDB_MODE and the rest of wandb's environment are respected; the key comes from there and is never written or
logged. Nothing that wandb does may stop or block training: where it cannot log in or reach its server, the run is
recorded offline (`wandb sync` uploads it later), and where even that fails it goes on without.
"""

from __future__ import annotations

import json
import os
import secrets
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from distrl.errors import cause
from distrl.telemetry.sinks.jsonl import as_json

ID_FILE = "wandb.json"
_TIMEOUT_SEC = 30.0  # of each: log in, start, upload of what is left at the end


class WandbSink:
    """Logs each record under its own keys, its step the iteration.

    The run's id is kept in the run directory's `wandb.json`, so a resumed run goes on under the same id. An online
    run that resumes from an earlier checkpoint repeats iterations it already sent: wandb drops the repeats, which is
    right, since they are equal.
    """

    def __init__(self, run_dir: Path, *, config: Mapping[str, Any], project: str = "distrl") -> None:
        self.id, self._project = _run_id(run_dir / ID_FILE, project)
        self._run_dir = run_dir
        self._config = as_json(config)
        self._last_iteration = -1
        self._run: Any = None
        try:
            self._run = self._init(mode=None)
        except Exception as error:
            _warn(
                f"wandb could not start and records offline; upload later with `wandb sync`. Cause: {cause(error)}"
            )
            try:
                _forget_failed_start()
                self._run = self._init(mode="offline")
            except Exception as offline_error:
                _warn(f"wandb could not start offline either and is off. Cause: {cause(offline_error)}")

    def write(self, record: Mapping[str, Any]) -> None:
        iteration = int(record["iteration"])
        if self._run is None or iteration <= self._last_iteration:
            return
        self._run.log(
            {name: value for name, value in as_json(record).items() if value is not None}, step=iteration
        )
        self._last_iteration = iteration

    def write_samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """A table of an iteration's samples, under the key `samples`; before the iteration's record."""
        iteration = int(samples[0]["iteration"])
        if self._run is None or iteration <= self._last_iteration:
            return
        import wandb

        columns = ["iteration", "prompt", "response", "score", *samples[0]["scores"], "kl", "tokens", "ended"]
        rows = [[{**one["scores"], **one}[name] for name in columns] for one in samples]
        self._run.log({"samples": wandb.Table(columns=columns, data=rows)}, step=iteration)

    def close(self) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish()
        except Exception as error:  # its service did not answer in time: what it has is on disk
            _warn(f"wandb did not finish; upload what it kept with `wandb sync`. Cause: {cause(error)}")

    def _init(self, mode: Literal["offline"] | None) -> Any:
        import wandb

        settings = wandb.Settings(
            console="off",  # standard error is the live display's
            silent=True,
            init_timeout=_TIMEOUT_SEC,
            login_timeout=_TIMEOUT_SEC,  # a prompt for the key must not wait for ever
            finish_timeout=_TIMEOUT_SEC,
            save_code=False,
        )
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", self._project),
            id=self.id,
            name=self._run_dir.resolve().name,
            dir=str(self._run_dir),
            config=self._config,
            resume=None if _is_offline(mode) else "allow",
            mode=mode,
            settings=settings,
        )


def _forget_failed_start() -> None:
    # wandb's service holds the id of a run that failed to start, and would refuse it as "in use".
    import wandb

    if wandb.run is None:
        wandb.teardown(exit_code=1)


def _is_offline(mode: str | None) -> bool:
    # Offline, an id is enough to go on under, and wandb warns of `resume`.
    return (mode or os.environ.get("WANDB_MODE", "online")) != "online"


def _run_id(path: Path, project: str) -> tuple[str, str]:
    """The id and project in `path`, made and written where there is none yet."""
    if path.exists():
        stored = json.loads(path.read_text())
        return str(stored["id"]), str(stored["project"])
    run_id = secrets.token_hex(4)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps({"schema": 1, "id": run_id, "project": project}) + "\n")
    aside.replace(path)
    return run_id, project


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)
