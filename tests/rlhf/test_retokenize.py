"""A reward model of another tokenizer scores what its own tokenizer and template make of a text."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from distrl.errors import BadInput
from distrl.maths.pieces import by_length
from distrl.rlhf.data import Prompt
from distrl.rlhf.opinions import join
from distrl.rlhf.responses import Responses
from distrl.rlhf.retokenize import RetokenizedReward, reading_its_own
from distrl.rlhf.rewards import ModelReward, ScoreScale, for_a_look, read_reward
from distrl.rlhf.texts import demonstration_ids, prompt_text_and_ids
from tests.wild.kit import CHATML, byte_level, config_of
from tests.wild.tokenizer_kit import chat, metaspace

USER = [{"role": "user", "content": "what is two plus two ?"}]


def folder_of(path: Path, tokenizer: Any, **more: Any) -> Any:
    """A reward model's folder, and the model."""
    torch.manual_seed(3)
    model: Any = AutoModelForSequenceClassification.from_config(
        config_of("llama", tokenizer, num_labels=1, initializer_range=0.5, **more)
    ).eval()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model


def written(tokenizer: Any, prompts: list[Prompt], answers: list[tuple[str, bool]]) -> Responses:
    """Responses of the actor's tokens; those that ended have its end of turn."""
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    texts = [(*tokenizer(text)["input_ids"], *([end] if ended else [])) for text, ended in answers]
    return Responses.write(
        [prompt.tokens for prompt in prompts], texts, [[0.0] * len(one) for one in texts],
        [ended for _, ended in answers], range(len(prompts)),
    )  # fmt: skip


def prompt_of(tokenizer: Any, given: Any) -> Prompt:
    text, ids = prompt_text_and_ids(tokenizer, given)
    return Prompt(text, ids, {}, None if isinstance(given, str) else tuple(given))


def alone(model: Any, ids: Any) -> float:
    """The model's own score of one text, at its last token."""
    with torch.no_grad():
        hidden = model.model(torch.tensor([list(ids)])).last_hidden_state[0, -1]
        return float(model.score(hidden))


@pytest.mark.parametrize("family", ["metaspace", "byte-level of another order"])
def test_the_score_is_that_of_its_own_template_at_the_last_token(family: str, tmp_path: Path) -> None:
    actor = chat(CHATML)
    own = (
        metaspace(template=CHATML)
        if family == "metaspace"
        else byte_level(("<|im_end|>", "<|im_start|>", "<|endoftext|>"), template=CHATML, size=300)
    )
    model = folder_of(tmp_path, own)
    prompts = [prompt_of(actor, USER), prompt_of(actor, USER), prompt_of(actor, "the cat")]
    reward = reading_its_own(read_reward(tmp_path), tmp_path, actor, prompts)
    assert isinstance(reward, RetokenizedReward)
    responses = written(actor, prompts, [("four", True), ("the answer is four", False), (" sat", True)])
    pieces = by_length(responses.length, 2)
    said = join([reward.build("cpu").score(responses, pieces)], 3)
    closed = own.apply_chat_template([*USER, {"role": "assistant", "content": "four"}], return_dict=False)
    cut = own.apply_chat_template(
        [*USER, {"role": "assistant", "content": "the answer is four"}],
        continue_final_message=True,
        return_dict=False,
    )
    plain = demonstration_ids(own, "the cat", " sat")[0]
    np.testing.assert_allclose(
        said, [alone(model, ids) for ids in (closed, cut, plain)], rtol=1e-4, atol=1e-5
    )
    scaled = RetokenizedReward(
        reward.parts, ScoreScale(1.0, 2.0, 8), own=own, actor=actor, prompts=reward.prompts
    )
    np.testing.assert_allclose(
        join([scaled.build("cpu").score(responses, pieces)], 3), (said - 1) / 2, rtol=1e-4, atol=1e-5
    )
    travelled = pickle.loads(pickle.dumps(reward))
    np.testing.assert_array_equal(join([travelled.build("cpu").score(responses, pieces)], 3), said)
    other = for_a_look(reward, [prompts[2]])
    again = written(actor, [prompts[2]], [(" sat", True)])
    np.testing.assert_allclose(other.build("cpu").score(again, [np.array([0])]).said, said[2:], rtol=1e-5)


def test_a_text_too_long_for_the_reward_model_has_no_score(tmp_path: Path) -> None:
    actor, own = chat(CHATML), metaspace(template=CHATML)
    folder_of(tmp_path, own, max_position_embeddings=30)
    prompts = [prompt_of(actor, "the cat"), prompt_of(actor, "the cat")]
    reward = reading_its_own(read_reward(tmp_path), tmp_path, actor, prompts)
    part = reward.build("cpu").score(
        written(actor, prompts, [(" sat", True), (" sat" * 40, True)]), [np.array([1]), np.array([0])]
    )
    assert part.columns.tolist() == [1, 0] and np.isnan(part.said).tolist() == [True, False]
    assert part.fault is not None and part.fault[0] == 1 and "which reads 30" in part.fault[1]


def test_the_actors_tokenizer_and_more_is_read_as_it_is(tmp_path: Path) -> None:
    actor, own = byte_level(), byte_level()
    own.add_special_tokens({"pad_token": "<|pad|>"})
    folder_of(tmp_path, own)
    prompts = [prompt_of(actor, "the cat")]
    assert type(reading_its_own(read_reward(tmp_path), tmp_path, actor, prompts)) is ModelReward
    assert type(reading_its_own(read_reward(tmp_path), tmp_path, own, prompts)) is ModelReward


def test_messages_want_a_template_of_its_own(tmp_path: Path) -> None:
    actor = chat(CHATML)
    folder_of(tmp_path, metaspace())
    with pytest.raises(BadInput, match="without a chat template, and prompts are messages"):
        reading_its_own(read_reward(tmp_path), tmp_path, actor, [prompt_of(actor, USER)])


def test_a_classifier_of_several_labels_is_refused_by_that(tmp_path: Path) -> None:
    folder_of(tmp_path, byte_level())
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(
        config_of("llama", byte_level(), num_labels=2)
    ).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="must have num_labels=1, .*has num_labels=2"):
        read_reward(tmp_path)
