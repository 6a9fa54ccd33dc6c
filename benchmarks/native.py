"""Env steps a second of native envs beside Gymnasium's, and of whole rollouts, fused and stepwise.

    python benchmarks/native.py [--seconds 1] [--out benchmarks/results/native.json]

env only: random actions drawn beforehand, episodes begun anew where they end. NativeVectorEnv beside Gymnasium's
SyncVectorEnv, and its own CartPoleVectorEnv, all in autoreset mode NEXT_STEP.
rollout only: fragments of 128 steps with the 64x64 tanh MLP at its first parameters, values and log-probs included:
fused; stepwise over native envs with the compiled and with torch's inference; stepwise over Gymnasium's envs with torch's.
threads: the fused rollouts of a run of one process, its groups on two threads, against the wall clock.

Contestants take turns; a figure is the best turn's by the thread's own CPU time (`cpu`), which other programs on the
machine do not lengthen, and by the wall clock (`wall`). One thread, but for `threads`.
start: a process's own CPU seconds to import, and then to its first fused fragment, with Numba's cache empty and warm.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported

import gymnasium
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from distrl import machine
from distrl.build import work_spec
from distrl.envs import EnvGroup, EnvSpec
from distrl.envs.native import NativeVectorEnv
from distrl.inference import make_inference
from distrl.policies import PolicySpec, make_policy
from distrl.resolve import resolve
from distrl.rollout import Collector
from distrl.rollout_fused import FusedCollector
from distrl.runtime.workers import RolloutWorker

IDS = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]
ENV_COUNTS = [8, 64, 512, 4096]
NUM_STEPS = 128
SLOW_LIMIT = 512  # envs beyond which what is stepped one at a time by Python is left out
START = """
import time; begun = time.process_time()
import benchmarks.native as native; imported = time.process_time()
native.collector("fused", "CartPole-v1", 8).collect(0, 0)
print(imported - begun, time.process_time() - imported)
"""


def env_steps(env: Any, num_envs: int) -> Callable[[], int]:
    """A turn of steps of a vector env; gives their number."""
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(32)]

    def turn() -> int:
        for action in actions:
            env.step(action)
        return num_envs * len(actions)

    return turn


def collector(kind: str, env_id: str, num_envs: int, index: int = 0) -> Collector:
    """`fused`, or `stepwise <backend> <inference>`."""
    fused = kind == "fused"
    _, backend, inference = ("", "native", "compiled") if fused else kind.split()
    group = EnvGroup(EnvSpec(env_id, backend=backend), index, num_envs, index * num_envs, 1)
    policy = make_policy(PolicySpec("mlp", (64, 64)), group.observation_space, group.action_space, 1)
    twin = make_inference(policy, "compiled" if inference == "compiled" else "torch")
    made = (FusedCollector if fused else Collector)(group, policy, 1, "steps", NUM_STEPS, inference=twin)
    made.start()
    return made


def rollouts(kind: str, env_id: str, num_envs: int) -> Callable[[], int]:
    """A turn of one fragment; gives its env steps."""
    made = collector(kind, env_id, num_envs)
    iteration = 0

    def turn() -> int:
        nonlocal iteration
        iteration += 1
        return made.collect(iteration, 0).trajectory.num_valid

    return turn


def rates(turns: dict[str, Callable[[], int]], seconds: float) -> dict[str, dict[str, float]]:
    """Steps a second of each, turn about, for so many seconds in all after a turn to warm up."""
    for turn in turns.values():
        turn()
    found = {name: {"cpu": 0.0, "wall": 0.0, "turns": 0} for name in turns}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(one["turns"] for one in found.values()) < 3:
        for name, turn in turns.items():
            cpu, wall = time.thread_time(), time.perf_counter()
            steps = turn()
            cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
            one = found[name]
            one["cpu"], one["wall"] = max(one["cpu"], steps / cpu), max(one["wall"], steps / wall)
            one["turns"] += 1
    return {name: {key: round(value) for key, value in one.items()} for name, one in found.items()}


def env_only(env_id: str, num_envs: int, seconds: float) -> dict[str, Any]:
    turns = {"native": env_steps(NativeVectorEnv(env_id, num_envs), num_envs)}
    if num_envs <= SLOW_LIMIT:
        made = [lambda: gymnasium.make(env_id, disable_env_checker=True)] * num_envs
        theirs = SyncVectorEnv(made, autoreset_mode=AutoresetMode.NEXT_STEP)
        turns["gymnasium sync"] = env_steps(theirs, num_envs)
    if env_id == "CartPole-v1":
        own = gymnasium.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point")
        turns["gymnasium vector"] = env_steps(own, num_envs)
    return rates(turns, seconds)


def rollout_only(env_id: str, num_envs: int, seconds: float) -> dict[str, Any]:
    kinds = ["fused", "stepwise native compiled", "stepwise native torch"]
    if num_envs <= SLOW_LIMIT:
        kinds.append("stepwise gymnasium torch")
    return rates({kind: rollouts(kind, env_id, num_envs) for kind in kinds}, seconds)


def two_threads(env_id: str, num_envs: int, repeats: int = 5) -> float:
    """Steps a second by the wall clock, groups on two threads as in a run of one process: the best of some fragments."""
    fields = {
        "env": env_id,
        "num_envs": num_envs,
        "num_steps": NUM_STEPS,
        "minibatches": 1,
        "learner_threads": 2,
    }
    spec = work_spec(resolve(fields | {"workers": 0, "groups": min(8, num_envs)}).config)
    worker, snapshot = RolloutWorker(spec), spec.make_learner("cpu").snapshot()
    states: list[Any] = [None] * len(spec.group_sizes)
    best = 0.0
    for iteration in range(repeats + 1):
        began = time.perf_counter()
        states = [after for _, after, _ in worker.collect_all(iteration, snapshot, states)]
        if iteration:
            best = max(best, num_envs * NUM_STEPS / (time.perf_counter() - began))
    worker.close()
    return round(best)


def start_seconds() -> dict[str, dict[str, float]]:
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("cold", "warm"):
            told = subprocess.run(
                [sys.executable, "-c", START],
                env={**os.environ, "NUMBA_CACHE_DIR": cache},
                capture_output=True,
                text=True,
                check=True,
            )
            imports, first = (round(float(number), 2) for number in told.stdout.split())
            found[name] = {"import": imports, "first_fragment": first}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="of each row, about")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "native.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "schema": 1,
        "command": " ".join(["python", "benchmarks/native.py", *sys.argv[1:]]),
        "machine": {**machine.machine("cpu"), "load_average": os.getloadavg()[0]},
        "versions": machine.versions(),
        "env_only": {},
        "rollout_only": {},
    }
    for title, measure, ids in (("env_only", env_only, IDS), ("rollout_only", rollout_only, IDS)):
        for env_id in ids:
            counts = ENV_COUNTS if env_id == "CartPole-v1" else ENV_COUNTS[1:2]
            for num_envs in counts:
                row = measure(env_id, num_envs, options.seconds)
                result[title].setdefault(env_id, {})[str(num_envs)] = row
                told = "  ".join(f"{name} {one['cpu']:,}" for name, one in row.items())
                print(f"{title:13}{env_id:26}{num_envs:>5}  {told}", flush=True)
    result["two_threads"] = {str(count): two_threads("CartPole-v1", count) for count in ENV_COUNTS}
    result["start_sec"] = start_seconds()
    print("two threads", result["two_threads"], "start", result["start_sec"])
    result["machine"]["load_average_after"] = os.getloadavg()[0]
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
