"""Which env ids are native, and whether a spec can be played by one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from distrl.errors import BadInput

if TYPE_CHECKING:
    from distrl.envs.native.protocol import NativeEnv

# id -> (module here, the entry point that it is the twin of)
BUILT_IN = {
    "CartPole-v0": ("cartpole", "gymnasium.envs.classic_control.cartpole:CartPoleEnv"),
    "CartPole-v1": ("cartpole", "gymnasium.envs.classic_control.cartpole:CartPoleEnv"),
    "Acrobot-v1": ("acrobot", "gymnasium.envs.classic_control.acrobot:AcrobotEnv"),
    "MountainCar-v0": ("mountain_car", "gymnasium.envs.classic_control.mountain_car:MountainCarEnv"),
    "MountainCarContinuous-v0": (
        "mountain_car_continuous",
        "gymnasium.envs.classic_control.continuous_mountain_car:Continuous_MountainCarEnv",
    ),
    "Pendulum-v1": ("pendulum", "gymnasium.envs.classic_control.pendulum:PendulumEnv"),
}


def native_env(env_id: str) -> tuple[NativeEnv, int | None]:
    """The built-in env of that id, or one's own named `module:attribute`; and its time limit.

    Raises BadInput that names what there is.
    """
    from distrl.envs.native.protocol import NativeEnv

    if env_id in BUILT_IN:
        import gymnasium

        module = importlib.import_module(f"distrl.envs.native.{BUILT_IN[env_id][0]}")
        return module.ENV, gymnasium.registry[env_id].max_episode_steps
    found: Any = own_env(env_id) if ":" in env_id else None
    if not isinstance(found, NativeEnv):
        raise BadInput(
            f"env {env_id!r} is no native env: there are {', '.join(BUILT_IN)}, and one's own, a NativeEnv "
            "named module:attribute (docs/native_env.md)"
        )
    return found, found.max_episode_steps


def is_native(env_id: str) -> bool:
    """Whether that id is of a native env, and nobody registered another env under it."""
    import gymnasium

    from distrl.envs.native.protocol import NativeEnv

    if env_id in BUILT_IN:
        return gymnasium.registry[env_id].entry_point == BUILT_IN[env_id][1]
    return ":" in env_id and isinstance(own_env(env_id), NativeEnv)


def own_env(name: str) -> Any:
    """What `module:attribute` names; None where the module has no such attribute. BadInput where it cannot be imported."""
    from distrl.named import import_named

    module, _, attribute = name.partition(":")
    return getattr(import_named(module, f"env {name!r}"), attribute, None)
