"""profile.html: the autopsy as one self-contained page. No network, no other file; what comes from a user is escaped."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distrl.autopsy.apart import footnote, split, starred
from distrl.autopsy.categories import MEANING, WAITING, category, is_wait
from distrl.autopsy.diagnose import Diagnosis
from distrl.autopsy.model import predict
from distrl.autopsy.path import Segment, shares
from distrl.autopsy.result import process_names, process_shares
from distrl.autopsy.timeline import Timeline
from distrl.telemetry.charts import nice_ticks, tick_text
from distrl.telemetry.look import Lane, Piece
from distrl.telemetry.page import templates
from distrl.telemetry.spans import Event

BINS = 360
_BOX = 1000.0
_ORDER = list(MEANING)


def render_page(found: Diagnosis, result: Mapping[str, Any]) -> str:
    """The page as text; `result` is what profile.json holds."""
    environment = templates(Path(__file__).parent)
    environment.filters["slug"] = slug
    session, config = found.session, found.session.config
    begin, end = typical_iteration(session.timeline)
    ms = (end - begin) / 1e6
    ticks = nice_ticks(0.0, ms, 8)
    used = {name for process in process_names(found) for name in map(_kind, process_shares(found, process))}
    kinds = [(kind, MEANING[kind]) for kind in _ORDER if kind in used]
    return environment.get_template("profile.html.j2").render(
        env=config.env,
        algo=config.algo,
        facts=_facts(found),
        bound=found.bound,
        notes=found.notes,
        apart=footnote(found.costs.apart),
        rate=f"{session.rate:,.0f}",
        tiles=_tiles(found),
        parts=_parts(found),
        kinds=kinds,
        bars=_bars(found),
        table=_table(found),
        lanes=_lanes(found, begin, end),
        ticks=[(round(100 * tick / ms, 3), f"{tick_text(tick, ticks)} ms") for tick in ticks],
        path=_path_rows(found),
        prescriptions=_prescriptions(found, result),
        tried=_tried(result["tried"], session.rate),
        tuned=_tried(result["tuned"], session.rate),
        model=_model(found),
        overhead=found.overhead,
        config=[(name, str(value)) for name, value in result["config"].items()],
        machine=[(name, str(value)) for name, value in {**result["machine"], **result["versions"]}.items()],
    )


def slug(kind: str) -> str:
    """A category as a class of the style sheet."""
    return "k-" + _kind(kind).replace(",", "").replace(" ", "-").lower()


def _kind(name: str) -> str:
    return WAITING if is_wait(name) else name


def typical_iteration(timeline: Timeline) -> tuple[int, int]:
    """Begin and end of the iteration of median length."""
    edges = [timeline.begin, *timeline.boundaries]
    pairs = sorted(zip(edges, edges[1:], strict=False), key=lambda pair: pair[1] - pair[0])
    return pairs[(len(pairs) - 1) // 2]


def lane_pieces(
    events: Sequence[Event],
    begin: int,
    end: int,
    apart: Mapping[str, float] | None = None,
    of: Callable[[str], str] = category,
    order: Sequence[str] = _ORDER,
) -> list[Piece]:
    """What a process did, in bins; a bin with several categories shows their shares one below the other.

    So steps of microseconds stay visible as what they are in sum, where lines a pixel wide would show a pattern that
    is not there. Neighbouring bins alike become one piece. `apart` splits what was one fused loop.
    """
    edges = [begin + (end - begin) * index // BINS for index in range(BINS + 1)]
    bins: list[dict[str, float]] = [{} for _ in range(BINS)]
    for name, b, e in events:
        b, e = max(b, begin), min(e, end)
        kind = _kind(of(name))
        while b < e:
            index = bisect.bisect_right(edges, b) - 1
            until = min(e, edges[index + 1])
            bins[index][kind] = bins[index].get(kind, 0.0) + until - b
            b = until
    pieces: list[Piece] = []
    for index, parts in enumerate(bins):
        pieces += _stack(split(parts, apart or {}), index, order)
    return _joined(pieces)


def _stack(parts: Mapping[str, float], index: int, order: Sequence[str]) -> list[Piece]:
    whole = sum(parts.values())
    top, pieces = 0.0, []
    for kind in sorted(parts, key=order.index):
        height = round(_BOX * parts[kind] / whole / 20) * 20.0 if len(parts) > 1 else _BOX
        height = min(height, _BOX - top)
        if height > 0:
            pieces.append(Piece(kind, index * _BOX / BINS, _BOX / BINS, top, height))
            top += height
    if pieces and top < _BOX:
        last = pieces[-1]
        pieces[-1] = Piece(last.kind, last.x, last.width, last.y, last.height + _BOX - top)
    return pieces


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Pieces of one kind, place and height that touch from left to right, as one."""
    open_ones: dict[tuple[str, float, float], Piece] = {}
    done: list[Piece] = []
    for piece in pieces:
        key = (piece.kind, piece.y, piece.height)
        before = open_ones.get(key)
        if before is not None and abs(before.x + before.width - piece.x) < 1e-6:
            open_ones[key] = Piece(piece.kind, before.x, before.width + piece.width, piece.y, piece.height)
        else:
            if before is not None:
                done.append(before)
            open_ones[key] = piece
    return [
        Piece(p.kind, round(p.x, 2), round(p.width + 0.15, 2), p.y, p.height)
        for p in sorted([*done, *open_ones.values()], key=lambda p: (p.x, p.y))
    ]


