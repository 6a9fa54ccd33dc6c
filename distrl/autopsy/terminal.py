"""The autopsy on a terminal, on standard error: the bound first, then where the time went, then what would help."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from distrl.autopsy.apart import footnote, starred
from distrl.autopsy.categories import MEANING, WAITING, is_wait
from distrl.autopsy.diagnose import Diagnosis
from distrl.autopsy.path import shares
from distrl.autopsy.result import process_names, process_shares
from distrl.autopsy.search import Tried

STYLES = {
    "env step": "cyan", "inference": "blue", "sampling": "bright_cyan", "fused rollout": "cyan", "row writing": "bright_blue",
    "group state": "bright_blue", "serialisation": "red", "transfer": "bright_red", "GAE": "bright_magenta",
    "update": "magenta", "broadcast": "green", "checkpoint, log": "bright_green", "waiting": "yellow",
    "other": "bright_black",
}  # fmt: skip
_BAR_WIDTH = 44
_EFFECT_STYLES = {"same curve": "green", "other bits": "cyan", "changes the curve": "yellow"}


def print_diagnosis(found: Diagnosis, *, stream: TextIO | None = None) -> None:
    """Everything but what was tried."""
    console = _console(stream)
    session = found.session
    head = Text.assemble(
        (found.bound.kind, "bold"), "   ", (f"{session.rate:,.0f} env steps/s", "bold cyan"),
        f"   {1e3 * session.iteration_sec:,.1f} ms an iteration, {session.iterations} measured",
    )  # fmt: skip
    sentence = found.bound.sentence[0].upper() + found.bound.sentence[1:] + "."
    console.print(Panel(Text.assemble(head, "\n", sentence), title="the bound", title_align="left"))
    for note in found.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    console.print(_bars(found))
    console.print(_times(found))
    if found.costs.apart:
        console.print(footnote(found.costs.apart), style="dim")
    console.print(_path(found))
    console.print(_prescriptions(found))
    overhead = found.overhead
    console.print(
        f"spans in a normal run: {overhead.spans_per_iteration:,.0f} an iteration x {overhead.ns_per_span:,.0f} ns = "
        f"{100 * overhead.share:.2f} % of the wall time",
        style="dim",
    )


def _console(stream: TextIO | None) -> Console:
    console = Console(file=stream, stderr=stream is None, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 118)
    return console


def _style(name: str) -> str:
    return STYLES[WAITING] if is_wait(name) else STYLES.get(name, "white")


def _bars(found: Diagnosis) -> Table:
    table = Table.grid(padding=(0, 2))
    for process in process_names(found):
        bar, filled, cumulative = Text(), 0, 0.0
        parts = process_shares(found, process)
        for name, share in parts.items():
            cumulative += share
            cells = round(cumulative * _BAR_WIDTH) - filled
            filled += cells
            bar.append("█" * cells, style=_style(name))
        largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
        words = ",  ".join(f"{name} {100 * share:.0f} %" for name, share in largest)
        table.add_row(Text(process, style="bold"), bar, words)
    return table


def _times(found: Diagnosis) -> Table:
    table = Table(title="Each process's wall time, % (columns sum to 100)", title_justify="left")
    table.add_column("what", no_wrap=True)
    columns = {process: process_shares(found, process) for process in process_names(found)}
    for process in columns:
        table.add_column(process, justify="right", no_wrap=True)
    names: list[str] = []
    for parts in columns.values():
        names += [name for name in parts if name not in names]
    order = list(MEANING)
    names.sort(key=lambda name: (order.index(name if name in order else WAITING), name))
    for name in names:
        cells = [f"{100 * parts[name]:.1f}" if name in parts else "" for parts in columns.values()]
        table.add_row(Text(f"■ {starred(name, found.costs.apart)}", style=_style(name)), *cells)
    table.add_section()
    table.add_row("total", *(f"{100 * sum(parts.values()):.1f}" for parts in columns.values()), style="bold")
    return table


def _path(found: Diagnosis) -> Text:
    text = Text("critical path: ", style="bold")
    pieces = [
        (f"{process + ' ' if process else ''}{kind} {100 * share:.0f} %", _style(kind))
        for (process, kind), share in shares(found.path, found.costs.apart).items()
        if share >= 0.01
    ]
    for index, (words, style) in enumerate(pieces):
        text.append(" · " if index else "")
        text.append(words, style=style)
    return text


def _prescriptions(found: Diagnosis) -> Table:
    table = Table(title="What a change would give, by the model", title_justify="left")
    for name, justify in (
        ("change", "left"),
        ("steps/s", "right"),
        ("gain", "right"),
        ("curve", "left"),
        ("why", "left"),
    ):
        table.add_column(name, justify=justify, no_wrap=name in ("steps/s", "gain"))  # type: ignore[arg-type]
    rows = [(one, "") for one in found.prescriptions]
    if found.together is not None:
        rows.append((found.together, "together"))
    for one, mark in rows:
        why = one.why + (f" ({', '.join(one.assumed)} assumed)" if one.assumed else "")
        table.add_row(
            one.flags,
            f"{one.prediction.rate:,.0f}",
            f"{one.gain:.2f} x",
            Text(one.effect, style=_EFFECT_STYLES[one.effect]),
            "all of these together" if mark else why,
        )
    if not rows:
        table.add_row("none", "", "", "", "nothing that the model knows would give 3 % or more")
    return table


def print_tried(
    title: str, tried: Sequence[Tried], session_rate: float, *, stream: TextIO | None = None
) -> None:
    """Predicted beside measured."""
    table = Table(title=title, title_justify="left")
    for name in ("configuration", "predicted", "measured", "predicted is off by", "gain"):
        table.add_column(name, justify="left" if name == "configuration" else "right")
    for one in tried:
        if one.measured is None:
            table.add_row(one.flags, f"{one.predicted:,.0f}", "failed", one.failure, "")
        else:
            off = f"{100 * (one.error or 0.0):+.0f} %"
            gain = f"{one.measured / session_rate:.2f} x"
            table.add_row(one.flags, f"{one.predicted:,.0f}", f"{one.measured:,.0f}", off, gain)
    _console(stream).print(table)


def print_files(page: Path, data: Path, trace: Path, *, stream: TextIO | None = None) -> None:
    """Where the page, the numbers and the trace are."""
    console = _console(stream)
    console.print(
        f"page   {page}\ndata   {data}\ntrace  {trace}   (open it at ui.perfetto.dev)", soft_wrap=True
    )
