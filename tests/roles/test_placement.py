"""Placement: from names and tables to hosts, what is refused, and a cluster that has not the room."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

import pytest
from small import SMALL_PPO, models, spec

from distrl.errors import BadInput, RunFailed
from distrl.rlhf.recipes import GRPO, RLHF_PPO
from distrl.rlhf.role_spec import ROLES
from distrl.runtime.placement import (
    bundles,
    devices,
    hosts_for,
    idle_warnings,
    needed,
    require_place,
    require_room,
    require_valid,
    shared_cpus,
)
from distrl.runtime.roles import Host, start_roles


def problems(table: Any, **more: Any) -> list[str]:
    with pytest.raises(BadInput) as refused:
        hosts_for(table, **{"recipe": RLHF_PPO, **more})
    return refused.value.problems


def test_the_named_placements() -> None:
    assert hosts_for("colocate", RLHF_PPO) == (Host(ROLES),)
    assert hosts_for("in-process", RLHF_PPO) == (Host(ROLES, workers=0),)
    separate = (Host(("generator", "actor")), Host(("critic",)), Host(("reference",)), Host(("reward",)))
    assert hosts_for("separate", RLHF_PPO) == separate
    assert hosts_for({}, RLHF_PPO) == separate


def test_a_recipe_without_a_critic_places_none() -> None:
    assert hosts_for("separate", GRPO) == (
        Host(("generator", "actor")),
        Host(("reference",)),
        Host(("reward",)),
    )
    assert "critic" not in hosts_for("colocate", GRPO)[0].roles
    assert problems({"critic": {"workers": 2}}, recipe=GRPO) == ["--roles.critic: this algorithm has none"]


def test_a_value_head_is_with_its_actor() -> None:
    hosts = hosts_for("separate", RLHF_PPO, value_head=True)
    assert hosts[0].roles == ("generator", "actor", "critic")
    (problem,) = problems({"critic": {"workers": 1}}, value_head=True)
    assert problem == "a critic that is a head on the actor's trunk must be together_with actor"


def test_a_table_places_roles_together_and_apart() -> None:
    table = {
        "generator": {"workers": 3, "gpus": 0.5},
        "actor": {"workers": 2, "gpus": 1, "cpus": 4, "offload": True},
        "critic": {"together_with": "actor", "offload": True},
        "reward": {"together_with": "reference"},
        "reference": {"workers": 2, "together_with": "reference"},
    }
    assert hosts_for(table, RLHF_PPO) == (
        Host(("generator",), 3, 1.0, 0.5),
        Host(("actor", "critic"), 2, 4, 1, ("actor", "critic")),
        Host(("reference", "reward"), 2),
    )
    followed = {"reward": {"together_with": "reference"}, "reference": {"together_with": "critic"}}
    assert hosts_for(followed, RLHF_PPO)[1].roles == ("critic", "reference", "reward")


def test_every_role_gets_the_gpus_that_are_asked_for_unless_its_table_says_otherwise() -> None:
    hosts = hosts_for({"reward": {"gpus": 0}}, RLHF_PPO, gpus=1)
    assert {host.name: host.gpus for host in hosts} == {
        "generator+actor": 1,
        "critic": 1,
        "reference": 1,
        "reward": 0,
    }
    assert devices(hosts) == dict.fromkeys(ROLES[:-1], "cuda") | {"reward": "cpu"}


def test_all_that_is_wrong_with_a_table_is_said_at_once() -> None:
    assert problems(
        {"acter": {}, "critic": {"gpu": 1}, "reward": {"together_with": "judge"}, "actor": 3}
    ) == [
        "--roles.acter: must be of generator, actor, critic, reference, reward; did you mean 'actor'?",
        "--roles.critic.gpu must be one of workers, cpus, gpus, together_with, offload; did you mean 'gpus'?",
        "--roles.reward.together_with must be of generator, actor, critic, reference, reward, got 'judge'",
        "--roles.actor must be a table of workers, cpus, gpus, together_with, offload, got 3",
    ]
    told = problems(
        {
            "actor": {"workers": 3},
            "critic": {"workers": True},
            "reference": {"cpus": 0},
            "reward": {"gpus": -1},
        }
    )
    assert len(told) == 4
    assert "generator+actor: roles that learn share an update among 1, 2, 4, 8, ... workers" in told[0]
    assert told[0].endswith("got 3; use 2 or 4")
    assert "workers must be a whole number" in told[1]
    assert told[2] == "reference: cpus must be more than 0, got 0"
    assert told[3] == "reward: gpus must be 0 or more, got -1"


def test_roles_that_are_together_share_their_workers() -> None:
    (problem,) = problems({"actor": {"workers": 2}, "generator": {"together_with": "actor", "workers": 4}})
    assert problem.startswith("--roles.generator.workers must be actor's 2, since they are together, got 4")
    same = {"actor": {"workers": 2}, "generator": {"together_with": "actor", "workers": 2}}
    assert hosts_for(same, RLHF_PPO)[0] == Host(("generator", "actor"), 2)


def test_roles_that_follow_one_another_in_a_circle_are_refused() -> None:
    circle = {"reference": {"together_with": "reward"}, "reward": {"together_with": "reference"}}
    assert problems(circle) == [
        "--roles: together_with goes in a circle: reference with reward with reference"
    ]


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    (problem,) = problems("collocate")
    assert problem.endswith("got 'collocate'; did you mean 'colocate'?")


def test_a_kl_target_keeps_the_critic_with_the_actor() -> None:
    recipe = replace(RLHF_PPO, target_kl=0.02)
    assert "--target-kl 0.02 stops actor and critic at once" in problems("separate", recipe=recipe)[0]
    assert len(hosts_for("colocate", recipe)) == 1
    assert hosts_for({"critic": {"together_with": "actor"}}, recipe)[0].roles == (
        "generator",
        "actor",
        "critic",
    )


def test_hosts_must_have_every_role_once() -> None:
    with pytest.raises(BadInput) as refused:
        require_valid(
            [Host(("generator", "actor"), 0), Host(("actor", "reward", "reference", "judge"))], RLHF_PPO
        )
    assert refused.value.problems == [
        "the role actor must be placed once, got 2 hosts",
        "the role critic must be placed once, got 0 hosts",
        "the role judge must be placed nowhere, got 1 hosts",
        "0 workers mean this process, which must host every role or none; give each host a worker",
    ]


def test_workers_that_will_have_nothing_to_do_are_told_of() -> None:
    hosts = hosts_for(
        {"actor": {"workers": 4}, "critic": {"workers": 8}, "reward": {"workers": 5}}, SMALL_PPO
    )
    told = idle_warnings(spec(), hosts)
    assert told == [
        "critic has 8 workers but its work may come in 4 micro-batches of a minibatch, and 4 be idle; lower --micro-batch",
        "reward has 5 workers but its work may come in 4 forward batches, and 1 be idle; lower --forward-batch",
    ]
    assert len(idle_warnings(spec(micro_batch=None), hosts)) == 3


def test_what_a_cluster_can_never_hold_is_refused_with_needed_against_available() -> None:
    hosts = hosts_for({"actor": {"workers": 2, "gpus": 1, "cpus": 3}}, RLHF_PPO)
    assert needed(hosts) == {"CPU": 9.0, "GPU": 2.0}
    assert bundles(hosts) == [{"CPU": 3, "GPU": 1}] * 2 + [{"CPU": 1.0}] * 3
    require_room(hosts, [{"CPU": 6, "GPU": 2}, {"CPU": 3}])
    with pytest.raises(BadInput) as refused:
        require_room(hosts, [{"CPU": 4}, {"CPU": 4, "GPU": 1}])
    assert str(refused.value).splitlines()[:-1] == [
        "the placement does not fit the Ray cluster: 9 CPUs needed, 8 there; 2 GPUs needed, 1 there",
        "                   workers   CPUs   GPUs",
        "  generator+actor        2      6      2",
        "  critic                 1      1      0",
        "  reference              1      1      0",
        "  reward                 1      1      0",
        "  needed                 5      9      2",
        "  in the cluster                8      1",
    ]
    with pytest.raises(
        BadInput, match=r"no node has the 3 CPUs and 1 GPUs of one worker of generator\+actor"
    ):
        require_room(hosts, [{"CPU": 12}, {"CPU": 2, "GPU": 2}])


def test_a_machine_of_ones_own_shares_its_cpus_with_a_warning_and_has_no_more_gpus_than_it_has() -> None:
    hosts = hosts_for({"actor": {"workers": 2, "cpus": 3}}, RLHF_PPO)
    require_room(hosts, [{"CPU": 1}], here=True)
    assert shared_cpus(hosts, 9) == []
    (told,) = shared_cpus(hosts, 8)
    assert told.startswith(
        "the roles ask for 9 CPUs (generator+actor 6, critic 1, reference 1, reward 1) and this machine has 8"
    )
    with pytest.raises(BadInput) as refused:
        require_room(hosts_for("separate", RLHF_PPO, gpus=1), [{"CPU": 1, "GPU": 2}], here=True)
    said = str(refused.value)
    assert said.startswith("the placement does not fit this machine: 4 GPUs needed, 2 there\n")
    assert " on this machine 1 2 " in " ".join(said.split()) and "--address" in said


def test_a_place_is_looked_for_here_unless_a_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = hosts_for({"actor": {"cpus": 10000}}, RLHF_PPO)
    assert "the roles ask for 10003 CPUs" in require_place(huge, None)[0]
    assert require_place(hosts_for("in-process", RLHF_PPO), None) == []
    with socket.socket() as closed:  # bound and not listening: nobody else's
        closed.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{closed.getsockname()[1]}"
        for given, environment in ((nowhere, ""), (None, nowhere)):
            monkeypatch.setenv("RAY_ADDRESS", environment)
            with pytest.raises(BadInput, match=f"{nowhere}: no Ray cluster answers there"):
                require_place(huge, given)


@pytest.mark.ray
@pytest.mark.slow
def test_a_placement_that_cannot_be_met_ends_in_bounded_time_and_leaves_nothing() -> None:
    import ray
    from ray.util.placement_group import placement_group, placement_group_table

    from distrl.runtime.placement import reserve

    hosts = hosts_for({"critic": {"gpus": 1}}, SMALL_PPO)
    with pytest.raises(BadInput, match="1 GPUs needed, 0 there"):
        start_roles(spec(), models(), None, hosts)
    assert not ray.is_initialized()

    ray.init(address="local", num_cpus=4, include_dashboard=False)
    try:
        taken = placement_group([{"CPU": 2}])
        assert taken.wait(30)
        with pytest.raises(RunFailed) as failed:
            reserve(hosts_for("separate", SMALL_PPO), 1.0, lambda: None)
        said = str(failed.value)
        assert said.startswith("the Ray cluster did not make room for the roles within 1 s")
        assert "  needed                 4      4      0\n  free now                      2      0" in said
        states = [one["state"] for one in placement_group_table().values()]
        assert sorted(states) == ["CREATED", "REMOVED"]
    finally:
        ray.shutdown()


def test_a_role_that_uses_the_actors_model_has_nothing_of_its_own_to_offload() -> None:
    (problem,) = problems({"generator": {"together_with": "actor", "offload": True}})
    assert problem == (
        "--roles.generator.offload moves nothing: together with the actor it uses the actor's model; "
        "offload the actor instead"
    )
    (problem,) = problems({"critic": {"together_with": "actor", "offload": True}}, value_head=True)
    assert problem.startswith("--roles.critic.offload moves nothing")
    apart = hosts_for({"generator": {"offload": True}}, RLHF_PPO)
    assert apart[0] == Host(("generator",), offload=("generator",))
