"""Environments as people bring them, each with one trait. `tests.wild.toy_envs:Name` is an env id."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Task(gym.Env[Any, Any]):
    """Episodes of 6 steps; go right (1) to be paid 1. Observes place, time and a draw of its generator."""

    observation_space: Any = spaces.Box(-10, 10, (3,), np.float32)
    action_space: Any = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), self.info()

    def step(self, action: Any) -> Any:
        self.t += 1
        return self.observe(), float(action), self.t >= 6, False, self.info()

    def observe(self) -> Any:
        return np.array([self.t, 1.0, self.np_random.uniform()], np.float32)

    def info(self) -> Any:
        return {}


# -- what is said in infos


class PrivateNames(Task):
    """Every name that a trainer might use for itself, as something else."""

    def info(self) -> Any:
        names = (
            "life_lost", "life_final_obs", "forced", "unlearned_reward", "final_obs", "final_info", "_anything",
            "anything", "env_restarted", "episode", "TimeLimit.truncated", "distrl", "_distrl", "numbers", "final_observation",
            "reset_mask", "terminal_observation", "lives", "valid", "_final_obs",
        )  # fmt: skip
        values: list[Any] = [True, "text", np.ones(3), 2.5, None, {"a": 1}, [1, "b"]]
        return {name: values[(place + self.t) % len(values)] for place, name in enumerate(names)}


class Wild(Task):
    """Values whose types and lengths vary from step to step, and keys that are no strings."""

    def info(self) -> Any:
        itself: dict[Any, Any] = {"deep": {}}
        itself["deep"]["again"] = itself
        several: list[Any] = [
            1,
            2.5,
            "x",
            None,
            np.zeros(self.t),
            {"k": self.t},
            2**80,
            10**400,
            1e30,
            object(),
            [1] * self.t,
        ]
        return {
            "varies": several[self.t % len(several)],
            7: 1,
            (1, 2): 3.0,
            "huge": 2**80,
            "none": None,
            "itself": itself,
            "strings": ["a"] * self.t,
            "array": np.zeros((self.t, 2)),
            "open": sys.stderr,
        }


class Numbers(Task):
    """Numbers of every kind; an int in every second env, a float in the others."""

    made = 0

    def __init__(self) -> None:
        self.number = Numbers.made
        Numbers.made += 1

    def info(self) -> Any:
        import torch

        whole = self.number % 2 == 0
        return {
            "np_bool": np.bool_(True),
            "zero_d": np.array(2.5),
            "tensor": torch.tensor(3.5, requires_grad=True),
            "mixed": 1 if whole else 1.5,
            "nested": {"inner": np.float32(0.5)},
        }


class NoInfo(Task):
    """None for an info."""

    def info(self) -> Any:
        return None


class Prints(Task):
    """Prints from Python and from C, always."""

    def observe(self) -> Any:
        print("printed by the env")
        os.write(1, b"written by the env\n")
        ctypes.CDLL(None).puts(b"put by the env")
        return super().observe()


# -- how it is called


class Options(Task):
    """Another task where `options` is anything but None."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.wrong = options is not None
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, -100.0 if self.wrong else 1.0, *rest


class OwnArray(Task):
    """Writes each observation into one and the same array, of all envs of its class."""

    shared = np.zeros(3, np.float32)

    def observe(self) -> Any:
        self.shared[:] = super().observe()
        return self.shared


class ScalesAction(Task):
    """Writes into the action it is given."""

    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def step(self, action: Any) -> Any:
        action *= 3
        observation, _, *rest = super().step(0)
        observation[1] = action.sum()
        return observation, float(action.sum()), *rest


class Rewards(Task):
    """Gives its reward, and its flags, as `kind` says."""

    def __init__(self, kind: str = "array") -> None:
        self.kind = kind

    def step(self, action: Any) -> Any:
        import torch

        observation, reward, over, _, info = super().step(action)
        rewards = {
            "array": np.array([reward]), "tensor": torch.tensor([reward]), "int": int(reward), "huge": 1e39, "none": None,
            "text": "1.0", "two": np.ones(2), "flags": reward,
        }  # fmt: skip
        flags = {"flags": (np.bool_(over), 0)}.get(self.kind, (over, False))
        return observation, rewards[self.kind], *flags, info


