"""A plain MLP compiled for the CPU: linear layers with tanh or relu between, none after the last.

`forward` is called from nopython code as it is: nothing is allocated, nothing is locked. It is **row-exact**:
a row's result depends on that row and the parameters alone, to the bit, not on how many rows there are
nor on where among them it stands. So a rollout may batch whatever it hosts.

    params = pack(weights, biases)                  # torch's [out, in] float32, one array each per layer
    sizes = sizes_of(weights)                       # [inputs, hidden ..., outputs], int64
    scratch = np.empty(scratch_size(sizes), np.float32)
    forward(params, sizes, TANH, x, out, scratch)   # x [B, inputs] -> out [B, outputs], float32, C-contiguous

`params` lies as the kernels want it: opaque, but elementwise arithmetic (Adam's) is right on it, for what
pads it stays zero. `unpack` gives torch's arrays back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrl.maths.mlp_tiles import LANES, dot, make_panel, relu_16, tanh_16
from distrl.nopython import kernel

Float32 = NDArray[np.float32]
Sizes = NDArray[np.int64]

TANH, RELU = 0, 1
BLOCK = 64  # rows that go through all layers together: their activations stay in the first-level cache
PANEL = 64  # columns of a weight that lie together: four vectors, a tile's width
NARROW = 4  # a later layer of at most so many outputs is stored, and summed, row by row


def sizes_of(weights: Sequence[NDArray[Any]]) -> Sizes:
    """[inputs, hidden ..., outputs] of weights [out, in], in order. ValueError where they do not chain."""
    sizes = [int(weights[0].shape[1]), *(int(weight.shape[0]) for weight in weights)]
    for number, weight in enumerate(weights):
        if weight.shape != (sizes[number + 1], sizes[number]):
            raise ValueError(
                f"weight {number} must have shape {(sizes[number + 1], sizes[number])} to follow the layer "
                f"before it, got {weight.shape}"
            )
    return np.array(sizes, np.int64)


def scratch_size(sizes: Sizes) -> int:
    """float32 elements of scratch that one call of `forward` wants."""
    return 2 * BLOCK * max(padded(int(size)) for size in sizes)


def packed_size(sizes: Sizes) -> int:
    """float32 elements of `params`."""
    return sum(layer_size(number, *widths) for number, widths in _layers(sizes))


def pack(weights: Sequence[NDArray[Any]], biases: Sequence[NDArray[Any]]) -> Float32:
    """`params` [packed_size] from weights [out, in] and biases [out], one of each per layer."""
    sizes = sizes_of(weights)
    params = np.zeros(packed_size(sizes), np.float32)
    for (bias, parts), weight, given in zip(views(params, sizes), weights, biases, strict=True):
        bias[...] = given
        for first, part in parts:
            part[...] = weight[first : first + len(part)]
    return params


def unpack(params: Float32, sizes: Sizes) -> tuple[list[Float32], list[Float32]]:
    """The weights [out, in] and biases [out] that `params` holds: new arrays."""
    weights, biases = [], []
    for bias, parts in views(params, sizes):
        biases.append(bias.copy())
        weights.append(np.concatenate([part for _, part in parts]))
    return weights, biases


def _layers(sizes: Sizes) -> Iterator[tuple[int, tuple[int, int]]]:
    for number in range(len(sizes) - 1):
        yield number, (int(sizes[number]), int(sizes[number + 1]))


def views(params: Float32, sizes: Sizes) -> Iterator[tuple[Float32, list[tuple[int, Float32]]]]:
    """Of each layer: the bias, and the weight's parts, [rows, in] each, with the number of its first row."""
    start = 0
    for number, (inputs, outputs) in _layers(sizes):
        end = start + layer_size(number, inputs, outputs)
        bias, weight = params[start : start + outputs], params[start + padded(outputs) : end]
        if is_narrow(number, outputs):
            yield bias, [(0, weight.reshape(outputs, padded(inputs))[:, :inputs])]
        else:
            parts = []
            for first in range(0, outputs, PANEL):
                width = min(PANEL, padded(outputs) - first)
                panel = weight[first * inputs : (first + width) * inputs].reshape(inputs, width)
                parts.append((first, panel.T[: outputs - first]))
            yield bias, parts
        start = end


@kernel()
def padded(size):  # type: ignore[no-untyped-def]
    return (size + LANES - 1) // LANES * LANES


@kernel()
def is_narrow(number, outputs):  # type: ignore[no-untyped-def]
    return number > 0 and outputs <= NARROW


