"""Playing a group with fixed actions, and what came of it as text that is equal only if all bits are.

`python play.py FOLDER` restores each group saved there, plays on and prints the digests.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from distrl.checkpoint import load_tree, save_tree
from distrl.envs import EnvGroup, EnvSpec
from distrl.trees import tree_leaves

NUM_ENVS, FIRST_ENV, SEED = 2, 3, 11


def make(spec: EnvSpec, num_envs: int = NUM_ENVS) -> EnvGroup:
    return EnvGroup(spec, index=0, num_envs=num_envs, first_env=FIRST_ENV, seed=SEED)


def actions(group: EnvGroup, num_steps: int, seed: int = 0) -> list[Any]:
    """Random actions [N, ...] from the space, the same for the same seed."""
    space: Any = group.action_space
    space.seed(seed)
    return [np.stack([space.sample() for _ in range(group.num_envs)]) for _ in range(num_steps)]


def digest(group: EnvGroup, result: Any) -> str:
    """Of a step's result and all that the group shows after it."""
    total = hashlib.sha256()
    trees = (result.reward, result.terminated, result.truncated, result.valid, result.final_observation)
    for leaf in tree_leaves((*trees, group.observation, group.episode_start, group.action_mask)):
        total.update(f"{leaf.dtype}{leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes())
    total.update(repr(result.episodes).encode())
    return total.hexdigest()


def play(group: EnvGroup, taken: list[Any]) -> list[str]:
    return [digest(group, group.step(action)) for action in taken]


def save(folder: Path, name: str, spec: EnvSpec, state: dict[str, Any], taken: list[Any]) -> None:
    save_tree(folder, name, {"spec": spec.to_json(), "state": state, "actions": np.stack(taken)})


def main(folder: Path) -> None:
    digests = {}
    for path in sorted(folder.glob("*.json")):
        saved = load_tree(folder, path.stem)
        group = make(EnvSpec(**saved["spec"]))
        group.restore(saved["state"])
        digests[path.stem] = [play(group, list(saved["actions"])), group.reproducibility]
        group.close()
    print(json.dumps(digests))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
