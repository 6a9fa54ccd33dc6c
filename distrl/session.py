"""A training session from a validated configuration to a summary: new, or the continuation of a run.

    new      spaces, policy, first parameters -> run directory with config.json and checkpoint 0, in one rename
    resumed  lock -> newest whole checkpoint -> metrics cut back to it
    both     runtime -> loop -> evaluation -> summary.json, report.html

Nothing of Ray starts before the run directory is there: a run killed at any moment can be resumed.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from distrl import machine
from distrl.build import learner_device, require_same_spaces, spaces_meta, work_spec
from distrl.checkpoint import latest_checkpoint, write_checkpoint
from distrl.config import TrainConfig
from distrl.errors import BadInput, RunFailed, cause
from distrl.evaluation import find_checkpoint
from distrl.interrupts import EXIT_INTERRUPTED, Interrupted, Interrupts
from distrl.loops import train_overlapped, train_synchronous
from distrl.policies import load_parameters
from distrl.resolve import Resolved, to_flat, write_config
from distrl.run import Run, RunState
from distrl.run_directory import default_run_dir, failure_of, lock_run_directory, new_run_directory
from distrl.runtime.local import LocalRuntime
from distrl.runtime.protocol import Runtime
from distrl.runtime.workers import WorkSpec
from distrl.telemetry import spans
from distrl.telemetry.console import ConsoleSink, print_span_table
from distrl.telemetry.sinks import open_sinks
from distrl.telemetry.spans import span


@dataclass(frozen=True)
class Outcome:
    """How a session ended: 0 done, 1 failed, 130 interrupted; the run directory and its summary."""

    exit_status: int
    run_dir: Path
    summary: dict[str, Any]


def run_training(
    resolved: Resolved,
    resume: Path | None = None,
    quiet: bool = False,
    run_type: Callable[..., Run] = Run,
    record_events: bool = False,
) -> Outcome:
    """Train as configured; `resume` continues that run directory. Progress goes to standard error.

    A profile gives a `run_type` of its own, which sees each iteration, and has spans recorded with their moments.

    Raises BadInput before any compute is spent, RunFailed where the run cannot go on.
    """
    config = resolved.config
    torch.set_num_threads(1)  # the first parameters are the same whatever the machine's cores
    device = learner_device(config)
    if resume is not None:
        directory = resume
    elif config.run_dir:
        directory = Path(config.run_dir)
    else:
        directory = default_run_dir(config.env, config.algo, config.seed, datetime.now(UTC))
    directory = directory.absolute()  # an env's code may change the current folder
    created = False
    with Interrupts() as interrupts:
        try:
            spec = work_spec(config, device, str(directory / "faults"), tried=True)
            spec = replace(spec, record_events=record_events)
            if resume is None:
                _create(directory, resolved, spec)
                created = True
            with lock_run_directory(directory):
                return _train(directory, resolved, spec, interrupts, resume is not None, quiet, run_type)
        except (
            BadInput
        ):  # a cluster that is not there, say: the corrected command may name the same directory
            if created:
                shutil.rmtree(directory, ignore_errors=True)
            raise
        except (
            Interrupted
        ) as interrupt:  # before the first iteration: nothing to save that is not there already
            started = (directory / "config.json").exists()
            how = f"continue with: distrl train --resume {directory}" if started else "nothing was started"
            print(f"distrl: {interrupt.signal_name}: stopped; {how}", file=sys.stderr)
            return Outcome(
                EXIT_INTERRUPTED, directory, {"exit_reason": f"interrupted by {interrupt.signal_name}"}
            )
        except OSError as error:  # in closing a file on a full disk, say
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            made = (directory / "config.json").exists()
            raise RunFailed(
                f"{error.filename or directory}: {error.strerror}"
                + ("; make room" if full else "")
                + (f"; continue with: distrl train --resume {directory}" if made else "")
            ) from error
        except RunFailed:
            raise
        except Exception as error:  # of the env's or of a custom policy's, while things are made ready
            if not (directory / "config.json").exists():
                raise
            raise failure_of(directory, error, f"continue with: distrl train --resume {directory}") from error


def _create(directory: Path, resolved: Resolved, spec: WorkSpec) -> None:
    """The run directory with config.json and checkpoint 0, all at once."""
    trees = {
        "learner": _first_learner(resolved.config, spec),
        "groups": [None] * len(spec.group_sizes),
        "run": RunState().tree(),
    }
    with new_run_directory(directory) as folder:
        write_checkpoint(folder / "checkpoints", 0, trees, _meta(spec))
        write_config(folder / "config.json", resolved)


def _first_learner(config: TrainConfig, spec: WorkSpec) -> dict[str, Any]:
    """State tree of a learner that has not learned yet: with the first parameters, or those of `--init-from`."""
    learner = spec.make_learner("cpu")
    if config.init_from is not None:
        source = find_checkpoint(Path(config.init_from), "latest")
        try:
            load_parameters(learner.policy, source.trees["learner"]["policy"])
        except ValueError as error:
            raise BadInput(f"--init-from {config.init_from}: {error}") from error
        if learner.observation_moments is not None and source.trees["learner"]["observation_moments"]:
            learner.observation_moments.load_state(source.trees["learner"]["observation_moments"])
    return learner.state()


def _meta(spec: WorkSpec) -> dict[str, Any]:
    return {
        "env": spec.env.env_id,
        "spaces": spaces_meta(spec),
        "versions": machine.versions(),
        "machine": machine.machine(spec.device),
    }


def _train(
    directory: Path,
    resolved: Resolved,
    spec: WorkSpec,
    interrupts: Interrupts,
    resumed: bool,
    quiet: bool,
    run_type: Callable[..., Run],
) -> Outcome:
    config = resolved.config
    spans.start("other", spec.record_events)
    started = time.monotonic()
    found = latest_checkpoint(directory / "checkpoints")
    if found is None:
        raise RunFailed(
            f"{directory} has no checkpoint to continue from; start a new run with another --run-dir"
        )
    _, content, notes = found
    state = RunState.from_tree(content.trees["run"])
    notes = [*resolved.warnings, *notes]
    if resumed:
        require_same_spaces(content.meta, spec, directory)
        if state.env_steps >= config.total_steps and has_ended(directory):
            return _already_finished(directory, state, config)
        state.resumes += 1
        notes += _resume_notes(resolved, content.meta, _meta(spec))
        (directory / "summary.json").unlink(missing_ok=True)
        if resolved.changes:
            write_config(directory / "config.json", resolved)
    who = f"{config.workers} Ray workers" if config.workers else "in-process"
    title = f"{config.env} · {config.algo} · seed {config.seed} · {who}"
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w")) if quiet else None
        console = ConsoleSink(title, config.total_steps, stream=nowhere)
        with span("start"):
            stack.callback(console.close)
            with warnings.catch_warnings(record=True) as early:
                warnings.simplefilter("always", RuntimeWarning)
                sinks = stack.enter_context(
                    open_sinks(
                        directory,
                        resume_iteration=state.iteration if resumed else None,
                        config=to_flat(config),
                        tensorboard=config.tensorboard,
                        wandb=config.wandb,
                        wandb_project=config.wandb_project,
                        extra=[console],
                    )
                )
            notes += [str(one.message) for one in early if issubclass(one.category, RuntimeWarning)]
            if resumed:
                console.message(
                    f"continuing {directory} from iteration {state.iteration}, {state.env_steps:,} env steps"
                )
            runtime = _make_runtime(config, spec, content.trees, console, interrupts)
            stack.callback(runtime.close)
            run = run_type(
                directory,
                config=config,
                spec=spec,
                runtime=runtime,
                sinks=sinks,
                console=console,
                interrupts=interrupts,
                state=state,
                meta=_meta(spec),
                started=started,
            )
            if resumed:
                run.record = last_record(directory / "metrics.jsonl")
        stack.enter_context(warnings_told_to(run.warn))
        # what stays to the end, modules above all, is not looked through again whenever episodes have made objects
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        for note in notes:
            run.warn(note)
        return _loop_and_finish(run, console, quiet)


def _loop_and_finish(run: Run, console: ConsoleSink, quiet: bool) -> Outcome:
    evaluation: dict[str, Any] | None = None
    exit_reason, status = "finished", 0
    try:
        if run.config.overlap:
            train_overlapped(run.runtime, run, run.config.overlap)
        else:
            train_synchronous(run.runtime, run)
        run.checkpoint()
        _require_saved(run)
        if run.config.eval_episodes:
            evaluation = run.evaluate_last()
    except Interrupted as interrupt:
        run.interrupts.settle()
        exit_reason, status = f"interrupted by {interrupt.signal_name}", EXIT_INTERRUPTED
        try:
            run.checkpoint()
            _require_saved(run)
        except RunFailed as failure:
            raise RunFailed(f"{failure}\n{_how_to_resume(run)}") from failure
    except RunFailed as failure:
        with contextlib.suppress(RunFailed, OSError):  # a full disk, say: it must not hide the failure
            _write_summary(run, f"failed: {failure}", None)
        raise failure_of(run.directory, failure, _how_to_resume(run)) from failure
    except OSError as error:
        raise _disk_failure(run, error) from error
    except Exception as error:  # an error of ours, of the env's or of a custom policy's
        with contextlib.suppress(RunFailed, OSError):
            _write_summary(run, f"failed: {cause(error)}", None)
        raise failure_of(run.directory, error, _how_to_resume(run)) from error
    run.interrupts.settle()  # from here on it is done: only a second signal would matter
    try:
        summary = _write_summary(run, exit_reason, evaluation)
    except OSError as error:
        raise _disk_failure(run, error) from error
    console.close()
    if not quiet:
        _tell_the_end(run, summary, status)
    return Outcome(status, run.directory, summary)


def _disk_failure(run: Run, error: OSError) -> RunFailed:
    return RunFailed(f"{error.filename or run.directory}: {error.strerror}\n{_how_to_resume(run)}")


def _require_saved(run: Run) -> None:
    if run.saved_at != run.iteration and not run.torn:
        raise RunFailed(
            f"the checkpoint of the last iteration, {run.iteration}, was not saved: {run.state.warnings[-1]}"
        )


def _write_summary(run: Run, exit_reason: str, evaluation: dict[str, Any] | None) -> dict[str, Any]:
    described = {
        "versions": machine.versions(),
        "git_revision": machine.git_revision(),
        "machine": machine.machine(run.spec.device),
        "paths": dict(run.spec.paths),
    }
    with contextlib.suppress(RunFailed):  # the learner may be what failed
        described["parameters_sha256"] = run.runtime.snapshot().digest
    summary = run.finish(exit_reason, evaluation, described)
    run.sinks.close()
    from distrl.telemetry.report import write_report

    try:
        write_report(run.directory)
    except OSError as error:  # the run itself is whole
        run.warn(f"report.html was not written: {error.strerror}")
    return summary


@contextlib.contextmanager
def warnings_told_to(warn: Callable[[str], None]) -> Iterator[None]:
    """RuntimeWarnings, which the sinks give, are told and kept as the run's own."""
    with warnings.catch_warnings():
        show = warnings.showwarning
        warnings.simplefilter("always", RuntimeWarning)

        def tell(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, RuntimeWarning):
                warn(str(message))
            else:
                show(message, category, *where, **more)

        warnings.showwarning = tell  # type: ignore[assignment]
        yield


