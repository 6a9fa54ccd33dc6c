"""`distrl profile`: measures a short session of what `distrl train` would do, names the bound, predicts changes."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from distrl.cli.config_command import ConfigCommand
from distrl.cli.output import others_to_stderr
from distrl.cli.parsing import Parsed
from distrl.cli.train import CONFIG_OPTION, TRUST_OPTION, resolve_command_line
from distrl.errors import BadInput

OPTIONS = [
    CONFIG_OPTION,
    TRUST_OPTION,
    click.Option(["--seconds"], metavar="X", help="measure about so long, after the warm-up  (default: 5)"),
    click.Option(
        ["--try"], metavar="N", help="try the best N prescriptions, 1 to 3: predicted beside measured"
    ),
    click.Option(
        ["--tune"], is_flag=True, help="search workers x envs x learner threads x overlap for the best rate"
    ),
    click.Option(["--trace"], metavar="FILE", help="write the Chrome trace here too; it opens in Perfetto"),
    click.Option(["--json"], is_flag=True, help="print one JSON object to standard output"),
]


@dataclass(frozen=True)
class Wanted:
    """The command's own options, read."""

    seconds: float
    tries: int
    tune: bool
    trace: Path | None
    json: bool


@click.command("profile", cls=ConfigCommand, own_options=OPTIONS)
def command(parsed: Parsed) -> int:
    """Say where every second goes, what bounds the rate, and what a change would give.

    Takes the flags of `distrl train`. Writes profile.html, profile.json and trace.json into --run-dir, or into
    runs/profile-<env>-<algo>-s<seed>-<UTC time>.
    """
    wanted = _read(parsed)
    resolved, _ = resolve_command_line(parsed)
    from distrl.preflight import check_before_run

    check_before_run(resolved.config)
    config = resolved.config
    run_dir = Path(config.run_dir) if config.run_dir else None
    if run_dir is not None and run_dir.exists():
        raise BadInput(f"--run-dir must not exist yet, {run_dir} does: name another")
    from distrl.autopsy.profile import profile
    from distrl.run_directory import default_run_dir

    stamp = default_run_dir(config.env, config.algo, config.seed, datetime.now(UTC))
    folder = run_dir if run_dir is not None else stamp.with_name(f"profile-{stamp.name}")
    started = time.monotonic()

    def tell(message: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {message}", file=sys.stderr)

    with others_to_stderr():  # where Ray writes what its own processes log
        result = profile(
            resolved, folder, run_dir, wanted.seconds, wanted.tries, wanted.tune, wanted.trace, tell
        )
    if wanted.json:
        print(json.dumps(result))
    return 0


def _read(parsed: Parsed) -> Wanted:
    """The own options; what is wrong with them joins the problems of the rest."""
    options, problems = parsed.options, parsed.problems
    seconds, tries = 5.0, 0
    try:
        seconds = float(options.get("seconds", "5"))
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 600:
        problems.append(
            f"--seconds: must be above 0 and at most 600, got {options['seconds']!r}; give e.g. 5"
        )
    if "try" in options:
        tries = int(options["try"]) if options["try"] in ("1", "2", "3") else -1
        if tries < 0:
            problems.append(
                f"--try: must be 1, 2 or 3, got {options['try']!r}; give how many prescriptions to try"
            )
    trace = Path(options["trace"]) if "trace" in options else None
    if trace is not None and (trace.is_dir() or not trace.parent.is_dir()):
        problems.append(
            f"--trace: must name a file in a folder that exists, got {str(trace)!r}; name another"
        )
    return Wanted(seconds, tries, bool(options.get("tune")), trace, bool(options.get("json")))