@kernel()
def layer_size(number, inputs, outputs):  # type: ignore[no-untyped-def]
    """float32 elements of layer `number` in `params`: its bias, padded to vectors, then its weight."""
    if is_narrow(number, outputs):
        return padded(outputs) + outputs * padded(inputs)
    return padded(outputs) + inputs * padded(outputs)


# --- kernels: an array is (array, offset of its first element, row stride) ---------------------------

_panel_64, _panel_48 = make_panel(4, 4), make_panel(4, 3)
_panel_32, _panel_16 = make_panel(8, 2), make_panel(8, 1)


@kernel()
def multiply(a, a0, a_row, a_k, b, b0, b_k, init, init0, init_row, c, c0, c_row, rows, width, k):  # type: ignore[no-untyped-def]
    """C[r, n] = init[r, n] + sum over i < k of A[r, i] B[i, n], n < width, one of 16, 32, 48 and 64.

    A is read at strides a_row and a_k (so either way round), B's rows are b_k apart, init's init_row (0: a
    bias) and C's c_row. C may be init. The sum runs in i's order, the same for every element.
    """
    if width == 64:
        _panel_64(a, a0, a_row, a_k, b, b0, b_k, init, init0, init_row, c, c0, c_row, rows, k)
    elif width == 48:
        _panel_48(a, a0, a_row, a_k, b, b0, b_k, init, init0, init_row, c, c0, c_row, rows, k)
    elif width == 32:
        _panel_32(a, a0, a_row, a_k, b, b0, b_k, init, init0, init_row, c, c0, c_row, rows, k)
    else:
        _panel_16(a, a0, a_row, a_k, b, b0, b_k, init, init0, init_row, c, c0, c_row, rows, k)


@kernel()
def linear(params, start, number, inputs, outputs, x, x0, x_row, y, y0, y_row, rows):  # type: ignore[no-untyped-def]
    """y = x W^T + b of layer `number`, whose parameters begin at `start`; a wide layer's pads are written too.

    A later layer's x is padded with zeros to a multiple of 16 columns, as y is here.
    """
    weight = start + padded(outputs)
    if is_narrow(number, outputs):
        k = padded(inputs)
        for r in range(rows):
            for o in range(outputs):
                product = dot(x, x0 + r * x_row, params, weight + o * k, k)
                y[y0 + r * y_row + o] = product + params[start + o]
            for o in range(outputs, LANES):
                y[y0 + r * y_row + o] = np.float32(0)
        return
    for first in range(0, outputs, PANEL):
        width = min(PANEL, padded(outputs) - first)
        multiply(
            x, x0, x_row, 1, params, weight + first * inputs, width, params, start + first, 0,
            y, y0 + first, y_row, rows, width, inputs,
        )  # fmt: skip


@kernel()
def activate(activation, y, y0, length):  # type: ignore[no-untyped-def]
    """tanh or relu in place, of `length` elements, a multiple of 16."""
    if activation == RELU:
        for i in range(0, length, LANES):
            relu_16(y, y0 + i)
    else:
        for i in range(0, length, LANES):
            tanh_16(y, y0 + i)


@kernel()
def forward(params, sizes, activation, x, out, scratch):  # type: ignore[no-untyped-def]
    """The network's outputs for rows x [B, inputs], written into out [B, outputs].

    Args:
        params: as `pack` gives them, float32 [packed_size].
        sizes: [inputs, hidden ..., outputs], int64.
        activation: TANH or RELU, between layers.
        x, out: float32, C-contiguous; any number of rows, each a function of itself alone.
        scratch: float32 [scratch_size(sizes)], one for each thread; what it held does not matter.
    """
    rows_in_all, num_layers = len(x), len(sizes) - 1
    half = len(scratch) // 2
    flat_x, flat_out = x.reshape(-1), out.reshape(-1)
    for begin in range(0, rows_in_all, BLOCK):
        rows = min(BLOCK, rows_in_all - begin)
        start = np.int64(0)
        source, target = np.int64(half), np.int64(0)  # where in scratch the layer reads and writes
        for number in range(num_layers):
            inputs, outputs = sizes[number], sizes[number + 1]
            width = padded(outputs)
            if number == 0:
                linear(params, start, number, inputs, outputs, flat_x, begin * inputs, inputs, scratch, target, width, rows)  # fmt: skip
            else:
                linear(params, start, number, inputs, outputs, scratch, source, padded(inputs), scratch, target, width, rows)  # fmt: skip
            if number < num_layers - 1:
                activate(activation, scratch, target, rows * width)
            start += layer_size(number, inputs, outputs)
            source, target = target, source
        outputs = sizes[num_layers]
        for r in range(rows):
            for o in range(outputs):
                flat_out[(begin + r) * outputs + o] = scratch[source + r * padded(outputs) + o]