def _tell_the_end(run: Run, summary: dict[str, Any], status: int) -> None:
    print_span_table(summary["spans"])
    lines = [f"run        {run.directory}", f"report     {run.directory / 'report.html'}"]
    if summary["evaluation"]:
        result = summary["evaluation"]
        share = result["unfinished_share"]
        unfinished = f", {100 * share:.0f} % of them unfinished" if share else ""
        lines.insert(
            0,
            f"evaluation {result['return_mean']:.1f} +- {result['return_std']:.1f} mean return "
            f"({result['episodes']} greedy episodes{unfinished})",
        )
    if status == EXIT_INTERRUPTED:
        lines.append(_how_to_resume(run))
    print("\n".join(lines), file=sys.stderr)


def _how_to_resume(run: Run) -> str:
    return (
        f"checkpoint of iteration {run.saved_at} kept; continue with: distrl train --resume {run.directory}"
    )


def last_record(path: Path) -> dict[str, Any]:
    """The record that the run goes on from; empty before the first."""
    lines = path.read_bytes().splitlines()
    return json.loads(lines[-1]) if lines else {}


def has_ended(directory: Path) -> bool:
    """Whether the run was told to its end; one killed in its last evaluation, say, still owes that and the summary."""
    try:
        return bool(json.loads((directory / "summary.json").read_text())["exit_reason"] == "finished")
    except FileNotFoundError:
        return False


