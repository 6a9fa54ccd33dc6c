"""Whose code a run may import: modules that a configuration names, and who owns the file that names them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from distrl.config import TRAIN, TrainConfig
from distrl.errors import BadInput
from distrl.fields import Schema
from distrl.named import is_file
from distrl.places import import_from

GIVEN = "python"  # the prefix of a function that was given as an object: nothing is imported for it


def modules_named(config: TrainConfig) -> dict[str, str]:
    """`modules_named_as` for `distrl train`."""
    return modules_named_as(TRAIN, config)


def modules_named_as(schema: Schema[Any], config: Any) -> dict[str, str]:
    """The modules that a run imports by name: field -> module. This package's own are no news and need no trust."""
    given = {field: getattr(config, field) for field in schema.modules}
    named = {field: value if isinstance(value, tuple) else (value,) for field, value in given.items()}
    foreign = {
        field: [one for text in several if text and (one := _foreign(field, text)) is not None]
        for field, several in named.items()
    }
    return {field: ", ".join(several) for field, several in foreign.items() if several}


def _foreign(field: str, text: str) -> str | None:
    """The module or file that a name imports; None where that is none, or this package's own."""
    if is_file(text):
        return text.rpartition(":")[0]
    module, colon, _ = text.partition(":")
    given_as_object = field == "reward_function" and module == GIVEN
    return None if not colon or module.partition(".")[0] == __package__ or given_as_object else module


def check_trust(
    path: Path, config: TrainConfig, trust_run: bool, from_command_line: frozenset[str] = frozenset()
) -> None:
    """`check_trust_as` for `distrl train`."""
    check_trust_as(TRAIN, path, config, trust_run, from_command_line)


def check_trust_as(
    schema: Schema[Any],
    path: Path,
    config: Any,
    trust_run: bool,
    from_command_line: frozenset[str] = frozenset(),
) -> None:
    """Refuses to import what a file of somebody else names; prints what a file of this user names.

    `path` is the `config.json` (or TOML file) that named the modules; fields in `from_command_line` were
    typed by the person and need no trust. Raises BadInput.
    """
    named = modules_named_as(schema, config)
    modules = {field: one for field, one in named.items() if field not in from_command_line}
    if not modules:
        return
    owner = path.stat().st_uid
    listed = ", ".join(f"{module} ({field})" for field, module in modules.items())
    if owner != os.getuid() and not trust_run:
        raise BadInput(
            f"{path} belongs to uid {owner}, not to you (uid {os.getuid()}), and names code to import: "
            f"{listed}; read that code, then give --trust-run"
        )
    import_from(path)
    print(f"importing {listed}, named in {path}", file=sys.stderr)
