"""EnvSpec: everything that decides what an environment is, and how one is made from it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from distrl.errors import BadInput, translated
from distrl.named import import_named, load_function, nearest

if TYPE_CHECKING:
    import gymnasium

VECTORIZATIONS = ("sync", "async", "vector_entry_point")
BACKENDS = ("auto", "gymnasium", "envpool", "ale", "native")
AUTORESETS = ("disabled", "next_step", "same_step")
NONFINITE = ("fail", "drop")
CHECK_OBSERVATIONS = ("error", "warn", "off")
ATARI_FRAME_STACK = 4

# What registers a namespace's ids, the extra that installs it, and what says that it is missing.
_EXTRAS = {"atari": ("ale_py", "cv2"), "box2d": ("Box2D", "pygame"), "mujoco": ("mujoco",)}
_WORDS = {
    "mujoco": "mujoco",
    "box2d": "box2d",
    "swig": "box2d",
    "pygame": "box2d",
    "opencv": "atari",
    "cv2": "atari",
}


@dataclass(frozen=True)
class EnvSpec:
    """One kind of environment. `make_one` builds it; an `EnvGroup` builds many.

    From inside out: `gymnasium.make(env_id, **kwargs)`, Atari preprocessing (`atari`; None: where the
    game is an ALE one and its observation an image), the time limit, the user's `wrapper`, the frame stack.

    frame_stack: observations stacked; None: 4 for Atari, else 1. max_replay_steps: the longest episode
    that is put back by replaying its actions. step_timeout_sec: a step or reset that takes longer ends
    the process (0: never). max_env_restarts: times that a group's envs may raise. repro_dir: where the
    failing episode of an env that raises is written. backend: who steps the envs; "native" is a compiled loop over
    a `NativeEnv`, "ale" and "envpool" are a library's pools (`distrl.envs.pools`), "auto" is decided by `settled`.
    check_observations: what a value outside a Box's bounds is, an error, a warning or nothing (`observations.py`).
    own_snapshots: whether an env's own `snapshot` and `restore` are used; a trial of them decides (`trial.py`).
    mask_key: the key of the observation that holds the action mask.
    """

    env_id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    wrapper: str | None = None
    vectorization: str = "sync"
    autoreset: str = "disabled"
    frame_stack: int | None = None
    atari: bool | None = None
    max_episode_steps: int | None = None
    max_replay_steps: int = 30_000
    step_timeout_sec: float = 120.0
    max_env_restarts: int = 3
    nonfinite: str = "fail"
    repro_dir: str | None = None
    backend: str = "gymnasium"
    check_observations: str = "warn"
    own_snapshots: bool = True
    mask_key: str | None = None

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be one of {', '.join(allowed)}, got {given!r}{nearest(given, allowed)}"
            for name, given, allowed in (
                ("vectorization", self.vectorization, VECTORIZATIONS),
                ("autoreset", self.autoreset, AUTORESETS),
                ("nonfinite", self.nonfinite, NONFINITE),
                ("backend", self.backend, BACKENDS),
                ("check_observations", self.check_observations, CHECK_OBSERVATIONS),
            )
            if given not in allowed
        ]
        problems += [
            f"{name} must be at least {least}, got {given!r}"
            for name, given, least in (
                ("frame_stack", self.frame_stack, 1),
                ("max_episode_steps", self.max_episode_steps, 1),
                ("max_replay_steps", self.max_replay_steps, 0),
                ("step_timeout_sec", self.step_timeout_sec, 0),
                ("max_env_restarts", self.max_env_restarts, 0),
            )
            if given is not None and given < least
        ]
        if problems:
            raise BadInput(*problems)

    def to_json(self) -> dict[str, Any]:
        """The fields, for a JSON file; `EnvSpec(**fields)` is the same spec."""
        return dataclasses.asdict(self)

    def settled(self) -> EnvSpec:
        """The same with its backend decided: "auto" is native where there is a native env of that id and nothing is
        asked of it that it does not do, and else gymnasium. It is never a pool, whose episodes are others.

        Raises BadInput where a backend is asked for and cannot be.
        """
        if self.backend == "gymnasium":
            return self
        if self.backend in ("ale", "envpool"):
            from distrl.envs.pools.choice import check_pool

            check_pool(self)
            return self
        from distrl.envs.native.choice import is_native, native_env

        hindrances = self.not_native()
        if self.backend == "native":
            if hindrances:
                raise BadInput(
                    f"env_backend native cannot be with {', '.join(hindrances)}: use env_backend gymnasium"
                )
            native_env(self.env_id)
            return self
        native = not hindrances and is_native(self.env_id)
        return dataclasses.replace(self, backend="native" if native else "gymnasium")

    def not_native(self) -> list[str]:
        """What is asked of the envs that only Gymnasium's do."""
        return [
            f"{name} {value!r}"
            for name, value, plain in (
                ("env_kwargs", self.kwargs, {}),
                ("wrapper", self.wrapper, None),
                ("frame_stack", self.frame_stack or 1, 1),
                ("atari", bool(self.atari), False),
                ("vectorization", self.vectorization, "sync"),
                ("autoreset", self.autoreset, "disabled"),
                ("mask_key", self.mask_key, None),
            )
            if value != plain
        ]

    @property
    def is_native(self) -> bool:
        """Whether a compiled loop steps the envs; pictures are Gymnasium's."""
        return self.backend == "native" and "render_mode" not in self.kwargs

    @property
    def is_pool(self) -> bool:
        """Whether a library's own pool steps the envs; pictures are Gymnasium's."""
        return self.backend in ("ale", "envpool") and "render_mode" not in self.kwargs

    def make_one(self, **extra: Any) -> gymnasium.Env[Any, Any]:
        """The whole wrapper stack around one new environment; `extra` (`render_mode`) joins the kwargs.

        Raises BadInput for an unknown id, arguments that the env does not take, a module that cannot be
        imported or a missing extra, with the nearest right name or the command that installs it.
        """
        import gymnasium

        from distrl.envs.api import check_made
        from distrl.envs.surroundings import kept

        registered = self.registered()
        atari = self.is_atari(registered)
        kwargs = {**self._gymnasium_kwargs(atari), **extra}
        limit: dict[str, Any] = {}
        sticky = 0.0
        if atari:
            # Below the preprocessing, one frame a step and no sticky actions: it does both. A time limit counts
            # its steps.
            sticky = kwargs.get(
                "repeat_action_probability", registered.kwargs.get("repeat_action_probability", 0.25)
            )
            kwargs = {"frameskip": 1, "obs_type": "grayscale", **kwargs, "repeat_action_probability": 0.0}
        elif self.max_episode_steps is not None:
            limit = {"max_episode_steps": self.max_episode_steps}
        if "mujoco" in str(registered.entry_point) and importlib.util.find_spec("mujoco"):
            _hear_mujoco()
        with kept():
            try:
                env = gymnasium.make(registered, disable_env_checker=True, **limit, **kwargs)
            except (Exception, SystemExit) as error:  # an env's constructor may raise anything
                raise BadInput(self._cannot_make(error)) from error
            try:
                check_made(env, self.env_id)
                if atari:
                    env = self._preprocess(env, sticky)
                if self.wrapper is not None:
                    env = _wrap(self.wrapper, env)
                if self.mask_key is not None:
                    from distrl.envs.mask_key import MaskFromObservation

                    env = MaskFromObservation(env, self.mask_key)
            except BaseException:
                with contextlib.suppress(Exception):  # the first error is the one that counts
                    env.close()
                raise
        if not atari and (self.frame_stack or 1) > 1:
            from distrl.envs.frame_stack import FrameStack

            env = FrameStack(env, self.frame_stack or 1)
        return env

    def registered(self) -> gymnasium.envs.registration.EnvSpec:
        """Gymnasium's own spec of `env_id`, after the import of what registers it. Raises BadInput."""
        import gymnasium

        module, _, name = self.env_id.rpartition(":")
        if module:
            imported = import_named(module, f"env {self.env_id!r}")
            if name not in gymnasium.registry:
                from distrl.envs.registrations import registered_object

                if (own := registered_object(imported, name, self.env_id)) is not None:
                    return own
        if name.startswith("ALE/") or (name not in gymnasium.registry and importlib.util.find_spec("ale_py")):
            _register_atari(name)
        if name in gymnasium.registry:
            return gymnasium.registry[name]
        raise BadInput(f"env must be a registered id, got {name!r}{_nearest_id(name)}")

    def is_atari(self, registered: gymnasium.envs.registration.EnvSpec | None = None) -> bool:
        """Whether the standard Atari preprocessing goes around it."""
        if self.atari is not None:
            return self.atari
        point = (registered or self.registered()).entry_point
        return "ale_py" in str(point) and self.kwargs.get("obs_type") != "ram"

    def _gymnasium_kwargs(self, atari: bool) -> dict[str, Any]:
        """Of `kwargs`, those that are not a pool's own."""
        if self.backend not in ("ale", "envpool"):
            return self.kwargs
        return {name: value for name, value in self.kwargs.items() if atari and name != "num_threads"}

    def _preprocess(self, env: gymnasium.Env[Any, Any], sticky: float) -> gymnasium.Env[Any, Any]:
        from gymnasium.wrappers import TimeLimit

        from distrl.envs.atari import AtariGame

        env = AtariGame(env, frame_stack=self.frame_stack or ATARI_FRAME_STACK, sticky=sticky)
        return env if self.max_episode_steps is None else TimeLimit(env, self.max_episode_steps)

    def _cannot_make(self, error: BaseException) -> str:
        from distrl.envs.api import place_of

        said = " ".join(str(error).split())
        for word, extra in _WORDS.items():
            missing = [name for name in _EXTRAS[extra] if importlib.util.find_spec(name) is None]
            if word in said.lower() and missing:
                return f"env {self.env_id!r} needs {', '.join(missing)}: pip install 'distrl[{extra}]'"
        return (
            f"env {self.env_id!r} cannot be made with env_kwargs {self.kwargs}: {type(error).__name__}: {said}"
            + ("" if said and not isinstance(error, SystemExit) else place_of(error))
        )


