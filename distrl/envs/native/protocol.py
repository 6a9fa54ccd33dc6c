"""NativeEnv: what one writes to have an environment of one's own in Numba."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from gymnasium import spaces

from distrl.errors import BadInput

# Division by zero gives Inf, as NumPy's does, and not an exception.
NOPYTHON: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


@dataclass(frozen=True, eq=False)
class NativeEnv:
    """One environment as three functions that Numba compiles, and what they may assume.

    state is a float64 row [state_size], zeros before the first reset, and all that the environment remembers
    between two calls. rng is this env's generator (`distrl.envs.native.uniform(rng, low, high)`, `normal(rng)`,
    `integer(rng, n)`). action is an int for Discrete, and a row of the space's shape and dtype otherwise.

    Attributes:
        reset: `reset(state, rng)` writes the first state of an episode.
        step: `step(state, action, rng)` moves the state on; gives (reward, terminated).
        observe: `observe(state, out)` writes what is seen into out, float32 of the observation space's shape.
        max_episode_steps: the time limit; where it is met the episode is truncated. None: there is none.

    What the functions call is compiled too, or has to be (`numba.njit`). They are compiled once for a machine and
    kept: anew when the file they are in changes.

    Raises BadInput for spaces that are not served and functions that take other arguments.
    """

    observation_space: spaces.Box
    action_space: spaces.Space[Any]
    state_size: int
    reset: Callable[..., None]
    step: Callable[..., tuple[float, bool]]
    observe: Callable[..., None]
    max_episode_steps: int | None = None

    def __post_init__(self) -> None:
        problems = []
        seen, done = self.observation_space, self.action_space
        if not isinstance(seen, spaces.Box) or seen.dtype != np.float32:
            problems.append(f"observation_space must be a Box of float32, got {seen}")
        if not (
            (isinstance(done, spaces.Box) and done.dtype == np.float32)
            or isinstance(done, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)
        ):
            problems.append(
                f"action_space must be Discrete, MultiDiscrete, MultiBinary or a Box of float32, got {done}"
            )
        if self.state_size < 1:
            problems.append(f"state_size must be at least 1, got {self.state_size}")
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            problems.append(f"max_episode_steps must be at least 1 or None, got {self.max_episode_steps}")
        for name, wanted in (
            ("reset", "state, rng"),
            ("step", "state, action, rng"),
            ("observe", "state, out"),
        ):
            function = getattr(self, name)
            plain = getattr(function, "py_func", function)
            takes = len(inspect.signature(plain).parameters) if inspect.isfunction(plain) else -1
            if takes != len(wanted.split(",")):
                problems.append(f"{name} must be a function {name}({wanted}), got {plain!r}")
        if problems:
            raise BadInput(*(f"native env: {problem}" for problem in problems))

    @functools.cached_property
    def compiled(self) -> tuple[Any, Any, Any]:
        """reset, step and observe as nopython functions."""
        return _nopython(self.reset), _nopython(self.step), _nopython(self.observe)

    def kernel_options(self, *called: Any) -> tuple[dict[str, Any], str]:
        """(options of `numba.njit` for a kernel over its functions that also calls `called`, a stamp of all sources).

        Numba keeps a closure's code by the closure's own file and cells: a kernel has to hold the stamp in one.
        """
        stamps = [_fingerprint(function.py_func) for function in (*self.compiled, *called)]
        kept = None not in stamps
        return {"cache": kept, **NOPYTHON}, "".join(str(stamp) for stamp in stamps) if kept else ""


def _nopython(function: Any) -> Any:
    """The function's dispatcher, under a name that is the same in the next process: Numba keys what it keeps on
    disk of a closure by its cells, and a dispatcher's own name is drawn at random."""
    plain = getattr(function, "py_func", function)
    fingerprint = _fingerprint(plain)
    dispatcher = numba.njit(cache=fingerprint is not None, **NOPYTHON)(plain)
    if fingerprint is not None:
        dispatcher._set_uuid(fingerprint)
    return dispatcher


def _fingerprint(function: Any) -> str | None:
    """Of the function and the files that it and what it calls stand in; None where it depends on more: it was typed
    in, or is a closure."""
    files: dict[str, bytes] = {}
    if not _read_sources(function, files, set()):
        return None
    total = hashlib.sha256(f"{function.__module__}.{function.__qualname__}".encode())
    for name in sorted(files):
        total.update(f"\0{name}\0".encode() + files[name])
    return total.hexdigest()


def _read_sources(function: Any, files: dict[str, bytes], seen: set[Any]) -> bool:
    """Whether all of them could be read into `files`, by name."""
    if function.__code__ in seen:
        return True
    seen.add(function.__code__)
    if function.__closure__ or not _read(function, files):
        return False
    called = _named(function)
    intrinsics = [one._defn for one in called if inspect.isfunction(getattr(one, "_defn", None))]
    compiled = [one.py_func for one in called if inspect.isfunction(getattr(one, "py_func", None))]
    return all(_read(one, files) for one in intrinsics) and all(
        _read_sources(one, files, seen) for one in compiled
    )


def _read(function: Any, files: dict[str, bytes]) -> bool:
    name = function.__code__.co_filename
    if name not in files:
        try:
            with open(name, "rb") as file:
                files[name] = file.read()
        except OSError:
            return False
    return True


def _named(function: Any) -> list[Any]:
    """The global objects that its code names, also as `module.name`."""
    names = function.__code__.co_names
    found = [function.__globals__.get(name) for name in names]
    for module in [one for one in found if inspect.ismodule(one)]:
        found += [vars(module).get(name) for name in names]
    return found
