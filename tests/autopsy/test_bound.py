"""The bound is named right from recorded span tables: the six plants, without a clock."""

from dataclasses import replace

import pytest

from distrl.autopsy.bound import find_bound
from distrl.autopsy.model import predict, slowest_of
from distrl.autopsy.prescribe import effect_of, prescriptions, together
from tests.autopsy.synthetic import LEARN, WORK, Iterations, config, costs_of, session

CASES = {
    "env-bound": session([WORK | {"rollout: env step": 300.0}] * 2, LEARN),
    "inference-bound": session([WORK | {"rollout: inference": 300.0}] * 2, LEARN),
    "learner-bound": session([WORK] * 2, LEARN | {"learn: update": 300.0}),
    "straggler-bound": session([WORK, {name: 8 * ms for name, ms in WORK.items()}], LEARN),
    "oversubscribed-threads-bound": session([WORK] * 2, LEARN | {"learn: update": 300.0}, learner_threads=64),
    "transfer-bound": session(
        [WORK | {"rollout: send": 120.0}] * 2, LEARN | {"learn: gather": 90.0, "learn: transfer": 40.0}
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_each_planted_bound_is_named(kind: str) -> None:
    costs = costs_of(CASES[kind], speed={1: 0.2, 64: 1.0} if "threads" in kind else None)
    found = find_bound(CASES[kind], costs)
    assert found.kind == kind
    assert found.share == max(found.parts.values())
    assert sum(found.parts.values()) == pytest.approx(1.0)


def test_the_sentence_names_the_worker_its_step_and_who_waits() -> None:
    slow_env = CASES["env-bound"]
    sentence = find_bound(slow_env, costs_of(slow_env)).sentence
    assert "on worker" in sentence and "env step, 2.3 ms for a step of 4 envs" in sentence
    assert "the learner waits 95 % of its time" in sentence
    straggler = CASES["straggler-bound"]
    sentence = find_bound(straggler, costs_of(straggler)).sentence
    assert sentence.startswith("worker 1 bounds: its groups take 8.0 times as long")


def test_many_threads_that_help_are_no_oversubscription() -> None:
    busy = CASES["oversubscribed-threads-bound"]
    assert find_bound(busy, costs_of(busy, speed={1: 3.0, 64: 1.0})).kind == "learner-bound"


def test_the_model_gives_back_the_session_that_it_was_fitted_to() -> None:
    for kind, measured in CASES.items():
        costs = costs_of(measured, idle=0.9)  # waiting envs: no crowd on this machine's cores
        assert predict(measured.config, costs).rate == pytest.approx(measured.rate, rel=0.05), kind


def test_a_waiting_env_s_collection_shrinks_with_the_workers_and_a_computing_one_s_with_the_cores() -> None:
    one = session([WORK | {"rollout: env step": 300.0}], LEARN, groups=8, num_envs=32)
    waiting, computing = costs_of(one, idle=1.0), costs_of(one, idle=0.0)
    eight = one.config.model_copy(update={"workers": 8})
    collect = predict(one.config, waiting).parts["collect"]
    assert predict(eight, waiting).parts["collect"] == pytest.approx(collect / 8)
    least = collect / computing.cores
    assert predict(eight, computing).parts["collect"] == pytest.approx(max(least, collect / 8), rel=0.01)


def test_overlap_hides_the_shorter_of_collection_and_learning() -> None:
    even = session([WORK] * 2, LEARN | {"learn: update": 40.0})
    costs = costs_of(even, idle=1.0)
    alone, both = predict(even.config, costs), predict(even.config.model_copy(update={"overlap": 1}), costs)
    longer = max(alone.parts["collect"], alone.parts["learn"] + alone.parts["driver"])
    assert both.iteration_sec == pytest.approx(longer + alone.parts["transfer"] / 2)
    assert alone.iteration_sec == pytest.approx(sum(alone.parts.values()))


def test_fewer_minibatches_save_their_fixed_cost_alone() -> None:
    measured = CASES["learner-bound"]
    costs = costs_of(measured)
    recipe = measured.config.recipe
    fewer = measured.config.model_copy(
        update={"recipe": type(recipe)(**{**vars(recipe), "minibatches": recipe.minibatches // 2})}
    )
    saved = predict(measured.config, costs).parts["learn"] - predict(fewer, costs).parts["learn"]
    assert saved == pytest.approx(recipe.epochs * recipe.minibatches / 2 * costs.update.per_minibatch)


def test_a_straggler_stays_slow_and_gets_fewer_groups_from_more_workers() -> None:
    slow = {name: 8 * ms for name, ms in WORK.items()}
    measured = session([WORK, slow], LEARN, groups=8, num_envs=32)
    costs = costs_of(measured, idle=1.0)
    assert costs.slow == pytest.approx({0: 1.0, 1: 8.0})
    before = predict(measured.config, costs).parts["collect"]
    after = predict(measured.config.model_copy(update={"workers": 8}), costs).parts["collect"]
    assert after == pytest.approx(before / 4, rel=0.05)


def test_prescriptions_are_ranked_marked_and_valid() -> None:
    measured = session(
        [WORK | {"rollout: env step": 300.0}], LEARN | {"learn: update": 200.0}, groups=4, num_envs=16
    )
    costs = costs_of(measured, idle=0.9)
    found = prescriptions(measured.config, costs, measured.rate)
    assert [one.gain for one in found] == sorted((one.gain for one in found), reverse=True)
    effects = {name: one.effect for one in found for name in one.changes if len(one.changes) == 1}
    assert effects["workers"] == "same curve"
    assert effects["overlap"] == "changes the curve"
    best = found[0]
    assert best.changes["workers"] >= 4 and best.flags.startswith("--workers")
    assert all(one.gain >= 1.03 for one in found)
    joint = together(measured.config, costs, measured.rate, found)
    assert joint is not None and joint.gain > best.gain and len(joint.changes) > len(best.changes)


def test_what_is_not_measured_is_said_to_be_assumed() -> None:
    in_process = {
        "driver": [("rollout: env step", 0, 80_000_000), ("learn: update", 80_000_000, 100_000_000)] * 1
    }
    made = Iterations([WORK], LEARN, count=1)
    made.events, made.boundaries, made.of_groups = in_process, [0, 100_000_000], {}
    measured = made.measured(config(workers=0, groups=4, num_envs=16))
    found = prescriptions(measured.config, costs_of(measured, idle=0.9), measured.rate)
    assert {one.assumed for one in found if one.changes.get("workers")} == {("transfer",)}
    assert {one.assumed for one in found if not one.changes.get("workers")} <= {()}


def test_the_slowest_of_many_workers_is_later_the_more_the_fragments_differ() -> None:
    assert slowest_of(1) == 0.0
    assert [slowest_of(n) for n in (2, 4, 16)] == pytest.approx([0.564, 1.029, 1.766], abs=0.05)
    one = session([WORK | {"rollout: env step": 300.0}], LEARN, groups=8, num_envs=32)
    steady = costs_of(one, idle=1.0)
    shaky = replace(steady, jitter=0.1)
    eight = one.config.model_copy(update={"workers": 8})
    later = predict(eight, shaky).parts["collect"] - predict(eight, steady).parts["collect"]
    assert later == pytest.approx(slowest_of(8) * 0.1)
    assert predict(one.config, shaky).rate == predict(one.config, steady).rate, "one worker waits for nobody"


def test_another_s_episodes_change_the_curve_and_a_twin_s_do_not() -> None:
    own = config()
    assert effect_of(own, {"env_backend": "native"}) == "same curve"
    assert effect_of(own, {"env_backend": "envpool"}) == "changes the curve"
    assert (
        effect_of(own.model_copy(update={"env_backend": "envpool"}), {"env_backend": "native"})
        == "changes the curve"
    )
    assert effect_of(own.model_copy(update={"env_backend": "envpool"}), {"workers": 2}) == "same curve"


def test_threads_change_bits_of_any_learner_but_the_compiled_one() -> None:
    own = config()
    assert effect_of(own, {"learner_threads": 2}) == "other bits"
    assert effect_of(own, {"learner_threads": 2}, threads_keep_bits=True) == "same curve"
    assert effect_of(own, {"learner_threads": 2, "overlap": 1}, threads_keep_bits=True) == "changes the curve"
