"""Which role lives where: from `--placement` to hosts, checked, and hosts made into one Ray placement group.

colocate     one host has every role
separate     a host for each role; the generator on the actor's weights
in-process   every role in the driver's own process, without Ray
a table      {"critic": {"workers": 2, "gpus": 1}, "reward": {"together_with": "reference"}, ...}; a role that is not in
             it is placed as in `separate`
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from distrl.errors import BadInput, RunFailed
from distrl.named import nearest
from distrl.rlhf.recipes import ResponseRecipe
from distrl.rlhf.role_spec import ROLES, RoleSpec
from distrl.runtime.roles import Host
from distrl.telemetry.spans import span

NAMED = ("colocate", "separate", "in-process")
TRAINED = ("actor", "critic")
DEFAULTS: dict[str, Any] = {"workers": 1, "cpus": 1.0, "gpus": 0.0}
KEYS = (*DEFAULTS, "together_with", "offload")
WAIT_STEP_SEC = 0.2

Table = Mapping[str, Mapping[str, Any]]


def hosts_for(
    placement: str | Table, recipe: ResponseRecipe, value_head: bool = False, gpus: float = 0.0
) -> tuple[Host, ...]:
    """The hosts of all roles that the recipe has.

    Each worker gets `gpus` where a table says nothing else. Raises BadInput with every problem at once.
    """
    roles = roles_of(recipe)
    if isinstance(placement, str):
        if placement not in NAMED:
            raise BadInput(
                f"--placement must be {', '.join(NAMED)} or a table of roles, got {placement!r}"
                f"{nearest(placement, NAMED)}"
            )
        if placement != "separate":
            return (Host(roles, int(placement == "colocate"), gpus=gpus),)
        placement = {}
    problems = _unknown(placement, roles)
    placement = {role: {_plain(key): value for key, value in row.items()} for role, row in placement.items()}
    leaders = {role: _leader(role, placement, value_head, problems) for role in roles}
    hosts = []
    for leader in dict.fromkeys(leaders.values()):
        together = tuple(role for role in roles if leaders[role] == leader)
        given = (
            DEFAULTS | {"gpus": gpus} | {k: v for k, v in placement.get(leader, {}).items() if k in DEFAULTS}
        )
        for role in together:
            problems += [
                f"--roles.{role}.{key} must be {leader}'s {given[key]}, since they are together, got {value!r}; "
                f"leave it out"
                for key, value in placement.get(role, {}).items()
                if key in DEFAULTS and value != given[key]
            ]
        offload = tuple(role for role in together if placement.get(role, {}).get("offload", False))
        problems += _offloaded_in_vain(offload, together, value_head)
        hosts.append(Host(together, given["workers"], given["cpus"], given["gpus"], offload))
    if problems:
        raise BadInput(*problems)
    require_valid(hosts, recipe, value_head)
    return tuple(hosts)


def _offloaded_in_vain(offload: Sequence[str], together: Sequence[str], value_head: bool) -> Iterable[str]:
    """Roles that have no model of their own to move: they use the actor's."""
    shared = ("generator", "critic") if value_head else ("generator",)
    for role in offload:
        if role in shared and "actor" in together:
            yield (
                f"--roles.{role}.offload moves nothing: together with the actor it uses the actor's model; "
                "offload the actor instead"
            )


def roles_of(recipe: ResponseRecipe) -> tuple[str, ...]:
    """All that an iteration needs, in the order of ROLES."""
    return tuple(role for role in ROLES if role != "critic" or recipe.trains_value)


def _unknown(table: Table, roles: Sequence[str]) -> list[str]:
    problems = []
    for role, row in table.items():
        if role not in roles:
            why = (
                "this algorithm has none"
                if role in ROLES
                else f"must be of {', '.join(roles)}{nearest(role, roles)}"
            )
            problems.append(f"--roles.{role}: {why}")
        if not isinstance(row, Mapping):
            problems.append(f"--roles.{role} must be a table of {', '.join(KEYS)}, got {row!r}")
            continue
        for written, value in row.items():
            key = _plain(written)
            if key not in KEYS:
                problems.append(f"--roles.{role}.{key} must be one of {', '.join(KEYS)}{nearest(key, KEYS)}")
            elif key == "offload" and not isinstance(value, bool):
                problems.append(f"--roles.{role}.offload must be true or false, got {value!r}")
            elif key == "together_with" and value not in roles:
                problems.append(f"--roles.{role}.together_with must be of {', '.join(roles)}, got {value!r}")
    if problems:
        raise BadInput(*problems)  # what follows reads them
    return []


