"""JSONL data: every way in which a line, a file or a tokenizer can be wrong is said before a model is read."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distrl.errors import BadInput
from distrl.rlhf.data import read_demonstrations, read_preferences, read_prompts
from distrl.rlhf.models import read_causal
from distrl.rlhf.tokenizers import (
    check_end,
    check_same_tokenizer,
    check_vocabulary,
    end_tokens,
    padding_note,
    read_tokenizer,
)
from distrl.rlhf.training import batches
from tests.rlhf.conftest import VOCABULARY, family_config, train_tokenizer

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Lines, objects or raw bytes, as a file."""

    def file(*lines: Any) -> Path:
        path = tmp_path / "data.jsonl"
        path.write_bytes(
            b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)
        )
        return path

    return file


def test_prompts_keep_their_other_fields(write: Write, tokenizer: Any) -> None:
    path = write({"prompt": "the cat", "answer": 3, "tags": ["a"]}, b"", {"prompt": "a dog"})
    rows = read_prompts(path, tokenizer).rows
    assert [row.text for row in rows] == ["the cat", "a dog"]
    assert rows[0].fields == {"answer": 3, "tags": ["a"]} and rows[1].fields == {}
    assert tokenizer.decode(rows[0].tokens) == "the cat"


def test_messages_go_through_the_chat_template_and_text_does_where_asked(
    write: Write, tokenizer: Any
) -> None:
    messages = [{"role": "user", "content": "hi"}]
    (as_messages,) = read_prompts(write({"prompt": messages}), tokenizer).rows
    assert as_messages.text == "<|user|>hi<|assistant|>"
    assert as_messages.tokens == tuple(
        tokenizer.convert_tokens_to_ids(["<|user|>", "h", "i", "<|assistant|>"])
    )
    (as_text,) = read_prompts(write({"prompt": "hi"}), tokenizer).rows
    (asked,) = read_prompts(write({"prompt": "hi"}), tokenizer, chat=True).rows
    assert as_text.text == "hi" and as_text.messages is None
    assert (asked.text, asked.tokens, asked.messages) == (
        as_messages.text, as_messages.tokens, as_messages.messages
    )  # fmt: skip


def test_a_tokenizer_that_adds_a_start_adds_it_to_text_and_not_to_a_template(write: Write) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    (plain,) = read_prompts(write({"prompt": "hi"}), tokenizer).rows
    (chat,) = read_prompts(write({"prompt": [{"role": "user", "content": "hi"}]}), tokenizer).rows
    assert plain.tokens[0] == 1 and 2 not in plain.tokens, "nothing can be said behind an end of text"
    assert 1 not in chat.tokens and 2 not in chat.tokens
    (shown,) = read_demonstrations(write({"prompt": "hi", "completion": "you"}), tokenizer).rows
    assert shown.tokens == (*plain.tokens, *tokenizer("you", add_special_tokens=False)["input_ids"], 2)


def test_a_text_that_a_template_has_rendered_before_gets_no_second_start(write: Write) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    bare, rendered = read_prompts(write({"prompt": "hi"}, {"prompt": "<s>hi"}), tokenizer).rows
    assert rendered.tokens == bare.tokens and bare.tokens.count(1) == 1


def test_completions_end_with_one_end_of_text_and_prompts_are_told_apart(
    write: Write, tokenizer: Any
) -> None:
    path = write(
        {"prompt": "the cat", "completion": " sat"},
        {"prompt": "the cat", "completion": " sat</s>"},
        {"prompt": "the cat", "completion": [{"role": "assistant", "content": " sat"}]},
    )
    one, ended, message = read_demonstrations(path, tokenizer).rows
    assert one == ended == message
    assert tokenizer.decode(one.tokens[: one.num_prompt]) == "the cat"
    assert tokenizer.decode(one.tokens[one.num_prompt :]) == " sat</s>"
    (pair,) = read_preferences(
        write({"prompt": "the cat", "chosen": " sat", "rejected": " ran"}), tokenizer
    ).rows
    assert tokenizer.decode(pair.chosen) == "the cat sat</s>"
    assert tokenizer.decode(pair.rejected) == "the cat ran</s>"
    assert pair.num_prompt == one.num_prompt


