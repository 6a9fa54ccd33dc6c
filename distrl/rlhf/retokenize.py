"""A reward model of another tokenizer: what the actor wrote is decoded, and encoded as that model's own texts are.

prompt, response as text or messages  ->  its own chat template and tokenizer  ->  score at the last token
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from distrl.errors import BadInput
from distrl.rlhf.data import Prompt
from distrl.rlhf.models import context_length
from distrl.rlhf.opinions import Part
from distrl.rlhf.responses import Ints, Responses
from distrl.rlhf.rewards import ModelReward
from distrl.rlhf.scoring import Scorer
from distrl.rlhf.templates import Template, UnusableText
from distrl.rlhf.texts import joined, response_text
from distrl.rlhf.tokenizers import check_vocabulary, encoded, ended, read_tokenizer, reads_alike, whole_text

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tekken.json")


@dataclass(frozen=True)
class RetokenizedReward(ModelReward):
    """A reward model with a tokenizer of its own; `actor` is the tokenizer of the responses, to `prompts` by number."""

    own: Any = None
    actor: Any = None
    prompts: tuple[Prompt, ...] = ()

    def build(self, device: str) -> Scorer:
        """On a worker."""
        return _RetokenizedScorer(self, ModelReward.build(self, device))

    def with_prompts(self, prompts: Sequence[Prompt]) -> RetokenizedReward:
        """The same reward of responses to other prompts."""
        return replace(self, prompts=tuple(prompts))


def reading_its_own(
    reward: ModelReward, folder: str | Path, tokenizer: Any, prompts: Sequence[Prompt]
) -> ModelReward:
    """The reward as it is, where it reads the actor's tokens, else with its own tokenizer. Raises BadInput.

    A folder without a tokenizer's files is taken to have the actor's.
    """
    if not any((Path(folder) / name).is_file() for name in TOKENIZER_FILES):
        check_vocabulary(tokenizer, reward.parts.config, str(folder))
        return reward
    own = read_tokenizer(folder)
    if reads_alike(tokenizer, own):
        check_vocabulary(tokenizer, reward.parts.config, str(folder))
        return reward
    check_vocabulary(own, reward.parts.config, str(folder))
    if not own.chat_template and any(prompt.messages for prompt in prompts):
        raise BadInput(
            f"{folder} has another tokenizer than --model, without a chat template, and prompts are messages: set its "
            "tokenizer.chat_template, or give prompts as text"
        )
    values = {name: getattr(reward, name) for name in reward.__dataclass_fields__}
    return RetokenizedReward(**values, own=own, actor=tokenizer, prompts=tuple(prompts))


def note(folder: str, reward: ModelReward | None) -> str | None:
    """What to say of a reward model with another tokenizer."""
    if not isinstance(reward, RetokenizedReward):
        return None
    return f"--reward {folder} has another tokenizer than --model: its texts are decoded and tokenized again"


class _RetokenizedScorer:
    def __init__(self, source: RetokenizedReward, inner: Any) -> None:
        self.source, self.inner = source, inner
        self.limit = context_length(source.parts.config)

    def models(self) -> list[nn.Module]:
        """What lies on the device."""
        found: list[nn.Module] = self.inner.models()
        return found

    def score(self, responses: Responses, columns: Sequence[Ints]) -> Part:
        texts, faults = self._texts(responses, columns)
        length = np.array([len(texts.get(n, (0,))) for n in range(responses.num_responses)])
        token = np.zeros((len(length), int(length.max())), np.int64)
        for n, ids in texts.items():
            token[n, : len(ids)] = ids
        part: Part = self.inner.score(replace(responses, token=token, length=length), columns)
        said = part.said.copy()
        said[np.isin(part.columns, [*faults])] = np.nan
        first = min([*faults.items(), *([part.fault] if part.fault is not None else [])], default=None)
        return replace(part, said=said, fault=first, named=dict.fromkeys(part.named, said))

    def _texts(
        self, responses: Responses, columns: Sequence[Ints]
    ) -> tuple[dict[int, tuple[int, ...]], dict[int, str]]:
        """The model's own ids of each text, and why some have none."""
        texts: dict[int, tuple[int, ...]] = {}
        faults: dict[int, str] = {}
        for n in (int(column) for piece in columns for column in piece):
            try:
                ids = self._ids(responses, n)
            except UnusableText as error:
                faults[n] = f"the reward model cannot read the response: {error}"
                continue
            if self.limit is not None and len(ids) > self.limit:
                faults[n] = f"the text has {len(ids)} of the reward model's tokens, which reads {self.limit}"
                continue
            texts[n] = ids or (int(self.source.own.eos_token_id),)
        return texts, faults

    def _ids(self, responses: Responses, n: int) -> tuple[int, ...]:
        source, own = self.source, self.source.own
        prompt = source.prompts[int(responses.prompt[n])]
        has_ended = bool(responses.ended[n])
        said = responses.token[n, len(prompt.tokens) : int(responses.length[n]) - has_ended].tolist()
        answer = response_text(source.actor, prompt.tokens, said, keep_special=True)
        if prompt.messages is None:
            ids = whole_text(own, prompt.text + answer)
            return ended(own, ids) if has_ended else ids
        whole, _ = joined(prompt.messages, answer)
        return encoded(own, Template(own).text(whole, goes_on=not has_ended))
