"""A group's state, taken and put back: its own arrays, and those of its envs by the way that their kind knows.

EpisodeEnvs     each its snapshot, or its reset seed and actions   (distrl/envs/episode.py)
a native env    its arrays
a pool          each env's seed, resets and actions                (distrl/envs/pools/vector.py)
an entry point  its own snapshot() where it has one, else nothing
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distrl.envs.pools.vector import PoolVectorEnv
from distrl.envs.results import listed, unlisted

if TYPE_CHECKING:
    from distrl.envs.group import EnvGroup


def capture(group: EnvGroup) -> dict[str, Any]:
    """Everything that the next step depends on, as a state tree; tells the group what a recovery would lose."""
    if group.observation is None:
        return {"begun": False}
    vector = group.calls.vector
    envs: list[Any] = []
    if group.is_wrapped:
        envs = list(group.watched(vector.call, "episode_snapshot", group.resetting.tolist()))
        lost = np.array([env["strategy"] == "lost" for env in envs])
    elif group.has_own:
        envs = [vector.unwrapped.snapshot()]
        lost = np.asarray(envs[0].get("lost", False) if isinstance(vector, PoolVectorEnv) else False)
    else:
        lost = np.zeros(0, np.bool_)
    if not isinstance(vector, PoolVectorEnv) or vector.pool.restorable:
        for slot in np.flatnonzero(lost).tolist():
            group.lose(
                f"{group.calls.who(slot)} has no exact snapshot and its episode is over the "
                f"{group.spec.max_replay_steps} steps of max_replay_steps: a recovery starts a fresh episode"
            )
    return {
        "begun": True,
        "envs": envs,
        "observation": listed(group.observation),
        "action_mask": group.action_mask,
        "episode_start": group.episode_start,
        "return": group.running_return.copy(),
        "length": group.running_length.copy(),
        "episode": group.episode.copy(),
        "resetting": group.resetting.copy(),
        "dropped": group.dropped,
        "reproducibility": group.reproducibility,
    }


def put_back(group: EnvGroup, state: dict[str, Any]) -> NDArray[np.bool_]:
    """`group` in `state`; the rows [N] whose running episode could not be put back, and has to be replaced."""
    if not state["begun"]:
        group.observation = None
        return np.zeros(group.num_envs, np.bool_)
    group.observation = unlisted(state["observation"], group.observation_space)
    mask = state["action_mask"]
    group.action_mask = None if mask is None else np.array(mask, np.bool_)
    group.episode_start = np.array(state["episode_start"], np.bool_)
    group.running_return = np.array(state["return"], np.float64)
    group.running_length = np.array(state["length"], np.int64)
    group.episode = np.array(state["episode"], np.int64)
    group.resetting = np.array(state["resetting"], np.bool_)
    group.dropped = state["dropped"]
    if state["reproducibility"] == "episode":
        group.reproducibility = "episode"
    lost = _put_envs_back(group, state["envs"])
    if lost.any():
        group.episode_start = group.episode_start | lost
        group.running_return[lost], group.running_length[lost], group.resetting[lost] = 0.0, 0, False
    return lost


def _put_envs_back(group: EnvGroup, states: list[Any]) -> NDArray[np.bool_]:
    vector, lost = group.calls.vector, np.zeros(group.num_envs, np.bool_)
    if not states:
        return ~lost
    if isinstance(vector, PoolVectorEnv):
        known = np.asarray(states[0]["lost"], np.bool_)
        lost = group.calls.unwatched(vector.restore, states[0])
        for slot in np.flatnonzero(lost).tolist():
            _say_lost(group, slot, differs=not known[slot])
        return lost
    # A vector env must have been reset once, and forgets by it what it was about to reset itself.
    group.watched(vector.reset, seed=list(range(group.num_envs)) if group.is_wrapped else 0)
    if not group.is_wrapped:
        vector.unwrapped.restore(states[0])
        return lost
    for slot, outcome in enumerate(group.calls.unwatched(vector.call, "episode_restore", states)):
        if outcome != "exact":
            lost[slot] = True
            _say_lost(group, slot, differs=outcome == "differs")
    return lost


def _say_lost(group: EnvGroup, slot: int, differs: bool) -> None:
    vector = group.calls.vector
    why = "replays differently" if differs else "was too long to be replayed"
    if isinstance(vector, PoolVectorEnv) and not vector.pool.restorable:
        why = "cannot be replayed"
    group.lose(f"{group.calls.who(slot)} {why}: its running episode is dropped, and a fresh one begins")
