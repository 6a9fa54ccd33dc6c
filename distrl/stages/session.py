"""A session of a stage, new or resumed: as `distrl.session` for train, over what a `Stage` says of itself.

    new      data and models are read and checked -> run directory with config.json and checkpoint 0, in one rename
    resumed  lock -> newest whole checkpoint -> metrics cut back to it
    both     roles -> loop -> model folder -> summary.json, report.html

Where a role's worker is lost, all roles start anew from the newest checkpoint, and the iterations since are done again:
they come out the same.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from distrl import machine
from distrl.checkpoint import latest_checkpoint, write_checkpoint
from distrl.errors import BadInput, RunFailed, cause, translated
from distrl.fields import Schema
from distrl.interrupts import EXIT_INTERRUPTED, Interrupted, Interrupts
from distrl.named import function_part
from distrl.resolve import ResolvedAs, to_flat_as, write_config_as
from distrl.rlhf.devices import reproducibility
from distrl.run_directory import default_run_dir, failure_of, lock_run_directory, new_run_directory
from distrl.runtime.roles import RoleLost
from distrl.session import Outcome, has_ended, last_record, warnings_told_to
from distrl.stages.rows import keep_rows, with_kept
from distrl.stages.run import StageRun, StageState
from distrl.telemetry import spans
from distrl.telemetry.console import ConsoleSink, print_span_table
from distrl.telemetry.look import Look, Picture
from distrl.telemetry.report import REPORT_FILE, write_report
from distrl.telemetry.sinks import Sinks, open_sinks
from distrl.telemetry.spans import span


class Stage(Protocol):
    """What one stage is. Making it has read and checked data and models; BadInput came from there."""

    schema: Schema[Any]
    config: Any
    total: int  # iterations
    headline: tuple[str, str]  # what the console shows: a word, and the metric
    notes: list[str]  # to be told when it begins
    facts: dict[str, Any]  # digests of what was read: a resumed run must find the same
    sources: dict[str, str]  # digests of the user's code: a resumed run says which is another
    paths: dict[str, str]  # fast paths that were proved on the model: a resumed run says which are others
    device: str
    devices: Collection[str]  # where models compute
    max_restarts: int
    look: Look  # of its report
    record_events: bool  # whether the driver's spans are kept with their moments
    picture: Picture | None  # of its last iteration, once it has finished

    def first_trees(self) -> dict[str, Any]:
        """State trees of a run that has not begun."""
        ...

    def start(self, run: StageRun, trees: dict[str, Any]) -> None:
        """Gets ready to go on from `trees`; called again after a worker was lost."""
        ...

    def train(self) -> None:
        """All iterations that are left."""
        ...

    def trees(self) -> dict[str, Any]:
        """State trees of the last boundary."""
        ...

    def finish(self, folder: Path | None) -> dict[str, Any]:
        """What summary.json says beside the counts; with a folder, the model is saved there first."""
        ...

    def complete(self, folder: Path) -> dict[str, Any]:
        """What comes after the model was saved in that folder, and may fail; more of what summary.json says."""
        ...

    def close(self) -> None:
        """Ends what it started."""
        ...


def run_stage(
    stage: Stage,
    resolved: ResolvedAs[Any],
    resume: Path | None = None,
    quiet: bool = False,
    rows: Mapping[str, Path] | None = None,
) -> Outcome:
    """Runs a stage to its end; `rows` are files of data that the run directory keeps, by field.

    Raises BadInput and RunFailed as `distrl.session.run_training` does.
    """
    config = resolved.config
    name = stage.schema.command.rpartition(" ")[2]
    model = Path(config.folder).resolve().name
    default = default_run_dir(model, getattr(config, "algo", name), config.seed, datetime.now(UTC))
    directory = resume or (Path(config.run_dir) if config.run_dir else default)
    resolved, notes = with_kept(resolved, directory, rows or {})
    stage.notes += notes
    started = time.monotonic()
    created = False
    with Interrupts() as interrupts:
        try:
            if resume is None:
                _create(directory, stage, resolved, rows or {})
                created = True
            with lock_run_directory(directory):
                return _Session(
                    directory, stage, resolved, interrupts, resume is not None, quiet, started
                ).run()
        except BadInput:  # a cluster without the room, say: the corrected command may name the same directory
            if created:
                shutil.rmtree(directory, ignore_errors=True)
            raise
        except Interrupted as interrupt:  # before the first iteration: all is saved already
            made = (directory / "config.json").exists()
            how = _how_to_resume(stage, directory) if made else "nothing was started"
            print(f"distrl: {interrupt.signal_name}: stopped; {how}", file=sys.stderr)
            return Outcome(
                EXIT_INTERRUPTED, directory, {"exit_reason": f"interrupted by {interrupt.signal_name}"}
            )
        except OSError as error:
            made = (directory / "config.json").exists()
            how = f"; {_how_to_resume(stage, directory)}" if made else ""
            raise RunFailed(f"{error.filename or directory}: {error.strerror}{how}") from error
        except RunFailed:
            raise
        except Exception as error:  # of a model's code, while roles are made ready
            if not (directory / "config.json").exists():
                raise
            raise failure_of(directory, error, _how_to_resume(stage, directory)) from error


def _create(directory: Path, stage: Stage, resolved: ResolvedAs[Any], rows: Mapping[str, Path]) -> None:
    """The run directory with config.json, checkpoint 0 and rows given from Python, all at once."""
    with new_run_directory(directory) as folder:
        keep_rows(folder, rows)
        trees = {**stage.first_trees(), "run": StageState().tree()}
        write_checkpoint(folder / "checkpoints", 0, trees, _meta(stage))
        write_config_as(stage.schema, folder / "config.json", resolved)


def _meta(stage: Stage) -> dict[str, Any]:
    return {
        "command": stage.schema.command,
        "facts": stage.facts,
        "sources": stage.sources,
        "paths": stage.paths,
        "versions": _versions(),
        "machine": machine.machine(stage.device),
    }


def _sources_of(name: str, before: Mapping[str, str], now: Mapping[str, str]) -> list[str | None]:
    """Digests that a function's file may have now: its own, or those of the same function in another place."""
    if name in now:
        return [now[name]]
    same = function_part(name)
    return [digest for one, digest in now.items() if one not in before and function_part(one) == same]


