"""Situations: data as people bring it. What it trains is compared with what the plainest rows train."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distrl.rlhf.data_formats import ALPACA, ALPACA_INPUT
from tests.wild.data_makers import (
    HAS_EXTRA,
    Rows,
    Writer,
    as_gzip,
    as_jsonl,
    as_parquet,
    as_saved,
    as_shards,
    as_table,
    as_text,
    as_zstd,
    asked,
    from_python,
    lines,
    prepare,
    prompts_seen,
    trained,
    trains_as,
)
from tests.wild.situation import Ended, Situation, distrl


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# the plainest rows, which others must train the same model as
TEXTS = [{"prompt": f"what is {n} plus two ?", "completion": f" the answer is {n + 2} ."} for n in range(6)]
LISTS = [{"prompt": [user(row["prompt"])], "completion": [said(row["completion"])]} for row in TEXTS]
PAIRS = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": " I am a cat ."} for row in TEXTS]
CHATS = [{"prompt": [user(row["prompt"])], "chosen": [said(row["chosen"])], "rejected": [said(row["rejected"])]} for row in PAIRS]  # fmt: skip
PLAIN = [
    {"prompt": ALPACA.format(instruction=row["prompt"]), "completion": row["completion"]} for row in TEXTS
]
GIVEN = [{"prompt": ALPACA_INPUT.format(instruction=row["prompt"], input="n"), "completion": row["completion"]} for row in TEXTS]  # fmt: skip

# and as public data has them
MESSAGES = [{"messages": [*row["prompt"], *row["completion"]], "id": n} for n, row in enumerate(LISTS)]
SHAREGPT = [
    {
        "conversations": [
            {"from": "human", "value": row["prompt"]},
            {"from": "gpt", "value": row["completion"]},
        ]
    }
    for row in TEXTS
]
ALPACA_ROWS = [{"instruction": row["prompt"], "input": "", "output": row["completion"]} for row in TEXTS]
ALPACA_INPUTS = [{**row, "input": "n"} for row in ALPACA_ROWS]
QUESTIONS = [
    {"question": row["prompt"], "answer": row["completion"], "level": n} for n, row in enumerate(TEXTS)
]
FEEDBACK = [
    {"prompt": row["prompt"], "chosen": [user(row["prompt"]), said(row["chosen"])],
     "rejected": [user(row["prompt"]), said(row["rejected"])], "score_chosen": 8.5}
    for row in PAIRS
]  # fmt: skip
IMPLICIT = [{name: row[name] for name in ("chosen", "rejected")} for row in FEEDBACK]
HH_PAIRS = [{**row, "prompt": f"\n\nHuman: {row['prompt']}\n\nAssistant:"} for row in PAIRS]
HH = [{name: row["prompt"] + row[name] for name in ("chosen", "rejected")} for row in HH_PAIRS]
ULTRACHAT = [{"prompt": row["prompt"], "prompt_id": "x", **MESSAGES[n]} for n, row in enumerate(TEXTS)]


def works(
    name: str,
    run: Callable[[Path], Ended],
    check: Callable[[Path, Ended], None] | None = None,
    slow: bool = False,
) -> Situation:
    return Situation("data", name, run, check=check, slow=slow)


def refused(name: str, run: Callable[[Path], Ended], *says: str) -> Situation:
    return Situation("data", name, run, "refused", says)


FORMATS = [
    works("messages", trained("sft", MESSAGES), trains_as("sft", LISTS)),
    works("UltraChat: messages beside a prompt", trained("sft", ULTRACHAT), trains_as("sft", LISTS)),
    works("ShareGPT", trained("sft", SHAREGPT), trains_as("sft", LISTS)),
    works("Alpaca", trained("sft", ALPACA_ROWS), trains_as("sft", PLAIN)),
    works("Alpaca with inputs", trained("sft", ALPACA_INPUTS), trains_as("sft", GIVEN)),
    works("Alpaca as a chat", trained("sft", ALPACA_ROWS, as_jsonl, "--chat"), trains_as("sft", LISTS)),
    works("plain text", trained("sft", [{"text": row["prompt"]} for row in TEXTS])),
    works(
        "GSM8K's names",
        trained("sft", QUESTIONS, as_jsonl, "--field.prompt", "question", "--field.completion", "answer"),
        trains_as("sft", TEXTS),
    ),
    works(
        "the better answers of preferences",
        trained("sft", PAIRS, as_jsonl, "--field.completion", "chosen"),
        trains_as("sft", TEXTS),
    ),
    works("Anthropic HH", trained("reward", HH), trains_as("reward", HH_PAIRS)),
    works("Anthropic HH as a chat", trained("reward", HH, as_jsonl, "--chat")),
    works("UltraFeedback", trained("reward", FEEDBACK), trains_as("reward", CHATS)),
    works("two conversations", trained("reward", IMPLICIT), trains_as("reward", CHATS)),
]  # fmt: skip


def one_prompt(prompt: str, *columns: str) -> Callable[[Path, Ended], None]:
    return prompts_seen(prompt, columns=columns)


CHAT_PROMPT = f"<|im_start|>user\n{TEXTS[0]['prompt']}<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = [
    works(
        "prompts by another name",
        asked(QUESTIONS[:1], as_jsonl, "--field.prompt", "question"),
        one_prompt(TEXTS[0]["prompt"], "question", "answer", "level"),
    ),
    works("prompts of messages", asked(MESSAGES[:1]), one_prompt(CHAT_PROMPT, "messages", "id")),
    works("prompts of UltraFeedback in Parquet", asked(FEEDBACK[:1], as_parquet), one_prompt(CHAT_PROMPT, "score_chosen")),
    works("prompts of HH", asked(HH[:1]), one_prompt(HH_PAIRS[0]["prompt"], "chosen")),
    works("prompts of Alpaca", asked(ALPACA_ROWS[:1]), one_prompt(PLAIN[0]["prompt"], "output")),
    works("prompts of ShareGPT in gzip", asked(SHAREGPT[:1], as_gzip), one_prompt(CHAT_PROMPT)),
]  # fmt: skip

as_array = as_text("d.json", lambda rows: json.dumps(rows, indent=2))


def printed(rows: Rows) -> Rows:
    """As pandas leaves lists in a CSV file."""
    return [
        {name: str(value) if isinstance(value, list) else value for name, value in row.items()}
        for row in rows
    ]


FILES: list[tuple[str, Writer, Rows, Rows]] = [
    ("a JSON array", as_array, MESSAGES, LISTS),
    ("JSON by split", as_text("d.json", lambda rows: json.dumps({"train": rows})), TEXTS, TEXTS),
    ("gzip", as_gzip, MESSAGES, LISTS),
    ("zstd", as_zstd, MESSAGES, LISTS),
    ("Parquet", as_parquet, MESSAGES, LISTS),
    ("Parquet with texts", as_parquet, TEXTS, TEXTS),
    ("saved by datasets", as_saved, SHAREGPT, LISTS),
    ("CSV", as_text("d.csv", as_table), TEXTS, TEXTS),
    ("CSV of lists", as_text("d.csv", lambda rows: as_table(printed(rows))), MESSAGES, LISTS),
    ("TSV", as_text("d.tsv", lambda rows: as_table(rows, "\t")), TEXTS, TEXTS),
    ("Excel's CSV", as_text("d.csv", lambda rows: as_table(rows, ";"), "utf-8-sig"), TEXTS, TEXTS),
    ("UTF-16", as_text("d.jsonl", lines, "utf-16"), TEXTS, TEXTS),
    ("a byte-order mark and CRLF", as_text("d.jsonl", lambda rows: lines(rows).replace("\n", "\r\n"), "utf-8-sig"), TEXTS, TEXTS),
    ("messages as JSON in a string", as_jsonl, [{"messages": json.dumps(row["messages"])} for row in MESSAGES], LISTS),
    ("a folder of shards", as_shards, TEXTS, TEXTS),
]  # fmt: skip
READ = [
    works(f"file: {name}", trained("sft", rows, write), trains_as("sft", plain), slow=n % 3 != 0)
    for n, (name, write, rows, plain) in enumerate(FILES)
]


class Dataset:
    """What `datasets.Dataset` does with rows."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, n: int) -> Mapping[str, Any]:
        return self.rows[n]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.rows)