def _wrap(name: str, env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    import gymnasium

    from distrl.envs.api import check_made

    function = load_function(name, "wrapper")
    with translated(f"wrapper {name!r} raised"):
        wrapped = function(env)
    if not isinstance(wrapped, gymnasium.Env):
        raise BadInput(f"wrapper {name!r} must return a gymnasium.Env, got {type(wrapped).__name__}")
    check_made(wrapped, f"{env.spec.id if env.spec else env} in {name}")
    return wrapped


def _hear_mujoco() -> None:
    """MuJoCo's warnings go to standard error, each once, and not into a MUJOCO_LOG.TXT in the current folder."""
    import mujoco

    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_say_once)


@functools.cache
def _say_once(message: str) -> None:
    if "deprecated" not in message:  # in gymnasium's own models: nothing that the user can do
        print(f"mujoco: {message}", file=sys.stderr)


def _register_atari(name: str) -> None:
    import gymnasium

    missing = [module for module in _EXTRAS["atari"] if importlib.util.find_spec(module) is None]
    if missing:
        raise BadInput(f"env {name!r} needs {', '.join(missing)}: pip install 'distrl[atari]'")
    gymnasium.register_envs(importlib.import_module("ale_py"))


def _nearest_id(name: str) -> str:
    import gymnasium

    known = list(gymnasium.registry)
    same_name = [key for key in known if key.lower().rpartition("-v")[0] == name.lower().rpartition("-v")[0]]
    if same_name:
        return f"; did you mean {max(same_name)!r}?"
    return nearest(name, known) or "; `module:Name-v0` imports the module that registers it"
