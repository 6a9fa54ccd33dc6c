"""What an env claims, tried: the checks of `distrl doctor`, a few steps of which every run makes before it starts.

    reset(seed)   the same first observation twice in one env, and in another one
    replay        an episode played alone; then again in another env, while the first plays something else: what draws
                  from a generator of the whole process, or keeps memory in its class, differs
    snapshot      the env's own `snapshot()`, put into another env by `restore(state)`, plays on alike

A run is `exact` where these hold, else `unknown`, with the reason. Envs of Gymnasium and ALE themselves, native ones and
pools are known, and are not tried.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from distrl.envs import snapshots
from distrl.envs.api import check_reset, check_step, explain_step
from distrl.envs.closing import LONGEST_SEC as LONGEST_CLOSE_SEC
from distrl.envs.closing import within
from distrl.envs.group import EnvGroup
from distrl.envs.infos import MASK
from distrl.envs.masks import MaskReader, legal_action
from distrl.envs.spec import EnvSpec
from distrl.envs.watchdog import Beat
from distrl.errors import BadInput, RunFailed, cause

NUM_STEPS = 5  # of each episode that a run tries; `distrl doctor` plays more
LONGEST_SEC = 10.0  # of a run's trial
LONGEST_MAKING_SEC = 3.0  # of an env, for another one to be made for the trial
_KNOWN = ("gymnasium.envs.", "ale_py.", "distrl.")
_NOT_USED = "its own snapshot() and restore(state) are not used"
_LEAVES = (str, int, float, bool, bytes, type(None))

Call = Callable[..., Any]


@dataclass(frozen=True)
class Check:
    """One thing tried: `problem` says what is wrong with it, None that it holds."""

    what: str
    problem: str | None
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a run may claim, and what it tells of it; whether the env's own snapshots are used."""

    reproducibility: str = "exact"
    notes: tuple[str, ...] = ()
    own_snapshots: bool = True


class _OutOfTime(Exception):
    """The trial takes too long for the start of a run."""


def try_env(spec: EnvSpec, env: gymnasium.Env[Any, Any], made_sec: float, seed: int) -> Verdict:
    """What a run of `spec` may claim. `env` is one of it, which took `made_sec` to make; it is reset and stepped.

    Raises BadInput where it does not speak Gymnasium's API. Whatever else it raises is no reason not to run.
    """
    name = spec.env_id
    if is_known(spec):
        return Verdict()
    deadline = time.monotonic() + LONGEST_SEC
    beat = Beat(f"the trial of {name} before the run", spec.step_timeout_sec)

    def call(function: Call, *arguments: Any, **named: Any) -> Any:
        if time.monotonic() > deadline:
            raise _OutOfTime
        with beat, np.errstate():
            return function(*arguments, **named)

    other: gymnasium.Env[Any, Any] | None = None
    try:
        check_reset(call(env.reset, seed=seed), name)
        if made_sec > LONGEST_MAKING_SEC:
            raise _OutOfTime
        other = spec.make_one()
        _require_same_spaces(env, other, name)
        found = list(checks(env, other, name, seed, NUM_STEPS, call))
    except _OutOfTime:
        return _unknown(name, "was not tried, because it is slow to make or to step")
    except (Exception, SystemExit) as error:  # the env's own, which a run may outlive
        if isinstance(error, BadInput) and other is not None:
            raise
        if isinstance(error, BadInput):
            if error.__cause__ is None:
                raise
            return _unknown(name, f"was not tried: a second env cannot be made beside the first ({error})")
        return _unknown(name, f"was not tried: it raised {cause(error)} in the trial before the run")
    finally:
        beat.close()
        if other is not None:
            within(other.close, LONGEST_CLOSE_SEC)
    return _verdict(name, found)


def _require_same_spaces(env: gymnasium.Env[Any, Any], other: gymnasium.Env[Any, Any], name: str) -> None:
    for which in ("observation_space", "action_space"):
        one, two = getattr(env, which), getattr(other, which)
        if one != two:
            raise BadInput(
                f"env {name!r}: {which} must be the same in every env that is made with the same arguments, got {one} "
                f"and then {two}; let env_kwargs decide it"
            )


