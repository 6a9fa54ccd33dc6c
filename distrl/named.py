"""What a user names as module:function: found, or refused with the nearest name. Floor 0."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import Any, cast

from distrl.errors import BadInput


def load_function(name: str, what: str) -> Callable[..., Any]:
    """The function named `module:function`; `what` is said in the error. Raises BadInput."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise BadInput(f"{what} must be module:function, got {name!r}")
    module = import_named(module_name, f"{what} {name!r}")
    found = getattr(module, attribute, None)
    if callable(found):
        return cast("Callable[..., Any]", found)
    public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    raise BadInput(
        f"{what} {name!r}: module {module_name} has no function {attribute!r}{nearest(attribute, public)}"
    )


def import_named(module: str, what: str) -> Any:
    """The module of that name; BadInput, which begins with `what`, where it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BadInput(
            f"{what}: module {module!r} cannot be imported ({error}); is its folder on PYTHONPATH or installed?"
        ) from error
    except Exception as error:  # a user's module may raise anything while it loads
        raise BadInput(
            f"{what}: module {module!r} raised {type(error).__name__} when imported: {error}"
        ) from error


def nearest(given: Any, allowed: Any) -> str:
    """`; did you mean ...?`, or nothing where none of the allowed names is near."""
    lowered = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(str(given).lower(), list(lowered), n=1)
    return f"; did you mean {lowered[close[0]]!r}?" if close else ""
