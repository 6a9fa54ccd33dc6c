"""Which envs a pool serves, and the pool that a spec asks for."""

from __future__ import annotations

import difflib
import importlib.util
from typing import TYPE_CHECKING, Any

from distrl.errors import BadInput

if TYPE_CHECKING:
    from distrl.envs.pools.protocol import Pool
    from distrl.envs.spec import EnvSpec

POOLS = ("ale", "envpool")
_PACKAGES = {"ale": ("ale_py", "atari"), "envpool": ("envpool", "envpool")}
_ATARI_OPTIONS = ("repeat_action_probability", "full_action_space", "num_threads")
# EnvPool's own fields that a run decides
_OURS = {
    "num_envs", "batch_size", "seed", "env_seed", "max_num_players", "base_path", "gym_reset_return_info",
    "max_episode_steps", "reward_threshold", "thread_affinity_offset",
}  # fmt: skip
_ALE_FRAMES = 108_000  # after which ALE's own ids end a game
_FRAME_SKIP = 4
_FIRE = 1


def check_pool(spec: EnvSpec) -> None:
    """Raises BadInput, with all that is wrong, where the spec's backend is missing or cannot be asked for what the spec
    asks."""
    module, extra = _PACKAGES[spec.backend]
    if importlib.util.find_spec(module) is None:
        raise BadInput(
            f"env_backend {spec.backend} needs {module}, which is not installed: pip install 'distrl[{extra}]', or use "
            "--env-backend gymnasium"
        )
    registered = spec.registered()
    is_game = "ale_py" in str(registered.entry_point)
    problems = [
        f"env_backend {spec.backend} cannot be with {name} {value!r}: {why}; use --env-backend gymnasium"
        for name, value, wrong, why in (
            ("wrapper", spec.wrapper, spec.wrapper is not None, "there are no single envs to wrap"),
            ("vectorization", spec.vectorization, spec.vectorization != "sync", "it steps all envs itself"),
            ("autoreset", spec.autoreset, spec.autoreset == "same_step", "it is disabled or next_step"),
            ("atari", spec.atari, is_game and spec.atari is False, "the preprocessing is inside it"),
            ("atari", spec.atari, not is_game and bool(spec.atari), "the env is no ALE game"),
            (
                "frame_stack",
                spec.frame_stack,
                not is_game and (spec.frame_stack or 1) > 1,
                "it stacks games alone",
            ),
        )
        if wrong
    ]
    if spec.backend == "ale" and not is_game:
        problems.append(
            f"env_backend ale must be with an ALE game, such as ALE/Breakout-v5, got {spec.env_id!r}; use --env-backend auto"
        )
    elif spec.backend == "envpool" and envpool_id(spec) is None:
        problems.append(
            f"env_backend envpool does not serve {spec.env_id!r}{_nearest(spec)}; use --env-backend auto"
        )
    else:
        problems += _unknown_options(spec, is_game)
    if problems:
        raise BadInput(*problems)


def make_pool(spec: EnvSpec, num_envs: int) -> Pool:
    """The pool of a spec that `check_pool` let through. Raises BadInput where the library refuses its arguments."""
    registered = spec.registered()
    given = {**spec.kwargs}
    num_threads = int(given.pop("num_threads", 0))
    if "ale_py" not in str(registered.entry_point):
        from distrl.envs.pools.envpool import EnvPoolPool

        return _made(
            spec, lambda: EnvPoolPool(str(envpool_id(spec)), num_envs, {**given, "num_threads": num_threads})
        )
    from distrl.envs.spec import ATARI_FRAME_STACK

    stack = spec.frame_stack or ATARI_FRAME_STACK
    sticky = float(
        given.get("repeat_action_probability", registered.kwargs.get("repeat_action_probability", 0.25))
    )
    full = bool(given.get("full_action_space", registered.kwargs.get("full_action_space", False)))
    game = registered.kwargs["game"]
    if spec.backend == "ale":
        from distrl.envs.pools.ale import AlePool

        return _made(spec, lambda: AlePool(game, num_envs, stack, sticky, full, num_threads))
    from distrl.envs.pools.envpool import EnvPoolPool

    options = {
        "stack_num": stack, "frame_skip": _FRAME_SKIP, "repeat_action_probability": sticky,
        "full_action_space": full, "reward_clip": False, "num_threads": num_threads,
    }  # fmt: skip
    return _made(spec, lambda: EnvPoolPool(str(envpool_id(spec)), num_envs, options, _fire(game, full)))


def step_limit(spec: EnvSpec) -> int:
    """The time limit in steps; 0: none."""
    registered = spec.registered()
    limits = [spec.max_episode_steps or registered.max_episode_steps]
    if "ale_py" in str(registered.entry_point):
        limits.append(registered.kwargs.get("max_num_frames_per_episode", _ALE_FRAMES) // _FRAME_SKIP)
    return min((limit for limit in limits if limit), default=0)


def envpool_id(spec: EnvSpec) -> str | None:
    """EnvPool's name of the env; None where it has none."""
    import envpool

    registered = spec.registered()
    name = spec.env_id
    if "ale_py" in str(registered.entry_point):
        name = "".join(word.capitalize() for word in registered.kwargs["game"].split("_")) + "-v5"
    return name if name in envpool.list_all_envs() else None


def _unknown_options(spec: EnvSpec, is_game: bool) -> list[str]:
    known = list(_ATARI_OPTIONS)
    if not is_game:
        import envpool

        config = envpool.make_spec(str(envpool_id(spec))).config
        known = sorted(set(config._fields) - _OURS)
    unknown = [name for name in spec.kwargs if name not in known]
    return [
        f"env_backend {spec.backend} takes of env_kwargs {', '.join(known)}, got {name!r}; leave it out, or use "
        "--env-backend gymnasium"
        for name in unknown
    ]


def _fire(game: str, full_action_space: bool) -> int | None:
    """The action that a game waits for after a lost life, as `AtariGame` has it."""
    from ale_py import Action, ALEInterface, LoggerMode, roms

    ALEInterface.setLoggerMode(LoggerMode.Error)
    ale = ALEInterface()
    rom: Any = roms.get_rom_path(game)
    ale.loadROM(rom)
    actions = ale.getLegalActionSet() if full_action_space else ale.getMinimalActionSet()
    return _FIRE if len(actions) >= 3 and actions[_FIRE] == Action.FIRE else None


def _made(spec: EnvSpec, make: Any) -> Pool:
    try:
        made: Pool = make()
    except Exception as error:  # a library may raise anything
        said = " ".join(str(error).split())
        raise BadInput(
            f"env {spec.env_id!r} cannot be made by env_backend {spec.backend} with env_kwargs {spec.kwargs}: "
            f"{type(error).__name__}: {said}"
        ) from error
    return made


def _nearest(spec: EnvSpec) -> str:
    import envpool

    close = difflib.get_close_matches(spec.env_id.rpartition(":")[2], envpool.list_all_envs(), n=1)
    return f"; it has {close[0]!r}" if close else ""