def _verdict(name: str, found: list[Check]) -> Verdict:
    notes: list[str] = []
    own = next((one for one in found if one.what == "snapshot"), None)
    uses_own = own is None or own.problem is None
    if own is not None and own.problem is not None:
        notes.append(f"{name}: {_NOT_USED}: {own.problem}")
    wrong = [one for one in found if one.what != "snapshot" and one.problem is not None]
    if not wrong:
        return Verdict("exact", tuple(notes), uses_own)
    unknown = _unknown(name, f"{wrong[0].what} {wrong[0].problem}")
    return dataclasses.replace(unknown, notes=(*unknown.notes, *notes), own_snapshots=uses_own)


def _unknown(name: str, why: str) -> Verdict:
    return Verdict("unknown", (f"reproducibility is unknown: {name}: {why}",))


def try_entry_point(spec: EnvSpec, seed: int) -> Verdict:
    """The same for a vector entry point with `snapshot` and `restore` of its own: do they put a group back?"""
    groups: list[EnvGroup] = []
    try:
        groups += [EnvGroup(spec, index, 2, first_env=0, seed=seed) for index in range(2)]
        group, other = groups
        if not group.has_own:
            return Verdict()
        space = copy.deepcopy(group.action_space)
        space.seed(seed)
        actions = [np.stack([space.sample() for _ in range(2)]) for _ in range(NUM_STEPS)]
        group.start()
        for action in actions[:2]:
            group.step(action)
        state = group.snapshot()
        problem = state_problem(state["envs"])
        if problem is None:
            other.restore(copy.deepcopy(state))
            for number, action in enumerate(actions[2:], 1):
                one, two = (each.step(action) for each in groups)
                if not same_tree((group.observation, one.reward), (other.observation, two.reward)):
                    problem = f"a group that is put back by them plays on differently at step {number}"
                    break
    except (Exception, SystemExit) as error:  # unrelated methods of these names, or a bug in them
        problem = f"they raised {cause(error.__cause__ or error)}"
    finally:
        for made in groups:
            made.close()
    if problem is None:
        return Verdict()
    return Verdict(notes=(f"{spec.env_id}: {_NOT_USED}: {problem}",), own_snapshots=False)


def is_known(spec: EnvSpec) -> bool:
    """Whether the env is of a kind whose claims were tried once for all."""
    if spec.is_native or spec.is_pool or spec.vectorization == "vector_entry_point":
        return True
    point = spec.registered().entry_point
    module = point if isinstance(point, str) else _module_of(point)
    return spec.wrapper is None and module.startswith(_KNOWN)


def _module_of(point: Any) -> str:
    point = getattr(point, "func", point)  # of a partial
    return str(getattr(point, "__module__", ""))


def checks(
    env: gymnasium.Env[Any, Any],
    other: gymnasium.Env[Any, Any],
    name: str,
    seed: int,
    steps: int,
    call: Call = lambda function, *arguments, **named: function(*arguments, **named),
) -> Iterator[Check]:
    """All checks of two envs of one kind, over `steps` steps. What the envs raise comes through."""
    first, second, third = (check_reset(call(one.reset, seed=seed), name)[0] for one in (env, env, other))
    same = same_tree(first, second) and same_tree(first, third)
    wrong = "gives different observations: draw from self.np_random, which super().reset(seed=seed) sets"
    yield Check("reset(seed)", None if same else wrong, "gives the same observation each time")
    episodes = _Episodes(env, name, seed, call)
    played = [episodes.step() for _ in range(steps)]
    again, beside = _Episodes(other, name, seed, call), _Episodes(env, name, seed + steps + 1, call)
    for number, (action, outcome) in enumerate(played, 1):
        if not same_tree(again.step(action)[1], outcome):
            yield Check(
                "replay",
                f"differs at step {number}: the env is no function of its seed and actions, so that a run cannot be put "
                "back exactly after a fault",
            )
            break
        beside.step()
    else:
        yield Check("replay", None, f"exact over {steps} steps")
    if has_own_snapshot(env):
        yield Check("snapshot", _snapshot_problem(env, other, name, seed, steps, call))


