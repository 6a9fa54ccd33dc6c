"""The compiled MLP against float64, row by row against itself, and its tanh against float64's."""

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrl.maths.mlp import (
    RELU,
    TANH,
    activate,
    forward,
    pack,
    packed_size,
    scratch_size,
    sizes_of,
    unpack,
)

widths = st.lists(st.integers(1, 80) | st.sampled_from([1, 16, 48, 64, 128, 130]), min_size=2, max_size=5)
activations = st.sampled_from([TANH, RELU])


def network(sizes, seed=0):
    generator = np.random.default_rng(seed)
    weights = [
        generator.standard_normal((outputs, inputs), np.float32) / np.float32(np.sqrt(inputs))
        for inputs, outputs in zip(sizes, sizes[1:])
    ]
    return weights, [generator.standard_normal(outputs, np.float32) for outputs in sizes[1:]]


def run(weights, biases, activation, x):
    sizes = sizes_of(weights)
    out = np.full((len(x), sizes[-1]), np.nan, np.float32)
    scratch = np.full(scratch_size(sizes), np.nan, np.float32)
    forward(pack(weights, biases), sizes, activation, x, out, scratch)
    return out


def in_float64(weights, biases, activation, x):
    for number, (weight, bias) in enumerate(zip(weights, biases)):
        x = x @ weight.T.astype(np.float64) + bias
        if number < len(weights) - 1:
            x = np.tanh(x) if activation == TANH else np.maximum(x, 0.0)
    return x


@settings(max_examples=60, deadline=None)
@given(sizes=widths, activation=activations, rows=st.integers(0, 150), seed=st.integers(0, 99))
def test_forward_is_the_network_in_float64_up_to_rounding(sizes, activation, rows, seed):
    weights, biases = network(sizes, seed)
    x = np.random.default_rng(seed).standard_normal((rows, sizes[0]), np.float32)
    expected = in_float64(weights, biases, activation, x.astype(np.float64))
    np.testing.assert_allclose(run(weights, biases, activation, x), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(sizes=widths, activation=activations, rows=st.integers(1, 150), seed=st.integers(0, 99))
def test_a_row_is_the_same_to_the_bit_alone_and_anywhere_in_any_batch(sizes, activation, rows, seed):
    weights, biases = network(sizes, seed)
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, sizes[0]), np.float32)
    whole = run(weights, biases, activation, x)
    order = generator.permutation(rows)[: generator.integers(1, rows + 1)]
    np.testing.assert_array_equal(run(weights, biases, activation, x[order]), whole[order])
    for row in order[:3]:
        np.testing.assert_array_equal(run(weights, biases, activation, x[row : row + 1])[0], whole[row])


@given(sizes=widths, seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_unpack_gives_back_what_pack_took_and_the_rest_is_zero(sizes, seed):
    weights, biases = network(sizes, seed)
    params = pack(weights, biases)
    assert len(params) == packed_size(sizes_of(weights))
    for given_back, original in zip(unpack(params, sizes_of(weights)), (weights, biases)):
        for array, expected in zip(given_back, original, strict=True):
            np.testing.assert_array_equal(array, expected)
    assert np.count_nonzero(params) == sum(np.count_nonzero(array) for array in weights + biases)


def test_forward_is_called_from_nopython_code():
    @numba.njit
    def twice(params, sizes, x, out, scratch):
        forward(params, sizes, TANH, x, out, scratch)
        forward(params, sizes, TANH, out, out, scratch)

    weights, biases = network([3, 64, 3])
    x = np.random.default_rng(0).standard_normal((5, 3), np.float32)
    out = np.empty((5, 3), np.float32)
    sizes = sizes_of(weights)
    twice(pack(weights, biases), sizes, x, out, np.empty(scratch_size(sizes), np.float32))
    np.testing.assert_array_equal(out, run(weights, biases, TANH, run(weights, biases, TANH, x)))


def test_not_a_number_reaches_its_own_row_alone():
    weights, biases = network([4, 64, 64, 2])
    x = np.random.default_rng(0).standard_normal((70, 4), np.float32)
    clean = run(weights, biases, TANH, x)
    x[33, 2] = np.nan
    out = run(weights, biases, TANH, x)
    assert np.isnan(out[33]).all()
    np.testing.assert_array_equal(np.delete(out, 33, 0), np.delete(clean, 33, 0))


def test_tanh_is_within_three_ten_millionths_of_float64():
    x = np.concatenate(
        [np.linspace(-9, 9, 1 << 18), np.geomspace(1e-30, 1e30, 1 << 12), [0.0, np.inf, -np.inf]]
    )
    x = x.astype(np.float32)
    y = np.concatenate([x, np.zeros(-len(x) % 16, np.float32)])
    activate(TANH, y, 0, len(y))
    exact = np.tanh(x.astype(np.float64))
    np.testing.assert_allclose(y[: len(x)], exact, rtol=3e-7, atol=0)


def test_weights_that_do_not_chain_are_refused():
    with pytest.raises(ValueError, match=r"weight 1 must have shape \(2, 8\)"):
        sizes_of([np.zeros((8, 4), np.float32), np.zeros((2, 9), np.float32)])
