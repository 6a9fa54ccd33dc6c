"""Formats of public data: a row of any of them -> a prompt and answers, as text or as messages.

    prompt + completion           text or lists of messages
    messages                      [{"role", "content"}, ...]: the assistant's turns are learned; a prompt ends before the last
    conversations                 ShareGPT: [{"from": "human", "value": ...}, {"from": "gpt", ...}]
    instruction (+ input), output Alpaca, in its own template, or as messages with --chat
    text                          learned from beginning to end
    prompt + chosen + rejected    text or messages
    chosen + rejected             whole conversations: what both begin with is the prompt (Anthropic HH as text, or messages)

Which format a file has follows from its columns, once for the file. `docs/data.md` has an example of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from distrl.rlhf.data_messages import (
    is_conversation,
    is_empty,
    messages_of,
    plain_text,
    require_answer,
    text_or_messages,
)
from distrl.rlhf.texts import Message, Text, UnusableText

Job = Literal["prompts", "demonstrations", "preferences"]
Fields = Mapping[str, Any]

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
    "that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
HH_TURN = "\n\nAssistant:"


@dataclass(frozen=True)
class Canonical:
    """A row as the model's texts are made of it. Without a prompt, the one answer is learned as a whole.

    `read_from` are the columns that the prompt was read from.
    """

    prompt: Text | None
    answers: tuple[Text, ...] = ()
    read_from: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """Columns that make a format, and how a row of it is read for each job; `chat` as `TemplateOptions` has it."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Fields, Job, bool], Canonical]
    jobs: tuple[Job, ...]


def _prompt(fields: Fields, job: Job, chat: bool) -> Canonical:
    prompt = text_or_messages("prompt", fields["prompt"])
    if isinstance(prompt, str):
        for name in ("messages", "chosen", "conversations"):
            asked = _said_in(name, fields.get(name), prompt)
            if asked:
                return Canonical(asked, read_from=(name,))
    return Canonical(prompt)


def _said_in(name: str, conversation: Any, prompt: str) -> list[Message]:
    """A conversation up to the user's message that the prompt repeats as text; empty where there is none.

    So UltraFeedback's and UltraChat's prompts are rendered as their answers are.
    """
    if not isinstance(conversation, (list, dict)):
        return []
    try:
        messages = messages_of(name, conversation)
    except UnusableText:
        return []
    ends = (n for n, one in enumerate(messages, 1) if one["role"] == "user" and _same(one, prompt))
    return messages[: next(ends, 0)]


def _same(message: Message, text: str) -> bool:
    content = message.get("content")
    return isinstance(content, str) and content.strip() == text.strip()


def _prompt_completion(fields: Fields, job: Job, chat: bool) -> Canonical:
    prompt = text_or_messages("prompt", fields["prompt"])
    if job == "prompts":
        return Canonical(prompt)
    if fields.get("label") is False:
        raise UnusableText("its 'label' is false: an answer that was not wanted (unpaired preferences)")
    completion = text_or_messages("completion", fields["completion"])
    return Canonical(prompt, (require_answer("completion", prompt, completion),))


def _conversation(name: str) -> Callable[[Fields, Job, bool], Canonical]:
    def read(fields: Fields, job: Job, chat: bool) -> Canonical:
        messages = messages_of(name, fields[name])
        system = fields.get("system")
        if isinstance(system, str) and system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        answered = messages[-1]["role"] == "assistant"
        if job == "prompts":
            asked = messages[:-1] if answered else messages
            if not asked:
                raise UnusableText(f"{name!r} has an answer and nothing before it")
            return Canonical(asked)
        if not answered:
            raise UnusableText(
                f"{name!r} ends with the {messages[-1]['role']}'s message: there is no answer to it"
            )
        silent = [n for n, one in enumerate(messages, 1) if one["role"] == "assistant" and is_empty(one)]
        if silent:
            raise UnusableText(f"{name!r} message {silent[0]} is the assistant's, and empty")
        return Canonical(None, (messages,))

    return read


def _alpaca(fields: Fields, job: Job, chat: bool) -> Canonical:
    instruction = plain_text("instruction", fields["instruction"])
    given = fields.get("input")
    more = "" if given is None else plain_text("input", given)
    if fields.get("history"):
        raise UnusableText("its 'history' is not read: give the turns as 'messages'")
    system = fields.get("system") or ""
    prompt: Text
    if chat:
        asked: list[Message] = [
            {"role": "user", "content": f"{instruction}\n\n{more}" if more else instruction}
        ]
        prompt = [{"role": "system", "content": system}, *asked] if system else asked
    elif system:
        raise UnusableText("its 'system' has no place in Alpaca's template: give --chat")
    else:
        template = ALPACA_INPUT if more else ALPACA
        prompt = template.format(instruction=instruction, input=more)
    if job == "prompts":
        return Canonical(prompt)
    return Canonical(prompt, (require_answer("output", prompt, plain_text("output", fields["output"])),))


