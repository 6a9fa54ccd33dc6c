"""Reads the flags of a configuration: all problems at once, where click would stop at the first.

    --name VALUE   --name=VALUE   --x/--no-x   --env-kwargs.goal-velocity 0.1

Values stay text here; `distrl.resolve` gives them their types. A table's values are read as TOML reads
them (`0.1`, `true`, `[1, 2]`, `"text"`), and what is no TOML is text.
"""

from __future__ import annotations

import ast
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distrl.fields import FlatField, Schema, canonical, quoted_keys, train_schema


@dataclass
class Parsed:
    """What a command line says, and everything in it that cannot be read."""

    flags: dict[str, Any] = field(default_factory=dict)  # the configuration's fields by flat name
    options: dict[str, Any] = field(default_factory=dict)  # the command's own options
    problems: list[str] = field(default_factory=list)


def parse(arguments: Sequence[str], options: Mapping[str, bool], schema: Schema[Any] | None = None) -> Parsed:
    """Reads `arguments` into the configuration's flags (default: `distrl train`'s) and the command's own `options`.

    `options` maps a name to whether it takes a value. The last of a repeated flag counts.
    """
    parsed = Parsed()
    schema = schema or train_schema()
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            parsed.problems.append(f"{word!r}: a value without its flag; write --name VALUE")
            continue
        written, equals, value = word[2:].partition("=")
        name, _, path = written.partition(".")
        name = canonical(name)
        takes_value, setting = _what_is_it(name, options, schema)
        if setting is None:
            parsed.problems.append(schema.unknown_name(written, also=options))
            if not equals and rest and not rest[0].startswith("-"):
                rest.pop(0)  # most likely its value, which would only be a second message for one slip
            continue
        if takes_value and not equals:
            if not rest or rest[0].startswith("--"):
                parsed.problems.append(f"--{written}: needs a value; write --{written} VALUE")
                continue
            value = rest.pop(0)
        if not takes_value and equals:
            parsed.problems.append(f"--{written}: takes no value, got {value!r}; write --x or --no-x")
            continue
        given = value if takes_value else not name.startswith("no_")
        _store(parsed, setting, path, given, options, schema)
    return parsed


def _what_is_it(name: str, options: Mapping[str, bool], schema: Schema[Any]) -> tuple[bool, str | None]:
    """Whether a flag takes a value, and the name that it sets; None where there is no such flag."""
    known = schema.fields
    if name in options:
        return options[name], name
    if name in known:
        return not is_switch(known[name]), name
    if name.startswith("no_") and name[3:] in known and is_switch(known[name[3:]]):
        return False, name[3:]
    return False, None


def is_switch(one: FlatField) -> bool:
    """Whether the flag is written `--x` or `--no-x`."""
    return one.kind is bool


def _store(
    parsed: Parsed, name: str, path: str, value: Any, options: Mapping[str, bool], schema: Schema[Any]
) -> None:
    if name in options:
        if path:
            parsed.problems.append(f"--{name}.{path}: --{name} is no table; write --{name} alone")
        parsed.options[name] = value
        return
    one = schema.fields[name]
    if one.kind is not dict:
        if path:
            parsed.problems.append(f"{one.flag}.{path}: {one.flag} is no table; write {one.flag} VALUE")
        else:
            parsed.flags[name] = value
        return
    table = parsed.flags.setdefault(name, {})
    read = read_toml_value(value)
    if not path:
        if isinstance(read, dict):
            quoted = quoted_keys(value)
            table.update({key if key in quoted else canonical(key): inner for key, inner in read.items()})
        else:
            parsed.problems.append(
                f"{one.flag}: must be a table, got {value!r}; "
                f"write {one.flag}.some-key VALUE, or '{{some_key = 1}}'"
            )
        return
    first, *deeper = path.split(".")
    quotes = first[:1] in "\"'" and first[:1] == first[-1:] and len(first) > 2
    keys = [first[1:-1] if quotes else canonical(first), *deeper]
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            parsed.problems.append(
                f"{one.flag}.{path}: {key} already has a value of its own; give one of the two"
            )
            return
    table[keys[-1]] = read


def read_toml_value(text: str) -> Any:
    """`text` as TOML reads a value, `none` as None; a table, list or tuple as JSON or Python write it; else text."""
    if text.lower() == "none":
        return None
    if text in ("True", "False"):
        return text == "True"
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return _read_literal(text)
    return document["value"] if set(document) == {"value"} else text


def _read_literal(text: str) -> Any:
    if text.strip()[:1] not in ("{", "[", "("):
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text.strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if isinstance(value, dict | list | tuple):
            return value
    return text
