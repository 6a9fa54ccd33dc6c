"""Data as people bring it: rows of public formats, the files they come in, and the commands that read them."""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import importlib.util
import io
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.wild.kit import CHATML, byte_level, save
from tests.wild.situation import Ended, distrl

HAS_EXTRA = all(importlib.util.find_spec(name) for name in ("pyarrow", "zstandard"))  # distrl[data]
Rows = Sequence[Mapping[str, Any]]
QUICK = ("--no-tensorboard", "--epochs", "1", "--batch-size", "2", "--run-dir", "run")
ASKING = (
    "--no-tensorboard", "--num-prompts", "2", "--minibatches", "1", "--iterations", "1", "--max-response", "4",
    "--run-dir", "run",
)  # fmt: skip
REWARD = (
    "import json\n"
    "def score(prompt, response, **columns):\n"
    "    with open('seen.jsonl', 'a') as out:\n"
    "        out.write(json.dumps([prompt, sorted(columns)]) + '\\n')\n"
    "    return float(len(response))\n"
)


@functools.cache
def _model() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="wild-data-"))
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    save(folder, byte_level(special=special, template=CHATML), "gpt2", n_positions=512)
    return folder


def prepare(folder: Path) -> None:
    """Puts a tiny chat model in `folder`/model."""
    shutil.copytree(_model(), folder / "model")


def lines(rows: Rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


Writer = Callable[[Path, Rows], str]  # writes rows in a folder -> what is given as the data


def as_text(name: str, text: Callable[[Rows], str] = lines, encoding: str = "utf-8") -> Writer:
    def write(folder: Path, rows: Rows) -> str:
        (folder / name).write_bytes(text(rows).encode(encoding))
        return name

    return write


as_jsonl = as_text("d.jsonl")


def as_table(rows: Rows, delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, [*rows[0]], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_gzip(folder: Path, rows: Rows) -> str:
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(lines(rows).encode()))
    return "d.jsonl.gz"


def as_zstd(folder: Path, rows: Rows) -> str:
    import zstandard

    (folder / "d.jsonl.zst").write_bytes(zstandard.compress(lines(rows).encode()))
    return "d.jsonl.zst"


def as_parquet(folder: Path, rows: Rows) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), folder / "d.parquet")
    return "d.parquet"


def as_saved(folder: Path, rows: Rows) -> str:
    """As `datasets.Dataset.save_to_disk` leaves it."""
    import pyarrow as pa

    (folder / "saved").mkdir()
    table = pa.Table.from_pylist([dict(row) for row in rows])
    name = "data-00000-of-00001.arrow"
    with pa.OSFile(str(folder / "saved" / name), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    state = {"_data_files": [{"filename": name}], "_format_type": None, "_split": "train"}
    (folder / "saved" / "state.json").write_text(json.dumps(state))
    (folder / "saved" / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return "saved"


def as_shards(folder: Path, rows: Rows) -> str:
    (folder / "shards").mkdir()
    half = len(rows) // 2
    for n, some in enumerate((rows[:half], rows[half:])):
        (folder / "shards" / f"train-{n:05d}-of-00002.jsonl").write_text(lines(some))
    (folder / "shards" / "README.md").write_text("# Data\n")
    return "shards"


def trained(stage: str, rows: Rows, write: Writer | None = None, *more: str) -> Callable[[Path], Ended]:
    """`distrl rlhf <stage>` on those rows, a step or two."""

    def run(folder: Path) -> Ended:
        prepare(folder)
        return distrl(
            folder,
            "rlhf",
            stage,
            "--model",
            "model",
            "--data",
            (write or as_jsonl)(folder, rows),
            *QUICK,
            *more,
        )

    return run


def asked(rows: Rows, write: Writer | None = None, *more: str) -> Callable[[Path], Ended]:
    """`distrl rlhf ppo` on those prompts with a reward function that notes what it sees."""

    def run(folder: Path) -> Ended:
        prepare(folder)
        (folder / "noting.py").write_text(REWARD)
        sys.modules.pop("noting", None)
        data = (write or as_jsonl)(folder, rows)
        with importable(folder):
            return distrl(
                folder, "rlhf", "ppo", "--model", "model", "--prompts", data, "--reward-function", "noting:score",
                *ASKING, *more,
            )  # fmt: skip

    return run


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    before, own = [*sys.path], os.environ.get("PYTHONPATH")
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before
        if own is not None:
            os.environ["PYTHONPATH"] = own


def from_python(stage: str, given: Callable[[], Any], **fields: Any) -> Callable[[Path], Ended]:
    """`distrl.rlhf_<stage>` of rows, with errors as the command would end."""

    def run(folder: Path) -> Ended:
        import distrl as package

        prepare(folder)
        err = io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                outcome = getattr(package, f"rlhf_{stage}")(
                    "model", given(), tensorboard=False, epochs=1, batch_size=2, run_dir="run", **fields
                )
            except (package.BadInput, package.RunFailed) as error:
                return Ended(error.exit_status, "", str(error))
        return Ended(outcome.exit_status, "", err.getvalue())

    return run


def digest(folder: Path) -> str:
    """Of the parameters that the run in `folder` ended with."""
    return str(json.loads((folder / "run" / "summary.json").read_text())["parameters_sha256"])


@functools.cache
def _plainly(stage: str, text: str, more: tuple[str, ...]) -> str:
    with tempfile.TemporaryDirectory() as name:
        ended = trained(stage, [json.loads(line) for line in text.splitlines()], as_text("d.jsonl"), *more)(
            Path(name)
        )
        assert ended.status == 0, ended.err
        return digest(Path(name))


def trains_as(stage: str, rows: Rows, *more: str) -> Callable[[Path, Ended], None]:
    """A check: the run's parameters are those of a run on these rows, which are as plain as can be."""

    def check(folder: Path, ended: Ended) -> None:
        assert digest(folder) == _plainly(stage, lines(rows), more)

    return check


def prompts_seen(*texts: str, columns: Sequence[str] = ()) -> Callable[[Path, Ended], None]:
    """A check: the reward function was given these prompts, with at least these columns."""

    def check(folder: Path, ended: Ended) -> None:
        seen = [json.loads(line) for line in (folder / "seen.jsonl").read_text().splitlines()]
        assert {prompt for prompt, _ in seen} == set(texts)
        assert all(set(columns) <= set(given) for _, given in seen)

    return check
