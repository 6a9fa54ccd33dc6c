"""The gradient of the compiled MLP, one block of at most BLOCK rows at a time: backpropagation by hand.

    forward_kept    the forward of `distrl.maths.mlp`, same bits, every layer's output kept
    turn            the weights the other way round, wanted by `backward`; once for each change of parameters
    backward        from dL/d(outputs) to dL/d(params), written or added, in the layout of `params`

Arrays are flat float32; `params` may hold several networks, this one's beginning at `start`. A row stride
is a layer's width, padded to vectors.
"""

from __future__ import annotations

import numpy as np

from distrl.maths.mlp import (
    BLOCK,
    PANEL,
    RELU,
    Sizes,
    activate,
    is_narrow,
    layer_size,
    linear,
    multiply,
    padded,
)
from distrl.maths.mlp_tiles import LANES, relu_slope_16, tanh_slope_16
from distrl.nopython import kernel

CONSTANTS = np.concatenate([np.zeros(PANEL, np.float32), np.ones(1, np.float32)])  # what `backward` reads


def kept_size(sizes: Sizes) -> int:
    """float32 elements that `forward_kept` writes at most."""
    return BLOCK * sum(padded(int(size)) for size in sizes[1:])


def delta_size(sizes: Sizes) -> int:
    """float32 elements of `delta`: room for the gradient of two layers' outputs."""
    return 2 * BLOCK * max(padded(int(size)) for size in sizes)


def turned_size(sizes: Sizes) -> int:
    """float32 elements of `turned`."""
    return sum(int(outputs) * padded(int(inputs)) for inputs, outputs in zip(sizes[1:], sizes[2:]))


@kernel()
def forward_kept(params, start, sizes, activation, x, rows, kept):  # type: ignore[no-untyped-def]
    """Outputs of rows x [rows, inputs]; gives their place in `kept`, where every layer's output stays."""
    source, target = np.int64(0), np.int64(0)
    last = len(sizes) - 2
    for number in range(last + 1):
        inputs, outputs = sizes[number], sizes[number + 1]
        width = padded(outputs)
        if number == 0:
            linear(params, start, number, inputs, outputs, x, 0, inputs, kept, target, width, rows)
        else:
            linear(
                params,
                start,
                number,
                inputs,
                outputs,
                kept,
                source,
                padded(inputs),
                kept,
                target,
                width,
                rows,
            )
        if number < last:
            activate(activation, kept, target, rows * width)
        start += layer_size(number, inputs, outputs)
        source = target
        target += BLOCK * width
    return source


@kernel()
def turn(params, start, sizes, turned, turned_start):  # type: ignore[no-untyped-def]
    """Each later layer's weight as [out, in], in panels of PANEL columns; what pads it is left as it was, zero."""
    start += layer_size(0, sizes[0], sizes[1])
    for number in range(1, len(sizes) - 1):
        inputs, outputs = sizes[number], sizes[number + 1]
        weight = start + padded(outputs)
        if not is_narrow(number, outputs):
            for first_out in range(0, outputs, PANEL):
                width_out = min(PANEL, padded(outputs) - first_out)
                for first_in in range(0, inputs, PANEL):
                    width_in = min(PANEL, padded(inputs) - first_in)
                    for o in range(first_out, min(first_out + PANEL, outputs)):
                        read = weight + first_out * inputs + first_in * width_out + o - first_out
                        write = turned_start + first_in * outputs + o * width_in
                        for i in range(min(PANEL, inputs - first_in)):
                            turned[write + i] = params[read + i * width_out]
        start += layer_size(number, inputs, outputs)
        turned_start += outputs * padded(inputs)


@kernel()
def slope(activation, y, y0, delta, delta0, length):  # type: ignore[no-untyped-def]
    """delta *= the activation's derivative, told from its output y; `length` elements, a multiple of 16."""
    if activation == RELU:
        for i in range(0, length, LANES):
            relu_slope_16(y, y0 + i, delta, delta0 + i)
    else:
        for i in range(0, length, LANES):
            tanh_slope_16(y, y0 + i, delta, delta0 + i)


