"""Reward functions that were given as Python objects: by the name that the configuration has for each.

an importable function       module:name        another process finds it again by that name
a closure, an object, ...    python:name        this process alone has it: a resumed run must be given it again
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from distrl.errors import BadInput, translated
from distrl.rlhf.reward_calls import WRAP

PREFIX = "python:"
_GIVEN: dict[str, Callable[..., Any]] = {}


def named(functions: Any) -> Any:
    """`reward_function` as the configuration has it: Python objects are replaced by names, and kept for this process.

    BadInput for an object whose own code fails where its name is read.
    """
    if callable(functions):
        functions = (functions,)
    if isinstance(functions, str) or not isinstance(functions, list | tuple):
        return functions
    names: list[Any] = []
    for one in functions:
        with translated("--reward-function: an object could not be inspected", WRAP):
            names.append(_register(one, names) if callable(one) and not isinstance(one, str) else one)
    return tuple(names)


def _register(function: Callable[..., Any], taken: Sequence[str]) -> str:
    """Keeps it for this process, under a name that is free."""
    name, number = _name(function), 2
    while name in taken:
        name, number = f"{_name(function)}_{number}", number + 1
    _GIVEN[name] = function
    return name


def given(name: str) -> Callable[..., Any] | None:
    """The object behind a name; None for what is to be loaded. BadInput where it was another process's."""
    found = _GIVEN.get(name)
    if found is None and name.startswith(PREFIX):
        raise BadInput(
            f"reward function {name.removeprefix(PREFIX)!r} was given as a Python object, which a run directory cannot "
            "hold; give it again: distrl.resume(RUN_DIR, reward_function=...), distrl.rlhf_evaluate(RUN_DIR, "
            "reward_function=...)"
        )
    return found


def resumed(functions: Any, before: Sequence[str]) -> Any:
    """None where `functions` are the run's own by name, given again; else what they are, for others to refuse."""
    names = named(functions)
    names = (names,) if isinstance(names, str) else tuple(names)
    return None if names == tuple(before) else names


def _name(function: Callable[..., Any]) -> str:
    """`module:name` where importing that gives the very object."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if isinstance(module, str) and module != "__main__" and name.isidentifier():
        try:
            if getattr(importlib.import_module(module), name, None) is function:
                return f"{module}:{name}"
        except Exception:  # whatever a module's code raises: it is not importable then
            pass
    short = name.rpartition(".")[2] or type(function).__name__
    return PREFIX + (re.sub(r"\W", "", short) or "function")
