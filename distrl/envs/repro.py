"""The failing episode of an environment, as a file and as a command: `python -m distrl.envs.repro FILE`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distrl.envs.spec import EnvSpec
from distrl.errors import BadInput
from distrl.plain_values import decode, encode

SCHEMA = 1


def write(
    spec: EnvSpec, env: int, episode: int, seed: int, actions: Sequence[Any], whole: bool, trace: str
) -> str | None:
    """The path of the file written into `spec.repro_dir`, or None where there is no such folder to write."""
    if spec.repro_dir is None:
        return None
    folder = Path(spec.repro_dir)
    path = folder / f"env{env}-episode{episode}.json"
    content = {
        "schema": SCHEMA,
        "spec": {**spec.to_json(), "repro_dir": None, "kwargs": encode(spec.kwargs)},
        "env": env,
        "episode": episode,
        "seed": seed,
        "actions": [np.asarray(action).tolist() for action in actions],
        "whole_episode": whole,  # else the actions start at a snapshot, and the replay cannot
        "traceback": trace,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1))
    except (OSError, TypeError):  # the report of a failure must not hide the failure
        return None
    return str(path)


def replay(path: str) -> int:
    """Plays the episode of the file at `path` and returns the number of steps that went through.

    What the environment raises comes through. Raises BadInput for a file that is not this user's (it
    names modules to import) or not whole.
    """
    if os.stat(path).st_uid != os.getuid():
        raise BadInput(f"{path} belongs to another user and names code to import: copy it if you trust it")
    content = json.loads(Path(path).read_text())
    if content.get("schema") != SCHEMA:
        raise BadInput(f"{path} must have schema {SCHEMA}, got {content.get('schema')!r}")
    if not content["whole_episode"]:
        raise BadInput(f"{path} holds only the last {len(content['actions'])} actions of a long episode")
    fields = content["spec"]
    env = EnvSpec(**{**fields, "kwargs": decode(fields["kwargs"])}).make_one()
    env.reset(seed=content["seed"])
    space = env.action_space
    for action in content["actions"]:
        env.step(np.asarray(action, space.dtype) if space.shape else np.int64(action))
    return len(content["actions"])


def main(arguments: list[str]) -> int:
    """Exit status 0 where the episode goes through; else the environment's own traceback, and 1."""
    if len(arguments) != 1:
        print("usage: python -m distrl.envs.repro FILE", file=sys.stderr)
        return 2
    sys.path.insert(0, os.getcwd())  # as `distrl train` finds modules
    try:
        steps = replay(arguments[0])
    except (BadInput, OSError, json.JSONDecodeError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"the episode went through: {steps} steps, nothing was raised", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