def _already_finished(directory: Path, state: RunState, config: TrainConfig) -> Outcome:
    print(
        f"{directory} is finished: {state.env_steps:,} of {config.total_steps:,} env steps; "
        f"give --total-steps to go on",
        file=sys.stderr,
    )
    return Outcome(0, directory, {"exit_reason": "already finished", "env_steps": state.env_steps})


def _resume_notes(resolved: Resolved, before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for change in resolved.changes:
        yield f"changed on resume: {change}"
    if any(change.startswith("total_steps") for change in resolved.changes):
        yield "schedules are rescaled to the new end"
    for kind in ("versions", "machine"):
        found = machine.differences(before.get(kind, {}), now[kind])
        if found:
            yield f"the {kind} differ from the checkpoint; results may not be bit-identical: {', '.join(found)}"


def _make_runtime(
    config: TrainConfig, spec: WorkSpec, trees: dict[str, Any], console: ConsoleSink, interrupts: Interrupts
) -> Runtime:
    if config.workers == 0:
        return LocalRuntime(spec, trees)
    interrupts.polled = True
    spec.warm()
    from distrl.runtime.ray import RayRuntime

    return RayRuntime(
        spec,
        trees,
        config.workers,
        config.address,
        config.max_worker_restarts,
        on_event=lambda message: console.message(message, "yellow"),
        check_interrupt=interrupts.check,
    )
