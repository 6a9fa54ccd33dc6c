"""What a policy wrote, as the text that reward functions, samples and pictures show.

tokens     prompt | <think> 4 - 2 </think> <answer> 2 </s>
text                <think> 4 - 2 </think> <answer> 2             special tokens stay; the end and pads behind it go
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any


def without_end(response: Sequence[int], ends: Collection[int]) -> list[int]:
    """Its tokens without the trailing ones that are in `ends`."""
    count = len(response)
    while count and int(response[count - 1]) in ends:
        count -= 1
    return [int(token) for token in response[:count]]


def ends_of(tokenizer: Any, end_tokens: Collection[int] = ()) -> frozenset[int]:
    """What is no part of a response's text at its end: the end tokens, and the pad token."""
    own = (tokenizer.eos_token_id, tokenizer.pad_token_id)
    return frozenset({*end_tokens, *(int(token) for token in own if token is not None)})


def response_text(
    tokenizer: Any, prompt: Sequence[int], response: Sequence[int], ends: Collection[int]
) -> str:
    """The text that a response adds to its prompt, special tokens included, without what ends it.

    It is the whole decoded less the prompt decoded, so that a tokenizer which drops a text's first space keeps a
    response's; where the prompt's part is not there again, what the response decodes to by itself.
    """
    tokens = without_end(response, ends)
    before, whole = _decoded(tokenizer, prompt), _decoded(tokenizer, [*prompt, *tokens])
    return whole[len(before) :] if whole.startswith(before) else _decoded(tokenizer, tokens)


def _decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    text: str = tokenizer.decode(
        [int(token) for token in tokens], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text
