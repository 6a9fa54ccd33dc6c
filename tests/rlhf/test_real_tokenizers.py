"""Texts through real tokenizers and chat templates; skipped without them (tests/wild/fetch_tokenizers.sh)."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from distrl.rlhf.templates import TemplateOptions
from distrl.rlhf.texts import demonstration_ids, preference_ids, prompt_text_and_ids, response_text
from distrl.rlhf.tokenizers import end_tokens, read_tokenizer
from tests.wild.tokenizer_kit import mistral_model, real

CHATTING = {"llama3": "<|eot_id|>", "qwen3": "<|im_end|>", "gemma3": "<end_of_turn>"}
CONVERSATION = [
    {"role": "user", "content": "2+2=?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Sure? 東京"},
    {"role": "assistant", "content": "Yes, 😀."},
]


@cache
def tokenizer_of(name: str) -> Any:
    folder = real(name)
    if folder is None:
        pytest.skip(f"no tokenizer of {name}: tests/wild/fetch_tokenizers.sh")
    return read_tokenizer(folder)


@pytest.fixture(params=["llama2", *CHATTING])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return tokenizer_of(request.param)


@pytest.fixture(params=CHATTING)
def chatting(request: pytest.FixtureRequest) -> tuple[Any, str]:
    """A tokenizer with its chat template, and how that ends the assistant's turn."""
    return tokenizer_of(request.param), CHATTING[request.param]


@pytest.mark.parametrize(
    ("prompt", "completion"), [("2+2=", "4"), ("The cat", " sat."), ("Q: hm?\nA:", " 東京 😀")]
)
def test_a_completion_is_the_continuation_of_its_prompt(prompt: str, completion: str, tokenizer: Any) -> None:
    ids, ((begin, _),) = demonstration_ids(tokenizer, prompt, completion)
    assert ids == (*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id)
    assert (
        list(ids[:begin]) == tokenizer(prompt)["input_ids"] == list(prompt_text_and_ids(tokenizer, prompt)[1])
    )
    assert response_text(tokenizer, ids[:begin], ids[begin:]) == completion


def test_ids_of_messages_are_the_templates_with_its_end_of_turn(chatting: tuple[Any, str]) -> None:
    tokenizer, end = chatting
    ids, spans = demonstration_ids(tokenizer, None, CONVERSATION)
    assert list(ids) == tokenizer.apply_chat_template(CONVERSATION, return_dict=False)
    first, last = (tokenizer.decode(ids[a:b]) for a, b in spans)
    assert first == f"4{end}" and last.endswith(f"Yes, 😀.{end}")
    assert tokenizer.convert_tokens_to_ids(end) in end_tokens(tokenizer)
    prompt = prompt_text_and_ids(tokenizer, CONVERSATION[:3])[1]
    assert ids[: spans[1][0]] == prompt
    better, worse, shared = preference_ids(tokenizer, CONVERSATION[:3], "Yes.", "No.")
    assert better[:shared] == worse[:shared] == prompt
    assert tokenizer.decode([better[-1], worse[-1]]) == end * 2


def test_an_assistants_beginning_is_continued(chatting: tuple[Any, str]) -> None:
    tokenizer, end = chatting
    begun = [*CONVERSATION[:3], {"role": "assistant", "content": "I think"}]
    text, prompt = prompt_text_and_ids(tokenizer, begun)
    assert text.endswith("I think")
    ids, ((begin, stop),) = demonstration_ids(tokenizer, begun, " so")
    assert ids[:begin] == prompt and tokenizer.decode(ids[begin:stop]) == f" so{end}"


def test_qwen_without_thinking_is_taught_what_it_is_asked() -> None:
    tokenizer = tokenizer_of("qwen3")
    quiet = TemplateOptions(arguments={"enable_thinking": False})
    text, prompt = prompt_text_and_ids(tokenizer, CONVERSATION[:1], quiet)
    assert text.endswith("<think>\n\n</think>\n\n")
    ids, ((begin, end),) = demonstration_ids(tokenizer, CONVERSATION[:1], "4", quiet)
    assert ids[:begin] == prompt and tokenizer.decode(ids[begin:end]) == "4<|im_end|>"
    loud, ((begin, end),) = demonstration_ids(tokenizer, CONVERSATION[:1], "4")
    assert loud == ids and tokenizer.decode(loud[begin:end]) == "<think>\n\n</think>\n\n4<|im_end|>"


def test_qwen_drops_earlier_thoughts_and_the_turns_are_found() -> None:
    tokenizer = tokenizer_of("qwen3")
    thought = [
        {**one, "content": f"<think>\nhm\n</think>\n\n{one['content']}"}
        if one["role"] == "assistant"
        else one
        for one in CONVERSATION
    ]
    ids, spans = demonstration_ids(tokenizer, None, thought)
    assert list(ids) == tokenizer.apply_chat_template(thought, return_dict=False)
    assert [tokenizer.decode(ids[a:b]) for a, b in spans] == [
        "4<|im_end|>",
        "<think>\nhm\n</think>\n\nYes, 😀.<|im_end|>",
    ]


def test_tools_are_in_qwens_prompt() -> None:
    tokenizer = tokenizer_of("qwen3")
    tool = {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
    }
    text, ids = prompt_text_and_ids(tokenizer, CONVERSATION[:1], TemplateOptions(tools=(tool,)))
    theirs = tokenizer.apply_chat_template(
        CONVERSATION[:1], tools=[tool], add_generation_prompt=True, return_dict=False
    )
    assert list(ids) == theirs and '"name": "add"' in text


def test_mistrals_sentencepiece_model_reads_a_text_as_a_whole(tmp_path: Path) -> None:
    model = mistral_model()
    if model is None:
        pytest.skip("no mistral-common")
    shutil.copy(model, tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    tokenizer = read_tokenizer(tmp_path)
    ids, ((begin, _),) = demonstration_ids(tokenizer, "2+2=", "4")
    assert ids == (*tokenizer("2+2=4")["input_ids"], tokenizer.eos_token_id)
    assert tokenizer.convert_ids_to_tokens(ids[begin:]) == ["4", "</s>"]
