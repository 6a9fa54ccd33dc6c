"""A barrier for a few threads that run one nopython function side by side."""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from distrl.nopython import kernel

_SPINS = 4000  # turns before the thread offers its core to another: there may be fewer cores than threads

_sched_yield = types.ExternalFunction("sched_yield", types.intc())


def _element(context, builder, array_type, array, index):  # type: ignore[no-untyped-def]
    data = context.make_array(array_type)(context, builder, value=array).data
    return builder.gep(data, [index])


@intrinsic  # type: ignore[misc]
def _add_one(typingctx, array, index):  # type: ignore[no-untyped-def]
    """array[index] += 1 as one step for all threads; what was written before is seen by who sees the sum."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = _element(context, builder, signature.args[0], *arguments)
        builder.atomic_rmw("add", pointer, ir.IntType(64)(1), "seq_cst")
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic  # type: ignore[misc]
def _read(typingctx, array, index):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = _element(context, builder, signature.args[0], *arguments)
        return builder.load_atomic(pointer, "seq_cst", 8, typ=ir.IntType(64))

    return types.int64(array, types.intp), codegen


@kernel()
def wait_for_all(arrived, goal, num_threads):  # type: ignore[no-untyped-def]
    """Returns once all `num_threads` threads are here; gives the goal of their next meeting.

    `arrived` is an int64 array of one element that they share, 0 at first; `goal` is `num_threads` at the first
    meeting. For one thread it costs nothing.
    """
    if num_threads > 1:
        _add_one(arrived, 0)
        spins = 0
        while _read(arrived, 0) < goal:
            spins += 1
            if spins > _SPINS:
                _sched_yield()
    return goal + num_threads
