"""What a user names as module:function: found, or refused with the nearest name. Floor 0."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from distrl.errors import BadInput

SHOWN = 6  # functions of a file


def load_function(name: str, what: str) -> Callable[..., Any]:
    """The function named `module:function` or `file.py:function`; `what` is said in the error. Raises BadInput."""
    module_name, _, attribute = name.rpartition(":") if is_file(name) else name.partition(":")
    if not module_name or not attribute:
        raise BadInput(f"{what} {must_name(name, 'function')}")
    load = load_file if is_file(name) else import_named
    module = load(module_name, f"{what} {name!r}")
    found = reduce(lambda within, one: getattr(within, one, None), attribute.split("."), module)
    if callable(found):
        return cast("Callable[..., Any]", found)
    public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    raise BadInput(
        f"{what} {name!r}: module {module_name} has no function {attribute!r}{nearest(attribute, public)}"
    )


def must_name(given: str, example: str) -> str:
    """What to say of a text that names no function, with those that its file has where it is a file alone."""
    file = given.removesuffix(":")
    if not file.endswith(".py"):
        return f"must be module:function, got {given!r}; for example my_package.mine:{example}, or path/to/mine.py:{example}"
    told = f"must be file.py:function, got {given!r}"
    if not os.path.isfile(file):
        return f"{told}, and there is no file {file}; for example path/to/mine.py:{example}"
    defined = _defined_in(file)
    if not defined:
        return f"{told}; for example {file}:{example}"
    shown = ", ".join(defined[:SHOWN]) + (", ..." if len(defined) > SHOWN else "")
    return f"{told}; give {file}:{defined[0]}" + (f" (it has {shown})" if len(defined) > 1 else "")


def _defined_in(file: str) -> list[str]:
    """Public functions and classes at the top of a file, which is not run; none where it is no Python."""
    try:
        body = ast.parse(Path(file).read_bytes()).body
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [one.name for one in body if isinstance(one, kinds) and not one.name.startswith("_")]


def is_file(name: str) -> bool:
    """Whether `name` is `path/to/file.py:function`, and not `module:function`."""
    return name.rpartition(":")[0].endswith(".py")


def function_part(name: str) -> str:
    """What follows the file or the module."""
    return name.rpartition(":")[2]


def same_functions(some: Any, others: Any) -> bool:
    """Whether two fields name as many functions, in the same order, wherever each is."""
    both = [(one,) if isinstance(one, str) else tuple(one or ()) for one in (some, others)]
    first, second = ([function_part(str(name)) for name in names] for names in both)
    return first == second


def absolute_file(name: str) -> str:
    """`file.py:function` with the file's absolute path; another name as it is."""
    file, _, function = name.rpartition(":")
    return f"{os.path.abspath(file)}:{function}" if is_file(name) else name


def load_file(path: str, what: str) -> ModuleType:
    """The module that a file holds; what lies beside it can be imported. BadInput, which begins with `what`."""
    file = Path(path).resolve()
    if not file.is_file():
        raise BadInput(f"{what}: there is no file {path}")
    # the same in every process, so that what it defines can be pickled by its name
    name = f"distrl_file_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise BadInput(f"{what}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's module may raise anything while it loads
        del sys.modules[name]
        raise BadInput(f"{what}: {path} raised {type(error).__name__} when imported: {error}") from error
    return module


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
