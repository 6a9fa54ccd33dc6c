"""Chat templates: conversations as text and ids, and which of the ids are the assistant's.

A template is code that a tokenizer brings. What it writes is taken as it is: ids are those of `apply_chat_template`, and
what the assistant wrote is found in them by rendering the conversation again, up to a turn or with another text in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from distrl.errors import BadInput, cause, translated
from distrl.named import nearest
from distrl.rlhf.tokenizers import MARK, UnusableText, content_forms, encoded, shared, template_end

Message = dict[str, Any]
Text = str | list[Message]
Ids = tuple[int, ...]
Spans = tuple[tuple[int, int], ...]
Turns = Literal["all", "last"]


@dataclass(frozen=True)
class TemplateOptions:
    """How texts go through a chat template.

    `chat` puts prompts that are text into it as a user's message. `arguments` (`enable_thinking` ...) and `tools` are
    handed to it. `system` is put in front of conversations that have no system message.
    """

    chat: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()
    system: str | None = None

    @property
    def asked(self) -> list[str]:
        """Flags that were given and mean nothing without a chat template."""
        given = {
            "--system-prompt": self.system,
            "--chat-kwargs": self.arguments,
            "--tools": self.tools,
        }
        return [flag for flag, value in given.items() if value]

    def messages(self, prompt: Text) -> list[Message] | None:
        """What is rendered; None where the prompt stays text."""
        if isinstance(prompt, str):
            if not self.chat:
                return None
            prompt = [{"role": "user", "content": prompt}]
        if self.system is None or (prompt and prompt[0].get("role") in ("system", "developer")):
            return list(prompt)
        return [{"role": "system", "content": self.system}, *prompt]


PLAIN = TemplateOptions()


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template with what is handed to it. BadInput where the tokenizer has none."""

    tokenizer: Any
    options: TemplateOptions = PLAIN

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise BadInput(
                "prompts that are lists of messages want a chat template, and the tokenizer has none: give prompts as "
                "text, or set tokenizer.chat_template"
            )

    def text(self, messages: Sequence[Message], goes_on: bool = False) -> str:
        """A conversation as the template writes it; `goes_on`: up to where the assistant goes on.

        Behind a message of the assistant's that is the message itself, which is continued and not closed. Raises
        UnusableText for what the template refuses.
        """
        given = [self._fitting(message) for message in messages]
        if self.options.tools and not self.mentions("tools"):
            raise UnusableText(
                "it has tools, and the chat template reads none: leave them out, or give another template"
            )
        try:
            return self._render(given, goes_on)
        except Exception as error:  # a template is code: it raises what it likes
            raise UnusableText(f"the chat template refuses these messages: {cause(error)}") from error

    def ids(self, messages: Sequence[Message], goes_on: bool = False) -> Ids:
        """The same as ids."""
        return encoded(self.tokenizer, self.text(messages, goes_on))

    def mentions(self, name: str) -> bool:
        """Whether the template reads a variable."""
        return re.search(rf"\b{re.escape(name)}\b", str(self.tokenizer.chat_template)) is not None

    def _render(self, messages: Sequence[Message], goes_on: bool) -> str:
        continued = goes_on and bool(messages) and messages[-1].get("role") == "assistant"
        text: str = self.tokenizer.apply_chat_template(
            list(messages),
            tools=[*self.options.tools] or None,
            tokenize=False,
            add_generation_prompt=goes_on and not continued,
            continue_final_message=continued,
            **self.options.arguments,
        )
        return text

    def _fitting(self, message: Message) -> Message:
        """The message with its content in the form that the template reads: text, or parts."""
        content = message.get("content")
        forms = content_forms(self.tokenizer, str(self.tokenizer.chat_template))
        if isinstance(content, str) and "text" not in forms:
            return {**message, "content": [{"type": "text", "text": content}]}
        if isinstance(content, list):
            parts = [{"type": "text", "text": _part_text(part)} for part in content]
            return {**message, "content": parts if "parts" in forms else plain_text(content)}
        return message

    @property
    def end(self) -> int | None:
        """The token that ends the assistant's turn; None where the template writes none."""
        return template_end(self.tokenizer, str(self.tokenizer.chat_template))

    def conversation(
        self, messages: Sequence[Message], turns: Sequence[int], begun: str | None = None
    ) -> tuple[Ids, Spans]:
        """Ids of a whole conversation, and the spans of them that the assistant wrote in `turns`, numbers of messages.

        A turn's span begins where the text that the model goes on from ends (the generation prompt; `begun` for the
        first of the turns, where its message is there in part) and ends with the end of the turn. What the template
        writes behind that is read and not learned. A template without an end of turn gets the end of text behind its
        last message. Raises UnusableText where a turn is not found again.
        """
        text = self.text(messages)
        ids = encoded(self.tokenizer, text)
        ends = {self.tokenizer.eos_token_id, self.end}
        spans: list[tuple[int, int]] = []
        for turn in turns:
            begin, end = self._turn(messages, turn, text, ids, ends, begun if turn == turns[0] else None)
            if end is None:
                end = len(ids)
                ids = (*ids, int(self.tokenizer.eos_token_id))
                end += 1
            begin = max(
                begin, spans[-1][1] if spans else 1
            )  # nothing comes before the first token to learn it from
            if begin < end:
                spans.append((begin, end))
        return ids, tuple(spans)

    def _turn(
        self,
        messages: Sequence[Message],
        turn: int,
        text: str,
        ids: Ids,
        ends: set[int | None],
        begun: str | None,
    ) -> tuple[int, int | None]:
        """Where a turn's ids begin and end; no end where it is the last and the template does not end it."""
        around: tuple[int, int] | None = None
        before = self._before(messages[:turn]) if begun is None else begun
        if before is None or not text.startswith(before):
            around = self._around(messages, turn, text)
            before = text[: around[0]]
        begin = shared(encoded(self.tokenizer, before), ids)
        last = turn == len(messages) - 1
        behind = text if last else self.text(messages[: turn + 1])
        if text.startswith(behind):
            found = [at for at in range(begin, self._ids_of(behind, text, ids)) if ids[at] in ends]
            if found:
                return begin, found[-1] + 1
            return begin, None if last else self._ids_of(behind, text, ids)
        around = around or self._around(messages, turn, text)
        inner = self._ids_of(text[: around[1]], text, ids)
        following = (
            len(ids) if last else self._ids_of(text[: self._around(messages, turn + 1, text)[0]], text, ids)
        )
        return begin, next((at + 1 for at in range(inner, following) if ids[at] in ends), inner)

    def _ids_of(self, part: str, text: str, ids: Ids) -> int:
        return len(ids) if part == text else shared(encoded(self.tokenizer, part), ids)

    def _before(self, messages: Sequence[Message]) -> str | None:
        """What the model goes on from; None where a conversation cannot end there."""
        given = [self._fitting(message) for message in messages]
        try:
            text: str = self.tokenizer.apply_chat_template(
                given,
                tools=[*self.options.tools] or None,
                tokenize=False,
                add_generation_prompt=True,
                **self.options.arguments,
            )
        except Exception:  # e.g. no message at all, or an answer to an answer
            return None
        return text

    def _around(self, messages: Sequence[Message], turn: int, text: str) -> tuple[int, int]:
        """Where a message's content begins and ends in the text: what changes there when another stands in its place."""
        other = self.text([*messages[:turn], {**messages[turn], "content": MARK}, *messages[turn + 1 :]])
        begin, end = shared(text, other), len(text) - shared(text[::-1], other[::-1])
        if MARK not in other or begin > end:
            raise UnusableText(
                f"the chat template does not show message {turn + 1} as it is in the whole conversation, so that its "
                "tokens cannot be found; learn the last turn alone (--turns last)"
            )
        return begin, end


