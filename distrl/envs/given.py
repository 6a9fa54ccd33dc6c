"""Env classes, factories and functions that Python gave as objects: each has a name that a configuration can hold.

What a module holds at its top is `module:Name`, and found again by any process. A class made inside a function, a lambda
or a partial is kept here, for as long as this process lives.
"""

from __future__ import annotations

import operator
import re
import sys
from typing import Any

from distrl.errors import BadInput

_kept: dict[str, Any] = {}


def name_of(given: Any, what: str) -> str:
    """`module:Name` of a class or function; text as it is. BadInput for what makes nothing."""
    if isinstance(given, str):
        return given
    if not callable(given):
        raise BadInput(
            f"{what} must be a name, a class or a function that makes one, got {type(given).__name__}; every worker makes "
            "its own"
        )
    module, name = getattr(given, "__module__", None), getattr(given, "__qualname__", None)
    try:
        if module and name and operator.attrgetter(name)(sys.modules[module]) is given:
            return f"{module}:{name}"
    except (AttributeError, KeyError):  # made inside a function
        pass
    kept = f"{re.sub(r'[^0-9A-Za-z]+', '_', name or type(given).__name__).strip('_')}_{len(_kept)}"
    _kept[kept] = given
    return f"{__name__}:{kept}"


def __getattr__(name: str) -> Any:
    if name in _kept:
        return _kept[name]
    raise AttributeError(name)


def is_of_this_process(text: str) -> bool:
    """Whether `module:Name` means something in this process alone."""
    return text.partition(":")[0] in ("__main__", __name__)
