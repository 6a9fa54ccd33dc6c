"""The learner in a role's worker: actor, critic or both, counted and kept apart, so that who hosts which changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from distrl.errors import RunFailed
from distrl.learner import Learner
from distrl.policies.lm import LanguagePolicy, ScalarHead, ScalarModel
from distrl.policies.protocol import load_parameters, parameters_and_buffers
from distrl.rlhf.models import ModelParts, width
from distrl.rlhf.role_spec import RoleSpec
from distrl.updates.shares import SharedUpdate

TRAINED = ("actor", "critic")
CRITICS = ("value_loss",)  # metrics of the critic's where it steps apart


@dataclass
class Skips:
    """Minibatches whose gradient was not finite: all of them, and in a row, the last ones first."""

    total: int = 0
    streak: float = 0.0

    def count(self, flags: Iterable[bool]) -> float:
        """Takes more of them in. Returns the longest row."""
        most = 0.0
        for skipped in flags:
            self.streak = self.streak + 1 if skipped else 0.0
            self.total += int(skipped)
            most = max(most, self.streak)
        return most


class RoleLearner(Learner):
    """A `Learner` of the roles that a worker hosts, by `SharedUpdate`. A table of metrics ends in each group's skips."""

    def __init__(self, spec: RoleSpec, roles: Sequence[str], models: dict[str, ModelParts]) -> None:
        recipe = spec.recipe
        actor = models["actor"].build(spec.device("actor")) if "actor" in roles else None
        critic: Any = None
        if recipe.trains_value and spec.value_head and actor is not None:
            critic = ScalarHead(width(models["actor"])).to(spec.device("actor"))
        elif "critic" in roles and not spec.value_head:
            critic = ScalarModel(models["critic"].build(spec.device("critic")))
        policy = LanguagePolicy(actor, critic, recipe.temperature, spec.vocabulary)
        self.shared = SharedUpdate(policy, recipe, spec.micro_batch, {"critic": spec.critic_rate})
        super().__init__(
            policy,
            recipe,
            spec.seed,
            spec.device("actor" if actor is not None else "critic"),
            max_skipped_updates=spec.max_skipped_updates,
            update=self.shared,
        )
        self.skips = {group: Skips() for group in self.shared.groups}

    def has(self, role: str) -> bool:
        """Whether it learns here."""
        return getattr(self.policy, role) is not None

    @property
    def trained(self) -> tuple[str, ...]:
        """Which roles learn here."""
        return tuple(role for role in TRAINED if self.has(role))

    def _read(self, names: list[str], table: NDArray[np.float64]) -> dict[str, float]:
        """Means of each group's metrics over the minibatches that it did not skip."""
        flags = dict(zip(self.skips, (table[:, len(names) :] > 0).T, strict=True))
        for group, skipped in flags.items():
            most = self.skips[group].count(skipped)
            if most >= self.max_skipped_updates:
                raise RunFailed(
                    f"{int(most)} minibatches in a row had a NaN or Inf gradient of the {group}'s "
                    f"(--max-skipped-updates {self.max_skipped_updates}): lower --learning-rate, or look at the scores; "
                    "the last checkpoint is from before them"
                )
        metrics = {}
        for at, name in enumerate(names):
            group = "critic" if name in CRITICS and "critic" in flags else next(iter(flags))
            taken = table[~flags[group], at]
            metrics[name] = float(taken.mean()) if len(taken) else float("nan")
        most_skipped = max(skips.total for skips in self.skips.values())
        return metrics | {"skipped_updates": float(most_skipped), "num_updates": float(len(table))}

    def states(self) -> dict[str, Any]:
        """Role -> state tree of all that its next update depends on."""
        optimiser = self.shared.optimiser_state()
        return {
            role: {
                "parameters": parameters_and_buffers(getattr(self.policy, role)),
                "optimiser": optimiser.get(role),
                "version": self.version,
                "skipped": self._skips_of(role).total,
                "streak": self._skips_of(role).streak,
            }
            for role in self.trained
        }

    def load_states(self, states: dict[str, Any]) -> None:
        """Puts back what `states` of learners that together had these roles gave."""
        mine = {role: states[role] for role in self.trained}
        for role, state in mine.items():
            load_parameters(getattr(self.policy, role), state["parameters"])
            self.version = int(state["version"])
        kept = {role: state["optimiser"] for role, state in mine.items() if state["optimiser"] is not None}
        self.shared.load_optimiser_state(cast(Any, kept))
        self.skips = {
            group: Skips(int(mine[group]["skipped"]), float(mine[group]["streak"])) for group in self.skips
        }

    def _skips_of(self, role: str) -> Skips:
        """Of the group that a role steps in: a head on the actor's trunk steps with the actor."""
        return self.skips.get(role) or self.skips["actor"]
