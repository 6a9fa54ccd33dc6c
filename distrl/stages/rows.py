"""Rows and tools given from Python instead of a path: written as JSON, so that a run can be resumed from its directory.

A list of dicts, an iterator, a `datasets.Dataset`, a pandas or polars DataFrame, a pyarrow Table.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from distrl.errors import BadInput, translated
from distrl.fields import canonical
from distrl.resolve import ResolvedAs

NAMES = ("data", "held_out", "prompts", "eval_prompts")
TOOLS = "tools"  # of the chat template: a list, of which each is a dict (its JSON schema) or a function


@contextmanager
def rows_as_files(given: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Path]]]:
    """The values with a file's path for each that is rows, and those files by name; they are removed in the end.

    Within, what BadInput says of such a file's lines it says of rows. Raises BadInput for what is neither a path nor rows.
    """
    values = {canonical(name): value for name, value in given.items()}
    named = {
        name: value
        for name in (*NAMES, TOOLS)
        if (value := values.get(name)) is not None and not isinstance(value, (str, os.PathLike))
    }
    if not named:
        yield dict(given), {}
        return
    with tempfile.TemporaryDirectory(prefix="distrl-rows-") as folder:
        files = {name: Path(folder) / f"{name}.json{'' if name == TOOLS else 'l'}" for name in named}
        for name, value in named.items():
            if name == TOOLS:
                _write_tools(value, files[name])
            else:
                _write(f"--{name.replace('_', '-')}", value, files[name])
        try:
            yield {**values, **{name: str(file) for name, file in files.items()}}, files
        except BadInput as error:
            raise BadInput(*(_of_rows(problem, files) for problem in error.problems)) from error


def _of_rows(problem: str, files: Mapping[str, Path]) -> str:
    for file in files.values():
        problem = problem.replace(f"{file}:", "row ").replace(str(file), "what was given")
    return problem


def keep_rows(folder: Path, files: Mapping[str, Path]) -> None:
    """Puts the files of rows into a run directory that is being made."""
    for file in files.values():
        shutil.copyfile(file, folder / file.name)


def with_kept(
    resolved: ResolvedAs[Any], directory: Path, files: Mapping[str, Path]
) -> tuple[ResolvedAs[Any], list[str]]:
    """The configuration that names the run directory's copies, and what to say of them."""
    if not files:
        return resolved, []
    kept = {name: str((directory / file.name).resolve()) for name, file in files.items()}
    config = resolved.config.model_copy(update=kept)
    notes = [
        f"{name} given as {'a list' if name == TOOLS else 'rows'}: kept in {path}, from which the run resumes"
        for name, path in kept.items()
    ]
    return replace(resolved, config=config), notes


def _write(flag: str, rows: Any, file: Path) -> None:
    number = 0
    with file.open("w", encoding="utf-8") as out:
        for number, row in enumerate(_rows(flag, rows), 1):
            if not isinstance(row, Mapping):
                raise BadInput(
                    f"{flag}: row {number} must be a dict, such as {{'prompt': ...}}, got {type(row).__name__}"
                )
            try:
                out.write(json.dumps(dict(row), default=_plain) + "\n")
            except (TypeError, ValueError, RecursionError) as error:
                raise BadInput(
                    f"{flag}: row {number} must be what JSON can hold: {error}; leave that column out"
                ) from error
    if not number:
        raise BadInput(f"{flag}: no rows were given: there is nothing to learn from")


def _write_tools(tools: Any, file: Path) -> None:
    """BadInput for what is no list of tools."""
    if isinstance(tools, Mapping) or not isinstance(tools, list | tuple):
        raise BadInput(
            f"--tools: must be a path or a list of tools (dicts or functions), got {type(tools).__name__}; put one tool "
            "in a list: tools=[...]"
        )
    schemas = [_schema(number, tool) for number, tool in enumerate(tools, 1)]
    with translated("--tools: must be what JSON can hold"):
        file.write_text(json.dumps(schemas, default=_plain, indent=1) + "\n", encoding="utf-8")


def _schema(number: int, tool: Any) -> dict[str, Any]:
    """A tool as a chat template gets it; a function's is made of its signature and docstring, as transformers does."""
    if isinstance(tool, Mapping):
        return dict(tool)
    if not callable(tool):
        raise BadInput(
            f"--tools: tool {number} must be a dict (its JSON schema) or a function, got {type(tool).__name__}"
        )
    from transformers.utils import get_json_schema

    with translated(
        f"--tools: no JSON schema can be made of tool {number}", "give the schema itself, as a dict"
    ):
        schema: dict[str, Any] = get_json_schema(tool)
        return schema


def _rows(flag: str, given: Any) -> Iterator[Any]:
    if isinstance(given, Mapping):
        raise BadInput(
            f"{flag}: must be rows, got a {type(given).__name__} of {', '.join(map(str, [*given][:5]))}; give one split of "
            "a data set, and columns as rows: [dict(zip(d, row)) for row in zip(*d.values())]"
        )
    with translated(f"{flag}: the rows given could not be read"):
        if hasattr(given, "iter_rows"):  # polars
            yield from given.iter_rows(named=True)
        elif hasattr(given, "columns") and hasattr(given, "to_dict"):  # pandas
            for row in given.to_dict("records"):
                yield {name: None if _is_missing(value) else value for name, value in row.items()}
        elif hasattr(given, "to_pylist"):  # pyarrow
            yield from given.to_pylist()
        elif isinstance(given, Iterable) or hasattr(given, "__getitem__"):
            yield from given
        else:
            raise BadInput(f"{flag}: must be a path or rows (dicts), got {type(given).__name__}")


def _is_missing(value: Any) -> bool:
    """What pandas puts where a value is missing."""
    return (isinstance(value, float) and value != value) or type(value).__name__ in ("NAType", "NaTType")


def _plain(value: Any) -> Any:
    """Arrays, tensors, dates and further mappings as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a value of type {type(value).__name__}")