def _versions() -> dict[str, str]:
    return machine.versions() | {name: version(name) for name in ("transformers", "tokenizers", "peft")}


def _how_to_resume(stage: Stage, directory: Path) -> str:
    return f"continue with: {stage.schema.command} --resume {directory}"


@dataclass
class _Session:
    directory: Path
    stage: Stage
    resolved: ResolvedAs[Any]
    interrupts: Interrupts
    resumed: bool
    quiet: bool
    started: float

    def run(self) -> Outcome:
        stage, directory = self.stage, self.directory
        spans.start("other", stage.record_events)
        found = latest_checkpoint(directory / "checkpoints")
        if found is None:
            raise RunFailed(f"{directory} has no checkpoint to continue from; start another --run-dir")
        _, content, notes = found
        state = StageState.from_tree(content.trees["run"])
        notes = [*self.resolved.warnings, *stage.notes, *notes]
        if self.resumed:
            if state.iteration >= stage.total and has_ended(directory):
                return self._already_finished(state)
            state.resumes += 1
            notes += self._resume_notes(content.meta)
            (directory / "summary.json").unlink(missing_ok=True)
            if self.resolved.changes:
                write_config_as(stage.schema, directory / "config.json", self.resolved)
        if reproducibility(stage.devices) != "exact":  # and once it is not, it never is again
            state.reproducibility = reproducibility(stage.devices)
        with contextlib.ExitStack() as stack:
            nowhere = stack.enter_context(open(os.devnull, "w")) if self.quiet else None
            console = ConsoleSink(
                self._title(), stage.total, stream=nowhere, counted="iteration", headline=stage.headline
            )
            stack.callback(console.close)
            with span("start"), warnings.catch_warnings(record=True) as early:
                warnings.simplefilter("always", RuntimeWarning)
                run = StageRun(
                    directory,
                    config=self.resolved.config,
                    total=stage.total,
                    open_sinks=lambda at: self._open_sinks(at, console),
                    console=console,
                    interrupts=self.interrupts,
                    state=state,
                    meta=_meta(stage),
                    trees_of=stage.trees,
                    resumed=self.resumed,
                    started=self.started,
                )
                stack.callback(lambda: run.sinks.close())
                stack.callback(stage.close)
                stage.start(run, content.trees)
                if self.resumed:
                    run.record = last_record(directory / "metrics.jsonl")
            notes += [str(one.message) for one in early if issubclass(one.category, RuntimeWarning)]
            stack.enter_context(warnings_told_to(run.warn))
            for note in notes:
                run.warn(note)
            return self._loop_and_finish(run, console)

    def _title(self) -> str:
        config = self.resolved.config
        algo = getattr(config, "algo", "")
        name = self.stage.schema.command.removeprefix("distrl ")
        return " · ".join(
            part for part in (name, Path(config.folder).name, algo, f"seed {config.seed}") if part
        )

    def _open_sinks(self, resume_iteration: int | None, console: ConsoleSink) -> Sinks:
        config = self.resolved.config
        return open_sinks(
            self.directory,
            resume_iteration=resume_iteration,
            config=to_flat_as(self.stage.schema, config),
            tensorboard=config.tensorboard,
            wandb=config.wandb,
            wandb_project=config.wandb_project,
            extra=[console],
        )

    def _resume_notes(self, before: dict[str, Any]) -> Iterator[str]:
        stage = self.stage
        facts = before.get("facts", {})  # what an older version did not record cannot be compared
        changed = machine.differences(
            facts, {name: fact for name, fact in stage.facts.items() if name in facts}
        )
        if changed:
            raise BadInput(
                f"{self.directory} was started with other data or models: {', '.join(changed)}; put them back, or start a "
                "new run"
            )
        for change in self.resolved.changes:
            yield f"changed on resume: {change}"
        if any(change.startswith("iterations") for change in self.resolved.changes):
            yield "schedules are rescaled to the new end"
        now = _meta(stage)
        for name, was in before.get("sources", {}).items():
            if was not in _sources_of(name, before["sources"], now["sources"]):
                yield f"the file of {name} has changed since the checkpoint; scores may differ"
        others = machine.differences(before["paths"], stage.paths) if before.get("paths") else []
        if others:
            yield f"the model takes other code paths than at the checkpoint; results may not be bit-identical: {', '.join(others)}"
        for kind in ("versions", "machine"):
            found = machine.differences(before.get(kind, {}), now[kind])
            if found:
                yield f"the {kind} differ from the checkpoint; results may not be bit-identical: {', '.join(found)}"

    def _already_finished(self, state: StageState) -> Outcome:
        told = f"{self.directory} is finished: {state.iteration} of {self.stage.total} iterations"
        print(told, file=sys.stderr)
        return Outcome(0, self.directory, {"exit_reason": "already finished", "iterations": state.iteration})

    def _loop_and_finish(self, run: StageRun, console: ConsoleSink) -> Outcome:
        exit_reason, status = "finished", 0
        described: dict[str, Any] = {}
        how = _how_to_resume(self.stage, self.directory)
        try:
            described = self._train_through_losses(run)
        except Interrupted as interrupt:
            self.interrupts.settle()
            exit_reason, status = f"interrupted by {interrupt.signal_name}", EXIT_INTERRUPTED
            try:
                run.checkpoint()
                self._require_saved(run)
                described = self.stage.finish(None)
            except RunFailed as failure:
                raise RunFailed(f"{failure}\ncheckpoint of iteration {run.saved_at} kept; {how}") from failure
        except RunFailed as failure:
            with contextlib.suppress(RunFailed, OSError):
                self._write_summary(run, f"failed: {failure}", {})
            kept = f"checkpoint of iteration {run.saved_at} kept; {how}"
            raise failure_of(self.directory, failure, kept) from failure
        except OSError:
            raise
        except Exception as error:  # an error of ours or of a model's code
            with contextlib.suppress(RunFailed, OSError):
                self._write_summary(run, f"failed: {cause(error)}", {})
            kept = f"checkpoint of iteration {run.saved_at} kept; {how}"
            raise failure_of(self.directory, error, kept) from error
        self.interrupts.settle()
        summary = self._write_summary(run, exit_reason, described)
        console.close()
        if not self.quiet:
            print_span_table(summary["spans"])
            told = [f"run        {self.directory}", f"report     {self.directory / REPORT_FILE}"]
            told += [f"model      {self.directory / 'model'}"] if status == 0 else [how]
            print("\n".join(told), file=sys.stderr)
        return Outcome(status, self.directory, summary)

    def _train_through_losses(self, run: StageRun) -> dict[str, Any]:
        """The loop to its end, from the last checkpoint again where a role's worker is lost."""
        while True:
            try:
                self.stage.train()
                run.checkpoint()
                self._require_saved(run)
                return self._save_and_complete(run)
            except RoleLost as lost:
                run.restarts += 1
                if run.restarts > self.stage.max_restarts:
                    raise RunFailed(
                        f"{lost}; --max-worker-restarts {self.stage.max_restarts} are used up"
                    ) from lost
                found = latest_checkpoint(self.directory / "checkpoints")
                if found is None:
                    raise
                state = StageState.from_tree(found[1].trees["run"])
                run.console.message(
                    f"{lost}; restarting all roles from iteration {state.iteration}", "yellow"
                )
                with span("restart"), run.uninterrupted():
                    run.rewind(state)
                    self.stage.start(run, found[1].trees)

    def _save_and_complete(self, run: StageRun) -> dict[str, Any]:
        """The model first, then what may fail: an error after the training names the model that is there."""
        folder = self.directory / "model"
        with (
            span("save model"),
            translated(f"the model was not saved in {folder}", "make room on the disk", RunFailed),
            replaced_folder(folder) as aside,
        ):
            described = self.stage.finish(aside)
        if run.unevaluated is not None:
            raise RunFailed(
                f"{run.unevaluated}; the trained model is in {folder}"
            ) from run.unevaluated.__cause__
        with translated("a step after training failed", f"the trained model is in {folder}", RunFailed):
            return described | self.stage.complete(folder)

    def _require_saved(self, run: StageRun) -> None:
        if run.saved_at != run.iteration and not run.torn:
            raise RunFailed(
                f"the checkpoint of the last iteration, {run.iteration}, was not saved: {run.state.warnings[-1]}"
            )

    def _write_summary(self, run: StageRun, exit_reason: str, described: dict[str, Any]) -> dict[str, Any]:
        about = {
            "command": self.stage.schema.command,
            "facts": self.stage.facts,
            "versions": _versions(),
            "git_revision": machine.git_revision(),
            "machine": machine.machine(self.stage.device),
        }
        summary = run.finish(exit_reason, described | about)
        run.sinks.close()
        try:
            write_report(run.directory, self.stage.look, self.stage.picture)
        except OSError as error:  # the run itself is whole
            run.warn(f"{REPORT_FILE} was not written: {error.strerror}")
        return summary


@contextlib.contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Gives a folder to fill; a block that ends well puts it at `path`, in the place of what was there."""
    temporary = path.with_name(f".{path.name}.new-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
