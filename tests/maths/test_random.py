"""Random streams are functions of their key alone, and different keys give different streams."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrl.maths.random import derive_seed, stream

WORD = st.integers(0, 2**64 - 1)
KEY = st.tuples(WORD, st.sampled_from(["action", "reset", "permutation"]), st.lists(WORD, max_size=3))


def _draws(seed: int, purpose: str, coordinates: list[int]) -> bytes:
    return stream(seed, purpose, *coordinates).integers(0, 2**64, 4, dtype=np.uint64).tobytes()


@settings(max_examples=50, deadline=None)
@given(KEY, KEY)
def test_two_streams_are_equal_exactly_where_their_keys_are(one, other):
    assert (_draws(*one) == _draws(*other)) == (one == other)
    assert (derive_seed(one[0], one[1], *one[2]) == derive_seed(other[0], other[1], *other[2])) == (
        one == other
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((7, "action", []), (7, "action", [0])),  # SeedSequence alone pads with zeros
        ((7, "action", [0]), (7, "action", [0, 0])),
        ((7, "action", [2**32]), (7, "action", [0, 1])),  # and joins 32-bit words
        ((2**32, "action", []), (0, "action", [1])),
        ((1, "action", [2]), (2, "action", [1])),
        ((1, "action", [1, 2]), (1, "action", [2, 1])),
        ((1, "action", []), (1, "actions", [])),
    ],
)
def test_keys_that_look_alike_are_kept_apart(one, other):
    assert _draws(*one) != _draws(*other)


def test_a_thousand_neighbouring_coordinates_give_uncorrelated_uniform_draws():
    first_K = np.array([stream(3, "action", k // 32, k % 32).random() for k in range(1024)])
    assert len(set(first_K)) == 1024
    assert abs(first_K.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 1024)
    assert abs(np.corrcoef(first_K[:-1], first_K[1:])[0, 1]) < 4 / np.sqrt(1024)


def test_draws_are_the_same_in_another_process_and_from_one_release_to_the_next():
    code = "from distrl.maths.random import *; print(stream(1, 'action', 2, 3).integers(10**9), derive_seed(1, 'reset', 4))"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    here = f"{stream(1, 'action', 2, 3).integers(10**9)} {derive_seed(1, 'reset', 4)}"
    assert printed.split() == here.split() == GOLDEN.split()


GOLDEN = "863532160 1678102120"


def test_derived_seeds_fit_in_31_bits():
    seeds = [derive_seed(0, "reset", k) for k in range(200)]
    assert all(type(seed) is int and 0 <= seed < 2**31 for seed in seeds)
    assert len(set(seeds)) == 200
    assert max(seeds) > 2**30  # the top bit is used


def test_numpy_integers_are_coordinates_like_any_other():
    assert _draws(np.int64(5), "action", [np.uint8(3)]) == _draws(5, "action", [3])


@pytest.mark.parametrize("bad", [-1, 2**64])
def test_a_number_that_64_bits_cannot_hold_is_refused_by_name(bad):
    with pytest.raises(ValueError, match=f"seed .*got {bad}"):
        stream(bad, "action")
    with pytest.raises(ValueError, match=f"coordinate .*got {bad}"):
        derive_seed(0, "action", bad)


def test_a_number_that_is_not_an_integer_is_refused():
    with pytest.raises(TypeError):
        stream(1.5, "action")
