"""Roles in one process: turns on a device, weights that must arrive, who waits for whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small import SMALL_PPO, HereStage, OddTokens, assert_same, gpt, models, play, spec

from distrl.errors import RunFailed
from distrl.learner import Snapshot
from distrl.policies.lm import ScalarModel
from distrl.rlhf.models import LoraOptions, ModelParts, scalar_from, with_lora
from distrl.rlhf.rewards import ModelReward, Weighted
from distrl.rlhf.role_spec import ROLES
from distrl.rlhf.roles import RoleWorker
from distrl.runtime.placement import hosts_for
from distrl.runtime.roles import Roles, start_roles
from distrl.telemetry import spans


@pytest.mark.parametrize("value_head", [False, True])
def test_models_that_take_turns_on_a_device_change_no_bit(value_head: bool) -> None:
    run = spec(value_head=value_head)
    (host,) = hosts_for("in-process", SMALL_PPO, value_head)
    wanted = play(start_roles(run, models(), None, [host]), 2)
    roles = start_roles(run, models(), None, [replace(host, offload=ROLES)])
    recorder = spans.start()
    assert_same(play(roles, 2), wanted)
    moves = {
        name: count for name, count in recorder.take_totals().counts.items() if name.startswith("offload")
    }
    # to the device and back, two iterations: write, log-probs, values, learn
    if value_head:
        assert moves == {"offload: actor": 12, "offload: reference": 4, "offload: reward": 4}
    else:
        assert moves == {
            "offload: actor": 8,
            "offload: critic": 8,
            "offload: reference": 4,
            "offload: reward": 4,
        }


def test_a_role_that_is_not_offloaded_stays_on_its_device() -> None:
    (host,) = hosts_for("in-process", SMALL_PPO)
    roles = start_roles(spec(), models(), None, [replace(host, offload=("critic",))])
    recorder = spans.start()
    play(roles, 1)
    moves = Counter(name for name in recorder.take_totals().counts if name.startswith("offload"))
    assert moves == {"offload: critic": 1}


def test_models_of_a_reward_are_named_so_that_they_can_leave_their_device() -> None:
    model = ModelReward(scalar_from(gpt(2), 0.5))
    several = Weighted(((1.0, model), (0.5, Weighted(((2.0, model),))), (3.0, OddTokens())))
    for source, count in ((model, 1), (several, 2), (OddTokens(), 0)):
        worker = RoleWorker(spec(reward=source), ("reward",), {}, offload=("reward",))
        held = worker._held("reward")
        assert len({id(one) for one in held}) == count
        assert all(isinstance(one, ScalarModel) for one in held)


def test_in_one_process_spans_are_the_drivers_own() -> None:
    roles = start_roles(spec(), models(), None, hosts_for("in-process", SMALL_PPO))
    play(roles, 1)
    assert roles.take_spans() == {}
    roles.close()


class Damaged:
    """Workers to whom weights come otherwise than they were sent."""

    def __init__(self, workers: Any, damage: Any) -> None:
        self.host, self.workers, self.damage = workers.host, workers, damage

    def call(self, method: str, *args: Any) -> list[Any]:
        return self.workers.call(method, *(map(self.damage, args) if method == "load_writer" else args))

    def first(self, method: str, *args: Any) -> Any:
        return self.workers.first(method, *args)

    def get(self, handles: Sequence[Any]) -> list[Any]:
        return self.workers.get(handles)


def one_bit_off(snapshot: Snapshot) -> Snapshot:
    name = sorted(snapshot.arrays)[0]
    array = snapshot.arrays[name].copy()
    array.reshape(-1).view(np.uint8)[0] ^= 1
    return replace(snapshot, arrays=snapshot.arrays | {name: array})


def of_the_version_before(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, version=snapshot.version - 1)


def apart() -> Roles:
    run = spec()
    return Roles(run, HereStage(run, hosts_for({"generator": {"workers": 2}}, SMALL_PPO)))


def test_weights_are_acknowledged_by_version_and_digest_before_a_token_is_sampled() -> None:
    roles = apart()
    told = play(roles, 2)
    assert roles.published == (2, told[-1].digests["actor"])
    for worker in roles.of["generator"].workers:  # type: ignore[attr-defined]
        written = worker.write(2)
        assert written and all(one.version == 2 for one in written)


@pytest.mark.parametrize("damage", [one_bit_off, of_the_version_before])
def test_weights_that_did_not_arrive_as_they_were_sent_end_the_run(damage: Any) -> None:
    roles = apart()
    play(roles, 1)
    roles.of["generator"] = Damaged(roles.of["generator"], damage)
    with pytest.raises(
        RunFailed, match=r"generator worker 0 samples with version .* its weights did not arrive"
    ):
        roles.publish()
    assert roles.published is not None and roles.published[0] == 1


def test_learners_that_part_are_found_out() -> None:
    run = spec()
    roles = Roles(run, HereStage(run, hosts_for({"actor": {"workers": 2}}, SMALL_PPO)))
    learner = roles.of["actor"].workers[1].learner  # type: ignore[attr-defined]
    next(learner.policy.actor.parameters()).data[0, 0] += 1.0
    with pytest.raises(
        RunFailed, match=r"the workers of generator\+actor hold different parameters after version 1"
    ):
        play(roles, 1)


def test_parameters_are_hashed_once_a_version_and_role() -> None:
    roles = start_roles(spec(), models(), None, hosts_for("in-process", SMALL_PPO))
    recorder = spans.start()
    reports = play(roles, 2)
    counts = recorder.take_totals().counts
    assert counts["digest"] == 2 * 2
    assert "load weights" not in counts  # it writes with what it trained
    assert roles.published == (2, reports[-1].digests["actor"])
    assert roles.snapshot().digest == reports[-1].digests["actor"]


def with_adapters() -> dict[str, ModelParts]:
    plain = models()
    return plain | {"actor": with_lora(plain["actor"], LoraOptions(rank=2), seed=3)}


def test_adapters_alone_travel_to_generators_and_the_frozen_base_is_checked_too() -> None:
    run = spec()
    hosts = hosts_for({"generator": {"workers": 2}}, SMALL_PPO)
    wanted = play(start_roles(run, with_adapters(), None, hosts_for("in-process", SMALL_PPO)), 2)
    roles = Roles(run, HereStage(run, hosts, with_adapters()))
    assert_same(play(roles, 2), wanted)
    actor, generator = roles.of["actor"], roles.of["generator"].workers[0]  # type: ignore[attr-defined]
    sent = actor.first("changes")
    assert sent.arrays and all("lora_" in name for name in sent.arrays)
    assert sent.digest == wanted[-1].digests["actor"]
    # a base that differs before it is first looked at
    second = Roles(run, HereStage(run, hosts, with_adapters()))
    base = next(
        p for name, p in second.of["generator"].workers[1].writer.named_parameters() if "lora" not in name
    )  # type: ignore[attr-defined]
    base.data.reshape(-1)[0] += 1.0
    with pytest.raises(RunFailed, match="generator worker 1 samples with .* its weights did not arrive"):
        second.publish()
    assert generator.written_by == 2
