"""What is written can be read back, each step once, after any resume; and a broken convenience stops nothing."""

import json
import struct
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from distrl.telemetry.sinks import Sinks, open_sinks
from distrl.telemetry.sinks.jsonl import JsonlSink, read_jsonl


def record_of(iteration: int, run: float = 0.0) -> dict:
    return {
        "iteration": iteration,
        "env_steps": 512 * iteration,
        "wall_sec": 0.25 * iteration + run,
        "episode_return_mean": None if iteration == 1 else 20.5 + iteration,
        "policy_loss": -0.001 * iteration,
        "info/score": np.float32(0.5),
    }


def test_jsonl_is_one_object_a_line_and_what_json_lacks_is_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.write(
        {**record_of(1), "approx_kl": float("nan"), "entropy": np.float64("inf"), "n": np.int64(2**53 + 1)}
    )
    line = path.read_text()  # before close: a kill after `write` loses nothing
    assert line.endswith("}\n")
    parsed = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert parsed["approx_kl"] is None and parsed["entropy"] is None and parsed["episode_return_mean"] is None
    assert parsed["n"] == 2**53 + 1 and parsed["info/score"] == 0.5
    sink.sync()
    sink.close()
    assert list(parsed)[:3] == ["iteration", "env_steps", "wall_sec"]


def test_jsonl_after_a_resume_equals_an_uninterrupted_run_even_with_a_torn_line(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    for path, iterations in ((whole, range(1, 8)), (cut, range(1, 6))):
        sink = JsonlSink(path)
        for iteration in iterations:
            sink.write(record_of(iteration))
        sink.close()
    with cut.open("a") as file:
        file.write('{"iteration": 6, "env_st')
    sink = JsonlSink(cut, resume_iteration=3)
    for iteration in range(4, 8):
        sink.write(record_of(iteration))
    sink.close()
    assert cut.read_bytes() == whole.read_bytes()
    assert [record["iteration"] for record in read_jsonl(cut)] == list(range(1, 8))


def test_jsonl_refuses_to_mix_two_runs_and_says_when_records_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.write(record_of(1))
    sink.close()
    with pytest.raises(ValueError, match="must be empty for a new run"):
        JsonlSink(path)
    with pytest.warns(RuntimeWarning, match="has 1 of the 5 records before the checkpoint"):
        JsonlSink(path, resume_iteration=5).close()
    JsonlSink(path, resume_iteration=0).close()
    assert path.read_bytes() == b""
    path.unlink()
    with pytest.warns(RuntimeWarning, match="has 0 of the 5 records before the checkpoint"):
        JsonlSink(path, resume_iteration=5).close()
    JsonlSink(path, resume_iteration=0).close()  # killed before its first record


@pytest.mark.parametrize("line", ["not json", "[1]", '{"loss": 1}', '{"iteration": null}'])
def test_a_damaged_line_costs_its_own_record_and_no_other(line: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    for iteration in range(1, 7):
        sink.write(record_of(iteration))
    sink.close()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
    with pytest.warns(RuntimeWarning, match="has 4 of the 5 records"):
        JsonlSink(path, resume_iteration=5).close()
    assert [record["iteration"] for record in read_jsonl(path)] == [1, 2, 4, 5]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_sinks(tmp_path) as sinks:
        for iteration in range(1, 6):
            sinks.write(record_of(iteration, run=1.0))
    (event_file,) = tmp_path.glob("*tfevents*")
    with event_file.open("ab") as file:
        file.write(struct.pack("<Q", 500) + b"torn by a kill")
    with open_sinks(tmp_path, resume_iteration=3) as sinks:
        for iteration in range(4, 8):
            sinks.write(record_of(iteration, run=2.0))

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags == set(record_of(1))
    assert [event.step for event in events.Scalars("policy_loss")] == [512 * i for i in range(1, 8)]
    assert [event.value for event in events.Scalars("policy_loss")] == [
        np.float32(-0.001 * i) for i in range(1, 8)
    ]
    walls = [event.value for event in events.Scalars("wall_sec")]
    assert walls == [0.25 * i + (1.0 if i <= 3 else 2.0) for i in range(1, 8)]  # the second run's 4 and 5
    assert [event.step for event in events.Scalars("episode_return_mean")] == [512 * i for i in range(2, 8)]
    assert len(list(tmp_path.glob("*tfevents*"))) == 1


def test_neither_torch_nor_wandb_is_imported_by_the_plain_sinks(tmp_path: Path) -> None:
    import subprocess

    program = (
        "import sys, pathlib\n"
        "import distrl.telemetry.console, distrl.telemetry.spans, distrl.telemetry.metrics, distrl.telemetry.report\n"
        "from distrl.telemetry.sinks import open_sinks\n"
        "open_sinks(pathlib.Path(sys.argv[1])).close()\n"
        "print([name for name in ('torch', 'wandb', 'ray', 'matplotlib', 'gymnasium') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


class BrokenSink:
    """A sink whose disk is gone."""

    def __init__(self) -> None:
        self.num_writes = 0

    def write(self, record: object) -> None:
        self.num_writes += 1
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_secondary_sink_that_fails_is_left_out_with_one_warning_and_training_goes_on(
    tmp_path: Path,
) -> None:
    broken = BrokenSink()
    sinks = Sinks(JsonlSink(tmp_path / "metrics.jsonl"), [broken])
    with pytest.warns(RuntimeWarning, match="BrokenSink failed and is off.*No space left"):
        sinks.write(record_of(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sinks.write(record_of(2))
        sinks.close()
    assert broken.num_writes == 1
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 2


def test_the_primary_sink_s_error_is_raised_and_the_file_is_closed_even_if_another_fails_to_close(
    tmp_path: Path,
) -> None:
    jsonl = JsonlSink(tmp_path / "metrics.jsonl")
    sinks = Sinks(jsonl, [BrokenSink()])
    with pytest.warns(RuntimeWarning, match="did not close"):
        sinks.close()
    with pytest.raises(ValueError, match="closed file"):
        sinks.write(record_of(1))
