"""NumPy's scalar float functions to the bit, where LLVM or libm would give others.

`x ** 2` of a NumPy scalar is libm's `pow`, which is not always `x * x` rounded. `np.cos` and `np.sin` of a
float64 are libm's, as Numba's are; of a float32 they are NumPy's own polynomials.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

_options: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}


def _f32(text: str) -> np.float32:
    return np.float32(float.fromhex(text))


# The minimax polynomials of NumPy's loops_trigonometric, for arguments within a quarter turn of 0.
_C8, _C6, _C4, _C2 = (_f32(c) for c in ("0x1.98e616p-16", "-0x1.6c06dcp-10", "0x1.55553cp-05", "-0x1p-01"))
_S9, _S7, _S5, _S3 = (
    _f32(c) for c in ("0x1.7d3bbcp-19", "-0x1.a06bbap-13", "0x1.11119ap-07", "-0x1.555556p-03")
)
_ONE, _TWO, _ZERO = np.float32(1), np.float32(2), np.float32(0)


@intrinsic
def _fused(typing_context, x, y, z):  # type: ignore[no-untyped-def]
    """x * y + z, rounded once."""
    return types.float32(
        types.float32, types.float32, types.float32
    ), lambda context, builder, sig, given: builder.fma(*given)


@numba.njit(**_options)
def squared(x):  # type: ignore[no-untyped-def]
    """`x ** 2` of a finite float64 scalar. The exponent is hidden from LLVM, which would make it x * x."""
    return math.pow(x, 2.0 + 0.0 * x)


@numba.njit(**_options)
def squared_float32(x):  # type: ignore[no-untyped-def]
    """`x ** 2` of a finite float32 scalar."""
    return math.pow(x, _TWO + _ZERO * x)


@numba.njit(**_options)
def cos_float32(x):  # type: ignore[no-untyped-def]
    """`np.cos` of a float32 scalar in -0.75..0.75."""
    square = x * x
    return _fused(_fused(_fused(_fused(_C8, square, _C6), square, _C4), square, _C2), square, _ONE)


@numba.njit(**_options)
def sin_float32(x):  # type: ignore[no-untyped-def]
    """`np.sin` of a float32 scalar in -0.75..0.75."""
    square = x * x
    tail = _fused(_fused(_fused(_S9, square, _S7), square, _S5), square, _S3) * square
    return _fused(tail, x, x)
