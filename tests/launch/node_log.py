"""A wrapper that leaves the id of the Ray node that its env lives on, as a file's name in $NODE_LOG."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import gymnasium


def logged(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """The env itself. Nothing is written where this process has not joined a cluster."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        (Path(os.environ["NODE_LOG"]) / ray.get_runtime_context().get_node_id()).touch()
    return env
