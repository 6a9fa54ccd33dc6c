"""`distrl profile` from a configuration to a page: the session, what was tried, the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distrl.autopsy.diagnose import diagnose
from distrl.autopsy.measure import Effort
from distrl.autopsy.page import render_page
from distrl.autopsy.result import as_json
from distrl.autopsy.search import try_best, tune
from distrl.autopsy.terminal import print_diagnosis, print_files, print_tried
from distrl.autopsy.trace import write_trace
from distrl.errors import BadInput
from distrl.resolve import Resolved
from distrl.run_directory import write_json_atomic
from distrl.telemetry.page import write_page


def profile(
    resolved: Resolved,
    folder: Path,
    run_dir: Path | None = None,
    seconds: float = 5.0,
    tries: int = 0,
    tuned: bool = False,
    trace: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Runs the autopsy, prints it to standard error and writes profile.html, profile.json and trace.json into `folder`.

    `run_dir` keeps the session's run directory, and then is `folder`. Returns what profile.json holds.
    """
    effort = Effort(seconds=seconds)
    found = diagnose(resolved, effort, run_dir, tell)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder} cannot be made: {error.strerror}; name another with --run-dir") from error
    for path in [folder / "trace.json", *([trace] if trace is not None else [])]:
        write_trace(path, found.session.timeline, found.path)
    print_diagnosis(found)
    tried = try_best(resolved, found.prescriptions, tries, effort, tell) if tries else []
    points = tune(resolved, found.session, found.costs, effort, tell) if tuned else []
    if tried:
        print_tried("Tried: predicted beside measured, env steps/s", tried, found.session.rate)
    if points:
        print_tried("Tuned: what was measured of the grid, env steps/s", points, found.session.rate)
    result = as_json(found, tried, points)
    write_json_atomic(folder / "profile.json", result)
    write_page(folder / "profile.html", render_page(found, result))
    print_files(folder / "profile.html", folder / "profile.json", trace or folder / "trace.json")
    return result
