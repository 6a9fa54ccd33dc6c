"""Where records go: metrics.jsonl, TensorBoard, wandb, the console.

A record is one iteration's flat dict in metrics.jsonl's keys (`iteration`, `env_steps`, `policy_loss`, ...). Every
sink gets the same record. metrics.jsonl is the run's truth, so its errors are raised; the others are conveniences,
so theirs become one warning and training goes on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from distrl.telemetry.sinks.jsonl import JsonlSink, truncate_jsonl
from distrl.telemetry.sinks.samples import SAMPLES_FILE, append_samples


class Sink(Protocol):
    def write(self, record: Mapping[str, Any]) -> None:
        """Takes one iteration's record; keeps no reference to it."""
        ...

    def close(self) -> None:
        """Everything written is on its way to disk. May be called twice."""
        ...


class Sinks:
    """Several sinks as one. The first must not fail; one of the others that does is closed and left out."""

    def __init__(self, primary: JsonlSink, others: Sequence[Sink] = ()) -> None:
        self.primary = primary
        self.others = list(others)

    def write(self, record: Mapping[str, Any]) -> None:
        self.primary.write(record)
        for sink in list(self.others):
            self._guarded(sink, sink.write, record)

    def write_samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Responses of an iteration, before its record: into samples.jsonl, and to the sinks that show them."""
        append_samples(self.primary.path.with_name(SAMPLES_FILE), samples)
        for sink in list(self.others):
            if (show := getattr(sink, "write_samples", None)) is not None:
                self._guarded(sink, show, samples)

    def _guarded(self, sink: Sink, write: Callable[[Any], None], what: Any) -> None:
        """A sink that fails is left out from then on."""
        try:
            write(what)
        except Exception as error:
            self.others.remove(sink)
            warnings.warn(
                f"{type(sink).__name__} failed and is off for the rest of this run; training goes on. "
                f"metrics.jsonl has every record. Cause: {error}",
                RuntimeWarning,
                stacklevel=3,
            )

    def close(self) -> None:
        try:
            for sink in self.others:
                try:
                    sink.close()
                except Exception as error:
                    warnings.warn(
                        f"{type(sink).__name__} did not close: {error}", RuntimeWarning, stacklevel=2
                    )
        finally:
            self.primary.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_sinks(
    run_dir: Path,
    *,
    resume_iteration: int | None = None,
    config: Mapping[str, Any] | None = None,
    tensorboard: bool = True,
    wandb: bool = False,
    wandb_project: str = "distrl",
    extra: Sequence[Sink] = (),
) -> Sinks:
    """Opens the sinks of a run directory; `extra` are further ones, such as the console.

    With `resume_iteration` (the checkpoint's), metrics.jsonl, samples.jsonl and TensorBoard are first cut back to that iteration, so
    that each step is there once. `config` is shown by wandb. The heavy packages are imported only here.
    """
    sinks = Sinks(JsonlSink(run_dir / "metrics.jsonl", resume_iteration=resume_iteration), extra)
    samples = run_dir / SAMPLES_FILE
    try:
        if resume_iteration is not None and samples.exists():
            truncate_jsonl(samples, resume_iteration)
        if tensorboard:
            from distrl.telemetry.sinks.tensorboard import TensorBoardSink

            sinks.others.append(TensorBoardSink(run_dir, resume_iteration=resume_iteration))
        if wandb:
            from distrl.telemetry.sinks.wandb import WandbSink

            sinks.others.append(WandbSink(run_dir, config=config or {}, project=wandb_project))
    except BaseException:
        sinks.close()
        raise
    return sinks