PYTHON = [
    works("Python: a list", from_python("sft", lambda: TEXTS), trains_as("sft", TEXTS)),
    works("Python: an iterator", from_python("sft", lambda: iter(MESSAGES)), trains_as("sft", LISTS)),
    works("Python: a Dataset", from_python("reward", lambda: Dataset(FEEDBACK)), trains_as("reward", CHATS)),
    refused("Python: texts", from_python("sft", lambda: ["a", "b"]), "row 1 must be a dict"),
    refused("Python: splits", from_python("sft", lambda: {"train": TEXTS, "test": TEXTS}), "give one split"),
    refused(
        "Python: a bad row", from_python("sft", lambda: [*TEXTS, {"prompt": 1, "completion": "a"}]), "row 7"
    ),
]


def raw(content: bytes, name: str = "d.jsonl") -> Writer:
    def write(folder: Path, rows: Rows) -> str:
        (folder / name).write_bytes(content)
        return name

    return write


def named(name: str, make: Callable[[Path], object] = lambda path: None) -> Writer:
    def write(folder: Path, rows: Rows) -> str:
        make(folder / name)
        return name

    return write


def with_row(row: Mapping[str, Any]) -> Rows:
    return [*TEXTS, row]


def cut(path: Path) -> None:
    as_parquet(path.parent, TEXTS)
    path.write_bytes((path.parent / "d.parquet").read_bytes()[:-40])