class Outside(Task):
    """From step `at` on, an observation that its space does not hold."""

    SPACES: ClassVar[dict[str, Any]] = {
        "category": spaces.Discrete(3),
        "bounds": spaces.Box(0, 1, (2,), np.float32),
        "bytes": spaces.Box(0, 255, (2,), np.uint8),
        "shape": spaces.Box(0, 1, (2,), np.float32),
        "multi": spaces.MultiDiscrete([3, 4]),
        "bits": spaces.MultiBinary(2),
    }
    WRONG: ClassVar[dict[str, Any]] = {"category": -1, "bounds": np.array([0.5, 5e4], np.float32), "bytes": np.array([1, 300]), "shape": np.zeros(3, np.float32),
             "multi": np.array([2, 4]), "bits": np.array([0, 2], np.int8)}  # fmt: skip

    def __init__(self, kind: str = "category", at: int = 4) -> None:
        self.kind, self.at = kind, at
        self.observation_space = self.SPACES[kind]
        self.right = np.zeros(self.observation_space.shape, self.observation_space.dtype)

    def observe(self) -> Any:
        if self.t >= self.at:
            return self.WRONG[self.kind]
        return int(self.right) if self.kind == "category" else self.right


# -- other APIs


class FourValues(Task):
    def step(self, action: Any) -> Any:
        return super().step(action)[:4]


class NoSeed(Task):
    def reset(self) -> Any:  # type: ignore[override]
        self.t = 0
        return self.observe()


class NoOptions(Task):
    def reset(self, seed: int | None = None) -> Any:  # type: ignore[override]
        return super().reset(seed=seed)


class ObservationAlone(Task):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed)[0]


class NoSpaces(Task):
    observation_space = None


class TupleSpace(Task):
    observation_space = (spaces.Discrete(3), spaces.Discrete(2))


class LateSpaces(Task):
    """Knows its spaces after the first reset."""

    observation_space = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.observation_space = Task.observation_space
        return super().reset(seed=seed)


class Asserts(Task):
    def __init__(self, size: int = 3) -> None:
        assert size > 5


class Exits(Task):
    def __init__(self) -> None:
        sys.exit("no licence for this simulator")


class NotAnEnv:
    observation_space, action_space = Task.observation_space, Task.action_space

    def reset(self) -> Any:
        return np.zeros(3)


# -- claims


class GlobalGenerator(Task):
    """Draws from NumPy's global generator."""

    def observe(self) -> Any:
        return np.array([self.t, 1.0, np.random.random()], np.float32)


class SeedsGlobal(Task):
    """Seeds that one in its reset: right alone, wrong beside others."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            np.random.seed(seed % 2**32)
        return super().reset(seed=seed)

    def observe(self) -> Any:
        return np.array([self.t, 1.0, np.random.random()], np.float32)


@dataclasses.dataclass
class State:
    t: int


class DataclassSnapshot(Task):
    """Has a snapshot that no checkpoint can hold."""

    def snapshot(self) -> Any:
        return State(self.t)

    def restore(self, state: Any) -> None:
        self.t = state.t


class UnrelatedSnapshot(Task):
    """Methods of these names that are something else: pictures."""

    def snapshot(self, path: str) -> None:
        raise AssertionError(path)

    def restore(self, path: str) -> None:
        raise AssertionError(path)


class ForgetfulSnapshot(Task):
    """Its snapshot lacks what its rewards depend on."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.total = 0.0
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        self.total += reward + 1
        return observation, self.total, *rest

    def snapshot(self) -> Any:
        return {"t": self.t}

    def restore(self, state: Any) -> None:
        self.t = state["t"]


# -- what it leaves behind


