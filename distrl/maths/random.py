"""Counter-based random streams, keyed by what they are for and where they are used.

A stream is a function of its key alone: nobody passes a generator around, so who computes, how many of
them and in which order cannot change a single draw.
"""

from __future__ import annotations

import operator
import zlib

import numpy as np

_WORD = 1 << 32
_LIMIT = 1 << 64


def stream(seed: int, purpose: str, *coordinates: int) -> np.random.Generator:
    """The generator of one place in the run, e.g. `stream(seed, "action", group, step)`.

    Equal keys give equal draws, on any machine; keys that differ anywhere (also in how many coordinates
    they have) give independent ones. Philox 4x64 (Salmon et al. 2011, "Parallel random numbers: as easy
    as 1, 2, 3") under a key hashed by `numpy.random.SeedSequence`.

    Raises ValueError where seed or a coordinate is negative or needs more than 64 bits, TypeError where
    one is not an integer.
    """
    return np.random.Generator(np.random.Philox(_key(seed, purpose, coordinates)))


def derive_seed(seed: int, purpose: str, *coordinates: int) -> int:
    """A 31-bit seed for code that wants an integer, such as `env.reset(seed=...)`. Errors as in `stream`."""
    return int(_key(seed, purpose, coordinates).generate_state(1, np.uint32)[0] & 0x7FFFFFFF)


def _key(seed: int, purpose: str, coordinates: tuple[int, ...]) -> np.random.SeedSequence:
    # SeedSequence pads with zeros ([1] and [1, 0] are one key) and joins words ([2**32] and [0, 1] too):
    # the leading length and two words for every number keep different keys apart.
    words = [len(coordinates), zlib.crc32(purpose.encode())]
    for name, number in (("seed", seed), *(("coordinate", c) for c in coordinates)):
        number = operator.index(number)
        if not 0 <= number < _LIMIT:
            raise ValueError(
                f"{name} of a random stream must lie in 0..2**64-1, got {number} (purpose {purpose!r})"
            )
        words += divmod(number, _WORD)
    return np.random.SeedSequence(words)
