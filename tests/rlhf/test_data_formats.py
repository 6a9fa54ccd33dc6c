"""Rows of every format that public data has come out as the text that a model of chat or of text reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from distrl.errors import BadInput
from distrl.rlhf.data import DataSet, read_demonstrations, read_preferences, read_prompts
from distrl.rlhf.data_columns import COLUMNS, check_field, renamed
from distrl.rlhf.data_formats import ALPACA, ALPACA_INPUT
from distrl.rlhf.texts import UnusableText

READ = {"prompts": read_prompts, "demonstrations": read_demonstrations, "preferences": read_preferences}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


CONVERSATION = [user("hi"), said("you"), user("and"), said("me")]
BEFORE = "<|user|>hi<|assistant|>you</s><|user|>and<|assistant|>"
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
HH = "\n\nHuman: hi\n\nAssistant:"


class Reader:
    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.path, self.tokenizer = folder / "data.jsonl", tokenizer

    def rows(self, job: str, *rows: Mapping[str, Any], **how: Any) -> DataSet[Any]:
        self.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return READ[job](self.path, self.tokenizer, **how)

    def demonstration(self, row: Mapping[str, Any], **how: Any) -> tuple[str, list[str]]:
        """The whole text, and what of it is learned."""
        (one,) = self.rows("demonstrations", row, **how).rows
        decode = self.tokenizer.decode
        return decode(one.tokens), [decode(one.tokens[begin:end]) for begin, end in one.learned]

    def prompt(self, row: Mapping[str, Any], **how: Any) -> str:
        (one,) = self.rows("prompts", row, **how).rows
        return str(one.text)

    def preference(self, row: Mapping[str, Any], **how: Any) -> tuple[str, str, str]:
        """The prompt and both answers."""
        (one,) = self.rows("preferences", row, **how).rows
        parts = (one.chosen[: one.num_prompt], one.chosen[one.num_prompt :], one.rejected[one.num_prompt :])
        return tuple(map(self.tokenizer.decode, parts))  # type: ignore[return-value]


@pytest.fixture
def reader(tmp_path: Path, tokenizer: Any) -> Reader:
    return Reader(tmp_path, tokenizer)


def as_numpy_prints(rows: list[Any]) -> str:
    return f"[{' '.join(map(str, rows))}]"


@pytest.mark.parametrize("kept_as", [list, json.dumps, str, as_numpy_prints])
def test_of_messages_the_assistants_turns_are_learned_also_from_printed_ones(
    kept_as: Any, reader: Reader
) -> None:
    text, learned = reader.demonstration({"messages": kept_as(CONVERSATION)})
    assert text == BEFORE + "me</s>" and learned == ["you</s>", "me</s>"]
    assert reader.demonstration({"messages": kept_as(CONVERSATION)}, turns="last")[1] == ["me</s>"]


def test_what_numpy_printed_keeps_braces_in_its_texts(reader: Reader) -> None:
    rows = [user("f() {} {x}"), said("it's a } {\n")]
    assert reader.demonstration({"messages": as_numpy_prints(rows)}) == reader.demonstration(
        {"messages": rows}
    )


def test_turns_of_weight_0_are_read_and_not_learned(reader: Reader) -> None:
    rows = [dict(one) for one in CONVERSATION]
    rows[1]["weight"], rows[3]["weight"] = 0, 1
    text, learned = reader.demonstration({"messages": rows})
    assert text == BEFORE + "me</s>" and learned == ["me</s>"]
    turns = [{**one, "weight": n} for n, one in enumerate(SHAREGPT)]
    assert reader.demonstration({"conversations": turns})[1] == ["yo</s>"]


def test_sharegpt_is_the_same_conversation_with_other_names(reader: Reader) -> None:
    text = "<|user|>hi<|assistant|>yo</s>"
    assert reader.demonstration({"conversations": SHAREGPT}) == (text, ["yo</s>"])
    columns = {"from": ["human", "gpt"], "value": ["hi", "yo"]}
    assert reader.demonstration({"conversations": columns})[0] == text, "as `datasets` once kept lists"
    assert reader.demonstration({"conversations": [user("hi"), said("yo")]})[0] == text
    assert reader.demonstration({"messages": SHAREGPT})[0] == text
    with_system = {"system": "be kind", "conversations": SHAREGPT}
    assert reader.demonstration(with_system)[0] == f"<|system|>be kind{text}"
    assert reader.prompt({"conversations": SHAREGPT}) == "<|user|>hi<|assistant|>"


def test_alpaca_goes_into_its_own_template_or_into_the_models(reader: Reader) -> None:
    row = {"instruction": "add", "input": "", "output": "4", "text": "the whole, rendered"}
    before = ALPACA.format(instruction="add")
    assert reader.demonstration(row) == (before + "4</s>", ["4</s>"])
    assert before.endswith("### Instruction:\nadd\n\n### Response:\n")
    row["input"] = "2 2"
    assert reader.demonstration(row)[0] == ALPACA_INPUT.format(instruction="add", input="2 2") + "4</s>"
    assert reader.demonstration(row, chat=True)[0] == "<|user|>add\n\n2 2<|assistant|>4</s>"
    assert reader.prompt(row) == ALPACA_INPUT.format(instruction="add", input="2 2")


def test_braces_in_alpacas_texts_stay_as_they_are(reader: Reader) -> None:
    assert "{input} {x}" in reader.prompt({"instruction": "{input} {x}", "output": ""})


def test_a_plain_text_is_learned_from_its_beginning_and_prompts_and_lists_from_their_answer(
    reader: Reader,
) -> None:
    text, learned = reader.demonstration({"text": "the cat sat"})
    assert text == "the cat sat</s>" and text.endswith(learned[0]) and len(learned[0]) >= len(" cat sat</s>")
    chat = "<|user|>hi<|assistant|>yo</s>"
    assert reader.demonstration({"prompt": [user("hi")], "completion": [said("yo")]}) == (chat, ["yo</s>"])
    assert reader.demonstration({"prompt": [user("hi")], "completion": "yo"}) == (chat, ["yo</s>"])
    assert reader.demonstration({"prompt": "a", "completion": [said("b")]}) == ("ab</s>", ["b</s>"])


def test_hh_texts_share_their_prompt_and_are_messages_where_asked(reader: Reader) -> None:
    row = {"chosen": f"{HH} yes, it is", "rejected": f"{HH} yes, not"}
    assert reader.preference(row) == (HH, " yes, it is</s>", " yes, not</s>")
    assert reader.preference(row, chat=True) == ("<|user|>hi<|assistant|>", "yes, it is</s>", "yes, not</s>")
    assert reader.prompt(row) == HH
    longer = {
        "chosen": f"{HH} a\n\nb\n\nHuman: c\n\nAssistant: d",
        "rejected": f"{HH} a\n\nb\n\nHuman: c\n\nAssistant: e",
    }
    assert reader.preference(longer)[0] == f"{HH} a\n\nb\n\nHuman: c\n\nAssistant:"
    chat = "<|user|>hi<|assistant|>a\n\nb</s><|user|>c<|assistant|>"
    assert reader.preference(longer, chat=True) == (chat, "d</s>", "e</s>")


def test_conversations_of_two_answers_share_their_prompt(reader: Reader) -> None:
    other = [*CONVERSATION[:3], said("no")]
    assert reader.preference({"chosen": CONVERSATION, "rejected": other}) == (BEFORE, "me</s>", "no</s>")
    feedback = {"prompt": "hi", "chosen": CONVERSATION[:2], "rejected": [user("hi"), said("no")]}
    first = "<|user|>hi<|assistant|>"
    assert reader.preference(feedback) == (first, "you</s>", "no</s>")
    assert reader.prompt(feedback) == first, "as its answers are rendered"
    assert reader.prompt({"prompt": "hi", "messages": CONVERSATION}) == first
    answers = {"prompt": [user("hi")], "chosen": [said("you")], "rejected": [said("no")]}
    assert reader.preference(answers) == reader.preference(feedback)
    as_text = {"prompt": "Q.", "chosen": [said("you")], "rejected": [said("no")]}
    assert reader.preference(as_text) == ("Q.", "you</s>", "no</s>")
    earlier = {"chosen": CONVERSATION, "rejected": [user("hi"), said("we")]}
    assert reader.preference(earlier)[1:] == ("you</s><|user|>and<|assistant|>me</s>", "we</s>")


def test_prompts_leave_the_answer_out_and_keep_every_other_column(reader: Reader) -> None:
    row = {"messages": CONVERSATION, "level": 3, "response": "kept"}
    (prompt,) = reader.rows("prompts", row).rows
    assert prompt.text == BEFORE and prompt.fields == row
    assert reader.prompt({"messages": CONVERSATION[:3]}) == BEFORE
    (prompt,) = reader.rows("prompts", {"prompt": "a", "completion": "b"}).rows
    assert (prompt.text, prompt.fields) == ("a", {"completion": "b"})


def test_what_a_table_fills_with_null_is_not_there(reader: Reader) -> None:
    message = {"role": "user", "content": "hi", "name": None, "tool_calls": None}
    row = {"prompt": None, "completion": None, "messages": [message, said("yo")]}
    assert reader.demonstration(row)[0] == "<|user|>hi<|assistant|>yo</s>"


def test_columns_get_other_names_by_field(reader: Reader) -> None:
    named = {"prompt": "question", "completion": "meta.answer"}
    row = {"question": "2+2=", "meta": {"answer": "4"}, "text": "other"}
    assert reader.demonstration(row, field=named) == ("2+2=4</s>", ["4</s>"])
    (prompt,) = reader.rows("prompts", row, field={"prompt": "question"}).rows
    assert prompt.text == "2+2=" and prompt.fields == row, (
        "a reward function gets the column by its own name too"
    )
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert reader.demonstration(pair, field={"completion": "chosen"})[0] == "ab</s>"
    lists = {"chosen": CONVERSATION, "rejected": CONVERSATION[:2]}
    assert reader.demonstration(lists, field={"messages": "chosen"})[0] == BEFORE + "me</s>"
    both = {"prompt": "raw", "completion": "b", "messages": CONVERSATION}
    assert reader.demonstration(both)[0] == "rawb</s>"
    assert reader.demonstration(both, field={"completion": None})[0] == BEFORE + "me</s>", "none: unread"
    with pytest.raises(
        UnusableText, match=r"no field 'qestion', which --field.prompt names; did you mean 'question'"
    ):
        renamed(row, {"prompt": "qestion"})
    with pytest.raises(BadInput) as refused:
        check_field({"promt": "a", "completion": 3})
    assert len(refused.value.problems) == 2 and "did you mean 'prompt'" in refused.value.problems[0]
    check_field(dict.fromkeys(COLUMNS, "x"))


REFUSED_ONCE: dict[str, tuple[str, Mapping[str, Any], str]] = {
    "preferences for sft": ("demonstrations", {"prompt": "a", "chosen": "b", "rejected": "c"}, "--field.completion chosen"),
    "lists of them": ("demonstrations", {"chosen": CONVERSATION, "rejected": CONVERSATION}, "--field.messages chosen"),
    "HH for sft": ("demonstrations", {"chosen": f"{HH} a", "rejected": f"{HH} b"}, "--field.text chosen"),
    "prompts for sft": ("demonstrations", {"prompt": "a"}, "looks like prompts without answers"),
    "messages for reward": ("preferences", {"messages": CONVERSATION}, r"looks like demonstrations \(messages\)"),
    "GSM8K": ("demonstrations", {"question": "a", "answer": "b"}, "--field.prompt question --field.completion answer"),
    "GSM8K for ppo": ("prompts", {"question": "a", "answer": "b"}, "--field.prompt question$"),
    "text for ppo": ("prompts", {"text": "a"}, "--field.prompt text$"),
    "a slip": ("prompts", {"promt": "a"}, "--field.prompt promt$"),
    "conversation": ("demonstrations", {"conversation": CONVERSATION}, "--field.messages conversation$"),
    "StackExchange": (
        "preferences", {"question": "q", "response_j": "a", "response_k": "b"},
        "--field.prompt question --field.chosen response_j --field.rejected response_k",
    ),
    "Orca's preferences": ("preferences", {"question": "q", "chosen": "a", "rejected": "b"}, "--field.prompt question$"),
    "Dolly": (
        "demonstrations", {"instruction": "a", "context": "b", "response": "c"},
        "with --field.output response --field.input context$",
    ),
    "tokens": ("demonstrations", {"input_ids": [1], "labels": [1]}, r"looks like tokenized data \(input_ids\)"),
    "nothing known": ("demonstrations", {"x": 1}, "reads demonstrations .*prompt \\+ completion; messages"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_ONCE)
def test_what_is_in_no_format_is_refused_once_with_the_flag_that_helps(name: str, reader: Reader) -> None:
    job, row, told = REFUSED_ONCE[name]
    with pytest.raises(BadInput, match=told) as refused:
        reader.rows(job, *[row] * 50)
    assert len(refused.value.problems) == 1 and "data.jsonl:1 " in str(refused.value)
    with pytest.raises(BadInput, match=told):
        reader.rows(job, *[row] * 5, skip_bad=True)


UNUSABLE: dict[str, tuple[str, Mapping[str, Any], str]] = {
    "a user's answer": ("demonstrations", {"prompt": [user("a")], "completion": [user("b")]}, "must be the assistant's"),
    "no answer": ("demonstrations", {"messages": CONVERSATION[:3]}, "ends with the user's message"),
    "an empty answer": ("demonstrations", {"prompt": "a", "completion": ""}, "'completion' is empty"),
    "an empty turn": ("demonstrations", {"messages": [user("a"), said(""), user("b"), said("c")]}, "message 2 .* empty"),
    "an empty text": ("demonstrations", {"text": ""}, "'text' is empty"),
    "a number": ("demonstrations", {"prompt": "a", "completion": 4}, "must be text or .*, this is a number"),
    "null": ("demonstrations", {"prompt": "a", "completion": None}, "this is null"),
    "texts in a list": ("demonstrations", {"messages": ["a", "b"]}, "message 1 must be an object"),
    "an unknown role": ("demonstrations", {"messages": [{"role": "asistant", "content": "a"}]}, "mean 'assistant'"),
    "human as a role": ("demonstrations", {"messages": [{"role": "human", "content": "a"}]}, "did you mean 'user'"),
    "from nobody": ("demonstrations", {"conversations": [{"from": "x", "value": "a"}]}, "is from 'x'"),
    "no weight": ("demonstrations", {"messages": [user("a"), {**said("b"), "weight": 0}]}, "the weight 0"),
    "an image": ("demonstrations", {"messages": [user("a"), said([{"type": "image"}])]}, "'image'"),
    "an unwanted answer": ("demonstrations", {"prompt": "a", "completion": "b", "label": False}, "'label' is false"),
    "a printed array": ("prompts", {"prompt": "[{'role': 'user', 'content': array('a')}]"}, "was printed"),
    "a history": ("demonstrations", {"instruction": "a", "output": "b", "history": [["c", "d"]]}, "'history'"),
    "text and messages": ("preferences", {"prompt": "a", "chosen": "b", "rejected": [said("c")]}, "one of"),
    "two conversations": ("preferences", {"chosen": CONVERSATION, "rejected": [user("x"), said("y")]}, "share no first"),
    "two questions": (
        "preferences", {"chosen": CONVERSATION, "rejected": [*CONVERSATION[:2], user("x"), said("y")]},
        "differ in message 3, which is no answer",
    ),
    "another prompt": (
        "preferences", {"prompt": "x", "chosen": CONVERSATION[:2], "rejected": [user("hi"), said("y")]},
        "'prompt' is not what",
    ),
    "texts without a prompt": ("preferences", {"chosen": "a", "rejected": "b"}, "no field 'prompt'"),
    "half a surrogate pair": ("demonstrations", {"messages": [user("\ud800"), said("a")]}, "can be encoded"),
    "tools as text": ("prompts", {"prompt": [user("a")], "tools": "no"}, "'tools' is no JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSABLE)
def test_rows_that_make_no_sense_are_named_by_line_or_left_out(name: str, reader: Reader) -> None:
    job, row, told = UNUSABLE[name]
    good = {
        "demonstrations": {key: "a" for key in row if key != "label"},
        "prompts": {"prompt": "a"},
        "preferences": {"prompt": "a", "chosen": "b", "rejected": "c"},
    }[job]
    for key in ("messages", "conversations"):
        if key in row:
            good = {key: CONVERSATION}
    if job == "preferences" and "prompt" not in row:
        good = {"chosen": f"{HH} a", "rejected": f"{HH} b"}
    good = {key: value for key, value in good.items() if key != "history"}
    with pytest.raises(BadInput, match=rf"data\.jsonl:2: .*{told}"):
        reader.rows(job, good, row)
    found = reader.rows(job, good, row, skip_bad=True)
    assert (len(found.rows), found.num_bad) == (1, 1)


def test_rows_of_another_format_than_the_first_are_refused_by_line(reader: Reader) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"messages": CONVERSATION}]
    with pytest.raises(BadInput, match=r"data\.jsonl:2: it is in another format \(messages\)"):
        reader.rows("demonstrations", *rows)
    assert len(reader.rows("demonstrations", *rows, skip_bad=True).rows) == 1


def test_one_problem_of_many_rows_is_told_once(reader: Reader) -> None:
    with pytest.raises(BadInput) as refused:
        reader.rows("demonstrations", *[{"prompt": "a", "completion": n % 2 or None} for n in range(20)])
    assert refused.value.problems[2:] == [
        "and 18 more rows", "mend them, or leave them out and count them with --skip-bad"
    ]  # fmt: skip


def test_a_rows_own_tools_and_template_arguments_reach_the_template(tmp_path: Path) -> None:
    from tests.rlhf.conftest import train_tokenizer

    tokenizer = train_tokenizer()
    tokenizer.chat_template = (
        "{% for t in tools or [] %}{{ t['function']['name'] }};{% endfor %}{% if shout %}!{% endif %}"
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    row = {"prompt": [user("a")], "tools": json.dumps([tool]), "chat_template_kwargs": {"shout": True}}
    assert Reader(tmp_path, tokenizer).prompt(row) == "add;!<|user|>a<|assistant|>"
