"""The reports of RLHF's stages: what they show beside what every report does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distrl.autopsy.page import lane_pieces
from distrl.autopsy.roles import KINDS, Link, role_kind
from distrl.stages.trace import CHAIN, Traced
from distrl.telemetry.charts import nice_ticks, tick_text
from distrl.telemetry.look import (
    CRITIC,
    LOSSES,
    Curve,
    Lane,
    Look,
    Picture,
    Records,
    Tile,
    finite,
    number,
    rate_tile,
    wall_tile,
)

# rollout, learner, waiting, other
_PHASES = ("writing and scoring", "learning", "waiting", "other")
_TRAINING = ("data", "learning", "waiting", "other")
_ALGOS = {"rlhf-ppo": "PPO", "rlhf-reinforce": "REINFORCE", "rloo": "RLOO", "grpo": "GRPO"}


def _model(config: Mapping[str, Any]) -> str:
    return Path(str(config.get("model", "?"))).name


def _last(records: Records, key: str) -> Any:
    """The last finite value; None before the first."""
    return next((record[key] for record in reversed(records) if finite(record.get(key))), None)


def _ppo_tiles(records: Records, summary: Mapping[str, Any]) -> list[Tile]:
    tiles = [Tile("Score", number(_last(records, "score_mean"), 3), "mean of the last iteration's responses")]
    if finite(evaluated := _last(records, "eval/score_mean")):
        tiles.append(Tile("Evaluated score", number(evaluated, 3), "greedy, held-out prompts"))
    tiles += [
        Tile("KL to the reference", number(_last(records, "kl"), 3), "nats a response"),
        Tile("Iterations", number(_last(records, "iteration") or 0, 0),
             f"{number(_last(records, 'env_steps') or 0, 0)} response tokens"),
    ]  # fmt: skip
    return [*tiles, *rate_tile(records, "Response tokens per second"), wall_tile(records)]


PPO_LOOK = Look(
    title=lambda config: f"RLHF with {_ALGOS.get(str(config.get('algo')), config.get('algo', '?'))} on {_model(config)}",
    big=Curve(
        "score_mean",
        "Score",
        "mean reward of an iteration's responses, sampled",
        "eval/score_mean",
        "dots: greedy responses to held-out prompts",
    ),
    no_curve="No iteration is whole yet, so there is no curve.",
    heading="The responses, and inside the updates",
    charts=(
        Curve("kl", "KL to the reference", "nats a response: summed over its tokens"),
        Curve("beta", "Beta", "weight of that KL, score per nat"),
        Curve("objective", "Objective", "score − beta · KL, mean of the responses"),
        Curve("response_length_mean", "Response length", "tokens, mean"),
        Curve("ended_fraction", "Ended by themselves", "share of responses, 0 to 1, before the length limit"),
        *LOSSES,
        Curve("entropy", "Entropy", "nats a token; falls as the policy commits"),
        Curve("approx_kl", "Approximate KL", "nats a token, from the policy that wrote: how far an update went"),
        Curve("clip_fraction", "Clip fraction", "share of tokens, 0 to 1, whose ratio left the clip range"),
        *CRITIC,
        Curve("sampling_mismatch", "Sampling mismatch", "nats: log-prob of sampling against computed again, largest"),
        Curve("unscored", "Without a score", "responses"),
        Curve("groups_without_spread", "Groups without spread", "share of prompts, 0 to 1, whose responses all score alike"),
        Curve("repeated_4grams", "Repetition", "share of runs of 4 tokens, 0 to 1, that a response had before"),
        Curve("steps_per_sec", "Tokens per second", "response tokens, by wall time"),
        Curve("eval/score_mean", "Evaluated score", "greedy responses to held-out prompts, mean"),
        Curve("eval/kl_mean", "Evaluated KL", "nats a response, greedy, to held-out prompts"),
        Curve("eval/response_length_mean", "Evaluated length", "tokens, greedy, to held-out prompts"),
        Curve("eval/ended_fraction", "Evaluated: ended", "share, 0 to 1, greedy, to held-out prompts"),
    ),
    more=(("score/", "Score: ", "mean of the responses that it scores"),),
    tiles=_ppo_tiles,
    x="iteration",
    x_label="iterations",
    phases=_PHASES,
)  # fmt: skip


def _trained_tiles(records: Records, summary: Mapping[str, Any], *own: Tile) -> list[Tile]:
    held_out = _last(records, "held_out_loss")
    tiles = [*own, Tile("Loss", number(_last(records, "loss"), 4), "of the last step's batch")]
    if finite(held_out):
        tiles.append(Tile("Held-out loss", number(held_out, 4), "rows that were not learned"))
    steps, epochs = _last(records, "iteration") or 0, _last(records, "epoch") or 0
    tiles.append(Tile("Steps", number(steps, 0), f"{number(epochs, 2)} epochs"))
    return [*tiles, wall_tile(records)]


_LEARNING_RATE = Curve("learning_rate", "Learning rate", "Adam's")
_SKIPPED = Curve("skipped_updates", "Steps skipped", "so far, for a gradient that is not finite")


def _trained_look(
    title: str,
    big: Curve,
    charts: tuple[Curve, ...],
    rate: tuple[str, str],
    tiles: Callable[[Records, Mapping[str, Any]], list[Tile]],
) -> Look:
    """That of a supervised stage. `title` is followed by the model's name; `rate` is the title and note of steps_per_sec."""
    return Look(
        title=lambda config: f"{title} {_model(config)}",
        big=big,
        no_curve="No step is taken yet, so there is no curve.",
        heading="Inside the steps",
        charts=(*charts, _LEARNING_RATE, _SKIPPED, Curve("steps_per_sec", *rate)),
        more=(),
        tiles=tiles,
        x="iteration",
        x_label="steps",
        phases=_TRAINING,
    )


