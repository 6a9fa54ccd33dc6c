"""Calls into a group's vector env: watched for hangs, and what they raise told as the group's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from distrl.envs.closing import LONGEST_SEC, close_vector
from distrl.envs.spec import EnvSpec
from distrl.envs.vector import explain
from distrl.envs.watchdog import Beat
from distrl.errors import BadInput, RunFailed

AFTER_FAILURE_SEC = 3.0  # for the envs beside one that died or hangs


class Calls:
    """The one way from a group to its vector env."""

    def __init__(self, vector: Any, spec: EnvSpec, index: int, first_env: int) -> None:
        self.vector = vector
        self._group = f"env group {index} ({spec.env_id})"
        self._spec, self._first_env = spec, first_env
        self._failed = self._closed = False
        last = first_env + vector.num_envs - 1
        self._beat = Beat(
            f"env group {index} ({spec.env_id}, envs {first_env}..{last})",
            spec.step_timeout_sec,
            self.pids,
            spec.repro_dir,
        )

    def watched(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Its result; what it raises becomes RunFailed, and where it hangs the process ends."""
        with self._beat:
            return self.unwatched(function, *arguments, **named)

    def unwatched(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """The same for what may take long, such as a replay."""
        try:
            with np.errstate():  # an env may set another, which is not ours
                return function(*arguments, **named)
        except (RunFailed, BadInput):
            self._failed = True
            raise
        except (Exception, SystemExit) as error:  # an env may raise anything
            self._failed = True
            raise explain(self.vector, self._group, self.who, error) from error
        except BaseException:  # Ctrl-C in the middle of it
            self._failed = True
            raise

    def close(self, quietly: bool = False) -> None:
        """Ends the envs and their processes."""
        self._beat.close()
        if not self._closed:
            self._closed = True
            close_vector(
                self.vector, self._group, AFTER_FAILURE_SEC if self._failed else LONGEST_SEC, quietly
            )

    def who(self, slot: int) -> str:
        """The name of the env at `slot` of the group."""
        return f"env {self._first_env + slot} ({self._spec.env_id})"

    def pids(self) -> list[int]:
        """Of the envs' subprocesses."""
        return [process.pid for process in getattr(self.vector, "processes", []) if process.pid]