BAD: dict[str, tuple[Any, str]] = {
    "no JSON": (b'{"prompt": "a"', "no JSON"),
    "not UTF-8": (b'{"prompt": "\xff"}', "no JSON"),
    "a list": ([1], "must be a JSON object, this is a list"),
    "no prompt": ({"promt": "a"}, "no field 'prompt'; it has 'promt'"),
    "a number": ({"prompt": 3}, "must be text or a list of messages"),
    "no content": ({"prompt": [{"role": "user"}]}, "'prompt' message 1 must have 'content' that is text"),
    "no role": ({"prompt": [{"content": "a"}]}, "'prompt' message 1 must have 'role' and 'content'"),
    "a user's answer": ({"prompt": [{"role": "asistant", "content": "a"}]}, "did you mean 'assistant'"),
    "a key twice": (b'{"prompt": "a", "prompt": "b"}', "no JSON: the key 'prompt' is there twice"),
    "no messages": ({"prompt": []}, "must be text or a list of messages"),
    "half a pair": (b'{"prompt": "\\ud800"}', "no text that can be encoded"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_corrupt_line_is_named_or_left_out_and_counted(name: str, write: Write, tokenizer: Any) -> None:
    line, told = BAD[name]
    path = write({"prompt": "a"}, line, {"prompt": "b"})
    with pytest.raises(BadInput, match=rf"data\.jsonl:2: .*{told}") as refused:
        read_prompts(path, tokenizer)
    assert "--skip-bad" in str(refused.value)
    data = read_prompts(path, tokenizer, skip_bad=True)
    assert [row.text for row in data.rows] == ["a", "b"] and data.num_bad == 1
    assert "1 corrupt" in (data.note() or "")


def test_demonstrations_and_preferences_name_what_they_lack(write: Write, tokenizer: Any) -> None:
    with pytest.raises(BadInput, match=r":1 looks like prompts .*: no field 'completion'"):
        read_demonstrations(write({"prompt": "a"}), tokenizer)
    with pytest.raises(BadInput, match=r":1: 'completion' must be text or .*, this is null"):
        read_demonstrations(write({"prompt": "a", "completion": None}), tokenizer)
    with pytest.raises(BadInput, match=r":1 looks like|:1 has the columns 'prompt', 'chosen'"):
        read_preferences(write({"prompt": "a", "chosen": "b"}), tokenizer)
    with pytest.raises(BadInput, match=r":1: chosen and rejected are the same"):
        read_preferences(write({"prompt": "a", "chosen": "b", "rejected": "b"}), tokenizer)


def test_many_corrupt_lines_are_told_in_a_few(write: Write, tokenizer: Any) -> None:
    with pytest.raises(BadInput) as refused:
        read_prompts(write(*[b"{"] * 30), tokenizer)
    assert len(refused.value.problems) == 3 and "and 29 more rows" in str(refused.value)


@pytest.mark.parametrize("lines", [[], [b"", b"  "]])
def test_a_file_with_nothing_in_it_is_refused(lines: list[bytes], write: Write, tokenizer: Any) -> None:
    with pytest.raises(BadInput, match="is empty: it has nothing to learn from"):
        read_prompts(write(*lines), tokenizer)


def test_a_file_of_which_nothing_is_left_is_refused(write: Write, tokenizer: Any) -> None:
    path = write(b"{", {"prompt": "a long prompt of many tokens"})
    with pytest.raises(BadInput, match="nothing to learn from: 1 corrupt lines, 1 too long, none left"):
        read_prompts(path, tokenizer, max_tokens=3, too_long="drop", skip_bad=True)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(BadInput, match=r"none\.jsonl cannot be read: No such file"):
        read_prompts(tmp_path / "none.jsonl", tokenizer)


def test_texts_that_are_too_long_are_refused_or_left_out_and_counted_and_never_cut(
    write: Write, tokenizer: Any
) -> None:
    path = write({"prompt": "the cat"}, {"prompt": "the cat sat on the mat"})
    lengths = [len(row.tokens) for row in read_prompts(path, tokenizer).rows]
    assert lengths[0] < lengths[1]
    assert len(read_prompts(path, tokenizer, max_tokens=lengths[1]).rows) == 2, "the limit itself is allowed"
    with pytest.raises(BadInput, match=rf"data\.jsonl:2: {lengths[1]} tokens, the limit is {lengths[1] - 1}"):
        read_prompts(path, tokenizer, max_tokens=lengths[1] - 1)
    data = read_prompts(path, tokenizer, max_tokens=lengths[1] - 1, too_long="drop")
    assert [row.text for row in data.rows] == ["the cat"] and data.num_too_long == 1
    pairs = write({"prompt": "a", "chosen": "b", "rejected": "the cat sat on the mat"})
    with pytest.raises(BadInput, match="the limit is 5"):
        read_preferences(pairs, tokenizer, max_tokens=5)


def test_an_empty_prompt_begins_with_the_start_of_text_or_is_refused(write: Write) -> None:
    tokenizer = train_tokenizer()
    assert read_prompts(write({"prompt": ""}), tokenizer).rows[0].tokens == (1,)
    tokenizer.bos_token = None
    with pytest.raises(BadInput, match=r":1: 'prompt' is empty"):
        read_prompts(write({"prompt": ""}), tokenizer)


def test_messages_without_a_chat_template_or_against_it_are_refused(write: Write) -> None:
    tokenizer = train_tokenizer()
    path = write({"prompt": [{"role": "system", "content": "hi"}]})
    tokenizer.chat_template = "{{ raise_exception('no system message') }}"
    with pytest.raises(BadInput, match=r":1: the chat template refuses .*no system message"):
        read_prompts(path, tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] + 1 }}"
    with pytest.raises(BadInput, match=r":1: the chat template refuses these messages: TypeError"):
        read_prompts(path, tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(BadInput, match="want a chat template, and the tokenizer has none"):
        read_prompts(path, tokenizer)


def test_a_tokenizer_without_a_pad_token_says_what_is_used() -> None:
    assert "padded with id 0 behind their last token" in (padding_note(train_tokenizer(pad=False)) or "")
    assert padding_note(train_tokenizer()) is None


def test_a_tokenizer_without_an_end_of_text_is_refused(gpt2_folder: Path) -> None:
    tokenizer = train_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(BadInput, match="must have an eos_token"):
        check_end(tokenizer)
    assert read_tokenizer(gpt2_folder).eos_token_id == 2


def test_a_folder_without_a_tokenizer_is_refused(gpt2_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(gpt2_folder / name, folder / name)
    with pytest.raises(BadInput, match="bare has no tokenizer"):
        read_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match="bare has no tokenizer that can be read"):
        read_tokenizer(folder)


def test_a_model_may_have_more_rows_than_the_tokenizer_ids_and_not_fewer(tokenizer: Any) -> None:
    check_vocabulary(tokenizer, family_config("gpt2", VOCABULARY))
    check_vocabulary(tokenizer, family_config("gpt2", VOCABULARY + 64))
    with pytest.raises(
        BadInput, match=rf"ids up to {VOCABULARY - 1} and the model has {VOCABULARY - 1} rows"
    ):
        check_vocabulary(tokenizer, family_config("gpt2", VOCABULARY - 1))


def test_a_reward_model_must_read_the_same_tokens(tokenizer: Any) -> None:
    check_same_tokenizer(tokenizer, train_tokenizer(), ("actor", "reward"))
    other = train_tokenizer()
    other.add_tokens(["<new>"])
    check_same_tokenizer(tokenizer, other, ("actor", "reward"))
    with pytest.raises(BadInput, match="actor and reward must have one tokenizer.*1 tokens.*'<new>'"):
        check_same_tokenizer(other, tokenizer, ("actor", "reward"))


def test_responses_end_with_the_tokenizers_end_and_those_of_the_folder(
    gpt2_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    assert end_tokens(tokenizer) == (2,)
    assert end_tokens(tokenizer, read_causal(gpt2_folder).generation) == (2,)
    folder = tmp_path / "folder"
    shutil.copytree(gpt2_folder, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 2, VOCABULARY]}))
    assert end_tokens(tokenizer, read_causal(folder).generation) == (2, 4)


