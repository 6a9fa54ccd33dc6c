"""Vector instructions for nopython code: the inner loops of a dense layer, and tanh, sixteen float32 at a time.

Numba cannot keep a block of sums in registers, so these few loops are written as LLVM's own vectors
(`<16 x float>`: one AVX-512 register, two of AVX2, four of NEON). Every sum runs over its terms in one
fixed order with fused multiply-adds, whatever block an element falls in: a result never depends on its
neighbours.

An array is given as (array, offset of the first element); strides and offsets count float32 elements, and
nothing is checked. Callers are `distrl.maths.mlp` and the compiled update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 16
_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)

# tanh(x) = x P(x^2) / Q(x^2), odd rational approximation of degree 13/6 on |x| <= 7.9988, beyond which tanh is 1
# in float32: the coefficients of Eigen's `ptanh_float` (Eigen/src/Core/MathFunctionsImpl.h). Largest error
# measured against float64, over all float32 in +-9: see tests/maths/test_mlp.py.
_TANH_LIMIT = 7.99881172180175781
_TANH_P = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
    1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
_TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return context.make_array(array_type)(context, builder, value=array).data


def _load(builder: Any, pointer: Any, offset: Any) -> Any:
    return builder.load(
        builder.bitcast(builder.gep(pointer, [offset]), _VECTOR.as_pointer()), align=4, typ=_VECTOR
    )


def _store(builder: Any, vector: Any, pointer: Any, offset: Any) -> None:
    builder.store(vector, builder.bitcast(builder.gep(pointer, [offset]), _VECTOR.as_pointer()), align=4)


def _splat(builder: Any, scalar: Any) -> Any:
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(
        one,
        ir.Constant(_VECTOR, ir.Undefined),
        ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES),
    )


def _constant(number: float) -> Any:
    return ir.Constant(_VECTOR, [float(_as_float32(number))] * LANES)


def _as_float32(number: float) -> float:
    import numpy as np

    return float(np.float32(number))


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), "llvm.fma.v16f32"
    )
    return builder.call(fma, [a, b, c])


def _times(builder: Any, number: int, factor: Any) -> Any:
    return builder.mul(factor, factor.type(number))


def make_tile(rows: int, vectors: int) -> Callable[..., None]:
    """A block of a matrix product held in registers, C[r, n] = init[r, n] + sum over k of A[r, k] B[k, n].

    For r < rows, n < 16 vectors. Nopython arguments: a, its offset, row stride and k stride; b, its offset and
    k stride; init, its offset and row stride (0: one row for all, a bias); c, its offset and row stride; k.
    """

    @intrinsic  # type: ignore[misc]
    def tile(typingctx, a, a0, a_row, a_k, b, b0, b_k, init, init0, init_row, c, c0, c_row, k):  # type: ignore[no-untyped-def]
        integer = types.intp
        signature = types.void(
            a, integer, integer, integer, b, integer, integer, init, integer, integer, c, integer, integer, integer
        )  # fmt: skip

        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            a, a0, a_row, a_k, b, b0, b_k, init, init0, init_row, c, c0, c_row, k = arguments
            pa, pb, pinit, pc = (
                _pointer(context, builder, signature.args[i], x)
                for i, x in ((0, a), (4, b), (7, init), (10, c))
            )
            sums = [[cgutils.alloca_once(builder, _VECTOR) for _ in range(vectors)] for _ in range(rows)]
            for r in range(rows):
                for v in range(vectors):
                    at = builder.add(builder.add(init0, _times(builder, r, init_row)), init0.type(LANES * v))
                    builder.store(_load(builder, pinit, at), sums[r][v])
            with cgutils.for_range(builder, k) as loop:
                at_b = builder.add(b0, builder.mul(loop.index, b_k))
                at_a = builder.add(a0, builder.mul(loop.index, a_k))
                columns = [
                    _load(builder, pb, builder.add(at_b, at_b.type(LANES * v))) for v in range(vectors)
                ]
                for r in range(rows):
                    element = builder.gep(pa, [builder.add(at_a, _times(builder, r, a_row))])
                    factor = _splat(builder, builder.load(element))
                    for v in range(vectors):
                        total = builder.load(sums[r][v])
                        builder.store(_multiply_add(builder, factor, columns[v], total), sums[r][v])
            for r in range(rows):
                for v in range(vectors):
                    at = builder.add(builder.add(c0, _times(builder, r, c_row)), c0.type(LANES * v))
                    _store(builder, builder.load(sums[r][v]), pc, at)
            return context.get_dummy_value()

        return signature, codegen

    return tile  # type: ignore[no-any-return]


@intrinsic  # type: ignore[misc]
def tanh_16(typingctx, array, offset):  # type: ignore[no-untyped-def]
    """tanh of the sixteen elements at `offset`, in place; NaN stays NaN."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = _pointer(context, builder, signature.args[0], arguments[0])
        x = _load(builder, pointer, arguments[1])
        low, high = _constant(-_TANH_LIMIT), _constant(_TANH_LIMIT)
        x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
        x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
        square = builder.fmul(x, x)
        above, below = _constant(_TANH_P[0]), _constant(_TANH_Q[0])
        for coefficient in _TANH_P[1:]:
            above = _multiply_add(builder, above, square, _constant(coefficient))
        for coefficient in _TANH_Q[1:]:
            below = _multiply_add(builder, below, square, _constant(coefficient))
        _store(builder, builder.fdiv(builder.fmul(x, above), below), pointer, arguments[1])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic  # type: ignore[misc]