@kernel()
def backward(params, start, turned, turned_start, sizes, activation, x, kept, rows, delta, gradient, gradient_start, add, constants):  # type: ignore[no-untyped-def]  # fmt: skip
    """dL/d(params) of one block of rows, into gradient[gradient_start:], laid out as params[start:].

    Args:
        x, kept: the rows [rows, inputs], and what `forward_kept` kept of them.
        delta: [delta_size]; its first rows * padded(outputs) elements are dL/d(outputs), pads zero. Overwritten.
        add: add to what `gradient` holds, else overwrite it.
        constants: CONSTANTS, a copy that may be written to as far as its type says.
    """
    last = len(sizes) - 2
    half = len(delta) // 2
    above, below = np.int64(0), np.int64(half)  # where delta of this layer's output, of its input, lies
    for number in range(last):
        start += layer_size(number, sizes[number], sizes[number + 1])
        gradient_start += layer_size(number, sizes[number], sizes[number + 1])
        turned_start += sizes[number + 1] * padded(sizes[number]) if number > 0 else 0
    source = np.int64(0)  # where in kept this layer's input lies
    for number in range(last - 1):
        source += BLOCK * padded(sizes[number + 1])
    for number in range(last, -1, -1):
        inputs, outputs = sizes[number], sizes[number + 1]
        if number == 0:
            _parameters(
                number,
                inputs,
                outputs,
                x,
                0,
                inputs,
                delta,
                above,
                rows,
                gradient,
                gradient_start,
                add,
                constants,
            )
        else:
            width = padded(inputs)
            _parameters(
                number, inputs, outputs, kept, source, width, delta, above, rows, gradient, gradient_start, add, constants
            )  # fmt: skip
            for first in range(0, inputs, PANEL):
                panel = min(PANEL, width - first)
                if is_narrow(number, outputs):
                    multiply(
                        delta, above, padded(outputs), 1, params, start + padded(outputs) + first, width,
                        constants, 0, 0, delta, below + first, width, rows, panel, outputs,
                    )  # fmt: skip
                else:
                    multiply(
                        delta, above, padded(outputs), 1, turned, turned_start + first * outputs, panel,
                        constants, 0, 0, delta, below + first, width, rows, panel, outputs,
                    )  # fmt: skip
            slope(activation, kept, source, delta, below, rows * width)
            above, below = below, above
            size_before = layer_size(number - 1, sizes[number - 1], inputs)
            start -= size_before
            gradient_start -= size_before
            if number > 1:
                source -= BLOCK * padded(sizes[number - 1])
                turned_start -= inputs * padded(sizes[number - 1])


@kernel()
def _parameters(number, inputs, outputs, x, x0, x_row, delta, delta0, rows, gradient, start, add, constants):  # type: ignore[no-untyped-def]
    """One layer's dL/db and dL/dW from its input x and dL/d(output)."""
    delta_row = padded(outputs)
    for first in range(0, outputs, PANEL):
        width = min(PANEL, delta_row - first)
        at = start + first
        if add:
            multiply(
                constants, PANEL, 0, 0, delta, delta0 + first, delta_row,
                gradient, at, 0, gradient, at, 0, 1, width, rows,
            )  # fmt: skip
        else:
            multiply(
                constants, PANEL, 0, 0, delta, delta0 + first, delta_row,
                constants, 0, 0, gradient, at, 0, 1, width, rows,
            )  # fmt: skip
    weight = start + delta_row
    if is_narrow(number, outputs):
        row = padded(inputs)
        for first in range(0, inputs, PANEL):
            width = min(PANEL, row - first)
            at = weight + first
            _product(
                delta, delta0, delta_row, x, x0 + first, x_row, gradient, at, row, outputs, width, rows, add, constants
            )  # fmt: skip
        return
    for first in range(0, outputs, PANEL):
        width = min(PANEL, delta_row - first)
        at = weight + first * inputs
        _product(
            x, x0, x_row, delta, delta0 + first, delta_row, gradient, at, width, inputs, width, rows, add, constants
        )  # fmt: skip


@kernel()
def _product(a, a0, a_row, b, b0, b_row, c, c0, c_row, m, width, rows, add, constants):  # type: ignore[no-untyped-def]
    """C[i, n] (+)= sum over rows of A[row, i] B[row, n], i < m, n < width."""
    if add:
        multiply(a, a0, 1, a_row, b, b0, b_row, c, c0, c_row, c, c0, c_row, m, width, rows)
    else:
        multiply(a, a0, 1, a_row, b, b0, b_row, constants, 0, 0, c, c0, c_row, m, width, rows)
