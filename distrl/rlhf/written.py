"""What a policy wrote, as the text that reward functions, samples and pictures show.

tokens     prompt | <think> 4 - 2 </think> <answer> 2 </s>
text                <think> 4 - 2 </think> <answer> 2             special tokens stay; the end and pads behind it go
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from distrl.rlhf import texts


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
    """The text that a response adds to its prompt, special tokens included, without what ends it."""
    return texts.response_text(tokenizer, prompt, without_end(response, ends), keep_special=True)
