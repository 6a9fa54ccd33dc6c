"""Messages of a row: read from what data sets keep them as, and refused where they make no sense.

[{"role": "user", "content": ...}, ...]      or ShareGPT's {"from": "human", "value": ...}; a JSON string of either;
                                             {"role": [...], "content": [...]}, as older `datasets` keep lists
"""

from __future__ import annotations

import ast
import io
import json
import tokenize
from typing import Any

from distrl.named import nearest
from distrl.rlhf.data_files import kind_of
from distrl.rlhf.texts import Message, Text, UnusableText

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
SHAREGPT = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "model": "assistant", "assistant": "assistant", "system": "system", "tool": "tool",
}  # fmt: skip
WANTED = "must be text or a list of messages with 'role' and 'content'"


def plain_text(name: str, value: Any) -> str:
    """A field that is text."""
    if not isinstance(value, str):
        raise UnusableText(f"{name!r} must be text, this is {kind_of(value)}")
    check_encodes(name, value)
    return value


def text_or_messages(name: str, value: Any) -> Text:
    """A field that is text or messages; one message alone is a list of it, and a list that was printed is read."""
    if isinstance(value, str):
        printed = _printed(name, value)
        if printed is None:
            check_encodes(name, value)
            return value
        value = printed
    if isinstance(value, dict) and isinstance(value.get("role", value.get("from")), (str, list)):
        return messages_of(name, value)
    if not isinstance(value, list) or not value:
        raise UnusableText(f"{name!r} {WANTED}, this is {'an empty list' if value == [] else kind_of(value)}")
    if not isinstance(value[0], dict):
        raise UnusableText(f"{name!r} {WANTED}, this is a list that begins with {kind_of(value[0])}")
    return messages_of(name, value)


def messages_of(name: str, value: Any) -> list[Message]:
    """A conversation, its roles and contents checked."""
    if isinstance(value, str):
        value = _printed(name, value)
    if isinstance(value, dict):
        value = _rows(value)
    if not isinstance(value, list) or not value:
        raise UnusableText(
            f"{name!r} must be a list of messages with 'role' and 'content', this is "
            f"{'an empty list' if value == [] else 'text' if value is None else kind_of(value)}"
        )
    return [_message(f"{name!r} message {n}", one) for n, one in enumerate(value, 1)]


def _rows(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """A struct of lists as a list of structs; one message as a list of it."""
    if columns and all(isinstance(one, list) for one in columns.values()):
        return [dict(zip(columns, row)) for row in zip(*columns.values())]
    return [columns]


def _printed(name: str, text: str) -> Any:
    """Messages that a table keeps as JSON or as Python printed them; None for any other text."""
    begin = text.lstrip()[:200]
    if not (begin.startswith("[") and begin[1:].lstrip().startswith("{")):
        return None
    if not any(f"{sign}{key}{sign}" in begin for sign in "\"'" for key in ("role", "from", "content")):
        return None
    for read in (json.loads, ast.literal_eval, _numpy_list):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
            continue
        if isinstance(found, list):
            return found
    raise UnusableText(
        f"{name!r} looks like a list of messages that was printed and cannot be read back; write it with json.dumps"
    )


def _numpy_list(text: str) -> Any:
    """An array of dicts as NumPy prints it, without commas: `datasets` and pandas leave it so in a CSV file."""
    words: list[tuple[int, str]] = []
    for word in tokenize.generate_tokens(io.StringIO(text.strip()).readline):
        if words and words[-1][1] == "}" and word.string == "{":
            words.append((tokenize.OP, ","))
        if word.type not in (tokenize.NL, tokenize.NEWLINE):
            words.append((word.type, word.string))
    return ast.literal_eval(tokenize.untokenize(words))


def _message(where: str, value: Any) -> Message:
    if not isinstance(value, dict):
        raise UnusableText(f"{where} must be an object with 'role' and 'content', this is {kind_of(value)}")
    message = {key: one for key, one in value.items() if one is not None}  # tables fill what a row lacks
    if "role" not in message and "from" in message:
        message = _from_sharegpt(where, message)
    role = message.get("role")
    if not isinstance(role, str):
        raise UnusableText(
            f"{where} must have 'role' and 'content', it has {', '.join(map(repr, value)) or 'none'}"
        )
    if role not in ROLES:
        guess = f"; did you mean {SHAREGPT[role]!r}?" if role in SHAREGPT else nearest(role, ROLES)
        raise UnusableText(f"{where} has the role {role!r}{guess}; roles are {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, list):
        _check_parts(where, content)
    elif isinstance(content, str):
        check_encodes(where, content)
    elif not (content is None and message.get("tool_calls")):
        kind = "nothing" if content is None else kind_of(content)
        raise UnusableText(f"{where} must have 'content' that is text, this is {kind}")
    return message


def _from_sharegpt(where: str, message: Message) -> Message:
    said = message["from"]
    if not isinstance(said, str) or said not in SHAREGPT:
        raise UnusableText(f"{where} is from {said!r}; ShareGPT's are {', '.join(SHAREGPT)}")
    weight = {"weight": message["weight"]} if "weight" in message else {}
    return {"role": SHAREGPT[said], "content": message.get("value"), **weight}


def _check_parts(where: str, parts: list[Any]) -> None:
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else kind_of(part)
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str) or kind not in ("text", None):
            raise UnusableText(f"{where} has a part of the type {kind!r}; only text is read")
        check_encodes(where, text)


def check_encodes(name: str, text: str) -> None:
    """JSON may hold half a surrogate pair, which is no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        name = name if "'" in name else repr(name)
        raise UnusableText(f"{name} is no text that can be encoded: {error.reason}") from error


def is_conversation(messages: list[Message]) -> bool:
    """Whether it begins before its answer."""
    return messages[0]["role"] != "assistant"


def is_empty(message: Message) -> bool:
    """Whether it says nothing and calls nothing."""
    return not message.get("content") and not message.get("tool_calls")


def require_answer(name: str, prompt: Text, answer: Text, empty: bool = False) -> Text:
    """An answer to a prompt: the assistant's. It may be empty where `empty`; text for a prompt that is text."""
    if isinstance(answer, str):
        if not answer and not empty:
            raise UnusableText(f"{name!r} is empty: there is nothing to learn")
        return answer
    for one in (answer[0], answer[-1]):
        if one["role"] != "assistant":
            raise UnusableText(f"{name!r} must be the assistant's, and has a message of the {one['role']}")
    if not empty and is_empty(answer[-1]):
        raise UnusableText(f"{name!r} is empty: there is nothing to learn")
    if isinstance(prompt, str):
        content = answer[0].get("content")
        if len(answer) > 1 or not isinstance(content, str):
            raise UnusableText(
                f"{name!r} has several messages or parts, and 'prompt' is text: give it as messages too"
            )
        return content
    return answer
