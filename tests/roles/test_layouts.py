"""Where roles live changes no bit: one process, one host, apart, with one worker or several; here and on Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from small import SMALL_PPO, TABLES, HereStage, Silent, assert_same, iterate, models, play, spec

from distrl.rlhf.recipes import GRPO, RLOO, ResponseRecipe
from distrl.rlhf.roles import LearnReport
from distrl.runtime.placement import hosts_for
from distrl.runtime.roles import LocalStage, Roles, start_roles
from distrl.telemetry.spans import SpanTotals

SMALL_GRPO = replace(GRPO, max_response=6, group_size=4, learning_rate=3e-3, epochs=2, minibatches=2)
RECIPES: dict[str, ResponseRecipe] = {
    "ppo": SMALL_PPO,
    "exact ratio": replace(SMALL_PPO, exact_ratio=True),
    "grpo": SMALL_GRPO,
    "rloo": replace(RLOO, max_response=6, learning_rate=3e-3),
}


@cache
def in_process(name: str, num_iterations: int, micro_batch: int | None = 2) -> list[LearnReport]:
    roles = start_roles(
        spec(RECIPES[name], micro_batch=micro_batch), models(), None, hosts_for("in-process", RECIPES[name])
    )
    return play(roles, num_iterations)


@contextmanager
def on_ray(table: Any, recipe: ResponseRecipe = SMALL_PPO, **changed: Any) -> Iterator[Roles]:
    roles = start_roles(spec(recipe, **changed), models(), None, hosts_for(table, recipe))
    try:
        yield roles
    finally:
        roles.close()


def without_critic(table: dict[str, Any]) -> dict[str, Any]:
    return {role: row for role, row in table.items() if role != "critic"}


QUICK = ("separate 2", "uneven")


@pytest.mark.parametrize(
    "layout", [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow) for one in TABLES]
)
def test_ten_iterations_end_alike_wherever_roles_live(layout: str) -> None:
    wanted = in_process("ppo", 10)
    assert len({report.digests["actor"] for report in wanted}) == 10  # it learns
    hosts = hosts_for(TABLES[layout], SMALL_PPO)
    assert_same(play(Roles(spec(), HereStage(spec(), hosts)), 10), wanted)


@pytest.mark.parametrize("layout", ["colocated", "separate 2", "all apart 2", "generator apart"])
def test_what_the_driver_learns_of_responses_without_a_score_is_the_same_for_any_number_of_workers(
    layout: str,
) -> None:
    run = spec(reward=Silent())
    alone = start_roles(run, models(), None, hosts_for("in-process", SMALL_PPO))
    roles = Roles(run, HereStage(run, hosts_for(TABLES[layout], SMALL_PPO)))
    wanted, told = play(alone, 2), play(roles, 2)
    assert_same(told, wanted)
    assert [one.fault for one in told] == [one.fault for one in wanted]
    for one in told:
        assert 1 < one.metrics["unscored"] < one.num_responses
        assert one.fault is not None and one.fault.endswith("is odd")


@pytest.mark.parametrize("exact", [False, True])
def test_roles_in_bfloat16_end_alike_wherever_they_live_and_the_actor_learns_in_float32(exact: bool) -> None:
    recipe = replace(SMALL_PPO, exact_ratio=exact)
    run = spec(recipe, dtype="bfloat16")
    alone = Roles(run, LocalStage(run, models(), hosts_for("in-process", recipe)[0]))
    wanted = play(alone, 3)
    for layout in ("colocated", "separate 2", "all apart 2", "generator apart"):
        roles = Roles(run, HereStage(run, hosts_for(TABLES[layout], recipe)))
        assert_same(play(roles, 3), wanted)
        assert roles.published == alone.published
        state = roles.state()
    worker = alone.of["actor"].worker  # type: ignore[attr-defined]
    for model, number in (
        (worker.writer, "bfloat16"), (worker.reference.actor, "bfloat16"), (worker.learner.policy.actor, "float32")
    ):  # fmt: skip
        assert {str(one.dtype) for one in model.parameters()} == {f"torch.{number}"}
    off = wanted[0].metrics["first_ratio_deviation"]
    assert off == 0 if exact else 1e-5 < off < 0.1
    resumed = Roles(run, LocalStage(run, models(), hosts_for("in-process", recipe)[0]), state)
    assert_same([iterate(resumed, 3)], [iterate(alone, 3)])


@pytest.mark.parametrize("name", ["exact ratio", "grpo", pytest.param("rloo", marks=pytest.mark.slow)])
def test_other_recipes_end_alike_too(name: str) -> None:
    recipe = RECIPES[name]
    table = TABLES["all apart 2"] if recipe.trains_value else without_critic(TABLES["all apart 2"])
    run = spec(recipe)
    roles = Roles(run, HereStage(run, hosts_for(table, recipe)))
    assert_same(play(roles, 3), in_process(name, 3))


@pytest.mark.parametrize("layout", [pytest.param("separate", marks=pytest.mark.slow), "all apart 2"])
def test_minibatches_that_are_not_split_end_alike_too(layout: str) -> None:
    run = spec(micro_batch=None)
    roles = Roles(run, HereStage(run, hosts_for(TABLES[layout], SMALL_PPO)))
    assert_same(play(roles, 3), in_process("ppo", 3, None))


def test_a_critic_on_the_actors_trunk_learns_alike_with_several_workers() -> None:
    run = spec(value_head=True)
    alone = start_roles(run, models(), None, hosts_for("in-process", SMALL_PPO, value_head=True))
    wanted = play(alone, 3)
    hosts = hosts_for({"actor": {"workers": 2}}, SMALL_PPO, value_head=True)
    several = Roles(run, HereStage(run, hosts))
    assert_same(play(several, 3), wanted)
    assert several.snapshot().digest == alone.snapshot().digest


def test_a_state_goes_on_in_another_layout_to_the_same_bits() -> None:
    wanted = in_process("ppo", 4)
    run = spec()
    first = Roles(run, HereStage(run, hosts_for(TABLES["separate 2"], SMALL_PPO)))
    assert_same([iterate(first, i, 4) for i in range(2)], in_process("ppo", 4)[:2])
    second = Roles(run, LocalStage(run, models(), hosts_for("in-process", SMALL_PPO)[0]), first.state())
    third = Roles(run, HereStage(run, hosts_for(TABLES["all apart 2"], SMALL_PPO)), first.state())
    fourth = Roles(run, HereStage(run, hosts_for(TABLES["uneven"], SMALL_PPO)), first.state())
    for roles in (second, third, fourth):
        assert_same([iterate(roles, i, 4) for i in (2, 3)], wanted[2:])


def assert_whole(totals: SpanTotals) -> None:
    """Each moment has one name: events follow one another without a gap, and sum to the whole."""
    for (_, _, end), (_, begin, _) in zip(totals.events, totals.events[1:]):
        assert begin == end
    assert totals.events[-1][2] - totals.events[0][1] == totals.wall_ns


@pytest.mark.ray
def test_the_same_calls_give_the_same_answers_here_and_on_ray() -> None:
    def asked(roles: Roles) -> dict[str, Any]:
        (workers,) = roles.hosts
        written = roles.write(0)
        said = roles.opinions(written)
        told: dict[str, Any] = {"written": workers.get(written)}
        told |= {name: workers.get(handles) for name, handles in said.items()}
        told["learned"] = roles.learn(0.2, 0.1, written, said)
        roles.publish()
        told["published"] = roles.published
        told["state"] = roles.state()
        told["snapshot"] = roles.snapshot()
        told["next"] = workers.get(roles.write(1))
        return told

    here = asked(start_roles(spec(), models(), None, hosts_for("in-process", SMALL_PPO)))
    with on_ray("colocate", record_events=True) as roles:
        there = asked(roles)
        (spans,) = roles.take_spans().values()
    assert here.pop("learned").pid != there["learned"].pid
    del there["learned"]
    assert_same_answers(there, here)
    assert_whole(spans)
    assert {"start", "generate", "reference", "reward", "critic: values", "actor and critic: update"} <= set(
        spans.ns
    )


def assert_same_answers(one: Any, other: Any) -> None:
    if isinstance(other, dict):
        assert one.keys() == other.keys()
        for name in other:
            assert_same_answers(one[name], other[name])
    elif isinstance(other, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other):
            assert_same_answers(left, right)
    elif hasattr(other, "__dataclass_fields__"):
        assert_same_answers(vars(one), vars(other))
    elif isinstance(other, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("layout", TABLES)
def test_ten_iterations_on_ray_end_alike(layout: str) -> None:
    import ray

    def references() -> int:
        return len(ray._private.worker.global_worker.core_worker.get_all_reference_counts())

    with on_ray(TABLES[layout], record_events=True) as roles:
        told, held = [], []
        for i in range(10):
            told.append(iterate(roles, i))
            held.append(references())
        spans = roles.take_spans()
        assert roles.published == (10, told[-1].digests["actor"])
    assert_same(told, in_process("ppo", 10))
    assert max(held[5:]) <= max(held[1:5])  # nothing of an iteration that is over is held
    assert len(spans) == sum(host.workers for host in hosts_for(TABLES[layout], SMALL_PPO))
    for totals in spans.values():
        assert_whole(totals)
    if layout == "generator apart":
        assert {"wait: generator", "generate"} <= set(spans["reference"].ns) | set(spans["generator"].ns)
        assert "wait: generator" in spans["reference"].ns and "wait: actor" in spans["generator"].ns
    assert not ray.is_initialized()
