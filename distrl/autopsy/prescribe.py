"""What each change would give: candidates from the configuration's own fields, each with the model's rate, ranked.

Who works where and on what changes no curve to speak of; what an update sees does, and is marked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from distrl.autopsy.model import Costs, Prediction, predict
from distrl.clashes import implied
from distrl.config import TrainConfig
from distrl.envs.pools.choice import POOLS
from distrl.errors import BadInput
from distrl.fields import flat_fields, show
from distrl.resolve import from_flat, to_flat

Effect = Literal["same curve", "other bits", "changes the curve"]

# What a change of a field does to the learning curve; the design's invariants say why.
_EFFECTS: dict[str, Effect] = {
    "workers": "same curve",
    "vectorization": "same curve",
    "env_backend": "same curve",
    "rollout": "same curve",
    "groups": "other bits",  # the batch of an inference, and which group draws what
    "learner_threads": "other bits",  # but of the compiled learner
    "device": "other bits",
    "rollout_device": "other bits",
    "learner": "other bits",
    "inference": "other bits",
    "num_envs": "changes the curve",
    "minibatches": "changes the curve",
    "overlap": "changes the curve",
}
_ORDER: tuple[Effect, ...] = ("same curve", "other bits", "changes the curve")

# Choices between ways to do the same work: what they give is probed, not modelled.
WAYS = ("env_backend", "vectorization", "rollout", "inference", "learner", "rollout_device", "device")
WORTH_IT = 1.03
WAY_WORTH_IT = 1.15  # two short probes differ by some percent by themselves


@dataclass(frozen=True)
class Prescription:
    """A change, the rate that the model predicts with it, and what it does to the curve."""

    changes: dict[str, Any]
    config: TrainConfig
    prediction: Prediction
    gain: float  # over the session's rate
    effect: Effect
    why: str
    assumed: tuple[str, ...] = ()  # parts of the prediction that were not measured

    @property
    def flags(self) -> str:
        """As the command line takes it."""
        return " ".join(f"{flat_fields()[name].flag} {show(value)}" for name, value in self.changes.items())


def changed(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig | None:
    """The configuration with `changes` and what they imply; None where they clash with it."""
    flat = {**to_flat(config), **changes}
    if "overlap" in changes:
        flat |= implied(flat)
    try:
        return from_flat(flat)
    except BadInput:
        return None


def effect_of(config: TrainConfig, changes: Mapping[str, Any], threads_keep_bits: bool = False) -> Effect:
    """The strongest effect of any of the changes to `config`; `threads_keep_bits` as of `Costs`."""
    backends = {config.env_backend, changes.get("env_backend", config.env_backend)}
    if len(backends) == 2 and backends & set(POOLS):  # whose episodes are others
        return "changes the curve"
    effects = _EFFECTS | ({"learner_threads": "same curve"} if threads_keep_bits else {})
    return max((effects.get(name, "changes the curve") for name in changes), key=_ORDER.index)


def prescriptions(
    config: TrainConfig, costs: Costs, rate: float, ways: Mapping[tuple[str, Any], Costs] | None = None
) -> list[Prescription]:
    """Changes that promise more than a few percent, best first: single ones, and the best of them together.

    `rate` is the session's; `ways` gives the costs with another choice of one of `WAYS`, as probed.
    """
    ways = ways or {}
    base = predict(config, costs)
    found: list[Prescription] = []
    for changes, why in candidates(config, costs):
        found += _judge(config, changes, why, costs, rate, base)
    for (name, value), its_costs in ways.items():
        of_way = _judge(config, {name: value}, "measured in a probe of it", its_costs, rate, base)
        found += [one for one in of_way if one.gain >= WAY_WORTH_IT]
    return [one for one in _best_first(found) if one.gain >= WORTH_IT]


def _judge(
    config: TrainConfig, changes: Mapping[str, Any], why: str, costs: Costs, rate: float, base: Prediction
) -> list[Prescription]:
    other = changed(config, changes)
    if other is None or other == config:
        return []
    by_model = predict(other, costs)
    # the model's error for what was measured is taken out of what was not
    prediction = replace(by_model, rate=by_model.rate * rate / base.rate)
    assumed = costs.assumed if (config.workers == 0) != (other.workers == 0) else ()
    gain = prediction.rate / rate
    effect = effect_of(config, changes, costs.threads_keep_bits)
    return [Prescription(dict(changes), other, prediction, gain, effect, why, assumed)]


def _best_first(found: list[Prescription]) -> list[Prescription]:
    """By rate, of two that promise the same the one that changes less; each set of fields once, at its best."""
    ordered = sorted(found, key=lambda one: (-round(one.gain, 2), _ORDER.index(one.effect), len(one.changes)))
    kept: dict[frozenset[str], Prescription] = {}
    for one in ordered:
        kept.setdefault(frozenset(one.changes), one)
    return list(kept.values())


def together(
    config: TrainConfig, costs: Costs, rate: float, found: list[Prescription], same_curve: bool = False
) -> Prescription | None:
    """The best change and the best on top of it, as long as each adds; None where one is all there is.

    `found` in order; choices between `WAYS` apart, whose costs were probed alone. `same_curve` leaves out what
    changes the curve.
    """
    base = predict(config, costs)
    best: Prescription | None = None
    for one in found:
        if set(one.changes) & set(WAYS) or (same_curve and one.effect == "changes the curve"):
            continue
        if best is None:
            best = one
        elif not set(one.changes) & set(best.changes):
            both = _judge(config, best.changes | one.changes, "together", costs, rate, base)
            if both and both[0].gain > best.gain * WORTH_IT:
                best = both[0]
    return best if best is not None and best.why == "together" else None


def candidates(config: TrainConfig, costs: Costs) -> Iterator[tuple[dict[str, Any], str]]:
    """Changes worth a prediction, each with what it does."""
    recipe = config.recipe
    for workers in worker_counts(config, costs, recipe.num_envs):
        why = "every group at once" if workers else "no Ray: nothing travels"
        yield {"workers": workers}, why
        if workers > config.num_groups and workers <= recipe.num_envs:
            yield {"workers": workers, "groups": workers}, "smaller groups, each on a worker of its own"
        if config.workers == 0 and workers:
            yield {"workers": workers, "overlap": 1}, "collection goes on while the learner learns"
    for groups in {1, max(1, config.workers), 2 * max(1, config.workers)}:
        if groups != config.num_groups:
            yield (
                {"groups": groups},
                "fewer, larger batches" if groups < config.num_groups else "smaller groups",
            )
    for times in (2, 4):
        envs = {"num_envs": recipe.num_envs * times, "groups": config.num_groups}
        yield envs, "fixed costs of a step shared by more envs"
    for count in costs.update.speed:
        yield {"learner_threads": count}, "measured in a probe of it"
    if not config.overlap:
        yield {"overlap": 1}, "collection goes on while the learner learns"
    for parts in (2, 4):
        if recipe.minibatches % parts == 0:
            yield {"minibatches": recipe.minibatches // parts}, "fewer, larger steps of the optimiser"


def worker_counts(config: TrainConfig, costs: Costs, num_envs: int) -> list[int]:
    """Counts of workers to look at: up to the cores, or 16 and more where envs wait for something; one env each."""
    most = costs.cores if costs.rollout.idle_share < 0.3 else max(16, 2 * costs.cores)
    counts = {0, 1, 2, 3, 4, 6, 8, 12, 16, config.num_groups, costs.cores}
    return sorted(
        n for n in counts if n <= max(most, config.workers) and n != config.workers and n <= num_envs
    )