SFT_LOOK = _trained_look(
    "Supervised fine-tuning of",
    Curve(
        "loss", "Loss", "nats a token of the completions, each step's batch", "held_out_loss", "dots: held-out rows"
    ),
    (
        Curve("held_out_loss", "Held-out loss", "nats a token"),
        Curve("entropy", "Entropy", "nats a token"),
        Curve("held_out_entropy", "Held-out entropy", "nats a token"),
    ),
    ("Tokens per second", "of the completions, by wall time"),
    lambda records, summary: [*_trained_tiles(records, summary), *rate_tile(records, "Tokens per second")],
)  # fmt: skip


def _reward_tiles(records: Records, summary: Mapping[str, Any]) -> list[Tile]:
    accuracy, error = _last(records, "held_out_accuracy"), _last(records, "held_out_accuracy_error")
    spread = f"± {number(error, 3)}; " if finite(error) else ""
    own = [Tile("Held-out accuracy", number(accuracy, 3), f"{spread}share of pairs told right")]
    return _trained_tiles(records, summary, *(own if finite(accuracy) else []))


REWARD_LOOK = _trained_look(
    "Reward model on",
    Curve(
        "accuracy", "Accuracy", "share of pairs told right, 0 to 1, each step's batch", "held_out_accuracy",
        "dots: held-out pairs",
    ),
    (
        Curve("loss", "Loss", "nats a pair: minus log of the probability of its label"),
        Curve("held_out_loss", "Held-out loss", "nats a pair"),
        Curve("margin", "Margin", "score of the chosen less that of the rejected"),
        Curve("held_out_margin", "Held-out margin", "score of the chosen less that of the rejected"),
    ),
    ("Pairs per second", "by wall time"),
    _reward_tiles,
)  # fmt: skip


def told_chain(links: Sequence[Link], of: str) -> dict[str, Any]:
    """As summary.json has it: what the longest chain consists of, in order, and where that is known from."""
    return {"of": of, "links": [{"what": link.what, "share": link.share} for link in links]}


def picture_of(traced: Traced) -> Picture:
    """The last recorded iteration."""
    begin, end = traced.last_iteration()
    timeline = traced.timeline
    lanes = []
    used = set()
    for process in traced.order:
        events = timeline.processes[process]
        inside = [event for event in events if event[1] < end and event[2] > begin]
        used |= {role_kind(name) for name, _, _ in inside}
        pieces = lane_pieces(inside, begin, end, of=role_kind, order=KINDS)
        lanes.append(Lane(process.replace("+", " + "), pieces, f"{process} over one iteration"))
    chained = [(s.span, s.begin, s.end) for s in traced.path if s.end > begin and s.begin < end]
    used |= {role_kind(name) for name, _, _ in chained}
    pieces = lane_pieces(chained, begin, end, of=role_kind, order=KINDS)
    lanes.append(Lane(CHAIN, pieces, "the longest chain of this iteration"))
    sec = (end - begin) / 1e9
    ticks = nice_ticks(0.0, sec, 6)
    return Picture(
        title=f"Iteration {traced.last} on one clock: {sec:.3g} s",
        lanes=lanes,
        ticks=[(round(100 * tick / sec, 3), f"{tick_text(tick, ticks)} s") for tick in ticks],
        kinds=[kind for kind in KINDS if kind in used],
    )