def _text(fields: Fields, job: Job, chat: bool) -> Canonical:
    text = plain_text("text", fields["text"])
    if not text:
        raise UnusableText("'text' is empty")
    return Canonical(None, (text,))


def _preference(fields: Fields, job: Job, chat: bool) -> Canonical:
    chosen, rejected = (text_or_messages(name, fields[name]) for name in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise UnusableText("one of 'chosen' and 'rejected' is text and the other a list of messages")
    prompt = text_or_messages("prompt", fields["prompt"]) if fields.get("prompt") is not None else None
    if isinstance(chosen, str) or isinstance(rejected, str):
        assert isinstance(chosen, str) and isinstance(rejected, str)
        if prompt is None:
            return _hh(chosen, rejected, chat)
        return Canonical(prompt, (chosen, rejected))
    if prompt is None or is_conversation(chosen) or is_conversation(rejected):
        shared = _shared(chosen, rejected)
        if prompt is not None and not _asks(shared, prompt):
            raise UnusableText("'prompt' is not what 'chosen' and 'rejected' begin with")
        prompt, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
    answers = tuple(
        require_answer(name, prompt, answer, empty=True)
        for name, answer in (("chosen", chosen), ("rejected", rejected))
    )
    return Canonical(prompt, answers)


def _shared(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """The messages that two conversations begin with: at most all but the last."""
    most = min(len(chosen), len(rejected)) - 1
    shared = next((n for n in range(most) if chosen[n] != rejected[n]), most)
    if not shared:
        raise UnusableText("'chosen' and 'rejected' share no first message, which would be the prompt")
    if chosen[shared]["role"] != "assistant" or rejected[shared]["role"] != "assistant":
        raise UnusableText(f"'chosen' and 'rejected' differ in message {shared + 1}, which is no answer")
    return chosen[:shared]


def _asks(shared: list[Message], prompt: Text) -> bool:
    """Whether a prompt is what a conversation says too."""
    if not isinstance(prompt, str):
        return shared[-len(prompt) :] == prompt
    return any(one["role"] == "user" and _same(one, prompt) for one in shared)


def _hh(chosen: str, rejected: str, chat: bool) -> Canonical:
    """Two whole conversations as text, "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    same = next(
        (n for n, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected))
    )
    end = chosen[:same].rfind(HH_TURN)
    if end < 0:
        raise UnusableText(
            "no field 'prompt', and 'chosen' and 'rejected' do not begin with one conversation (\"\\n\\nHuman: ... "
            '\\n\\nAssistant:")'
        )
    end += len(HH_TURN)
    prompt, answers = chosen[:end], (chosen[end:], rejected[end:])
    if not chat:
        return Canonical(prompt, answers)
    turns = _hh_messages(prompt.removesuffix(HH_TURN))
    return Canonical(turns, tuple(answer.strip() for answer in answers))


def _hh_messages(text: str) -> list[Message]:
    found: list[Message] = []
    for part in ("\n\n" + text.lstrip()).split("\n\n"):
        role = next(
            (r for sign, r in (("Human:", "user"), ("Assistant:", "assistant")) if part.startswith(sign)),
            None,
        )
        if role is not None:
            found.append({"role": role, "content": part.partition(":")[2].strip()})
        elif found:  # a blank line within a turn
            found[-1]["content"] += f"\n\n{part}"
    if not found:
        raise UnusableText('a conversation must begin with "\\n\\nHuman:"')
    return found


FORMATS = (
    Format("prompts", ("prompt",), _prompt, ("prompts",)),
    Format("demonstrations", ("prompt", "completion"), _prompt_completion, ("demonstrations", "prompts")),
    Format("preferences", ("prompt", "chosen", "rejected"), _preference, ("preferences", "prompts")),
    Format("conversations", ("messages",), _conversation("messages"), ("demonstrations", "prompts")),
    Format("ShareGPT", ("conversations",), _conversation("conversations"), ("demonstrations", "prompts")),
    Format("preferences", ("chosen", "rejected"), _preference, ("preferences", "prompts")),
    Format("Alpaca", ("instruction", "output"), _alpaca, ("demonstrations",)),
    Format("Alpaca", ("instruction",), _alpaca, ("prompts",)),
    Format("plain text", ("text",), _text, ("demonstrations",)),
)
