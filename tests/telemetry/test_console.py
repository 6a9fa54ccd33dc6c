"""A live panel on a terminal, plain lines elsewhere; both say the same."""

import io
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
from rich.console import Console

from distrl.telemetry.console import ConsoleSink, duration, print_span_table, share_bar

RECORD = {
    "iteration": 12,
    "env_steps": 50_000,
    "wall_sec": 75.0,
    "steps_per_sec": 5_000.0,
    "episode_return_mean": 231.44,
    "time/driver/wait: workers": 9.0,
    "time/worker/rollout": 1.0,
    "time/learner/learn: update": 2.0,
    "time/learner/wait: workers": 1.0,
}

SPANS = {
    "driver": {"wall_sec": 10.0, "spans": {"wait: workers": 7.5, "other": 2.5}},
    "learner": {"wall_sec": 8.0, "spans": {"learn: update": 2.0, "wait: workers": 6.0}},
    "worker 0": {"wall_sec": 8.0, "spans": {"rollout: env step": 5.0, "wait: learner": 3.0}},
}


def test_without_a_terminal_it_prints_a_line_at_most_every_few_seconds_and_the_last_one_always() -> None:
    stream = io.StringIO()
    sink = ConsoleSink("PPO on CartPole-v1", 500_000, stream=stream, plain_every_sec=1000.0)
    for iteration in range(1, 101):
        sink.write({**RECORD, "iteration": iteration})
    assert len(stream.getvalue().splitlines()) == 1
    sink.close()
    sink.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert "\x1b" not in stream.getvalue()
    assert lines[1] == (
        "iteration 100  env steps 50,000/500,000  5,000 steps/s  return 231.4  left 1m 30s"
        "  [rollout 25 %, learner 50 %, waiting 25 %]"
    )


def test_what_is_not_known_yet_is_a_dash_and_never_an_error() -> None:
    stream = io.StringIO()
    sink = ConsoleSink("REINFORCE", 100, stream=stream)
    sink.write({"iteration": 1, "env_steps": 0, "steps_per_sec": None, "episode_return_mean": None})
    assert "return -  left ?" in stream.getvalue()
    sink.close()


def rendered(renderable: object, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()


def test_the_panel_shows_iteration_steps_rate_return_time_left_and_where_the_time_goes() -> None:
    sink = ConsoleSink("PPO on CartPole-v1", 500_000, stream=io.StringIO())
    assert "starting" in rendered(sink.render())
    sink.write(RECORD)
    text = rendered(sink.render())
    for part in ("PPO on CartPole-v1", "12", "50,000 / 500,000  (10 %)", "5,000", "231.4", "elapsed 1m 15s"):
        assert part in text, part
    assert re.search(r"time left +1m (30|29)s", text)
    assert re.search(r"rollout 25 %.*learner 50 %.*waiting 25 %", text)
    assert (
        max(map(len, rendered(sink.render(), width=40).splitlines())) <= 100
    )  # a narrow terminal still renders
    sink.close()


def test_the_share_bar_fills_its_width_whatever_the_rounding() -> None:
    bar = rendered(
        share_bar({"rollout": 1 / 3, "learner": 1 / 3, "waiting": 1 / 3, "other": 0.0}, 20)
    ).splitlines()[0]
    assert bar.count("█") == 20


def test_the_span_table_gives_each_process_its_seconds_percent_and_wall() -> None:
    stream = io.StringIO()
    print_span_table(SPANS, stream=stream)
    rows = {line.split("│")[1].strip(): line for line in stream.getvalue().splitlines() if "│" in line}
    header = next(line for line in stream.getvalue().splitlines() if "worker 0" in line)
    assert header.index("worker 0") < header.index("learner") < header.index("driver")
    assert "62.5%" in rows["rollout: env step"] and "5.00" in rows["rollout: env step"]
    assert "25.0%" in rows["learn: update"]
    assert "75.0%" in rows["wait: workers"] and "7.50" in rows["wait: workers"]
    assert re.findall(r"\d+\.\d\d(?= )", rows["total (wall)"]) == ["8.00", "8.00", "10.00"]


def test_a_span_table_of_many_workers_loses_nothing_whatever_the_width(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = SPANS | {
        f"worker {i}": {"wall_sec": 8.0, "spans": {"rollout: env step": i / 4, "other": 8 - i / 4}}
        for i in range(12)
    }
    expected = {f"{i / 4:.2f} {100 * i / 32:5.1f}%" for i in range(12)}
    plain = io.StringIO()
    print_span_table(many, stream=plain)
    (row,) = [line for line in plain.getvalue().splitlines() if "rollout: env step" in line]
    assert all(cell in row for cell in expected)

    monkeypatch.setenv("COLUMNS", "80")
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    print_span_table(many, stream=terminal)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert max(map(len, text.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    rows = "".join(line for line in text.splitlines() if "rollout: env step" in line)
    assert all(cell in rows for cell in expected)
    assert text.count("total (wall)") == text.count("Where the time went") > 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m 00s"), (187, "3m 07s"), (7500, "2h 05m"), (100_800, "1d 04h"), (None, "?")],
)
def test_a_duration_reads_as_a_person_would_say_it(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.timeout(60)
def test_on_a_real_terminal_the_panel_is_live_messages_go_above_it_and_standard_output_stays_free() -> None:
    program = (
        "import sys, time, warnings\n"
        "from distrl.telemetry.console import ConsoleSink\n"
        f"record = {RECORD!r}\n"
        "sink = ConsoleSink('PPO on CartPole-v1', 500_000)\n"
        "for iteration in range(3):\n"
        "    sink.write({**record, 'iteration': 700 + iteration}); time.sleep(0.4)\n"
        "sink.message('checkpoint written')\n"
        "print('a stray line', file=sys.stderr)\n"
        "sink.close()\n"
    )
    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=terminal, env=environment
    )
    os.close(terminal)
    shown = b""
    deadline_sec = time.monotonic() + 30
    while time.monotonic() < deadline_sec:
        if select.select([controller], [], [], 0.2)[0]:
            try:
                part = os.read(controller, 65536)
            except OSError:  # Linux: the other end is closed
                break
            if not part:
                break
            shown += part
    stdout, _ = process.communicate(timeout=10)
    os.close(controller)
    assert process.returncode == 0
    assert stdout == b""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "50,000 / 500,000" in text and "time goes to" in text and "700" in text and "702" in text
    assert text.count("checkpoint written") == 1
    assert text.count("a stray line") == 1
    assert (
        shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") == 1
    )  # the terminal's own cursor is given back
    assert "iteration 702" in text.splitlines()[-1]
