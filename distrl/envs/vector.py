"""The vector environment below a group: gymnasium's Sync or Async, or an env's own vector entry point."""

from __future__ import annotations

import ctypes
import faulthandler
import inspect
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from distrl.envs.closing import LONGEST_SEC, within
from distrl.envs.episode import Counter, EpisodeEnv, Restarts
from distrl.envs.native.choice import native_env
from distrl.envs.native.vector import NativeVectorEnv
from distrl.envs.pools.choice import make_pool, step_limit
from distrl.envs.pools.vector import PoolVectorEnv
from distrl.envs.spaces import check_observation
from distrl.envs.spec import EnvSpec
from distrl.envs.surroundings import kept
from distrl.errors import BadInput, RunFailed, translated

_PR_SET_PDEATHSIG = 1
_ERROR_WAIT_SEC = 10

MODES = {
    "disabled": AutoresetMode.DISABLED,
    "next_step": AutoresetMode.NEXT_STEP,
    "same_step": AutoresetMode.SAME_STEP,
}


def make_vector(spec: EnvSpec, num_envs: int, first_env: int, seed: int) -> VectorEnv[Any, Any, Any]:
    """Envs `first_env .. first_env + num_envs - 1` of the run as one vector env, in the spec's mode.

    Sync and Async hold `EpisodeEnv`s; a vector entry point is the env's own class, a native one a compiled loop, and a pool a library's.
    Raises BadInput where the env cannot be made so.
    """
    if spec.is_native:
        env, limit = native_env(spec.env_id)
        return NativeVectorEnv(
            env, num_envs, MODES[spec.autoreset], spec.max_episode_steps or limit, copy=False
        )
    if spec.is_pool:
        return PoolVectorEnv(
            make_pool(spec, num_envs),
            num_envs,
            MODES[spec.autoreset],
            step_limit(spec),
            first_env,
            seed,
            spec.max_replay_steps,
        )
    if spec.vectorization == "vector_entry_point":
        return _entry_point(spec, num_envs)
    restarts: Restarts
    if spec.vectorization == "sync":
        restarts = Counter(spec.max_env_restarts)
    else:
        restarts = multiprocessing.get_context("fork").Value("i", spec.max_env_restarts)
    made: list[Any] = []
    thunks = [
        _thunk(spec, first_env + slot, slot, seed, restarts, os.getpid(), made) for slot in range(num_envs)
    ]
    mode = MODES[spec.autoreset]
    try:
        with translated(f"{num_envs} envs {spec.env_id!r} cannot be stepped side by side"):
            if spec.vectorization == "sync":
                return SyncVectorEnv(thunks, copy=False, autoreset_mode=mode)
            return _Async(thunks, copy=False, context="fork", autoreset_mode=mode)
    except BaseException:  # the third cannot be made: the first two are there already
        for env in made:
            within(env.close, LONGEST_SEC)
        raise


class _Async(AsyncVectorEnv[Any, Any]):
    """Says what was raised in a subprocess by one exception, where gymnasium's own warns and raises a copy."""

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        failed = [index for index, success in enumerate(successes) if not success]
        if not failed:
            return
        errors = [self.error_queue.get(timeout=_ERROR_WAIT_SEC) for _ in failed]
        index, kind, value, trace = min(errors, key=lambda error: error[0])
        failure = RunFailed(
            str(value)
            if issubclass(kind, RunFailed)
            else f"env {index} of the group: {kind.__name__}: {value}"
        )
        failure.add_note(f"In the subprocess of the environment:\n{trace}")
        raise failure


def _thunk(
    spec: EnvSpec, env: int, slot: int, seed: int, restarts: Restarts, parent: int, made: list[Any]
) -> Callable[[], gymnasium.Env[Any, Any]]:
    def make() -> gymnasium.Env[Any, Any]:
        # AsyncVectorEnv makes one env in this process too, to see its spaces.
        if os.getpid() != parent:
            _become_child(parent)
        made.append(EpisodeEnv(spec, env, slot, seed, restarts))
        return made[-1]  # type: ignore[no-any-return]

    return make


