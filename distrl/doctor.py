"""`distrl doctor`: what a run needs of the machine and of the env, tried before compute is spent.

Each check really does what it names: it steps the env, resets it twice, replays an episode. It gives a
`Finding`; a failed one means that a run would fail or not be reproducible as asked.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distrl.config import TrainConfig
from distrl.errors import BadInput, RunFailed

if TYPE_CHECKING:
    import gymnasium

    from distrl.envs.spec import EnvSpec

GIB = 2**30
NUM_STEPS = 500  # random steps of the space and speed checks
NUM_REPLAYED = 200  # steps of the episode that is replayed
LEAST_RAY = (2, 56)  # the first with token authentication
LEAST_DISK_BYTES = GIB
LEAST_SHM_BYTES = GIB // 4


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table."""

    status: Literal["pass", "warn", "fail"]
    what: str
    found: str


def examine(config: TrainConfig) -> Iterator[Finding]:
    """All findings, the machine's first, each as soon as it is known."""
    yield from machine(config)
    yield from environment(config)


def machine(config: TrainConfig) -> Iterator[Finding]:
    """Cores, memory, shared memory, disk, torch and the device, Ray."""
    cores = len(os.sched_getaffinity(0))
    enough = cores >= config.workers
    yield Finding(
        "pass" if enough else "warn",
        "cores",
        f"{cores} for {config.workers} rollout workers"
        + ("" if enough else ": more than the cores gain nothing"),
    )
    total, available = _memory_bytes()
    yield Finding(
        "pass" if available > 2 * GIB else "warn",
        "memory",
        f"{available / GIB:.1f} of {total / GIB:.1f} GiB available",
    )
    if config.workers:
        free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
        yield Finding(
            "pass" if free >= LEAST_SHM_BYTES else "warn",
            "/dev/shm",
            f"{free / GIB:.2f} GiB free for Ray's object store"
            + ("" if free >= LEAST_SHM_BYTES else "; Docker: --shm-size=2g, else Ray uses /tmp, slowly"),
        )
        yield _ray_version()
    free = shutil.disk_usage(Path.cwd()).free
    yield Finding(
        "pass" if free >= LEAST_DISK_BYTES else "warn",
        "disk",
        f"{free / GIB:.1f} GiB free in the current folder",
    )
    yield _device(config)


