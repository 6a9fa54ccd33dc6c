"""Texts as ids: as the tokenizer has the whole, whatever its kind, and as the chat template has a conversation."""

from __future__ import annotations

from typing import Any

import pytest

from distrl.errors import BadInput
from distrl.rlhf.templates import TemplateOptions, check_template
from distrl.rlhf.texts import (
    UnusableText,
    demonstration_ids,
    preference_ids,
    prompt_text_and_ids,
    response_text,
)
from distrl.rlhf.tokenizers import end_tokens
from tests.wild.kit import CHATML
from tests.wild.tokenizer_kit import KINDS, chat, metaspace, word_piece

PAIRS = [
    ("2+2=", "4"),
    ("the cat", " sat on the mat"),
    ("what is two plus two ?", " four"),
    ("what is two plus two ?\n", "four"),
    ("", "the cat"),
]
THINKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% set c = m.content %}"
    "{% if not loop.last and '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}"
    "{{ c + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}{% endif %}{% endif %}"
)
INST = (  # Llama 2's and Mistral's: no generation prompt, no role of the system's
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
PARTS = (  # content in parts alone, as some multimodal families have it
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module", params=KINDS)
def any_tokenizer(request: pytest.FixtureRequest) -> Any:
    """Of each kind in turn."""
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def chatml() -> Any:
    return chat(CHATML)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def own(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The tokenizer's own ids of a text, without an end that it adds."""
    ids = tuple(tokenizer(text)["input_ids"])
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_a_completion_is_the_continuation_of_its_prompt(
    prompt: str, completion: str, any_tokenizer: Any
) -> None:
    tokenizer = any_tokenizer
    if not prompt and not own(tokenizer, "") and tokenizer.bos_token_id is None:
        with pytest.raises(UnusableText, match="no bos_token"):
            demonstration_ids(tokenizer, prompt, completion)
        return
    ids, ((begin, end),) = demonstration_ids(tokenizer, prompt, completion)
    whole = own(tokenizer, prompt + completion)
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown not in whole:
        assert ids[-len(whole) - 1 :] == (*whole, tokenizer.eos_token_id), "the tokenizer's own, and an end"
    assert end == len(ids) and ids[-1] == tokenizer.eos_token_id and ids[-2] != ids[-1]
    _, begun = prompt_text_and_ids(tokenizer, prompt)
    assert ids[:begin] == begun, "what PPO's responses follow is what was taught"
    if unknown is None or unknown not in ids:
        assert (
            response_text(tokenizer, begun, ids[begin:])
            == tokenizer.decode(ids, skip_special_tokens=True)[
                len(tokenizer.decode(begun, skip_special_tokens=True)) :
            ]
        )


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_sentencepiece_learns_an_answer_without_a_space(scheme: Any) -> None:
    tokenizer = metaspace(scheme)
    ids, ((begin, _),) = demonstration_ids(tokenizer, "2+2=", "4")
    assert tokenizer.convert_ids_to_tokens(ids[begin:]) == ["4", "</s>"]
    assert response_text(tokenizer, ids[:begin], ids[begin:]) == "4"
    ids, ((begin, _),) = demonstration_ids(tokenizer, "the cat", " sat")
    assert response_text(tokenizer, ids[:begin], ids[begin:]) == " sat"


def test_a_token_across_the_border_is_the_completions() -> None:
    tokenizer = KINDS["byte-level"]()
    ids, ((begin, _),) = demonstration_ids(tokenizer, "the c", "at")
    whole = own(tokenizer, "the cat")
    assert ids == (*whole, tokenizer.eos_token_id) and tokenizer.decode(ids[:begin]) == "the"
    better, worse, shared = preference_ids(tokenizer, "the c", "at", "ow")
    assert better[:shared] == worse[:shared] == ids[:begin]


def test_words_without_a_space_between_them_stay_words() -> None:
    tokenizer = KINDS["words"]()
    ids, ((begin, _),) = demonstration_ids(tokenizer, "the cat", "sat")
    assert tokenizer.convert_ids_to_tokens(ids) == ["the", "cat", "sat", "</s>"] and begin == 2


def test_a_tokenizer_of_words_keeps_the_words_of_a_response_apart() -> None:
    tokenizer = word_piece()
    ids, ((begin, _),) = demonstration_ids(tokenizer, "the cat", " sat on")
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "the", "cat", "sat", "on", "[SEP]"]
    assert response_text(tokenizer, ids[:begin], ids[begin:]) == " sat on"


def test_plain_text_is_learned_from_its_first_token_on(any_tokenizer: Any) -> None:
    ids, ((begin, end),) = demonstration_ids(any_tokenizer, None, "the cat sat")
    assert ids == (*own(any_tokenizer, "the cat sat"), any_tokenizer.eos_token_id)
    assert (begin, end) == (1, len(ids))


def test_what_a_tokenizer_cannot_encode_is_said() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="<none>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    with pytest.raises(UnusableText, match="cannot encode 'a b'"):
        prompt_text_and_ids(tokenizer, "a b")


# messages

CONVERSATION = [user("hi"), assistant("hello there"), user("how are you ?"), assistant("fine")]


@pytest.mark.parametrize("template", [CHATML, THINKS, INST, PARTS])
def test_ids_of_messages_are_the_templates_and_every_turn_is_learned_with_its_end(template: str) -> None:
    tokenizer = chat(template, eos="</s>")
    given = CONVERSATION
    if template == PARTS:
        given = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in given]
    theirs = tokenizer.apply_chat_template(given, return_dict=False)
    end = "</s>" if template == INST else "<|im_end|>"
    space = " " if template == INST else ""
    for messages in (given, CONVERSATION):
        ids, spans = demonstration_ids(tokenizer, None, messages)
        assert list(ids) == theirs
        assert [tokenizer.decode(ids[a:b]) for a, b in spans] == [
            f"{space}hello there{end}",
            f"{space}fine{end}",
        ]
        last, (span,) = demonstration_ids(tokenizer, None, messages, turns="last")
        assert last == ids and span == spans[-1]
    ids, (span,) = demonstration_ids(tokenizer, CONVERSATION[:3], CONVERSATION[3:])
    assert list(ids) == theirs and span == spans[-1]
    assert prompt_text_and_ids(tokenizer, CONVERSATION[:3])[1] == ids[: span[0]]


def test_a_text_is_an_answer_to_messages_too(chatml: Any) -> None:
    assert demonstration_ids(chatml, [user("hi")], "yes") == demonstration_ids(
        chatml, [user("hi")], [assistant("yes")]
    )
    assert demonstration_ids(chatml, "hi", "yes", TemplateOptions(chat=True)) == demonstration_ids(
        chatml, [user("hi")], "yes"
    )


def test_answers_of_a_preference_end_where_generation_does(chatml: Any) -> None:
    better, worse, shared = preference_ids(chatml, [user("hi")], "yes", [assistant("no")])
    end = chatml.convert_tokens_to_ids("<|im_end|>")
    assert better[-1] == worse[-1] == end and end in end_tokens(chatml)
    assert better[:shared] == prompt_text_and_ids(chatml, [user("hi")])[1] == worse[:shared]


def test_generation_stops_at_the_templates_end_of_turn() -> None:
    for template, token in ((CHATML, "<|im_end|>"), (INST, "</s>"), (PARTS, "<|im_end|>")):
        tokenizer = chat(template)
        assert end_tokens(tokenizer) == tuple(
            sorted(
                {
                    tokenizer.eos_token_id,
                    *([tokenizer.convert_tokens_to_ids(token)] if token != "</s>" else []),
                }
            )
        )
    assert end_tokens(chat("{{ raise_exception('no') }}")) == (0,)


def test_a_template_without_an_end_of_turn_gets_the_end_of_text() -> None:
    tokenizer = chat("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}assistant:")
    ids, (span,) = demonstration_ids(tokenizer, [user("hi")], "yes")
    assert ids[-1] == tokenizer.eos_token_id and span[1] == len(ids)


def test_an_assistants_beginning_is_continued_and_not_closed(chatml: Any) -> None:
    begun = [user("hi"), assistant("the cat")]
    text, prompt = prompt_text_and_ids(chatml, begun)
    assert text.endswith("<|im_start|>assistant\nthe cat")
    ids, ((begin, end),) = demonstration_ids(chatml, begun, " sat")
    assert ids[:begin] == prompt and chatml.decode(ids[begin:end]) == " sat<|im_end|>"
    assert list(ids) == chatml.apply_chat_template([user("hi"), assistant("the cat sat")], return_dict=False)


def test_earlier_turns_that_a_template_shortens_are_found() -> None:
    tokenizer = chat(THINKS)
    messages = [user("hi"), assistant("<think>hm</think>yes"), user("and"), assistant("<think>so</think>no")]
    ids, spans = demonstration_ids(tokenizer, None, messages)
    assert list(ids) == tokenizer.apply_chat_template(messages, return_dict=False)
    assert [tokenizer.decode(ids[a:b]) for a, b in spans] == [
        "yes<|im_end|>",
        "<think>so</think>no<|im_end|>",
    ]


def test_a_turn_that_the_template_does_not_end_stops_before_the_next() -> None:
    tokenizer = chat(
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% else %}{{ eos_token }}{% endif %}"
    )
    ids, spans = demonstration_ids(tokenizer, None, CONVERSATION)
    assert [tokenizer.decode(ids[a:b]).strip() for a, b in spans] == ["hello there", "fine\n<|endoftext|>"]