def test_a_folder_without_a_generation_configuration_ends_texts_by_its_config(
    gpt2_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(gpt2_folder, folder)
    (folder / "generation_config.json").unlink()
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"eos_token_id": 4}))
    assert end_tokens(tokenizer, read_causal(folder).generation) == (2, 4)


@pytest.mark.parametrize("told", ["{", "[1]", '{"eos_token_id": "</s>"}', '{"eos_token_id": [2, null]}'])
def test_a_malformed_generation_configuration_is_named(told: str, gpt2_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(gpt2_folder, folder)
    (folder / "generation_config.json").write_text(told)
    with pytest.raises(BadInput, match=r"generation_config\.json"):
        read_causal(folder)


def test_rows_are_held_out_by_the_seed_alone_and_none_is_lost(write: Write, tokenizer: Any) -> None:
    data = read_prompts(write(*[{"prompt": f"say {i}"} for i in range(40)]), tokenizer)
    kept, held = data.split(0.25, seed=3)
    assert len(held.rows) == 10
    assert Counter(row.text for row in (*kept.rows, *held.rows)) == Counter(row.text for row in data.rows)
    assert data.split(0.25, seed=3)[1].rows == held.rows != data.split(0.25, seed=4)[1].rows
    with pytest.raises(BadInput, match="cannot be held out"):
        read_prompts(write({"prompt": "a"}), tokenizer).split(0.25, seed=3)


def test_an_epoch_takes_every_row_once_in_batches_of_like_length() -> None:
    lengths = [(7 * i) % 50 + 1 for i in range(200)]
    first = batches(lengths, 8, seed=1, epoch=0)
    assert sorted(int(row) for batch in first for row in batch) == list(range(200))
    assert [len(batch) for batch in first] == [8] * 25
    padding = sum(max(lengths[i] for i in batch) * len(batch) for batch in first) / sum(lengths)
    assert padding < 1.1
    order = [batch.tolist() for batch in first]
    assert order == [batch.tolist() for batch in batches(lengths, 8, seed=1, epoch=0)]
    assert order != [batch.tolist() for batch in batches(lengths, 8, seed=1, epoch=1)]
    assert order != [batch.tolist() for batch in batches(lengths, 8, seed=2, epoch=0)]
    tall = [max(lengths[i] for i in batch) for batch in first]
    assert tall != sorted(tall), "not from the short texts to the long"
