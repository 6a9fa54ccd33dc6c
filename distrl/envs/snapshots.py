"""Exact snapshots of an environment and the wrappers around it, where there are such.

From the outermost wrapper inwards, every layer must be one whose whole memory is known: a class that has
`snapshot()` and `restore(state)` itself (it answers for everything inside it), a wrapper of the table
below, or at the core a MuJoCo environment of gymnasium's or an ALE game. One unknown layer, and there is no
snapshot: the episode is replayed instead.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
from gymnasium import wrappers

from distrl.envs.atari import AtariGame
from distrl.envs.frame_stack import FrameStack
from distrl.envs.mask_key import MaskFromObservation

# Wrapper -> the attributes that it changes while an episode runs.
_MEMORY: dict[type, tuple[str, ...]] = {
    wrappers.TimeLimit: ("_elapsed_steps",),
    wrappers.OrderEnforcing: ("_has_reset",),
    wrappers.PassiveEnvChecker: (),
    wrappers.ClipAction: (),
    wrappers.RescaleAction: (),
    wrappers.ClipReward: (),
    wrappers.DtypeObservation: (),
    wrappers.FilterObservation: (),
    wrappers.FlattenObservation: (),
    wrappers.GrayscaleObservation: (),
    wrappers.RescaleObservation: (),
    wrappers.ReshapeObservation: (),
    wrappers.ResizeObservation: (),
    MaskFromObservation: (),
}
_LAYERS = (AtariGame, FrameStack)

# Where things are, which mj_step leaves one substep behind qpos: Ant and Humanoid measure how far they came
# from these, so a mj_forward at qpos would not give the same reward.
_KINEMATICS = (
    "xpos",
    "xquat",
    "xmat",
    "xipos",
    "ximat",
    "xanchor",
    "xaxis",
    "geom_xpos",
    "geom_xmat",
    "site_xpos",
    "site_xmat",
    "cam_xpos",
    "cam_xmat",
    "subtree_com",
    "cinert",
    "cvel",
    "qfrc_actuator",
    "qfrc_constraint",
    "cfrc_ext",
    "cfrc_int",
    "cacc",
    "actuator_force",
    "sensordata",
)

Layers = list[dict[str, Any]]


def capture(env: gymnasium.Env[Any, Any], own_snapshots: bool = True) -> Layers | None:
    """The state of all layers as a state tree, or None where it cannot be taken. Without `own_snapshots`, an env's own
    `snapshot` is not one."""
    layers: Layers = []
    while True:
        if own_snapshots and has_own(env):
            own = copy.deepcopy(env.snapshot())  # type: ignore[attr-defined]  # its arrays may be the env's memory
            layers.append({"own": own, "random": _random_state(env)})
            return layers
        if not isinstance(env, gymnasium.Wrapper):
            core = _core(env)
            return None if core is None else [*layers, {**core, "random": _random_state(env)}]
        if type(env) in _LAYERS:
            layers.append(env.snapshot_layer())  # type: ignore[attr-defined]
        elif type(env) in _MEMORY:
            layers.append({name: getattr(env, name) for name in _MEMORY[type(env)]})
        else:
            return None
        env = env.env


def apply(env: gymnasium.Env[Any, Any], layers: Layers) -> None:
    """Put `env`, built by the same spec and reset at least once, into the state that `capture` took."""
    for layer in layers:
        if "own" in layer:
            env.restore(copy.deepcopy(layer["own"]))  # type: ignore[attr-defined]
        elif "mujoco" in layer:
            _restore_mujoco(env, layer)
        elif "ale" in layer:
            _restore_ale(env, layer)
        elif type(env) in _LAYERS:
            env.restore_layer(layer)  # type: ignore[attr-defined]
        else:
            for name, value in layer.items():
                setattr(env, name, value)
        if "random" in layer:
            _restore_random(env, layer["random"])
            return
        env = env.env  # type: ignore[attr-defined]


def has_own(env: Any) -> bool:
    """Whether the class of `env` has `snapshot()` and `restore(state)`; the state must be a state tree."""
    return all(callable(getattr(type(env), name, None)) for name in ("snapshot", "restore"))


def _core(env: Any) -> dict[str, Any] | None:
    module = type(env).__module__
    if module.startswith("gymnasium.envs.mujoco."):
        return _capture_mujoco(env)
    # ALE keeps the action that a sticky one would repeat outside of its states.
    if module.startswith("ale_py.") and env.ale.getFloat("repeat_action_probability") == 0.0:
        state = env.ale.cloneState(include_rng=True).serialize()
        return {"ale": np.frombuffer(state, np.uint8).copy()}
    return None


def _capture_mujoco(env: Any) -> dict[str, Any]:
    import mujoco

    integration = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(env.model, integration), np.float64)
    mujoco.mj_getState(env.model, env.data, state, integration)
    kinematics = {name: np.array(getattr(env.data, name)) for name in _KINEMATICS if hasattr(env.data, name)}
    return {"mujoco": state, "kinematics": kinematics}


def _restore_mujoco(env: Any, layer: dict[str, Any]) -> None:
    import mujoco

    integration = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.ascontiguousarray(layer["mujoco"])
    mujoco.mj_setState(env.model, env.data, state, integration)
    mujoco.mj_forward(env.model, env.data)  # the rest of what can be read, e.g. by a renderer
    for name, value in layer["kinematics"].items():
        getattr(env.data, name)[...] = value


def _restore_ale(env: Any, layer: dict[str, Any]) -> None:
    from ale_py import ALEState

    env.ale.restoreState(ALEState(np.asarray(layer["ale"], np.uint8).tobytes()))


def _random_state(env: gymnasium.Env[Any, Any]) -> Any:
    generator = env.unwrapped._np_random
    return None if generator is None else generator.bit_generator.state


def _restore_random(env: gymnasium.Env[Any, Any], state: Any) -> None:
    if state is not None:
        base = env.unwrapped
        base.np_random.bit_generator.state = state
