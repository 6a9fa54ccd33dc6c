"""Environments: fixed groups over gymnasium that can be put back exactly. Floor 1."""

from distrl.envs.group import EnvGroup
from distrl.envs.results import Episode, StepResult
from distrl.envs.spec import EnvSpec

__all__ = ["EnvGroup", "EnvSpec", "Episode", "StepResult"]
