"""The autopsy as data: what `--json` prints, profile.json holds and the page draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distrl import machine
from distrl.autopsy.apart import split
from distrl.autopsy.categories import MEANING, OTHER, WAITING
from distrl.autopsy.diagnose import Diagnosis
from distrl.autopsy.path import shares
from distrl.autopsy.prescribe import Prescription
from distrl.autopsy.search import Tried
from distrl.autopsy.timeline import DRIVER, LEARNER
from distrl.resolve import to_flat

SCHEMA = 1


def as_json(found: Diagnosis, tried: Sequence[Tried] = (), tuned: Sequence[Tried] = ()) -> dict[str, Any]:
    """One JSON object: rate, bound, processes, critical path, prescriptions, what was tried."""
    session = found.session
    return {
        "schema": SCHEMA,
        "env": session.config.env,
        "algo": session.config.algo,
        "steps_per_sec": session.rate,
        "iteration_sec": session.iteration_sec,
        "iterations": session.iterations,
        "env_steps_per_iteration": session.env_steps,
        "trajectory_bytes_per_iteration": session.num_bytes,
        "iteration_spread": session.spread,
        "cores_at_work": session.cpu_sec / session.iteration_sec,
        "bound": found.bound.kind,
        "sentence": found.bound.sentence,
        "parts": found.bound.parts,
        "notes": list(found.notes),
        "processes": {name: process_shares(found, name) for name in process_names(found)},
        "measured_apart": dict(found.costs.apart),
        "critical_path": [
            {"process": process, "category": kind, "share": share}
            for (process, kind), share in shares(found.path, found.costs.apart).items()
        ],
        "prescriptions": [_prescription(one) for one in found.prescriptions],
        "together": _prescription(found.together) if found.together else None,
        "tried": [_tried(one) for one in tried],
        "tuned": [_tried(one) for one in tuned],
        "checkpoint_sec": session.checkpoint_sec,
        "span_overhead": vars(found.overhead),
        "config": to_flat(session.config),
        "versions": machine.versions(),
        "machine": machine.machine("cpu"),
    }


def process_names(found: Diagnosis) -> list[str]:
    """Workers, learner, driver."""
    timeline = found.session.timeline
    return [*timeline.workers, *(name for name in (LEARNER, DRIVER) if name in timeline.processes)]


def process_shares(found: Diagnosis, process: str) -> dict[str, float]:
    """Category -> share of the process's wall time, in the order of the displays; they sum to 1.

    A fused rollout's is given to its parts as they were measured apart.
    """
    timeline = found.session.timeline
    totals = split(timeline.by_category(process), found.costs.apart)
    order = list(MEANING)
    key = {name: (order.index(name) if name in order else order.index(WAITING)) for name in totals}
    return {
        name: totals[name] / timeline.wall_ns for name in sorted(totals, key=lambda name: (key[name], name))
    }


def other_share(found: Diagnosis) -> float:
    """The largest share of any process that has no name of its own."""
    return max(process_shares(found, name).get(OTHER, 0.0) for name in process_names(found))


def _prescription(one: Prescription) -> dict[str, Any]:
    return {
        "flags": one.flags,
        "changes": one.changes,
        "steps_per_sec": one.prediction.rate,
        "gain": one.gain,
        "effect": one.effect,
        "why": one.why,
        "assumed": list(one.assumed),
    }


def _tried(one: Tried) -> dict[str, Any]:
    return {
        "flags": one.flags,
        "changes": one.changes,
        "predicted_steps_per_sec": one.predicted,
        "measured_steps_per_sec": one.measured,
        "error": one.error,
        "failure": one.failure,
    }