def test_arguments_are_handed_to_the_template_and_unknown_ones_refused() -> None:
    tokenizer = chat(THINKS)
    quiet = TemplateOptions(arguments={"enable_thinking": False})
    text, _ = prompt_text_and_ids(tokenizer, [user("hi")], quiet)
    assert text.endswith("<|im_start|>assistant\n<think></think>")
    check_template(tokenizer, quiet)
    with pytest.raises(BadInput, match="enable_thinkin'; did you mean 'enable_thinking'"):
        check_template(tokenizer, TemplateOptions(arguments={"enable_thinkin": False}))
    with pytest.raises(BadInput, match="reads no tools"):
        check_template(tokenizer, TemplateOptions(tools=({"type": "function"},)))


def test_tools_are_handed_to_the_template_or_refused(chatml: Any) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    tokenizer = chat("{% if tools %}{{ tools[0].function.name + '\n' }}{% endif %}" + CHATML)
    assert prompt_text_and_ids(tokenizer, [user("hi")], TemplateOptions(tools=(tool,)))[0].startswith("add\n")
    with pytest.raises(UnusableText, match="has tools"):
        prompt_text_and_ids(chatml, [user("hi")], TemplateOptions(tools=(tool,)))


def test_a_call_of_a_tool_is_learned_and_its_result_is_not() -> None:
    tokenizer = chat(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}{% for c in m.tool_calls or [] %}"
        "{{ 'call ' + c.function.name }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    call = {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}],
    }
    messages = [user("2+2=?"), call, {"role": "tool", "content": "4"}, assistant("four")]
    ids, spans = demonstration_ids(tokenizer, None, messages)
    assert [tokenizer.decode(ids[a:b]) for a, b in spans] == ["call add<|im_end|>", "four<|im_end|>"]


