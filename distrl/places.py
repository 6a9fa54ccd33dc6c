"""Where the files of a run are: `config.json` holds absolute paths, and the folder that the run was started in.

A run is continued and evaluated from any folder. Run directories of before hold paths as they were typed: these are looked
for from the current folder.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distrl.fields import Schema
from distrl.named import absolute_file, is_file

FOLDER = "started_in"  # in config.json: where modules that are named without a path were found


def _each(value: Any, change: Callable[[str], str]) -> Any:
    """`change` of a text, or of each of several; anything else stays."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(change(one) if isinstance(one, str) else one for one in value)
    return value


def absolute(schema: Schema[Any], name: str, value: Any) -> Any:
    """A field's value with absolute paths; other fields' as they are."""
    if name in schema.paths:
        return _each(value, os.path.abspath)
    return _each(value, absolute_file) if name in schema.modules else value


def missing(schema: Schema[Any], config: Any, run_dir: Path) -> list[str]:
    """A problem for each file or folder that a resumed run needs and that is not there."""
    problems = [*_missing_code(schema, config, run_dir)]
    for name in schema.paths:
        value = getattr(config, name, None) if name in schema.changeable else None
        for path in (value,) if isinstance(value, str) else value or ():
            if isinstance(path, str) and not os.path.exists(path):
                flag = schema.fields[name].flag
                where = "" if os.path.isabs(path) else f" of {os.getcwd()}"
                problems.append(
                    f"{flag}: {path}{where}, which the run was started with, is not there; put it back, or give its new "
                    f"place: {schema.command} --resume {run_dir} {flag} PATH"
                )
    return problems


def _missing_code(schema: Schema[Any], config: Any, run_dir: Path) -> Iterator[str]:
    for name in schema.movable:
        for function in getattr(config, name, None) or ():
            file, _, attribute = function.rpartition(":")
            if is_file(function) and not os.path.exists(file):
                flag = schema.fields[name].flag
                yield (
                    f"{flag}: {file}, which the run was started with, is not there; put it back, or give its new place: "
                    f"{schema.command} --resume {run_dir} {flag} FILE.py:{attribute}"
                )


def import_from(config_file: Path) -> None:
    """Finds modules where the run of this `config.json` found them, before all else."""
    try:
        folder = json.loads(config_file.read_text(encoding="utf-8")).get(FOLDER)
    except (OSError, ValueError, AttributeError):
        return
    if (
        isinstance(folder, str)
        and os.path.isdir(folder)
        and folder not in {os.path.abspath(one) for one in sys.path}
    ):
        sys.path.insert(0, folder)
        # Ray's workers and the processes of reward functions
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = folder if not before else f"{folder}{os.pathsep}{before}"
