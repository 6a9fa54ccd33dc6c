"""Nopython functions of `distrl.maths` that are kept on disk, and made anew once any file of it has changed.

Numba keeps a function's machine code until the function's own file changes; what it calls may stand in another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` without the interpreter's lock, its code kept; `options` are njit's."""

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(nogil=True, cache=True, **options)(function)
        # Numba's index of kept code holds a stamp of the source, and is not read where it differs
        dispatcher._cache._cache_file._source_stamp = _stamp()
        return dispatcher

    return compiled


@cache
def _stamp() -> str:
    total = hashlib.sha256()
    for path in sorted((Path(__file__).parent / "maths").glob("*.py")):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()
