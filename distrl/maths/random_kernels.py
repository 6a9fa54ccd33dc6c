"""NumPy's seeding and uniform draws in nopython, so that an episode begins without a Python call.

`derive_seed` is the twin of `distrl.maths.random.derive_seed`; `seed_generator` and `random` are those of
`numpy.random.Generator(PCG64(SeedSequence(seed)))`, which is what `gymnasium.Env.reset(seed=...)` makes.

A generator is a row of four uint64: the high and low half of PCG64's state and of its increment (O'Neill 2014,
"PCG: a family of simple fast space-efficient statistically good algorithms", XSL-RR 128/64). SeedSequence is
O'Neill's `seed_seq_fe` with a pool of four words ("Developing a seed_seq alternative", 2015).
"""

from __future__ import annotations

import operator
import zlib

import numba
import numpy as np
from numpy.typing import NDArray

_MASK = np.uint64(0xFFFFFFFF)
_16, _32 = np.uint64(16), np.uint64(32)
_0, _1, _11, _58, _63, _64 = (np.uint64(n) for n in (0, 1, 11, 58, 63, 64))
_INIT_A, _MULT_A = np.uint64(0x43B0D7E5), np.uint64(0x931E8875)
_INIT_B, _MULT_B = np.uint64(0x8B51F9DD), np.uint64(0x58F38DED)
_MIX_L, _MIX_R = np.uint64(0xCA01F9DD), np.uint64(0x4973F715)
_PCG_HIGH, _PCG_LOW = np.uint64(0x2360ED051FC65DA4), np.uint64(0x4385DF649FCCF645)
_TO_UNIT = 1.0 / 9007199254740992.0  # 2**-53

POOL_WORDS = 4


def purpose_words(seed: int, purpose: str, num_coordinates: int) -> NDArray[np.uint64]:
    """What stands before the coordinates in the key of `distrl.maths.random`, as `derive_seed` below wants it.

    ValueError where the seed is negative or needs more than 64 bits.
    """
    seed = operator.index(seed)
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed of a random stream must lie in 0..2**64-1, got {seed} (purpose {purpose!r})")
    words = [num_coordinates, zlib.crc32(purpose.encode()), seed >> 32, seed & 0xFFFFFFFF]
    return np.array(words, np.uint64)


@numba.njit(cache=True, nogil=True)
def _hashed(value, constant):  # type: ignore[no-untyped-def]
    """SeedSequence's hashmix: (the hashed word, the next constant)."""
    following = (constant * _MULT_A) & _MASK
    value = ((value ^ constant) * following) & _MASK
    return value ^ (value >> _16), following


@numba.njit(cache=True, nogil=True)
def _mixed(x, y):  # type: ignore[no-untyped-def]
    result = (_MIX_L * x - _MIX_R * y) & _MASK
    return result ^ (result >> _16)


@numba.njit(cache=True, nogil=True)
def fill_pool(words, pool):  # type: ignore[no-untyped-def]
    """Mix the entropy, uint64 words below 2**32, into pool [4]."""
    constant = _INIT_A
    for i in range(POOL_WORDS):
        pool[i], constant = _hashed(words[i] if i < len(words) else _0, constant)
    for source in range(POOL_WORDS):
        for target in range(POOL_WORDS):
            if source != target:
                value, constant = _hashed(pool[source], constant)
                pool[target] = _mixed(pool[target], value)
    for source in range(POOL_WORDS, len(words)):
        for target in range(POOL_WORDS):
            value, constant = _hashed(words[source], constant)
            pool[target] = _mixed(pool[target], value)


@numba.njit(cache=True, nogil=True)
def _generated(value, constant):  # type: ignore[no-untyped-def]
    following = (constant * _MULT_B) & _MASK
    value = ((value ^ constant) * following) & _MASK
    return value ^ (value >> _16), following


@numba.njit(cache=True, nogil=True)
def derive_seed(before, first, second):  # type: ignore[no-untyped-def]
    """`distrl.maths.random.derive_seed(seed, purpose, first, second)`, `before` from `purpose_words`; a uint64."""
    words = np.empty(8, np.uint64)
    for i in range(4):
        words[i] = before[i]
    words[4], words[5] = np.uint64(first) >> _32, np.uint64(first) & _MASK
    words[6], words[7] = np.uint64(second) >> _32, np.uint64(second) & _MASK
    pool = np.empty(POOL_WORDS, np.uint64)
    fill_pool(words, pool)
    value, _ = _generated(pool[0], _INIT_B)
    return value & np.uint64(0x7FFFFFFF)


