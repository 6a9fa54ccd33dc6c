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
from typing import Any, NamedTuple

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


class _Product(NamedTuple):
    """Pointers, offsets and strides of C = init + A B, as LLVM values; what they mean: `make_panel`."""

    a: Any
    a0: Any
    a_row: Any
    a_k: Any
    b: Any
    b0: Any
    b_k: Any
    init: Any
    init0: Any
    init_row: Any
    c: Any
    c0: Any
    c_row: Any
    k: Any

    def below(self, builder: Any, row: Any) -> _Product:
        """The same from its row number `row` on."""

        def moved(start: Any, stride: Any) -> Any:
            return builder.add(start, builder.mul(row, stride))

        return self._replace(
            a0=moved(self.a0, self.a_row),
            init0=moved(self.init0, self.init_row),
            c0=moved(self.c0, self.c_row),
        )


def _tile(builder: Any, rows: int, vectors: int, p: _Product) -> None:
    """The first `rows` rows of a product, 16 `vectors` columns, held in registers."""
    sums = [[cgutils.alloca_once(builder, _VECTOR) for _ in range(vectors)] for _ in range(rows)]
    for r in range(rows):
        for v in range(vectors):
            at = builder.add(builder.add(p.init0, _times(builder, r, p.init_row)), p.init0.type(LANES * v))
            builder.store(_load(builder, p.init, at), sums[r][v])
    with cgutils.for_range(builder, p.k) as loop:
        at_b = builder.add(p.b0, builder.mul(loop.index, p.b_k))
        at_a = builder.add(p.a0, builder.mul(loop.index, p.a_k))
        columns = [_load(builder, p.b, builder.add(at_b, at_b.type(LANES * v))) for v in range(vectors)]
        for r in range(rows):
            element = builder.gep(p.a, [builder.add(at_a, _times(builder, r, p.a_row))])
            factor = _splat(builder, builder.load(element))
            for v in range(vectors):
                total = builder.load(sums[r][v])
                builder.store(_multiply_add(builder, factor, columns[v], total), sums[r][v])
    for r in range(rows):
        for v in range(vectors):
            at = builder.add(builder.add(p.c0, _times(builder, r, p.c_row)), p.c0.type(LANES * v))
            _store(builder, builder.load(sums[r][v]), p.c, at)


def make_panel(together: int, vectors: int) -> Callable[..., None]:
    """A matrix product 16 `vectors` columns wide, C[r, n] = init[r, n] + sum over k of A[r, k] B[k, n].

    `together` rows at a time, whose sums are held in registers, then the rest one by one. Nopython arguments: a, its
    offset, row stride and k stride; b, its offset and k stride; init, its offset and row stride (0: one row for all, a
    bias); c, its offset and row stride; rows; k.
    """

    @intrinsic  # type: ignore[misc]
    def panel(typingctx, a, a0, a_row, a_k, b, b0, b_k, init, init0, init_row, c, c0, c_row, rows, k):  # type: ignore[no-untyped-def]
        integer = types.intp
        signature = types.void(
            a, integer, integer, integer, b, integer, integer, init, integer, integer, c, integer, integer, integer,
            integer,
        )  # fmt: skip

        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            *product, rows, k = arguments
            for i in (0, 4, 7, 10):
                product[i] = _pointer(context, builder, signature.args[i], product[i])
            whole = _Product(*product, k)
            blocks = builder.sdiv(rows, rows.type(together))
            with cgutils.for_range(builder, blocks) as loop:
                row = builder.mul(loop.index, rows.type(together))
                _tile(builder, together, vectors, whole.below(builder, row))
            done = builder.mul(blocks, rows.type(together))
            with cgutils.for_range(builder, builder.sub(rows, done)) as loop:
                _tile(builder, 1, vectors, whole.below(builder, builder.add(done, loop.index)))
            return context.get_dummy_value()

        return signature, codegen

    return panel  # type: ignore[no-any-return]


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
