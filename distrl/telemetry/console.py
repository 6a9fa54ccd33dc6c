"""What a person sees while a run trains: a live panel on a terminal, a line every few seconds elsewhere.

Everything goes to standard error; standard output stays free for results.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distrl.telemetry.spans import PHASES, Phase, SpanTable, phase_shares, span_table_rows

PHASE_STYLES: dict[Phase, str] = {
    "rollout": "cyan",
    "learner": "magenta",
    "waiting": "yellow",
    "other": "bright_black",
}
_BAR_WIDTH = 36


class ConsoleSink:
    """A sink that shows the newest record. `title` names the run; `total_steps` gives progress and time left.

    `counted` is the key of what they are steps of, `headline` a word and the key of the number that matters.
    """

    def __init__(
        self,
        title: str,
        total_steps: int,
        *,
        stream: TextIO | None = None,
        plain_every_sec: float = 5.0,
        counted: str = "env_steps",
        headline: tuple[str, str] = ("return", "episode_return_mean"),
    ) -> None:
        self._counted = counted
        self._headline = headline
        self.console = Console(file=stream, stderr=stream is None, highlight=False)
        self._title = title
        self._total_steps = total_steps
        self._plain_every_sec = plain_every_sec
        self._next_plain_sec = -math.inf
        self._record: Mapping[str, Any] = {}
        self._received_sec = time.monotonic()
        self._shares = dict.fromkeys(PHASES, 0.0)
        self._unprinted = False
        self._live: Live | None = None
        if self.console.is_terminal:
            # vertical_overflow: a terminal of three lines must not break the run
            self._live = Live(
                console=self.console,
                get_renderable=self.render,
                refresh_per_second=4,
                transient=True,
                vertical_overflow="crop",
            )
            self._live.start()

    def write(self, record: Mapping[str, Any]) -> None:
        self._record = dict(record)
        self._received_sec = time.monotonic()
        is_first = sum(self._shares.values()) == 0
        for name, share in phase_shares(record).items():  # smoothed over about ten iterations
            self._shares[name] = share if is_first else 0.9 * self._shares[name] + 0.1 * share
        self._unprinted = True
        if self._live is None and self._received_sec >= self._next_plain_sec:
            self._print_plain()

    def message(self, text: str, style: str = "") -> None:
        """Prints a line above the live panel (a warning, a checkpoint written)."""
        self.console.print(Text(text, style=style))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._unprinted:
            self._print_plain()

    def render(self) -> RenderableType:
        """The live panel."""
        record = self._record
        if not record:
            return Panel(
                Text("starting", style="dim"), title=self._title, title_align="left", width=_panel_width(self)
            )
        done = min(int(record[self._counted]), self._total_steps)
        left_sec = self._left_sec()
        if left_sec is not None:
            left_sec = max(0.0, left_sec - (time.monotonic() - self._received_sec))
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", min_width=14)
        grid.add_column()
        grid.add_row("iteration", f"{record['iteration']:,}")
        steps = Table.grid(padding=(0, 1))
        percent = 100 * done / max(1, self._total_steps)
        steps.add_row(
            ProgressBar(total=self._total_steps, completed=done, width=_BAR_WIDTH),
            f"{record[self._counted]:,} / {self._total_steps:,}  ({percent:.0f} %)",
        )
        grid.add_row("env steps" if self._counted == "env_steps" else "done", steps)
        grid.add_row("steps/s", _number(record.get("steps_per_sec"), ",.0f"))
        word, key = self._headline
        grid.add_row(word, Text(_number(record.get(key), self._format(",")), style="bold"))
        grid.add_row("time left", f"{duration(left_sec)}   elapsed {duration(record.get('wall_sec'))}")
        grid.add_row("time goes to", share_bar(self._shares, _BAR_WIDTH))
        return Panel(grid, title=self._title, title_align="left", width=_panel_width(self))

    def _left_sec(self) -> float | None:
        rate = self._record.get("steps_per_sec")
        if self._counted != "env_steps" and (wall_sec := self._record.get("wall_sec")):
            rate = self._record[self._counted] / wall_sec
        if not isinstance(rate, int | float) or not rate > 0:
            return None
        return max(0, self._total_steps - int(self._record[self._counted])) / rate

    def _format(self, comma: str = "") -> str:
        """Of the headline: a return has one digit behind the point, what is not counted in env steps has three."""
        return f"{comma}.{1 if self._counted == 'env_steps' else 3}f"

    def _print_plain(self) -> None:
        record = self._record
        shares = ", ".join(
            f"{name} {100 * share:.0f} %" for name, share in self._shares.items() if share >= 0.005
        )
        fields = [
            *(
                [
                    f"iteration {record['iteration']}",
                    f"env steps {record['env_steps']:,}/{self._total_steps:,}",
                ]
                if self._counted == "env_steps"
                else [f"{self._counted} {record[self._counted]:,}/{self._total_steps:,}"]
            ),
            f"{_number(record.get('steps_per_sec'), ',.0f')} steps/s",
            f"{self._headline[0]} {_number(record.get(self._headline[1]), self._format())}",
            f"left {duration(self._left_sec())}",
        ]
        line = "  ".join(fields) + (f"  [{shares}]" if shares else "")
        self.console.print(Text(line), soft_wrap=True)
        self._next_plain_sec = time.monotonic() + self._plain_every_sec
        self._unprinted = False


def share_bar(shares: Mapping[Phase, float], width: int) -> RenderableType:
    """A bar of `width` cells, one colour a phase, and its legend below."""
    bar, legend = Text(), Text()
    filled, cumulative = 0, 0.0
    for name in PHASES:
        cumulative += shares.get(name, 0.0)
        cells = round(cumulative * width) - filled
        filled += cells
        bar.append("█" * cells, style=PHASE_STYLES[name])
        legend.append("■ ", style=PHASE_STYLES[name])
        legend.append(f"{name} {100 * shares.get(name, 0.0):.0f} %   ")
    return Group(bar, legend)


def print_span_table(spans: Mapping[str, Mapping[str, Any]], *, stream: TextIO | None = None) -> None:
    """Prints the final span table to standard error; `spans` as in summary.json (see `span_table_rows`).

    What does not fit a terminal's width becomes further tables below; elsewhere, a line may be as long as it needs.
    """
    console = Console(file=stream, stderr=stream is None, highlight=False)
    data = span_table_rows(spans)
    processes = list(range(len(data.columns)))
    if not console.is_terminal:
        console.width = max(console.width, _table_width(data, processes))
    while processes:
        fits = next(
            (n for n in range(len(processes), 1, -1) if _table_width(data, processes[:n]) <= console.width), 1
        )
        console.print(span_table(data, processes[:fits]))
        processes = processes[fits:]


def span_table(data: SpanTable, processes: Sequence[int]) -> Table:
    """Rows are span names, columns the given processes: seconds, and percent of that process's wall time."""
    table = Table(title="Where the time went: seconds, % of each process's wall time", title_justify="left")
    table.add_column("span", no_wrap=True)
    for process in processes:
        table.add_column(data.columns[process], justify="right", no_wrap=True)
    for name, seconds in data.rows:
        cells = [_cell(data, process, seconds[process]) for process in processes]
        if any(cells):
            table.add_row(name, *cells)
    table.add_section()
    table.add_row(
        "total (wall)", *(f"{data.total[process]:,.2f} 100.0%" for process in processes), style="bold"
    )
    return table


def _cell(data: SpanTable, process: int, seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:,.2f} {data.percent(process, seconds) or 0.0:5.1f}%"


def _table_width(data: SpanTable, processes: Sequence[int]) -> int:
    cells = [
        max(
            len(data.columns[p]),
            *(len(_cell(data, p, sec)) for sec in (data.total[p], *(row[p] for _, row in data.rows))),
        )
        for p in processes
    ]
    names = max(len("total (wall)"), *(len(name) for name, _ in data.rows))
    return names + sum(cells) + 3 * (len(cells) + 1) + 1  # a border and two blanks a column


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them: "42s", "3m 07s", "2h 05m", "1d 04h"; "?" for None."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def _number(value: Any, spec: str) -> str:
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return format(value, spec) if is_number else "-"


def _panel_width(sink: ConsoleSink) -> int:
    return min(sink.console.width, 88)