class _Episodes:
    """Plays an env by random legal actions, the same for a seed; an episode that ended is followed by the next seed's."""

    def __init__(self, env: gymnasium.Env[Any, Any], name: str, seed: int, call: Call) -> None:
        self.env, self.name, self.call, self.seed = env, name, call, seed
        self.space = copy.deepcopy(env.action_space)
        self.space.seed(seed)
        self.reader = MaskReader(env)
        self.begin()

    def begin(self) -> None:
        _, self.info = check_reset(self.call(self.env.reset, seed=self.seed), self.name)
        self.length = 0  # of the episode so far, in steps

    def step(self, action: Any = None) -> tuple[Any, Any]:
        """(the action, what the env answered but for its info), copied."""
        if action is None:
            action = self._legal()
        try:
            result = self.call(self.env.step, copy.deepcopy(action))
        except ValueError as error:
            explain_step(self.env, copy.deepcopy(action), self.name, error)
            raise
        *answer, self.info = check_step(result, self.name)
        self.length += 1
        answer = copy.deepcopy(answer)
        if answer[2] or answer[3]:
            self.seed += 1
            self.begin()
        return action, tuple(answer)

    def _legal(self) -> Any:
        """A random action, by the mask that comes with the observation, in any form that a run reads."""
        try:
            said = self.call(self.reader.put, self.env, self.info, self.name, self.length)
            return legal_action(self.space, said.get(MASK) if isinstance(said, Mapping) else None)
        except RunFailed:  # no mask of this space: told when the run reads it
            return self.space.sample()


def has_own_snapshot(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether a layer of `env` has methods of its own named `snapshot` and `restore`."""
    while True:
        if snapshots.has_own(env):
            return True
        if not isinstance(env, gymnasium.Wrapper):
            return False
        env = env.env


def _snapshot_problem(
    env: gymnasium.Env[Any, Any], other: gymnasium.Env[Any, Any], name: str, seed: int, steps: int, call: Call
) -> str | None:
    """Takes a snapshot of `env` in the middle of an episode and puts it into `other`."""
    playing = _Episodes(env, name, seed, call)
    for _ in range(steps // 2):
        playing.step()
    try:
        state = call(snapshots.capture, env)
        if state is None:
            return None  # a wrapper around it has memory: the episodes are replayed
        problem = state_problem(state)
        if problem is not None:
            return problem
        following = _Episodes(other, name, playing.seed, call)
        call(snapshots.apply, other, state)
        for number in range(1, steps - steps // 2 + 1):
            action, outcome = playing.step()
            if not same_tree(following.step(action)[1], outcome):
                return f"an env that is put back by them plays on differently at step {number}"
    except (BadInput, RunFailed, _OutOfTime):
        raise
    except (Exception, SystemExit) as error:  # unrelated methods of these names, or a bug in them
        return f"they raised {cause(error)}"
    return None


def state_problem(state: Any, where: str = "") -> str | None:
    """What of `state` a checkpoint cannot hold; None where it is a state tree."""
    if type(state) in _LEAVES:
        return None
    if isinstance(state, np.ndarray | np.generic):
        return f"the state{where} is an array of {state.dtype}" if state.dtype.kind not in "biufc" else None
    if isinstance(state, Mapping):
        items: Any = [(f"[{key!r}]", value) for key, value in state.items()]
        if not all(type(key) is str for key in state):
            return f"the state{where} has keys that are no strings"
    elif isinstance(state, list | tuple):
        items = [(f"[{place}]", value) for place, value in enumerate(state)]
    else:
        return (
            f"the state{where} holds a {type(state).__module__}.{type(state).__qualname__}, and must be dicts, lists, "
            "arrays, numbers and text"
        )
    return next((found for key, value in items if (found := state_problem(value, where + key))), None)


def same_tree(one: Any, other: Any) -> bool:
    """Whether two trees of arrays are equal to the bit, NaN equal to NaN."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same_tree(one[k], other[k]) for k in one)
        )
    if isinstance(one, tuple | list):
        return isinstance(other, tuple | list) and len(one) == len(other) and all(map(same_tree, one, other))
    left, right = np.asarray(one), np.asarray(other)
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