def test_content_parts_become_what_the_template_reads(chatml: Any) -> None:
    parts = [{"type": "text", "text": "the cat"}, {"type": "text", "text": " sat"}]
    assert prompt_text_and_ids(chatml, [user(parts)]) == prompt_text_and_ids(chatml, [user("the cat sat")])
    with pytest.raises(UnusableText, match="'image' is not supported"):
        prompt_text_and_ids(chatml, [user([{"type": "image", "url": "x"}])])


def test_a_system_message_is_added_or_refused_in_a_line(chatml: Any) -> None:
    text, _ = prompt_text_and_ids(chatml, "hi", TemplateOptions(chat=True, system="be brief"))
    assert text.startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi")
    with pytest.raises(UnusableText, match="refuses these messages: .*Only user and assistant roles"):
        prompt_text_and_ids(chat(INST), [{"role": "system", "content": "be brief"}, user("hi")])


def test_a_templates_start_of_text_is_the_only_one() -> None:
    from tests.wild.tokenizer_kit import around

    tokenizer = around(chat(INST), "<s> $A")
    ids, _ = demonstration_ids(tokenizer, [user("hi")], "yes")
    start = tokenizer.bos_token_id
    assert ids.count(start) == 1 and prompt_text_and_ids(tokenizer, "<s>hi")[1].count(start) == 1


def test_answers_of_a_user_are_refused(chatml: Any) -> None:
    with pytest.raises(
        UnusableText, match="must end with a message of the assistant's, this ends with 'user'"
    ):
        demonstration_ids(chatml, [user("hi")], [user("yes")])
    with pytest.raises(UnusableText, match="prompt that is text"):
        demonstration_ids(chatml, "hi", [user("yes")])