def _memory_bytes() -> tuple[int, int]:
    """Total and available memory; a container's own limit where there is one."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    info = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
    total, available = info["MemTotal"], info["MemAvailable"]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
        total = min(total, int(text))
        available = min(available, int(text) - int(used.read_text()))
    return total, available


def _ray_version() -> Finding:
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return Finding("fail", "ray", "not installed; pip install 'ray>=2.56', or --workers 0")
    enough = tuple(int(part) for part in version.split(".")[:2]) >= LEAST_RAY
    return Finding(
        "pass" if enough else "fail", "ray", version if enough else f"{version}; 2.56 or later is needed"
    )


def _device(config: TrainConfig) -> Finding:
    import torch

    from distrl.preflight import check_machine

    try:
        check_machine(config)
    except BadInput as error:
        return Finding("fail", "device", error.problems[0])
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return Finding("pass", "device", f"--device {config.device}: torch {torch.__version__}, {gpu}")


def environment(config: TrainConfig) -> Iterator[Finding]:
    """Whether the env can be made, keeps its spaces, is a function of its seed, and how fast it is."""
    from distrl.build import env_spec, space_lines
    from distrl.envs import running_statistics
    from distrl.envs.closing import LONGEST_SEC, within
    from distrl.envs.spaces import check_supported
    from distrl.preflight import check_env

    try:
        check_env(config)
        spec = env_spec(config)
        env = spec.make_one()
    except BadInput as error:
        yield Finding("fail", "env", " ".join(error.problems))
        return
    try:
        try:
            check_supported(env.observation_space, env.action_space, config.env)
            if problems := running_statistics.problems(
                running_statistics.found(env), config.wrapper, config.env
            ):
                raise BadInput(*problems)
        except (BadInput, RunFailed) as error:
            yield Finding("pass", "env", _spaces(env, config))
            yield Finding("fail", "spaces", str(error))
            return
        read = space_lines(config, env.observation_space, env.action_space)
        yield Finding("pass", "env", "; ".join([_spaces(env, config), *read]))
        yield from _walk(env, config)
        yield from _trial(env, spec, config)
        if spec.is_pool:
            yield _pool(spec, config)
    finally:
        within(env.close, LONGEST_SEC)


def _pool(spec: EnvSpec, config: TrainConfig) -> Finding:
    """A group on the library that will step the envs: put back in the middle, does it play on alike?"""
    import numpy as np

    from distrl.envs import EnvGroup

    what = f"env backend {spec.backend}"
    groups: list[EnvGroup] = []
    try:
        groups += [EnvGroup(spec, index, 2, first_env=0, seed=config.seed) for index in range(2)]
        group, other = groups
        group.action_space.seed(config.seed)
        actions = [np.stack([group.action_space.sample() for _ in range(2)]) for _ in range(NUM_REPLAYED)]
        group.start()
        for action in actions[: NUM_REPLAYED // 2]:
            group.step(action)
        other.restore(group.snapshot())
        if "episode" in (group.reproducibility, other.reproducibility):
            return Finding("warn", what, [*group.warnings, *other.warnings][0])
        for action in actions[NUM_REPLAYED // 2 :]:
            one, two = group.step(action), other.step(action)
            if not (
                np.array_equal(group.observation, other.observation) and (one.reward == two.reward).all()
            ):
                return Finding("fail", what, "a group that was put back plays on differently")
    except (BadInput, RunFailed) as error:
        return Finding("fail", what, str(error))
    finally:
        for made in groups:
            made.close()
    return Finding("pass", what, f"put back after {NUM_REPLAYED // 2} steps, it plays on with the same bits")


def _spaces(env: gymnasium.Env[Any, Any], config: TrainConfig) -> str:
    return " ".join(f"{config.env}: {env.observation_space} -> {env.action_space}".split())


def _walk(env: gymnasium.Env[Any, Any], config: TrainConfig) -> Iterator[Finding]:
    """Random legal steps: observations in their space, masks that fit, finite rewards, seconds per step."""
    import numpy as np

    from distrl.envs.api import check_reset, check_step
    from distrl.envs.masks import KEY, MaskReader, legal_action
    from distrl.envs.observations import reward_of
    from distrl.envs.spaces import check_observation

    env.action_space.seed(config.seed)
    reader = MaskReader(env)
    spent_sec: list[float] = []
    episodes = length = 0
    try:
        observation, info = check_reset(env.reset(seed=config.seed), config.env)
        check_observation(env.observation_space, observation, f"reset of {config.env}")
        for step in range(NUM_STEPS):
            said = reader.put(env, info, config.env, length) or {}
            action = legal_action(env.action_space, said.get(KEY))
            start = time.perf_counter()
            observation, reward, terminated, truncated, info = check_step(env.step(action), config.env)
            spent_sec.append(time.perf_counter() - start)
            length += 1
            check_observation(env.observation_space, observation, f"step {step + 1} of {config.env}")
            if not np.isfinite(number := reward_of(reward, f"step {step + 1}")):
                raise RunFailed(f"step {step + 1}: the reward must be finite, got {number}")
            if terminated or truncated:
                episodes, length = episodes + 1, 0
                observation, info = check_reset(env.reset(), config.env)
                check_observation(env.observation_space, observation, f"reset of {config.env}")
    except RunFailed as error:
        yield Finding("fail", "observations", str(error))
        return
    except (
        Exception,
        SystemExit,
    ) as error:  # a user's env may raise anything, and that is what is looked for
        yield Finding("fail", "steps", f"raised {type(error).__name__} after {len(spent_sec)} steps: {error}")
        return
    yield Finding("pass", "observations", f"in their space, rewards finite, over {NUM_STEPS} random steps")
    mean, worst = sum(spent_sec) / len(spent_sec), max(spent_sec)
    yield Finding(
        "pass" if worst < config.step_timeout_sec / 2 else "warn",
        "speed",
        f"{1 / mean:,.0f} steps/s in one env; a step takes {mean * 1e3:.3f} ms, the longest "
        f"{worst * 1e3:.3f} ms (its limit {config.step_timeout_sec:g} s); {episodes} episodes ended",
    )


def _trial(env: gymnasium.Env[Any, Any], spec: EnvSpec, config: TrainConfig) -> Iterator[Finding]:
    """What every run tries for a few steps (`envs/trial.py`), tried for longer."""
    from distrl.envs import snapshots
    from distrl.envs.closing import LONGEST_SEC, within
    from distrl.envs.trial import checks, has_own_snapshot

    what = "reset(seed)"
    try:
        other = spec.make_one()
        try:
            for check in checks(env, other, config.env, config.seed, NUM_REPLAYED):
                what = check.what
                found = check.problem or check.note
                if what == "replay" and check.problem is None:
                    own = snapshots.capture(env) is not None and not has_own_snapshot(env)
                    way = "an exact snapshot" if own else "replay of the episode's actions"
                    found += f"; put back after a fault by {way}"
                if what == "snapshot" and check.problem is None:
                    found = "the env's own is exact; put back after a fault by it"
                status: Literal["pass", "warn", "fail"] = "pass" if check.problem is None else "fail"
                yield Finding("warn" if what == "snapshot" and status == "fail" else status, what, found)
        finally:
            within(other.close, LONGEST_SEC)
    except (Exception, SystemExit) as error:  # as in _walk
        yield Finding("fail", what, f"raised {type(error).__name__}: {error}")
