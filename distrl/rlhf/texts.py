"""From texts and messages to token ids: what a prompt, a demonstration and a preference are for a model.

    Text      str, or a list of messages {"role", "content", ...}, which go through the tokenizer's chat template
    prompt    up to where the model goes on

A text is tokenized as a whole, so that what is learned is what the tokenizer makes of it: an answer is the continuation
of its prompt. `UnusableText` says what is wrong with a row; BadInput what is wrong with all of them (no chat template).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distrl.rlhf.templates import (
    PLAIN,
    Ids,
    Message,
    Spans,
    Template,
    TemplateOptions,
    Text,
    Turns,
    check_content,
    plain_text,
)
from distrl.rlhf.tokenizers import UnusableText, continued, ended, prompt_ids, whole_text

__all__ = [
    "PLAIN", "Message", "Spans", "TemplateOptions", "Text", "Turns", "UnusableText", "demonstration_ids", "plain_text",
    "preference_ids", "prompt_text_and_ids", "response_text",
]  # fmt: skip


def prompt_text_and_ids(tokenizer: Any, prompt: Text, template: TemplateOptions = PLAIN) -> tuple[str, Ids]:
    """What the model reads before it goes on: as text, rendered, and as ids, one at least.

    Messages that end with the assistant's are continued; behind others the assistant's turn begins.
    """
    messages = template.messages(prompt)
    if messages is None:
        return str(prompt), prompt_ids(tokenizer, str(prompt))
    check_content(messages)
    rendered = Template(tokenizer, template)
    text = rendered.text(messages, goes_on=True)
    ids = rendered.ids(messages, goes_on=True)
    if not ids:
        raise UnusableText("the chat template writes nothing for these messages")
    return text, ids


def demonstration_ids(
    tokenizer: Any,
    prompt: Text | None,
    completion: Text,
    template: TemplateOptions = PLAIN,
    turns: Turns = "all",
) -> tuple[Ids, Spans]:
    """Ids of a whole text, and the half-open spans of them that are learned.

    Behind a prompt the completion is learned: of messages, those of the assistant, all of them or the last. Without a
    prompt a text is learned from its first token on, and of a conversation every assistant's turn, or the last. A text
    ends with the end of text; of messages, ids are the chat template's.
    """
    if prompt is None and isinstance(completion, str):
        ids = ended(tokenizer, whole_text(tokenizer, completion))
        return ids, _learned(((1, len(ids)),))
    messages = template.messages([] if prompt is None else prompt)
    if messages is None:
        ids, begun = continued(tokenizer, str(prompt), _only_text(completion))
        ids = ended(tokenizer, ids, _ends(tokenizer, template))
        return ids, _learned(((begun, len(ids)),))
    ids, spans = _answered(tokenizer, messages, completion, template, turns, strict=prompt is not None)
    return ids, _learned(spans)


def preference_ids(
    tokenizer: Any, prompt: Text, chosen: Text, rejected: Text, template: TemplateOptions = PLAIN
) -> tuple[Ids, Ids, int]:
    """Ids of the two whole texts, and how many of them they share as the prompt.

    Either ends where generation does, with the end of the assistant's turn: there its score is read.
    """
    messages = template.messages(prompt)
    texts, begun = [], len(prompt_text_and_ids(tokenizer, prompt, template)[1])
    for answer in (chosen, rejected):
        if messages is None:
            ids, own = continued(tokenizer, str(prompt), _only_text(answer))
            texts.append(ended(tokenizer, ids, _ends(tokenizer, template)))
        else:
            ids, spans = _answered(tokenizer, messages, answer, template, "all", strict=True)
            texts.append(ids[: spans[-1][1]])
            own = spans[0][0]
        begun = min(begun, own)
    return texts[0], texts[1], begun


def response_text(
    tokenizer: Any, prompt: Sequence[int], response: Sequence[int], keep_special: bool = False
) -> str:
    """What a response adds to its prompt, as text: the whole decoded, less the prompt decoded.

    So its first token's space is kept, which sentencepiece leaves out at the start of a text.
    """
    head, whole = (
        str(tokenizer.decode([int(one) for one in ids], skip_special_tokens=not keep_special))
        for ids in (prompt, (*prompt, *response))
    )
    if whole.startswith(head):
        return whole[len(head) :]
    alone: str = tokenizer.decode([int(one) for one in response], skip_special_tokens=not keep_special)
    return alone


def joined(messages: Sequence[Message], completion: Text) -> tuple[list[Message], int]:
    """A conversation with its answer, and the number of the answer's first message.

    Where the conversation ends with an assistant's beginning, an answer of the assistant's is its continuation.
    """
    answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    if not (messages and answer and messages[-1].get("role") == answer[0].get("role") == "assistant"):
        return [*messages, *answer], len(messages)
    begun, rest = messages[-1], answer[0]
    text = plain_text(begun.get("content")) + plain_text(rest.get("content"))
    return [*messages[:-1], {**begun, **rest, "content": text}, *answer[1:]], len(messages) - 1


def _answered(
    tokenizer: Any,
    messages: list[Message],
    completion: Text,
    options: TemplateOptions,
    turns: Turns,
    strict: bool,
) -> tuple[Ids, Spans]:
    """Ids of a conversation with its completion, and what of it is learned; `strict`: it must end with the assistant's."""
    template = Template(tokenizer, options)
    whole, first = joined(messages, completion)
    if not messages:
        whole = options.messages(whole) or []
        first = 0
    check_content(whole)
    mine = [n for n in range(first, len(whole)) if whole[n].get("role") == "assistant"]
    if not mine or (strict and mine[-1] != len(whole) - 1):
        role = whole[-1].get("role") if whole else None
        raise UnusableText(f"an answer must end with a message of the assistant's, this ends with {role!r}")
    if not strict:  # as OpenAI's format says that a turn is read and not learned
        mine = [n for n in mine if whole[n].get("weight") != 0]
        if not mine:
            raise UnusableText("nothing to learn: every message of the assistant's has the weight 0")
    begun = template.text(messages, goes_on=True) if messages and first < len(messages) else None
    ids, spans = template.conversation(whole, mine if turns == "all" else mine[-1:], begun)
    if not spans:
        raise UnusableText("the chat template writes nothing for the assistant's messages")
    return ids, spans


def _only_text(completion: Text) -> str:
    """That of an answer to a prompt that is text."""
    if isinstance(completion, str):
        return completion
    check_content(completion)
    if [message.get("role") for message in completion] != ["assistant"]:
        raise UnusableText(
            "an answer to a prompt that is text must be text or one message of the assistant's; give the prompt as "
            "messages, or --chat"
        )
    return plain_text(completion[0].get("content"))


def _ends(tokenizer: Any, options: TemplateOptions) -> tuple[int | None, ...]:
    return (Template(tokenizer, options).end,) if tokenizer.chat_template else ()


def _learned(spans: Spans) -> Spans:
    """Spans that have a token; UnusableText where none has."""
    found = tuple((begin, end) for begin, end in spans if begin < end)
    if not found:
        raise UnusableText("nothing to learn: the text has a single token, and nothing comes before it")
    return found