def _become_child(parent: int) -> None:
    """An env's subprocess: dies with its parent, whose pipe ends its siblings hold open; leaves Ctrl-C to it; does
    not keep its signal handlers; shows its stacks on SIGUSR1."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)


def _entry_point(spec: EnvSpec, num_envs: int) -> VectorEnv[Any, Any, Any]:
    unused = [name for name in ("wrapper", "frame_stack", "mask_key") if getattr(spec, name) not in (None, 1)]
    if unused:
        raise BadInput(
            f"{', '.join(unused)} cannot go around env {spec.env_id!r} as vector_entry_point; use sync"
        )
    registered = spec.registered()
    point = registered.vector_entry_point
    if point is None:
        raise BadInput(f"env {spec.env_id!r} has no vector entry point; use vectorization sync or async")
    takes = inspect.signature(point if callable(point) else load_env_creator(point)).parameters
    kwargs = dict(spec.kwargs)
    if "autoreset_mode" in takes:
        kwargs.setdefault("autoreset_mode", MODES[spec.autoreset])
    if spec.max_episode_steps is not None:
        kwargs["max_episode_steps"] = spec.max_episode_steps
    if spec.is_atari(registered) and "reward_clipping" in takes:
        kwargs["reward_clipping"] = False  # the group clips, and counts raw rewards
        if registered.kwargs.get("frameskip") != kwargs.get("frameskip", 4):
            kwargs.setdefault("frameskip", 4)
    try:
        with kept():
            env = gymnasium.make_vec(registered, num_envs, vectorization_mode="vector_entry_point", **kwargs)
    except (Exception, SystemExit) as error:  # an entry point may raise anything
        said = " ".join(str(error).split())
        raise BadInput(
            f"env {spec.env_id!r} cannot be made as vector_entry_point with {kwargs}: {said}"
        ) from error
    mode = env.metadata.get("autoreset_mode")
    if mode != MODES[spec.autoreset]:
        env.close()
        has = next((name for name, value in MODES.items() if value == mode), str(mode))
        raise BadInput(
            f"autoreset must be {has!r} for the vector entry point of {spec.env_id!r}, got {spec.autoreset!r}"
        )
    return env


def reset_rows(vector: VectorEnv[Any, Any, Any], mask: NDArray[np.bool_], seeds: Any) -> Any:
    """Resets the envs where `mask` [N], each with its seed of `seeds` [N]; (observation [N, ...], infos).

    An entry point in its own autoreset mode resets all of its envs together, by the first seed. Raises
    RunFailed where it would have to reset only some.
    """
    if isinstance(vector, NativeVectorEnv):
        vector.begin(mask, np.asarray(seeds, np.uint64))
        return vector.observation, {}
    if isinstance(vector, PoolVectorEnv):
        return vector.begin(mask), {}  # it knows its episodes, and seeds them alike
    if isinstance(vector, SyncVectorEnv | AsyncVectorEnv):
        chosen = [seed if row else None for seed, row in zip(seeds, mask, strict=True)]
        # Without the mask they reset whole: their own arrays are not there before that.
        return vector.reset(seed=chosen, options=None if mask.all() else {"reset_mask": mask})
    if vector.metadata.get("autoreset_mode") == AutoresetMode.DISABLED:
        return vector.reset(seed=np.array(seeds)[mask], options={"reset_mask": mask})  # type: ignore[arg-type]
    if not mask.all():
        raise RunFailed(
            f"the vector entry point of {vector.spec.id if vector.spec else vector} cannot reset only the envs whose "
            "episode was dropped: use --vectorization sync, or --nonfinite fail"
        )
    return vector.reset(seed=seeds[0])


def explain(
    vector: VectorEnv[Any, Any, Any], group: str, env_name: Callable[[int], str], error: BaseException
) -> RunFailed:
    """What `error` of a call into `vector` means: where an observation does not fit its space, the env, key and
    what it got; else the error itself, said of the group."""
    for slot, observation in enumerate(getattr(vector, "_env_obs", ())):
        if observation is not None:
            try:
                check_observation(vector.single_observation_space, observation, env_name(slot))
            except RunFailed as outside:
                return outside
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, EOFError | ConnectionError):
        said = f"a subprocess of an environment died ({said})"
    return RunFailed(f"{group}: {said}")