def _lanes(found: Diagnosis, begin: int, end: int) -> list[Lane]:
    lanes = []
    for process in process_names(found):
        events = found.session.timeline.processes[process]
        pieces = lane_pieces(events, begin, end, found.costs.apart)
        lanes.append(Lane(process, pieces, f"{process} over one iteration"))
    on_path = [(_path_name(s), s.begin, s.end) for s in found.path if s.end > begin and s.begin < end]
    lanes.append(
        Lane(
            "critical path",
            lane_pieces(on_path, begin, end, found.costs.apart),
            "the critical path of this iteration",
        )
    )
    return lanes


def _path_name(segment: Segment) -> str:
    return segment.span


def _bars(found: Diagnosis) -> list[dict[str, Any]]:
    bars = []
    for process in process_names(found):
        parts = process_shares(found, process)
        texts = {name: f"{name}: {100 * share:.1f} %" for name, share in parts.items() if share > 0}
        segments = [
            {"kind": name, "percent": round(100 * parts[name], 3), "text": text}
            for name, text in texts.items()
        ]
        bars.append({"process": process, "segments": segments, "alt": "; ".join(texts.values())})
    return bars


def _table(found: Diagnosis) -> dict[str, Any]:
    columns = {process: process_shares(found, process) for process in process_names(found)}
    names: list[str] = []
    for parts in columns.values():
        names += [name for name in parts if name not in names]
    names.sort(key=lambda name: (_ORDER.index(_kind(name)), name))
    sec = found.session.iteration_sec
    rows = [
        (name, starred(name, found.costs.apart), [(f"{1e3 * parts[name] * sec:,.2f}", f"{100 * parts[name]:.1f} %") if name in parts else None
                for parts in columns.values()])
        for name in names
    ]  # fmt: skip
    return {"columns": list(columns), "rows": rows, "total": f"{1e3 * sec:,.2f}"}


def _path_rows(found: Diagnosis) -> list[dict[str, Any]]:
    rows = []
    for (process, kind), share in shares(found.path, found.costs.apart).items():
        if share >= 0.005:
            ms = f"{1e3 * share * found.session.iteration_sec:,.2f} ms"
            rows.append(
                {"who": process or "between", "kind": kind, "percent": round(100 * share, 2), "ms": ms}
            )
    return rows


def _parts(found: Diagnosis) -> list[tuple[str, float]]:
    return [(kind, round(100 * share, 1)) for kind, share in found.bound.parts.items() if share >= 0.005]


def _tiles(found: Diagnosis) -> list[tuple[str, str, str]]:
    session = found.session
    best = found.prescriptions[0] if found.prescriptions else None
    return [
        ("Env steps a second", f"{session.rate:,.0f}", "collected, sent and learned from"),
        ("An iteration", f"{1e3 * session.iteration_sec:,.1f} ms", f"{session.env_steps:,.0f} env steps"),
        (
            "Cores at work",
            f"{session.cpu_sec / session.iteration_sec:.1f} of {found.costs.cores}",
            f"mean over {session.iterations} iterations",
        ),
        (
            "Best single change",
            f"{best.gain:.2f} ×" if best else "–",
            best.flags if best else "none worth 3 %",
        ),
    ]


