"""Whether an env speaks Gymnasium's API: its spaces, `reset(seed, options)` -> 2 values, `step` -> 5 values.

What does not is refused in one line that says what it is, often the API of the old `gym` package, and what to write.
"""

from __future__ import annotations

import inspect
import traceback
from typing import Any

import gymnasium

from distrl.errors import BadInput, cause

_RESET = "def reset(self, *, seed=None, options=None), which returns (observation, info)"
_STEP = "(observation, reward, terminated, truncated, info)"
_OLD = "as in the old gym API (gym before 0.26)"
_SPACES = ("observation_space", "action_space")


def check_made(env: Any, name: str) -> None:
    """Raises BadInput where a new env lacks spaces, or its reset the arguments. `name` is the env's in the message."""
    problems = [problem for which in _SPACES if (problem := _space_problem(env, which, name)) is not None]
    if (problem := _reset_problem(env, name)) is not None:
        problems.append(problem)
    if problems:
        raise BadInput(*problems)


def _space_problem(env: Any, which: str, name: str) -> str | None:
    try:
        space = getattr(env, which)
    except Exception as error:  # a property may raise anything
        space, missing = None, f" ({cause(error)})"
    else:
        missing = ""
    if isinstance(space, gymnasium.Space):
        return None
    if space is None:
        return (
            f"env {name!r}: {which} must be set by __init__, and is not there before the first reset{missing}; "
            "set it in __init__ as a gymnasium.spaces space"
        )
    kind = type(space)
    old = (
        "; the old gym package's spaces are not Gymnasium's"
        if kind.__module__.partition(".")[0] == "gym"
        else ""
    )
    return (
        f"env {name!r}: {which} must be a gymnasium.spaces space, got {kind.__module__}.{kind.__qualname__} "
        f"{' '.join(repr(space).split())[:60]}{old}; use gymnasium.spaces"
        + (".Tuple" if isinstance(space, tuple) else "")
    )


def _reset_problem(env: Any, name: str) -> str | None:
    layer = env
    while True:
        try:
            parameters = inspect.signature(layer.reset).parameters.values()
        except (TypeError, ValueError):  # compiled code does not say
            parameters = None  # type: ignore[assignment]
        if parameters is not None and not any(one.kind is one.VAR_KEYWORD for one in parameters):
            missing = [word for word in ("seed", "options") if word not in {one.name for one in parameters}]
            if missing:
                old = f", {_OLD}" if "seed" in missing else ""
                return (
                    f"env {name!r}: {type(layer).__name__}.reset must take seed and options{old}, and does not take "
                    f"{' and '.join(missing)}; write {_RESET}"
                )
        if not isinstance(layer, gymnasium.Wrapper):
            return None
        layer = layer.env


def check_reset(result: Any, name: str) -> tuple[Any, Any]:
    """(observation, info) of a reset's result; BadInput where it is no such pair."""
    if isinstance(result, tuple) and len(result) == 2 and (result[1] is None or hasattr(result[1], "keys")):
        return result
    got = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
    raise BadInput(f"env {name!r}: reset must return (observation, info), got {got}, {_OLD}; write {_RESET}")


def check_step(result: Any, name: str) -> tuple[Any, ...]:
    """The five values of a step's result; BadInput where there are others."""
    if isinstance(result, tuple | list) and len(result) == 5:
        return tuple(result)
    got = f"{len(result)} values" if isinstance(result, tuple | list) else type(result).__name__
    old = f", {_OLD}: done is terminated or truncated" if got == "4 values" else ""
    raise BadInput(f"env {name!r}: step must return 5 values {_STEP}, got {got}{old}; return those five")


def explain_step(env: Any, action: Any, name: str, error: Exception) -> None:
    """BadInput where `error`, which a wrapper raised in a step, is that the env returns another number of values."""
    if not isinstance(error, ValueError) or "unpack" not in str(error):
        return
    try:
        result = env.unwrapped.step(action)
    except Exception:  # it is told of the first
        return
    check_step(result, name)


def place_of(error: BaseException) -> str:
    """The line that raised it, as ` (file.py:12: source)`."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""
