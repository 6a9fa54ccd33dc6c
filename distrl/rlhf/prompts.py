"""In which order prompts are taken: whole passes over the data, each in a permutation of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distrl.maths.random import stream


class PromptOrder:
    """A function of (seed, iteration) alone, so a resumed run goes on where it stopped and no state is kept."""

    def __init__(self, num_prompts: int, seed: int) -> None:
        if num_prompts < 1:
            raise ValueError(f"there must be a prompt at least, got {num_prompts}")
        self.num_prompts = num_prompts
        self.seed = seed

    def of(self, iteration: int, count: int) -> NDArray[np.int64]:
        """Numbers of the prompts of an iteration that takes `count`, as every other does."""
        places = np.arange(iteration * count, (iteration + 1) * count)
        passes, within = np.divmod(places, self.num_prompts)
        orders = {
            int(one): stream(self.seed, "prompts", int(one)).permutation(self.num_prompts)
            for one in np.unique(passes)
        }
        return np.array(
            [orders[int(one)][place] for one, place in zip(passes, within, strict=True)], np.int64
        )