def relu_16(typingctx, array, offset):  # type: ignore[no-untyped-def]
    """The larger of zero and each of the sixteen elements at `offset`, in place; NaN stays NaN."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = _pointer(context, builder, signature.args[0], arguments[0])
        x, zero = _load(builder, pointer, arguments[1]), _constant(0.0)
        x = builder.select(builder.fcmp_ordered("<", x, zero), zero, x)
        _store(builder, x, pointer, arguments[1])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic  # type: ignore[misc]
def dot(typingctx, a, a0, b, b0, k):  # type: ignore[no-untyped-def]
    """sum over i < k of a[a0 + i] b[b0 + i], for k a multiple of sixteen: sixteen sums, joined in a fixed tree."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        a, a0, b, b0, k = arguments
        pa = _pointer(context, builder, signature.args[0], a)
        pb = _pointer(context, builder, signature.args[2], b)
        total = cgutils.alloca_once(builder, _VECTOR)
        builder.store(_constant(0.0), total)
        with cgutils.for_range(builder, builder.udiv(k, k.type(LANES))) as loop:
            at = builder.mul(loop.index, k.type(LANES))
            factors = _load(builder, pa, builder.add(a0, at)), _load(builder, pb, builder.add(b0, at))
            builder.store(_multiply_add(builder, *factors, builder.load(total)), total)
        halves = builder.load(total)
        while (count := halves.type.count) > 1:
            parts = [
                builder.shuffle_vector(
                    halves,
                    ir.Constant(halves.type, ir.Undefined),
                    ir.Constant(
                        ir.VectorType(ir.IntType(32), count // 2), list(range(first, first + count // 2))
                    ),
                )
                for first in (0, count // 2)
            ]
            halves = builder.fadd(*parts)
        return builder.extract_element(halves, ir.IntType(32)(0))

    return types.float32(a, types.intp, b, types.intp, types.intp), codegen


@intrinsic  # type: ignore[misc]
def add_16(typingctx, array, into, other):  # type: ignore[no-untyped-def]
    """The sixteen elements at `other` are added to those at `into`."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = _pointer(context, builder, signature.args[0], arguments[0])
        total = builder.fadd(_load(builder, pointer, arguments[1]), _load(builder, pointer, arguments[2]))
        _store(builder, total, pointer, arguments[1])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), codegen


def _make_slope(relu: bool) -> Callable[..., None]:
    """delta[d + i] *= the activation's derivative, told from its output y[y0 + i], for sixteen i."""

    @intrinsic  # type: ignore[misc]
    def slope(typingctx, y, y0, delta, d):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            into = _pointer(context, builder, signature.args[2], arguments[2])
            output = _load(builder, _pointer(context, builder, signature.args[0], arguments[0]), arguments[1])
            given, zero = _load(builder, into, arguments[3]), _constant(0.0)
            if relu:
                result = builder.select(builder.fcmp_ordered("<=", output, zero), zero, given)
            else:
                result = builder.fmul(given, builder.fsub(_constant(1.0), builder.fmul(output, output)))
            _store(builder, result, into, arguments[3])
            return context.get_dummy_value()

        return types.void(y, types.intp, delta, types.intp), codegen

    return slope  # type: ignore[no-any-return]


tanh_slope_16, relu_slope_16 = _make_slope(relu=False), _make_slope(relu=True)