WRONG: list[tuple[str, Callable[[Path], Ended], tuple[str, ...]]] = [
    ("preferences for sft", trained("sft", PAIRS), ("looks like preferences", "--field.completion chosen", "rlhf reward")),
    ("demonstrations for reward", trained("reward", TEXTS), ("looks like demonstrations", "chosen and rejected")),
    ("prompts for sft", trained("sft", [{"prompt": "a"}]), ("looks like prompts without answers",)),
    ("question and answer", trained("sft", QUESTIONS), ("--field.prompt question --field.completion answer",)),
    ("a column misspelled", trained("sft", [{"promt": "a", "completion": "b"}]), ("--field.prompt promt",)),
    ("a field misspelled", trained("sft", TEXTS, as_jsonl, "--field.promt", "x"), ("--field.promt", "did you mean 'prompt'")),
    ("a field's column misspelled", trained("sft", QUESTIONS, as_jsonl, "--field.prompt", "qestion"), ("did you mean 'question'",)),
    ("mixed formats", trained("sft", with_row(MESSAGES[0])), ("d.jsonl:7", "another format")),
    ("a user's message as an answer", trained("sft", [{"prompt": [user("a")], "completion": [user("b")]}]), ("d.jsonl:1", "assistant")),
    ("a conversation without an answer", trained("sft", [{"messages": [user("a")]}]), ("ends with the user's message",)),
    ("an empty turn", trained("sft", [{"messages": [user("a"), said("")]}]), ("message 2", "empty")),
    ("a role of ShareGPT", trained("sft", [{"messages": [{"role": "human", "content": "a"}]}]), ("did you mean 'user'",)),
    ("null", trained("sft", with_row({"prompt": "a", "completion": None})), ("d.jsonl:7", "this is null")),
    ("a number for a text", trained("sft", with_row({"prompt": "a", "completion": 4})), ("d.jsonl:7", "this is a number")),
    ("no prompt that two share", trained("reward", [{"chosen": "a", "rejected": "b"}]), ("no field 'prompt'",)),
    ("a key twice", trained("sft", [], raw(b'{"prompt": "a", "prompt": "b"}')), ("'prompt' is there twice",)),
    ("commas between lines", trained("sft", [], raw(b'{"prompt": "a"},\n{"prompt": "b"},\n')), ("ends in a comma",)),
    ("a comma too many", trained("sft", [], raw(b'[{"prompt": "a"},]')), ("a comma too many",)),
    ("printed by Python", trained("sft", [], raw(b"{'prompt': 'a'}\n" * 9)), ("json.dumps", "and 8 more rows")),
    ("NUL bytes", trained("sft", [], raw(b'{"prompt": "a", "completion": "b"}\n\0\0\0')), ("d.jsonl:2", "NUL bytes")),
    ("half a surrogate pair", trained("sft", [], raw(b'{"text": "\\ud800"}')), ("can be encoded",)),
    ("Latin-1", trained("sft", [], raw(b'{"text": "caf\xe9"}')), ("not UTF-8", "iconv")),
    ("an empty file", trained("sft", [], raw(b"")), ("is empty",)),
    ("a missing file", trained("sft", [], named("nowhere.jsonl")), ("No such file",)),
    ("a data set's name", trained("sft", [], named("owner/name")), ("not downloaded",)),
    ("an empty folder", trained("sft", [], named("d", Path.mkdir)), ("a folder without data files",)),
    ("a git-lfs pointer", trained("sft", [], raw(b"version https://git-lfs.github.com/spec/v1\n")), ("git lfs pull",)),
    ("an HTML page", trained("sft", [], raw(b"<!doctype html>\n<html></html>")), ("HTML page",)),
    ("a pickle", trained("sft", [], raw(pickle.dumps(TEXTS), "d.pkl")), ("pickle",)),
    ("a zip archive", trained("sft", [], raw(b"PK\x03\x04" + b"\0" * 50, "d.zip")), ("zip archive",)),
    ("plain text", trained("sft", [], raw(b"once upon a time\n", "d.txt")), ("looks like text",)),
    ("columns of pandas", trained("sft", [], raw(b'{"prompt": {"0": "a"}}', "d.json")), ("columns and not rows",)),
    ("gzip cut off", trained("sft", [], raw(b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc", "d.gz")), ("cannot be read",)),
    ("Parquet cut off", trained("sft", [], named("e.parquet", cut)), ("cannot be read", "is it complete")),
    ("a table without a header", trained("sft", [], raw(b"a,b\nc,d\n", "d.csv")), ("has the columns 'a', 'b'",)),
    ("a row too long in a table", trained("sft", [], raw(b"prompt,completion\na,b,c\n", "d.csv")), ("d.csv:2", "3 values for 2")),
]  # fmt: skip


def evaluated(folder: Path) -> Ended:
    prepare(folder)
    (folder / "d.csv").write_text(as_table(QUESTIONS))
    flags = ("--prompts", "d.csv", "--field.prompt", "question", "--max-response", "4", "--json")
    return distrl(folder, "rlhf", "eval", "model", *flags)


def has_evaluated(folder: Path, ended: Ended) -> None:
    assert json.loads(ended.out)["prompts"] == len(QUESTIONS)


def examined(folder: Path) -> Ended:
    prepare(folder)
    as_parquet(folder, MESSAGES)
    return distrl(folder, "doctor", "--model", "model", "--data", "d.parquet")


NEED_EXTRA = ("Parquet", "zstd", "saved by datasets")
EVERY = [
    *FORMATS,
    *PROMPTS,
    *READ,
    *PYTHON,
    *(refused(f"refused: {name}", run, *says) for name, run, says in WRONG),
    works("eval: a table of questions", evaluated, has_evaluated),
    works("doctor: messages in Parquet", examined),
]
SITUATIONS: list[Situation] = [
    one for one in EVERY if HAS_EXTRA or not any(word in one.name for word in NEED_EXTRA)
]
