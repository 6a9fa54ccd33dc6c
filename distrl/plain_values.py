"""The values of a table of arguments (`env_kwargs`) in JSON, and back: what JSON lacks is a table with one key of a kind.

inf, -inf, nan   {"float": "inf"}         a tuple   {"tuple": [...]}
a date or time   {"date": "2024-01-31"}, {"datetime": "..."}, {"time": "..."}
a table that looks like one of these     {"table": {...}}
"""

from __future__ import annotations

import datetime
import os
from typing import Any

_TIMES: dict[str, type[Any]] = {
    "datetime": datetime.datetime,
    "date": datetime.date,
    "time": datetime.time,
}
_TAGS = ("float", "tuple", "table", *_TIMES)


def encode(value: Any, in_table: bool = False) -> Any:
    """`value` as JSON has it; a tuple outside of a table is a field's own list."""
    if isinstance(value, float) and value - value != 0:
        return {"float": str(value)}
    if isinstance(value, tuple):
        items = [encode(one, in_table) for one in value]
        return {"tuple": items} if in_table else items
    if isinstance(value, list):
        return [encode(one, in_table) for one in value]
    if isinstance(value, dict):
        encoded = {key: encode(one, True) for key, one in value.items()}
        return {"table": encoded} if len(value) == 1 and next(iter(value)) in _TAGS else encoded
    for tag, kind in _TIMES.items():
        if type(value) is kind:
            return {tag: value.isoformat()}
    return value


def decode(value: Any) -> Any:
    """The inverse of `encode`. Raises ValueError for a date that is none."""
    if isinstance(value, list):
        return [decode(one) for one in value]
    if not isinstance(value, dict):
        return value
    tag, inner = next(iter(value.items())) if len(value) == 1 else ("", None)
    if tag == "float" and inner in ("inf", "-inf", "nan"):
        return float(inner)
    if tag == "tuple" and isinstance(inner, list):
        return tuple(decode(one) for one in inner)
    if tag in _TIMES and isinstance(inner, str):
        return _TIMES[tag].fromisoformat(inner)
    if tag == "table" and isinstance(inner, dict):
        return {key: decode(one) for key, one in inner.items()}
    return {key: decode(one) for key, one in value.items()}


def plain(value: Any, name: str) -> Any:
    """A value of a table such as `env_kwargs`, as a resumed run's env has to get it again.

    A NumPy number is Python's. Raises ValueError for what a file cannot hold.
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str) or type(value) in _TIMES.values():
        return value
    if isinstance(value, tuple):
        return tuple(plain(one, name) for one in value)
    if isinstance(value, list):
        return [plain(one, name) for one in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(one, f"{name}.{key}") for key, one in value.items()}
    if isinstance(value, dict):
        key = next(key for key in value if not isinstance(key, str))
        raise ValueError(
            f"{name} must have text as keys, got the key {key!r}; write {str(key)!r}, or give a list of pairs"
        )
    raise ValueError(
        f"{name} must be what JSON can hold (numbers, text, lists, tables), or a tuple, date or time, got "
        f"{type(value).__name__}; {_instead(value)}"
    )


def _instead(value: Any) -> str:
    if hasattr(value, "tolist"):  # an array
        return "give a list, by tolist()"
    if isinstance(value, os.PathLike):
        return "give its text, by str()"
    return "make the object inside your env, wrapper or policy"
