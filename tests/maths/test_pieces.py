"""Texts are cut into the pieces that cost the least, and the cut hangs on their lengths alone."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrl.maths.pieces import PASS, by_length

LENGTHS = st.lists(st.integers(1, 600), min_size=1, max_size=7)


def cost(lengths: np.ndarray, pieces: list[np.ndarray]) -> int:
    """Tokens computed on, padding and passes among them."""
    return sum(PASS["cpu"] + len(piece) * int(lengths[piece].max()) for piece in pieces)


@given(LENGTHS, st.integers(1, 8))
def test_no_other_cut_costs_less(lengths: list[int], most: int) -> None:
    length = np.array(lengths)
    order = np.argsort(-length)
    every = [
        np.split(order, list(cuts))
        for count in range(len(lengths))
        for cuts in combinations(range(1, len(lengths)), count)
    ]
    allowed = [cut for cut in every if max(map(len, cut)) <= most]
    found = by_length(length, most)
    assert max(map(len, found)) <= most
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    assert cost(length, found) == min(cost(length, cut) for cut in allowed)


@given(LENGTHS, st.integers(1, 8), st.randoms())
def test_the_cut_is_the_same_in_whatever_order_texts_come(lengths: list[int], most: int, random) -> None:
    mixed = list(lengths)
    random.shuffle(mixed)
    one, other = (
        [length[piece].tolist() for piece in by_length(length, most)]
        for length in (np.array(lengths), np.array(mixed))
    )
    assert one == other


def test_texts_of_one_length_fill_the_first_pieces_in_their_order():
    assert [piece.tolist() for piece in by_length(np.full(10, 7), 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [piece.tolist() for piece in by_length(np.full(10, 7), 64)] == [list(range(10))]


def test_a_little_padding_is_cheaper_than_a_pass_and_much_is_not():
    assert len(by_length(np.array([40, 36, 38]), 64)) == 1
    assert [piece.tolist() for piece in by_length(np.array([40, 400, 38, 390]), 64)] == [[1, 3], [0, 2]]


@pytest.mark.parametrize(("longest", "share"), [(64, 0.25), (256, 0.12), (1024, 0.05)])
def test_of_many_texts_of_all_lengths_few_positions_are_padding(longest: int, share: float):
    length = np.random.default_rng(0).integers(1, longest + 1, 256)
    pieces = by_length(length, 64)
    seen = sum(len(piece) * int(length[piece].max()) for piece in pieces)
    assert 1 - length.sum() / seen < share
    assert 1 - length.sum() / (256 * longest) > 0.4  # padded to the longest, half of it would be


def test_on_a_gpu_where_a_pass_costs_more_fewer_pieces_are_made():
    length = np.random.default_rng(0).integers(20, 201, 64)
    assert len(by_length(length, 64, "cuda")) < len(by_length(length, 64, "cpu"))
    assert len(by_length(length, 16, "cuda")) == 4
