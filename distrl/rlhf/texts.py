"""From texts and messages to token ids: what a prompt, a demonstration and a preference are for a model.

    Text      str, or a list of messages {"role", "content", ...}, which go through the tokenizer's chat template
    prompt    up to where the model goes on

`UnusableText` says what is wrong with a row; BadInput what is wrong with all of them (no chat template).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from distrl.errors import BadInput
from distrl.rlhf.tokenizers import completion_tokens, prompt_tokens, render

Message = dict[str, Any]
Text = str | list[Message]
Ids = tuple[int, ...]
Spans = tuple[tuple[int, int], ...]
Turns = Literal["all", "last"]


class UnusableText(ValueError):
    """What is wrong with a row's text; a file's reader adds file:line."""


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

    def messages(self, prompt: Text) -> list[Message] | None:
        """What is rendered; None where the prompt stays text."""
        if isinstance(prompt, str):
            if not self.chat:
                return None
            prompt = [{"role": "user", "content": prompt}]
        if self.system is None or (prompt and prompt[0].get("role") == "system"):
            return list(prompt)
        return [{"role": "system", "content": self.system}, *prompt]


PLAIN = TemplateOptions()


def prompt_text_and_ids(tokenizer: Any, prompt: Text, template: TemplateOptions = PLAIN) -> tuple[str, Ids]:
    """What the model reads before it goes on: as text, rendered, and as ids, one at least."""
    messages = template.messages(prompt)
    text = str(prompt) if messages is None else _rendered(tokenizer, messages)
    tokens = prompt_tokens(tokenizer, text, messages is not None)
    if not tokens and tokenizer.bos_token_id is not None:
        tokens = (int(tokenizer.bos_token_id),)
    if not tokens:
        raise UnusableText("'prompt' is empty, and the tokenizer has no bos_token to begin with")
    return text, tokens


def demonstration_ids(
    tokenizer: Any,
    prompt: Text | None,
    completion: Text,
    template: TemplateOptions = PLAIN,
    turns: Turns = "all",
) -> tuple[Ids, Spans]:
    """Ids of a whole text, and the half-open spans of them that are learned.

    Without a prompt, a text is learned from its first token to its last, and of messages the assistant's turns.
    """
    _, begun = prompt_text_and_ids(tokenizer, prompt if prompt is not None else "", template)
    ids = (*begun, *completion_tokens(tokenizer, _only_text(completion)))
    return ids, ((len(begun), len(ids)),)


def preference_ids(
    tokenizer: Any, prompt: Text, chosen: Text, rejected: Text, template: TemplateOptions = PLAIN
) -> tuple[Ids, Ids, int]:
    """Ids of the two whole texts, and how many of them they share as the prompt."""
    _, begun = prompt_text_and_ids(tokenizer, prompt, template)
    better, worse = (
        (*begun, *completion_tokens(tokenizer, _only_text(answer))) for answer in (chosen, rejected)
    )
    return better, worse, len(begun)


def response_text(
    tokenizer: Any, prompt: Sequence[int], response: Sequence[int], keep_special: bool = False
) -> str:
    """What a response adds to its prompt, as text: the whole decoded, less the prompt decoded."""
    text: str = tokenizer.decode(list(response), skip_special_tokens=not keep_special)
    return text


def _only_text(completion: Text) -> str:
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"])


def _rendered(tokenizer: Any, messages: list[Message]) -> str:
    try:
        return render(tokenizer, messages)
    except BadInput:
        raise
    except Exception as error:  # a template is code: it raises what it likes
        raise UnusableText(
            f"the chat template refuses these messages: {type(error).__name__}: {error}"
        ) from error