def _plain(key: str) -> str:
    """`together-with` and `together_with` are one name, as everywhere in flags and TOML."""
    return key.replace("-", "_")


def _leader(role: str, table: Table, value_head: bool, problems: list[str]) -> str:
    """Whose line in the table counts for a role: follow `together_with` to its end."""
    with_actor = ("generator", "critic") if value_head else ("generator",)
    at, seen = role, [role]
    while True:
        row = table.get(at)
        following = row.get("together_with") if row is not None else "actor" if at in with_actor else None
        if following is None or following == at:
            return at
        if following in seen:
            if role == min(seen):  # told once
                problems.append(
                    f"--roles: together_with goes in a circle: {' with '.join([*seen, following])}"
                )
            return role
        seen.append(following)
        at = following


def require_valid(hosts: Sequence[Host], recipe: ResponseRecipe, value_head: bool = False) -> None:
    """BadInput where a role is not placed exactly once, or its host cannot do its work."""
    problems = []
    placed = [role for host in hosts for role in host.roles]
    for role in dict.fromkeys((*roles_of(recipe), *placed)):
        count, wanted = placed.count(role), int(role in roles_of(recipe))
        if count != wanted:
            problems.append(
                f"the role {role} must be placed {'once' if wanted else 'nowhere'}, got {count} hosts"
            )
    for host in hosts:
        problems += _host_problems(host)
    if any(host.workers == 0 for host in hosts) and len(hosts) > 1:
        problems.append(
            "0 workers mean this process, which must host every role or none; give each host a worker"
        )
    of = {role: host for host in hosts for role in host.roles}
    apart = "critic" in of and "actor" in of and of["critic"] is not of["actor"]
    if apart and value_head:
        problems.append("a critic that is a head on the actor's trunk must be together_with actor")
    if apart and recipe.target_kl is not None:
        problems.append(
            f"--target-kl {recipe.target_kl:g} stops actor and critic at once: place the critic together_with actor, "
            "or leave it out"
        )
    if problems:
        raise BadInput(*problems)


def _host_problems(host: Host) -> Iterable[str]:
    workers = host.workers
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 0:
        yield f"{host.name}: workers must be a whole number, 1 or more (0: this process), got {workers!r}"
    elif set(host.roles) & set(TRAINED) and workers & (workers - 1) and workers > 0:
        below = 1 << (workers.bit_length() - 1)
        yield (
            f"{host.name}: roles that learn share an update among 1, 2, 4, 8, ... workers, whose sums are one tree, "
            f"got {workers}; use {below} or {2 * below}"
        )
    for name, value, least in (("cpus", host.cpus, "more than 0"), ("gpus", host.gpus, "0 or more")):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value < 0 or (value == 0 and name == "cpus"):
            yield f"{host.name}: {name} must be {least}, got {value!r}"