def check_template(tokenizer: Any, options: TemplateOptions) -> None:
    """BadInput for arguments that the chat template does not read."""
    if not (options.arguments or options.tools):
        return
    template = Template(tokenizer, options)
    words = [*dict.fromkeys(re.findall(r"\b[a-z]\w{3,}\b", str(tokenizer.chat_template)))]
    problems = [
        f"--chat-kwargs.{name}: the chat template reads no {name!r}{nearest(name, words) or '; leave it out'}"
        for name in options.arguments
        if not template.mentions(name)
    ]
    if options.tools and not template.mentions("tools"):
        problems.append("--tools: the chat template reads no tools; leave them out, or give another template")
    if problems:
        raise BadInput(*problems)


def read_arguments(given: Mapping[str, Any] | str) -> dict[str, Any]:
    """Arguments of a chat template, as a mapping or as JSON. Raises BadInput."""
    with translated(
        f'--chat-kwargs: must be a JSON object, such as {{"enable_thinking": false}}, got {given!r:.60}'
    ):
        return dict(json.loads(given) if isinstance(given, str) else given)


def check_content(messages: Sequence[Message]) -> None:
    """UnusableText for content that no text model reads."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            for part in content:
                _part_text(part)
        elif not (content is None or isinstance(content, str)):
            raise UnusableText(f"a message's content must be text or content parts, got {content!r:.60}")


def plain_text(content: Any) -> str:
    """A message's content as text."""
    if isinstance(content, list):
        return "".join(_part_text(part) for part in content)
    return content if isinstance(content, str) else ""


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str) and part.get("type", "text") == "text":
        return str(part["text"])
    kind = part.get("type", "?") if isinstance(part, dict) else type(part).__name__
    raise UnusableText(f"a content part of type {kind!r} is not supported; models here read text alone")