class Locks(Task):
    """Holds a lock file in `folder` from its making to its close."""

    def __init__(self, folder: str = ".", close: str = "works") -> None:
        self.how = close
        Path(folder).mkdir(exist_ok=True)
        self.lock = Path(folder) / f"{os.getpid()}-{id(self)}.lock"
        self.lock.touch()

    def close(self) -> None:
        if self.how == "hangs" or self.how == "raises":
            self.lock.unlink(missing_ok=True)
        if self.how == "hangs":
            time.sleep(100)
        if self.how == "raises":
            raise OSError("the simulator is gone")
        self.lock.unlink(missing_ok=True)


class Alone(Task):
    """As an env that binds a port: there can be one at a time."""

    taken = False

    def __init__(self) -> None:
        if Alone.taken:
            raise OSError("Address already in use")
        Alone.taken = True

    def close(self) -> None:
        Alone.taken = False


class Disturbs(Task):
    """Its constructor changes the process around it."""

    def __init__(self) -> None:
        import signal

        import torch

        os.chdir("/")
        np.seterr(all="raise")
        torch.set_num_threads(7)
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, signal.SIG_IGN)


class Takes(Task):
    """Takes arguments of any kind and checks them."""

    def __init__(
        self, shape: Any = None, day: Any = None, mode: Any = None, inner: Any = None, **others: Any
    ) -> None:
        import datetime

        assert shape == (3, 4) and type(shape) is tuple, shape
        assert day == datetime.date(2024, 1, 31), day
        assert mode == "none", mode
        assert inner == {"use-lidar": True, "pair": (1, [2])}, inner
        assert others == {"my-key": 1}, others


class Grows(Task):
    """Its observation has as many entries as TOY_SIZE says, and its actions begin at TOY_START."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("TOY_SIZE", "3"))
        self.observation_space = spaces.Box(-10, 10, (self.size,), np.float32)
        self.action_space = spaces.Discrete(2, start=int(os.environ.get("TOY_START", "0")))

    def observe(self) -> Any:
        return np.zeros(self.size, np.float32)


def make_task() -> Any:
    """A factory."""
    return gym.wrappers.TimeLimit(Task(), 4)


class TakesLists(Takes):
    """The same as TOML has them: it knows no tuples."""

    def __init__(self, shape: Any = None, inner: Any = None, **others: Any) -> None:
        assert shape == [3, 4] and inner == {"use-lidar": True, "pair": [1, [2]]}, (shape, inner)
        super().__init__((3, 4), inner={"use-lidar": True, "pair": (1, [2])}, **others)


class NoMetadata(Task):
    """Lacks what Gymnasium has in an Env's class."""

    metadata = None  # type: ignore[assignment]


class ClosesLate(Task):
    """Its close needs what its first reset makes."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.viewer = object()
        return super().reset(seed=seed)

    def close(self) -> None:
        del self.viewer


class Wanders(Task):
    """Changes the current folder, and NumPy's error handling, in its resets."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        os.chdir("/")
        np.seterr(all="raise")
        return super().reset(seed=seed)


class Alarmed(Task):
    """Bounds its own steps by an alarm, which stays set."""

    def step(self, action: Any) -> Any:
        import signal

        signal.setitimer(signal.ITIMER_REAL, 1000)
        return super().step(action)

    def close(self) -> None:
        import signal

        signal.setitimer(signal.ITIMER_REAL, 0)


class ExitsLater(Task):
    """Leaves Python in a step."""

    def step(self, action: Any) -> Any:
        if self.t == 5:
            sys.exit(3)
        return super().step(action)


class DifferentSpaces(Task):
    """Each env that is made has another space."""

    made = 0

    def __init__(self) -> None:
        DifferentSpaces.made += 1
        self.size = DifferentSpaces.made
        self.observation_space = spaces.Box(-1, 1, (self.size,), np.float32)

    def observe(self) -> Any:
        return np.zeros(self.size, np.float32)


def wraps_badly(env: Any) -> Any:
    raise KeyError("camera")


def wraps_for_old(env: Any) -> Any:
    """A wrapper that knows reset without options."""

    class Old(gym.Wrapper[Any, Any, Any, Any]):
        def reset(self, seed: int | None = None) -> Any:  # type: ignore[override]
            return self.env.reset(seed=seed)

    return Old(env)