def idle_warnings(spec: RoleSpec, hosts: Sequence[Host]) -> list[str]:
    """Workers that will never have anything to do: work is shared in pieces that the configuration fixes."""
    n = spec.num_responses
    per_minibatch = max(n // spec.recipe.minibatches, 1)
    pieces = {
        "generator": (-(-n // spec.generation_batch), "generation batches", "--generation-batch"),
        "reference": (-(-n // spec.forward_batch), "forward batches", "--forward-batch"),
        "reward": (-(-n // spec.forward_batch), "forward batches", "--forward-batch"),
    }
    for role in TRAINED:
        size = spec.micro_batch or per_minibatch
        pieces[role] = (-(-per_minibatch // size), "micro-batches of a minibatch", "--micro-batch")
    return [
        f"{role} has {host.workers} workers but its work may come in {count} {what}, and {host.workers - count} be idle; "
        f"lower {flag}"
        for host in hosts
        for role in host.roles
        for count, what, flag in [pieces[role]]
        if host.workers > count
    ]


def devices(hosts: Sequence[Host]) -> dict[str, str]:
    """Where each role computes: on a GPU where its workers have one or a part of it."""
    return {role: "cuda" if host.gpus > 0 else "cpu" for host in hosts for role in host.roles}


# on a cluster


def needed(hosts: Sequence[Host]) -> dict[str, float]:
    """CPUs and GPUs of all workers."""
    return {
        "CPU": sum(host.workers * host.cpus for host in hosts),
        "GPU": sum(host.workers * host.gpus for host in hosts),
    }


def bundles(hosts: Sequence[Host]) -> list[dict[str, float]]:
    """What each worker takes, host by host."""
    each = [({"CPU": host.cpus, "GPU": host.gpus}, host.workers) for host in hosts]
    return [
        {kind: amount for kind, amount in one.items() if amount > 0}
        for one, count in each
        for _ in range(count)
    ]


def require_place(hosts: Sequence[Host], address: str | None) -> list[str]:
    """What a person should be told of the hosts' place, before anything is built or started for them.

    BadInput, with needed against available, where the cluster (`cluster_address`) or this machine can never hold them.
    """
    if not any(host.workers for host in hosts):
        return []
    from distrl.runtime.cluster import cluster_address, nodes_at

    joined = cluster_address(address)
    if joined is not None:
        require_room(hosts, nodes_at(joined))
        return []
    cpus = os.cpu_count() or 1
    require_room(hosts, [{"CPU": cpus, "GPU": torch.cuda.device_count()}], here=True)
    return shared_cpus(hosts, cpus)


def shared_cpus(hosts: Sequence[Host], cpus: int) -> list[str]:
    """A warning where workers on one machine ask for more CPUs than it has."""
    want = needed(hosts)["CPU"]
    if want <= cpus:
        return []
    each = ", ".join(f"{host.name} {host.workers * host.cpus:g}" for host in hosts)
    return [
        f"the roles ask for {want:g} CPUs ({each}) and this machine has {cpus}: they share them, slower at the same time "
        "than each alone; place roles together, lower their workers or cpus, or join a cluster by --address"
    ]


def require_room(hosts: Sequence[Host], nodes: Sequence[Mapping[str, float]], here: bool = False) -> None:
    """BadInput where the cluster, these nodes' CPUs and GPUs, can never hold the hosts: needed against available.

    A cluster that is started `here` for them has all CPUs that they ask for: `shared_cpus`.
    """
    total = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    want = needed(hosts)
    why = [
        f"{want[kind]:g} {kind}s needed, {total[kind]:g} there"
        for kind in (("GPU",) if here else total)
        if want[kind] > total[kind]
    ]
    for host in hosts:
        room = any(
            (here or host.cpus <= node.get("CPU", 0.0)) and host.gpus <= node.get("GPU", 0.0)
            for node in nodes
        )
        if not why and not room:
            why.append(
                f"no node has the {host.cpus:g} CPUs and {host.gpus:g} GPUs of one worker of {host.name}"
            )
    if why:
        place, word = ("this machine", "on this machine") if here else ("the Ray cluster", "in the cluster")
        more = "join a cluster that has them by --address" if here else "add nodes"
        raise BadInput(
            f"the placement does not fit {place}: {'; '.join(why)}\n{_bill(hosts, total, word)}\n"
            f"place roles together, lower their workers, or {more}"
        )


def reserve(hosts: Sequence[Host], timeout_sec: float, check_interrupt: Callable[[], None]) -> Any:
    """One placement group with a bundle for each worker, in the order of `bundles`, all or nothing.

    RunFailed where the cluster has not the room free within the timeout; nothing stays reserved then.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group(bundles(hosts), strategy="PACK")
    deadline = time.monotonic() + timeout_sec
    try:
        with span("wait: placement"):
            while not group.wait(WAIT_STEP_SEC):
                check_interrupt()
                if time.monotonic() > deadline:
                    free = ray.available_resources()
                    raise RunFailed(
                        f"the Ray cluster did not make room for the roles within {timeout_sec:g} s:\n"
                        f"{_bill(hosts, free, 'free now')}\nis another run on it?"
                    )
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def _bill(hosts: Sequence[Host], there: Mapping[str, float], word: str) -> str:
    """Needed against available, a line for each host."""
    total = needed(hosts)
    lines = [("", "workers", "CPUs", "GPUs")]
    lines += [
        (host.name, str(host.workers), f"{host.workers * host.cpus:g}", f"{host.workers * host.gpus:g}")
        for host in hosts
    ]
    lines.append(
        ("needed", str(sum(host.workers for host in hosts)), f"{total['CPU']:g}", f"{total['GPU']:g}")
    )
    lines.append((word, "", f"{there.get('CPU', 0):g}", f"{there.get('GPU', 0):g}"))
    wide = max(len(line[0]) for line in lines)
    return "\n".join(f"  {who:<{wide}}  {count:>7}  {cpus:>5}  {gpus:>5}" for who, count, cpus, gpus in lines)