def _prescriptions(found: Diagnosis, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    measured = {one["flags"]: one for one in result["tried"] if one["measured_steps_per_sec"]}
    ones = [(one, False) for one in found.prescriptions]
    if found.together is not None:
        ones.append((found.together, True))
    top = max([one.prediction.rate for one, _ in ones] + [found.session.rate])
    rows = []
    for one, joint in ones:
        tried = measured.get(one.flags)
        rows.append(
            {
                "flags": one.flags,
                "rate": f"{one.prediction.rate:,.0f}",
                "percent": round(100 * one.prediction.rate / top, 2),
                "gain": f"{one.gain:.2f} ×",
                "effect": one.effect,
                "why": "all of these together" if joint else one.why,
                "assumed": ", ".join(one.assumed),
                "measured": f"{tried['measured_steps_per_sec']:,.0f}" if tried else "",
                "measured_percent": round(100 * tried["measured_steps_per_sec"] / top, 2) if tried else 0,
                "error": f"{100 * tried['error']:+.0f} %" if tried else "",
                "joint": joint,
            }
        )
    now = {"rate": f"{found.session.rate:,.0f}", "percent": round(100 * found.session.rate / top, 2)}
    return [{"now": now}, *rows]


def _tried(tried: Sequence[Mapping[str, Any]], rate: float) -> list[dict[str, str]]:
    return [
        {
            "flags": one["flags"],
            "predicted": f"{one['predicted_steps_per_sec']:,.0f}",
            "measured": f"{one['measured_steps_per_sec']:,.0f}"
            if one["measured_steps_per_sec"]
            else "failed",
            "error": f"{100 * one['error']:+.0f} %" if one["error"] is not None else one["failure"],
            "gain": f"{one['measured_steps_per_sec'] / rate:.2f} ×" if one["measured_steps_per_sec"] else "",
        }
        for one in tried
    ]


def _model(found: Diagnosis) -> dict[str, Any]:
    """The fitted costs, for whoever wants to check the arithmetic."""
    costs, config = found.costs, found.session.config
    base = predict(config, costs)
    lines = [
        (kind, f"{1e6 * line.fixed:,.1f} µs + {1e6 * line.per_row:,.2f} µs × envs", "one vector step")
        for kind, line in costs.rollout.step.items()
        if line.fixed or line.per_row
    ]
    evaluate, update, transport = costs.rollout.evaluate, costs.update, costs.transport
    lines += [
        ("V and log-prob", f"{1e3 * evaluate.fixed:,.2f} ms + {1e6 * evaluate.per_row:,.2f} µs × rows", "a fragment"),
        ("group state", f"{1e3 * costs.rollout.per_fragment:,.2f} ms", "a fragment"),
        ("update", f"{1e3 * update.per_minibatch:,.2f} ms + {1e6 * update.per_row:,.2f} µs × rows", "a minibatch"),
        ("gather, GAE, copy", f"{1e6 * update.gather_per_row:,.3f} µs × rows", "an iteration"),
        ("publish, metrics", f"{1e3 * update.fixed:,.2f} ms", "an iteration"),
        ("driver", f"{1e3 * costs.driver:,.2f} ms", "an iteration"),
        (
            "transfer" + (" (assumed)" if costs.assumed else ""),
            f"{1e3 * transport.fixed:,.1f} ms + {1e3 * transport.per_group:,.1f} ms × groups of the fullest worker"
            f" + {1e9 * transport.per_byte:,.2f} ns × bytes",
            "an iteration, with workers",
        ),
    ]  # fmt: skip
    notes = []
    if costs.rollout.idle_share:
        notes.append(
            f"env waits rather than computes for {100 * costs.rollout.idle_share:.0f} % of collection"
        )
    if len(costs.update.speed) > 1:
        speeds = ", ".join(f"{count}: {factor:.2f} ×" for count, factor in sorted(costs.update.speed.items()))
        notes.append(f"update's time by learner threads, {speeds}")
    if costs.slow:
        slow = ", ".join(f"worker {n}: {factor:.2f} ×" for n, factor in sorted(costs.slow.items()))
        notes.append(f"a group's time by worker, {slow}")
    error = 100 * (base.rate / found.session.rate - 1)
    notes.append(
        f"the session itself by this model: {base.rate:,.0f} steps/s, {error:+.0f} %, corrected for above"
    )
    return {"lines": lines, "notes": notes, "cores": costs.cores}


def _facts(found: Diagnosis) -> list[str]:
    config = found.session.config
    recipe = config.recipe
    who = f"{config.workers} Ray workers" if config.workers else "in-process"
    batch = (
        f"{recipe.num_envs} envs × {recipe.num_steps} steps"
        if recipe.collects == "steps"
        else f"{recipe.num_envs} envs"
    )
    return [
        who,
        f"{batch} in {config.num_groups} group{'s' if config.num_groups > 1 else ''}",
        f"{recipe.epochs} epochs × {recipe.minibatches} minibatches",
        f"{config.learner_threads} learner thread{'s' if config.learner_threads > 1 else ''}",
        f"{found.costs.cores} cores",
    ]
