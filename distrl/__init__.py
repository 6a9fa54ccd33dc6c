"""High-throughput distributed RL: Ray rollout workers, Numba GAE, PPO, and the ladder that leads to it.

    import distrl
    run = distrl.train("CartPole-v1", algo="ppo", workers=2, total_steps=100_000)
    distrl.evaluate(run.run_dir)

    run = distrl.rlhf_ppo("gpt2", "prompts.jsonl", reward_function="my_module:score")
    distrl.rlhf_evaluate(run.run_dir, prompts="held_out.jsonl")

Names are imported when they are first used, so that `import distrl` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distrl.api import evaluate, load, resume, rlhf_evaluate, rlhf_ppo, rlhf_reward, rlhf_sft, train
    from distrl.config import TrainConfig
    from distrl.errors import BadInput, RunFailed
    from distrl.recipes import LADDER, Recipe

    __version__: str

_HOMES = {
    "train": "distrl.api",
    "resume": "distrl.api",
    "evaluate": "distrl.api",
    "load": "distrl.api",
    "rlhf_sft": "distrl.api",
    "rlhf_reward": "distrl.api",
    "rlhf_ppo": "distrl.api",
    "rlhf_evaluate": "distrl.api",
    "Recipe": "distrl.recipes",
    "LADDER": "distrl.recipes",
    "TrainConfig": "distrl.config",
    "BadInput": "distrl.errors",
    "RunFailed": "distrl.errors",
}

__all__ = [
    "LADDER",
    "BadInput",
    "Recipe",
    "RunFailed",
    "TrainConfig",
    "__version__",
    "evaluate",
    "load",
    "resume",
    "rlhf_evaluate",
    "rlhf_ppo",
    "rlhf_reward",
    "rlhf_sft",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("distrl")
    if name not in _HOMES:
        raise AttributeError(f"module 'distrl' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