@numba.njit(cache=True, nogil=True)
def derive_seeds(before, first, second, out):  # type: ignore[no-untyped-def]
    """`derive_seed` of each pair of first and second [N], uint64, into out [N], uint64."""
    for n in range(len(out)):
        out[n] = derive_seed(before, first[n], second[n])


def derived_seeds(
    seed: int, purpose: str, first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """`distrl.maths.random.derive_seed` of each pair of first and second [N], none of them negative."""
    out = np.empty(len(first), np.uint64)
    derive_seeds(purpose_words(seed, purpose, 2), first.astype(np.uint64), second.astype(np.uint64), out)
    return out


@numba.njit(cache=True, nogil=True)
def _multiply_high(x, y):  # type: ignore[no-untyped-def]
    """The high 64 bits of the 128-bit product."""
    x_low, x_high, y_low, y_high = x & _MASK, x >> _32, y & _MASK, y >> _32
    low_high, high_low = x_low * y_high, x_high * y_low
    carry = (((x_low * y_low) >> _32) + (low_high & _MASK) + (high_low & _MASK)) >> _32
    return x_high * y_high + (low_high >> _32) + (high_low >> _32) + carry


@numba.njit(cache=True, nogil=True)
def _advance(generator):  # type: ignore[no-untyped-def]
    """One step of the 128-bit congruential generator."""
    high, low = generator[0], generator[1]
    new_high = _multiply_high(low, _PCG_LOW) + high * _PCG_LOW + low * _PCG_HIGH
    new_low = low * _PCG_LOW + generator[3]
    generator[0] = new_high + generator[2] + (_1 if new_low < generator[3] else _0)
    generator[1] = new_low


@numba.njit(cache=True, nogil=True)
def seed_generator(generator, seed):  # type: ignore[no-untyped-def]
    """Put generator [4] where `numpy.random.PCG64(seed)` begins; seed a uint64."""
    words = np.empty(2, np.uint64)
    words[0], words[1] = seed & _MASK, seed >> _32
    pool = np.empty(POOL_WORDS, np.uint64)
    fill_pool(words[: 1 if words[1] == _0 else 2], pool)
    constant = _INIT_B
    for i in range(4):
        low, constant = _generated(pool[(2 * i) % POOL_WORDS], constant)
        high, constant = _generated(pool[(2 * i + 1) % POOL_WORDS], constant)
        generator[i] = low | (high << _32)
    start_high, start_low = generator[0], generator[1]
    increment_high, increment_low = generator[2], generator[3]
    generator[2] = (increment_high << _1) | (increment_low >> _63)
    generator[3] = (increment_low << _1) | _1
    generator[0] = _0
    generator[1] = _0
    _advance(generator)
    low = generator[1] + start_low
    generator[0] += start_high + (_1 if low < start_low else _0)
    generator[1] = low
    _advance(generator)


@numba.njit(cache=True, nogil=True)
def next_uint64(generator):  # type: ignore[no-untyped-def]
    """The generator's next 64 bits."""
    _advance(generator)
    value, turn = generator[0] ^ generator[1], generator[0] >> _58
    return (value >> turn) | (value << ((_64 - turn) & _63))


@numba.njit(cache=True, nogil=True)
def random(generator):  # type: ignore[no-untyped-def]
    """Uniform in [0, 1): `Generator.random()`."""
    return np.float64(next_uint64(generator) >> _11) * _TO_UNIT


@numba.njit(cache=True, nogil=True)
def uniform(generator, low, high):  # type: ignore[no-untyped-def]
    """Uniform in [low, high): `Generator.uniform(low, high)`."""
    return low + (high - low) * random(generator)


@numba.njit(cache=True, nogil=True)
def integer(generator, number):  # type: ignore[no-untyped-def]
    """One of 0..number-1, an int64. Not the bits of `Generator.integers`, which keeps half a draw for the next one."""
    return np.int64(_multiply_high(next_uint64(generator), np.uint64(number)))


@numba.njit(cache=True, nogil=True)
def normal(generator):  # type: ignore[no-untyped-def]
    """A standard normal deviate, by Box and Muller (1958). Not the bits of `Generator.standard_normal`."""
    radius = np.sqrt(-2.0 * np.log(1.0 - random(generator)))
    return radius * np.cos(2.0 * np.pi * random(generator))
