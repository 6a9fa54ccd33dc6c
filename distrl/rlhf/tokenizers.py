"""Between text and tokens: the tokenizer of a model's folder, and what must hold between it and a model."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distrl.errors import BadInput, translated
from distrl.rlhf.adapters import base_of
from distrl.rlhf.folders import CONFIG, OWN_CODE, configuration, require_folder

Message = dict[str, str]
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)  # one of them holds it


def read_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a folder that `save_pretrained` wrote. BadInput where there is none, or it has no end of text."""
    from transformers import AutoTokenizer

    path = base_of(require_folder(folder))
    if not any((path / name).is_file() for name in FILES):
        raise BadInput(
            f"{path} has no tokenizer (none of {', '.join(FILES)}): save the model's own beside it with save_pretrained"
        )
    if (path / CONFIG).is_file():
        configuration(path)  # transformers reads it too, and would not name it
    with translated(f"{path} has no tokenizer that tokenizers {version('tokenizers')} can read"):
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
        except ValueError as error:
            if "trust_remote_code" in str(error):
                raise BadInput(f"{path}: its tokenizer {OWN_CODE}") from error
            raise
    check_end(tokenizer, str(path))
    return tokenizer


def check_end(tokenizer: Any, where: str = "the tokenizer") -> None:
    """BadInput for a tokenizer without an end of text: no response could end."""
    if tokenizer.eos_token_id is None:
        raise BadInput(
            f"{where} must have an eos_token, which ends a response: set one with tokenizer.eos_token = ..."
        )


def check_vocabulary(tokenizer: Any, config: Any, where: str = "the model") -> None:
    """BadInput where the model lacks rows for ids of the tokenizer. More rows than ids, as padding leaves, are fine."""
    needed = vocabulary_size(tokenizer)
    rows = int(config.vocab_size)
    if rows < needed:
        raise BadInput(
            f"tokenizer and model differ: the tokenizer has ids up to {needed - 1} and {where} has {rows} rows; give "
            "the model's own tokenizer, or resize its embeddings"
        )


def check_same_tokenizer(one: Any, other: Any, names: tuple[str, str]) -> None:
    """BadInput where two models that read the same token ids would understand different texts."""
    first, second = one.get_vocab(), other.get_vocab()
    if first == second:
        return
    differ = sorted(token for token in first.keys() | second.keys() if first.get(token) != second.get(token))
    told = ", ".join(f"{token!r} is {first.get(token)} and {second.get(token)}" for token in differ[:2])
    raise BadInput(
        f"{names[0]} and {names[1]} must have one tokenizer, theirs differ in {len(differ)} tokens ({told}): "
        f"train {names[1]} from {names[0]}'s folder"
    )


def vocabulary_size(tokenizer: Any) -> int:
    """Rows that a model must have for it: the highest id and one."""
    return int(max(tokenizer.get_vocab().values())) + 1


def padding_note(tokenizer: Any) -> str | None:
    """What to say of a tokenizer without a pad token; None for one that has it."""
    if tokenizer.pad_token_id is not None:
        return None
    return (
        "the tokenizer has no pad token: texts are padded with id 0 behind their last token, where no model looks "
        "and nothing is learned"
    )


def end_tokens(tokenizer: Any, generation: Any = None) -> tuple[int, ...]:
    """Ids that end a response: the tokenizer's, and those of a model's generation configuration.

    transformers makes the latter of generation_config.json, or of config.json where there is none. Ids beyond the
    tokenizer's, a family's default in a smaller vocabulary say, cannot be written and are left out.
    """
    more = getattr(generation, "eos_token_id", None)
    found = more if isinstance(more, list) else [] if more is None else [more]
    size = vocabulary_size(tokenizer)
    return tuple(sorted({int(tokenizer.eos_token_id), *(token for token in found if token < size)}))


def render(tokenizer: Any, messages: Sequence[Message]) -> str:
    """A conversation as the model's chat template has it, up to where the assistant goes on."""
    if not tokenizer.chat_template:
        raise BadInput(
            "prompts that are lists of messages want a chat template, and the tokenizer has none: give prompts as "
            "text, or set tokenizer.chat_template"
        )
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return text


def prompt_tokens(tokenizer: Any, text: str, templated: bool) -> tuple[int, ...]:
    """Ids of a prompt. The tokenizer's own start of text is added where neither a template nor the text has one."""
    started = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    ids = list(tokenizer(text, add_special_tokens=not (templated or started))["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token):
        ids.pop()  # some add an end too, behind which there would be nothing to say
    return tuple(ids)


def completion_tokens(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Ids of what follows a prompt, ended by the end of text."""
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids or ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    return tuple(ids)
