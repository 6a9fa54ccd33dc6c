"""Work that needs nothing of its neighbours, in as many processes as there are cores, each with one thread.

A model of this size gains little from a second thread; a second process doubles the rate.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def together(function: Callable[[Job], Result], jobs: Iterable[Job], processes: int) -> Iterator[Result]:
    """`function` of each job, in the jobs' order; both must be picklable. With 1 process they run here, one by one.

    What a job raises is raised here.
    """
    work = list(jobs)
    if min(processes, len(work)) <= 1:
        yield from map(function, work)
        return
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(work)), fresh, initializer=_one_thread) as pool:
        yield from pool.map(function, work)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
