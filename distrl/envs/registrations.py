"""Env ids that the driver's own script registered, so that workers, which never ran it, know them too.

An id of a module (`module:Name-v0`) is registered wherever that module is imported. One that a script or a notebook
registered by `gymnasium.register` is known in its process alone: Gymnasium's spec of it travels with the run.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator

from distrl.envs import given
from distrl.envs.native.single import registered_as
from distrl.envs.spec import EnvSpec
from distrl.errors import BadInput

_EVERYWHERE = ("gymnasium.envs.", "ale_py.")


def registered_object(module: Any, name: str, env_id: str) -> Any:
    """Gymnasium's spec of an Env class, a function that makes an env, or a NativeEnv, by its name in a module; None where
    there is no such thing. Raises BadInput."""
    try:
        found = operator.attrgetter(name)(module)
    except AttributeError:
        if module.__name__ == given.__name__:
            raise BadInput(
                f"env {env_id!r} was given to Python as an object made inside a function, which this process does not have: "
                "put it at the top of a module and name it module:Class"
            ) from None
        return None
    if (native := registered_as(name, found)) is not None:
        return native
    if isinstance(found, type) and issubclass(found, gymnasium.vector.VectorEnv):
        raise BadInput(
            f"env {env_id!r} is a VectorEnv: register it (gymnasium.register with vector_entry_point=...), and give its id "
            "with --vectorization vector_entry_point"
        )
    if not callable(found):
        raise BadInput(
            f"env {env_id!r} must be an Env class or a function that makes one, got {type(found).__name__}"
        )
    return gymnasium.envs.registration.EnvSpec(id=name, entry_point=found)


def registrations(spec: EnvSpec) -> tuple[Any, ...]:
    """Gymnasium's spec of the env, where only this process may know it; with its class where that is of the script."""
    registered = spec.registered()
    point = registered.entry_point
    if isinstance(point, str) and point.startswith(_EVERYWHERE):
        return ()
    if isinstance(point, str) and point.partition(":")[0] == "__main__":
        registered = copy.copy(registered)
        registered.entry_point = load_env_creator(point)  # type: ignore[assignment]
    return (registered,)


def register(specs: tuple[Any, ...]) -> None:
    """Makes them known to this process's Gymnasium, where they are not yet."""
    for spec in specs:
        gymnasium.registry.setdefault(spec.id, spec)


def check_travels(specs: tuple[Any, ...], env_id: str) -> None:
    """Raises BadInput where they cannot be sent to workers, before Ray starts."""
    import cloudpickle

    try:
        cloudpickle.dumps(specs)
    except Exception as error:  # whatever the script's class holds on to
        raise BadInput(
            f"env {env_id!r} is registered in this script and cannot be sent to Ray workers ({type(error).__name__}: "
            f"{error}); move it into a module and give --env module:Name, or train in-process with --workers 0"
        ) from error
