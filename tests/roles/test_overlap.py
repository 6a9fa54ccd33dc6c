"""Responses written while the ones before are learned from: by which version, weighed how, and alike in any layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from small import SMALL_PPO, TABLES, HereStage, assert_same, models, spec

from distrl.credit import give_credit, importance_weighted, whitened
from distrl.loops import train_responses, train_responses_overlapped
from distrl.rlhf.recipes import GRPO, ResponseRecipe
from distrl.rlhf.responses import Responses
from distrl.rlhf.role_spec import ROLES
from distrl.rlhf.roles import LearnReport, RoleWorker
from distrl.runtime.placement import hosts_for
from distrl.runtime.roles import Roles, start_roles

CAPPED = replace(SMALL_PPO, importance_cap=1.05, learning_rate=1e-2)
CAPPED_GRPO = replace(
    GRPO, importance_cap=1.05, max_response=6, group_size=4, learning_rate=1e-2, minibatches=2
)


class Keeper:
    """A run of `total` iterations that keeps every report."""

    beta = 0.1

    def __init__(self, total: int) -> None:
        self.total = total
        self.told: list[LearnReport] = []
        self.ahead: list[Any] | None = None
        self.ahead_of: list[list[int]] = []  # versions that wrote what was ahead after each iteration

    @property
    def iteration(self) -> int:
        return len(self.told)

    @property
    def progress(self) -> float:
        return len(self.told) / self.total

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        yield

    def keep(self, report: LearnReport) -> None:
        self.told.append(report)
        written: list[list[Responses]] = self.ahead or []
        self.ahead_of.append(sorted({one.version for part in written for one in part}))


def roles_of(recipe: ResponseRecipe, table: Any = None) -> Roles:
    run = spec(recipe)
    if table is None:
        return start_roles(run, models(), None, hosts_for("in-process", recipe))
    return Roles(run, HereStage(run, hosts_for(table, recipe)))


def overlapped(recipe: ResponseRecipe, table: Any = None, total: int = 5) -> Keeper:
    run = Keeper(total)
    train_responses_overlapped(roles_of(recipe, table), run)
    return run


def test_responses_are_one_version_old_but_for_the_first() -> None:
    run = overlapped(CAPPED)
    assert [report.version for report in run.told] == [1, 2, 3, 4, 5]
    assert [report.metrics["policy_lag"] for report in run.told] == [0, 1, 1, 1, 1]
    assert run.ahead_of == [[0], [1], [2], [3], [4]]
    # the versions' own word apart: under the policy that learns, only the first have the log-probs they were drawn with
    drawn = [report.metrics["sampling_mismatch"] for report in run.told]
    assert drawn[0] < 1e-5 and min(drawn[1:]) > 1e-3, drawn


def test_without_overlap_responses_are_of_the_newest_version() -> None:
    run = Keeper(3)
    train_responses(roles_of(CAPPED), run)
    assert [report.metrics["policy_lag"] for report in run.told] == [0, 0, 0]
    assert max(report.metrics["sampling_mismatch"] for report in run.told) < 1e-5


@pytest.mark.parametrize("layout", ["separate 2", "all apart 2"])
def test_an_overlapped_run_ends_alike_in_one_process_and_apart(layout: str) -> None:
    assert_same(overlapped(CAPPED, TABLES[layout]).told, overlapped(CAPPED).told)


def test_an_overlapped_run_without_a_critic_ends_alike_apart() -> None:
    table = {role: row for role, row in TABLES["all apart 2"].items() if role != "critic"}
    assert_same(overlapped(CAPPED_GRPO, table, 3).told, overlapped(CAPPED_GRPO, None, 3).told)


# the weight of what another policy sampled


def lagged(recipe: ResponseRecipe) -> tuple[RoleWorker, dict[str, Any]]:
    """A worker of version 1, and all opinions of what version 0 wrote."""
    worker = RoleWorker(spec(replace(recipe, exact_ratio=True)), ROLES, models())
    first, second = worker.write(0), worker.write(1)
    for written in (first, second):
        said: dict[str, Any] = {
            "written": written,
            "reference": worker.reference_log_probs(written),
            "reward": worker.scores(written),
            "actor": worker.actor_log_probs(written),
        }
        if recipe.trains_value:
            said["critic"] = worker.values(written)
        if written is first:
            worker.learn(0.0, 0.1, layout_of(said), *said.values())
    return worker, said


def layout_of(said: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    return tuple((name, 1) for name in said)


@pytest.mark.parametrize("recipe", [CAPPED, CAPPED_GRPO], ids=["ppo", "grpo"])
def test_an_advantage_is_whitened_and_then_weighed_by_the_capped_ratio(recipe: ResponseRecipe) -> None:
    worker, said = lagged(recipe)
    worker.begin(0.1, 0.1, layout_of(said), *said.values())
    task = cast(Any, worker.learner).task
    assert task.lag == 1
    trajectory = task.trajectory
    plain, target = give_credit(recipe, trajectory, trajectory.reward)
    if recipe.normalizes_batch:
        plain = whitened(plain, trajectory.valid)
    log_ratio = trajectory.log_prob.astype(np.float64) - trajectory.extra["behaviour_log_prob"]
    by_hand = np.where(trajectory.valid, plain * np.minimum(np.exp(log_ratio), 1.05), 0)
    np.testing.assert_allclose(task.advantage, by_hand, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(task.advantage, importance_weighted(plain, trajectory, 1.05))
    np.testing.assert_array_equal(task.target, target)
    weight = np.exp(log_ratio)[trajectory.valid]
    assert (weight > 1.05).any() and (weight < 0.95).any(), "some are cut, some weigh less"


@pytest.mark.parametrize("recipe", [CAPPED, CAPPED_GRPO], ids=["ppo", "grpo"])
def test_the_cap_changes_what_an_overlapped_step_ends_in(recipe: ResponseRecipe) -> None:
    first, said = lagged(recipe)
    ends = []
    for cap in (1.05, 1.5, None):
        run = spec(replace(recipe, importance_cap=cap, exact_ratio=True))
        worker = RoleWorker(run, ROLES, models(), first.state())
        ends.append(worker.learn(0.1, 0.1, layout_of(said), *said.values()).digests["actor"])
    assert len(set(ends)) == 3
