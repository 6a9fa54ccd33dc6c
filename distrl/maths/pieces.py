"""How texts of several lengths are cut into pieces that go through a model together, with little padding.

sorted by length     ########  #######  #######  | ###  ###  ##      a piece is padded to its longest text
computed on          ########  #######. #######. | ###  ###  ##.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
# Tokens that go through a model in the time that one more pass takes beside them. On a CPU: 60 to 150, GPT-2 of 3 and 4
# layers. On a GPU it is not measured: some 10 ms of launches, where 0.5 B in bfloat16 take some 400,000 tokens a second.
PASS = {"cpu": 128, "cuda": 4096}


def by_length(length_N: Ints, most: int, device: str = "cpu") -> list[Ints]:
    """Places of all texts, the longest first, in pieces of `most` at most that cost the least in sum.

    A piece costs its texts times the length of its longest, and a pass on that kind of device. A function of these
    alone: who computes a piece changes nothing in it. Of cuts that cost the same it is the one whose first pieces are full.
    """
    order = np.argsort(-length_N, kind="stable")
    length = length_N[order]
    count = len(order)
    one_pass = PASS.get(device, PASS["cuda"])
    cost = np.zeros(count + 1, np.int64)  # of the texts from here to the end, cut at best
    ends = np.zeros(count, np.int64)  # of the first piece there
    for begin in range(count - 1, -1, -1):
        end = np.arange(begin + 1, min(begin + most, count) + 1)
        each = one_pass + (end - begin) * length[begin] + cost[end]
        best = len(each) - 1 - int(np.argmin(each[::-1]))
        cost[begin], ends[begin] = each[best], end[best]
    pieces, begin = [], 0
    while begin < count:
        pieces.append(order[begin : ends[begin]])
        begin = int(ends[begin])
    return pieces
