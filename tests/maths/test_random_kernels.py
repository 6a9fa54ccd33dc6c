"""Seeding and uniform draws in nopython are NumPy's and our own, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrl.maths import random_kernels as kernels
from distrl.maths.random import derive_seed

WORD = st.integers(0, 2**64 - 1)
SEEDS = [0, 1, 2, 2**31 - 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1]
SEEDS += [int(seed) for seed in np.random.default_rng(0).integers(0, 2**31, 2000)]


def seeded(seed: int) -> np.ndarray:
    generator = np.zeros(4, np.uint64)
    kernels.seed_generator(generator, np.uint64(seed))
    return generator


def test_a_seed_gives_the_generator_that_numpy_makes_of_it():
    for seed in SEEDS:
        state = np.random.PCG64(np.random.SeedSequence(seed)).state["state"]
        high, low, inc_high, inc_low = (int(word) for word in seeded(seed))
        assert (high << 64 | low, inc_high << 64 | inc_low) == (state["state"], state["inc"]), seed


def test_draws_are_those_of_numpys_generator():
    for seed in SEEDS[:200]:
        generator, numpy = seeded(seed), np.random.default_rng(seed)
        assert [kernels.random(generator) for _ in range(20)] == numpy.random(20).tolist()
        assert [kernels.uniform(generator, -0.05, 0.3) for _ in range(20)] == numpy.uniform(
            -0.05, 0.3, 20
        ).tolist()
        assert int(kernels.next_uint64(generator)) == int(numpy.integers(0, 2**64, dtype=np.uint64))


@settings(max_examples=300, deadline=None)
@given(WORD, WORD, WORD, st.sampled_from(["episode", "reset"]))
def test_an_episodes_seed_is_the_one_that_python_derives(seed, env, episode, purpose):
    before = kernels.purpose_words(seed, purpose, 2)
    derived = kernels.derive_seed(before, np.uint64(env), np.uint64(episode))
    assert int(derived) == derive_seed(seed, purpose, env, episode)


def test_seeds_are_derived_for_a_batch_at_once():
    envs, episodes = np.arange(5), np.arange(5) * 7
    assert kernels.derived_seeds(3, "episode", envs, episodes).tolist() == [
        derive_seed(3, "episode", int(env), int(k)) for env, k in zip(envs, episodes, strict=True)
    ]


def test_a_seed_outside_64_bits_is_refused():
    with pytest.raises(ValueError, match="must lie in 0..2\\*\\*64-1, got -1"):
        kernels.purpose_words(-1, "episode", 2)


def test_integers_and_normals_have_their_distributions():
    generator, number = seeded(5), 20_000
    counts = np.bincount([kernels.integer(generator, 6) for _ in range(number)], minlength=6)
    assert ((counts - number / 6) ** 2 / (number / 6)).sum() < 25.7  # chi square, 5 degrees, p = 1e-4
    draws = np.array([kernels.normal(generator) for _ in range(number)])
    assert abs(draws.mean()) < 4 / number**0.5 and abs(draws.var() - 1) < 4 * (2 / number) ** 0.5
    assert abs((np.abs(draws) < 1).mean() - 0.6827) < 0.014
