"""Adapters in a folder, as peft saves them: found with the base that they were trained on, and merged into it.

FOLDER/adapter_config.json, adapter_model.safetensors     base: what base_model_name_or_path names, a folder
with whole weights beside                                 base: the same; "." where the weights beside are the base's
an adapter of a base that is one itself                   each is merged, from the lowest on
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from distrl.errors import BadInput, translated
from distrl.rlhf.folders import json_object

if TYPE_CHECKING:
    from torch import nn

if TYPE_CHECKING:
    from torch import nn  # the help of a command reads this module

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, and the folder of the model that it belongs to."""

    folder: Path
    base: Path


def adapter_in(folder: Path, has_weights: bool) -> Adapter | None:
    """The adapter of a folder, None without one. BadInput where its base is not to be found."""
    path = folder / CONFIG
    if not path.is_file():
        return None
    name = json_object(path).get("base_model_name_or_path")
    if not (folder / WEIGHTS).is_file():
        raise BadInput(
            f"{folder} has {CONFIG} and no {WEIGHTS}: pickled adapters are not read; save it with safetensors"
        )
    return Adapter(folder, _base(folder, name, has_weights))


def adapters_in(folder: Path, has_weights: bool) -> tuple[Adapter, ...]:
    """All that a folder's model consists of, the lowest first; empty without one. BadInput where a base is not to be found."""
    found: list[Adapter] = []
    while (one := adapter_in(folder, has_weights)) is not None:
        if any(one.base.resolve() == above.folder.resolve() for above in (*found, one)) and not has_weights:
            raise BadInput(f"{one.folder / CONFIG}: base_model_name_or_path leads back to {one.base}")
        found.insert(0, one)
        if one.base == folder or not _is_adapter_alone(one.base):
            break
        folder, has_weights = one.base, False
    return tuple(found)


def _is_adapter_alone(path: Path) -> bool:
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def _base(folder: Path, name: Any, has_weights: bool) -> Path:
    """By the name in an adapter's configuration: a path from the adapter's folder on, or as it stands."""
    if isinstance(name, str) and name:
        for path in (folder / name, Path(name).expanduser()):
            if (path / "config.json").is_file() or (not has_weights and _is_adapter_alone(path)):
                return folder if path.resolve() == folder.resolve() else path
    if has_weights:
        raise BadInput(
            f"{folder} has whole weights and an adapter (of {name!r}, which is not a model folder here), and nothing says whether the "
            f'weights have the adapter in them; delete {CONFIG} where they do, or set its base_model_name_or_path to "."'
        )
    raise BadInput(
        f"{folder} has an adapter alone, and its base {name!r} is not a model folder here; model names are not downloaded: set "
        f"base_model_name_or_path of {folder / CONFIG} to the base's folder"
    )


def base_of(folder: str | Path) -> Path:
    """Where the weights and the tokenizer are of a folder that has an adapter alone: its base; else the folder itself."""
    path = Path(folder)
    found = adapters_in(path, False)
    return found[0].base if found else path


@contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """The folder as it would be without an adapter in it, which transformers would put into the model by itself."""
    if not (folder / CONFIG).is_file():
        yield folder
        return
    with TemporaryDirectory() as name:
        for path in folder.iterdir():
            if not path.name.startswith("adapter_"):
                (Path(name) / path.name).symlink_to(path.resolve())
        yield Path(name)


def array_names(adapter: Adapter) -> list[str]:
    """Of the arrays in an adapter's file."""
    from safetensors import safe_open

    with (
        translated(f"{adapter.folder / WEIGHTS} cannot be read"),
        safe_open(adapter.folder / WEIGHTS, "numpy") as file,
    ):
        return [*file.keys()]


def apply_adapter(model: nn.Module, adapter: Adapter) -> nn.Module:
    """The base with its adapter merged into its weights. BadInput where the two do not fit."""
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    names = array_names(adapter)
    with translated(f"{adapter.folder}: its adapter does not fit {adapter.base}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = PeftConfig.from_pretrained(str(adapter.folder))
        if config.task_type == "CAUSAL_LM" and not hasattr(model, "prepare_inputs_for_generation"):
            config.task_type = None  # it has a reward model above it, which writes nothing
        found: Any = PeftModel.from_pretrained(cast(Any, model), str(adapter.folder), config=config)
        wanted = get_peft_model_state_dict(found, save_embedding_layers=False)
    kind = found.peft_config["default"].peft_type
    if not hasattr(found.base_model, "merge_and_unload"):
        raise BadInput(
            f"{adapter.folder}: an adapter of type {getattr(kind, 'value', kind)} cannot be merged into its base; LoRA's "
            "kinds can"
        )
    differ = [
        *(name for name in sorted(wanted) if name not in names),
        *(name for name in names if name not in wanted and "lora_" in name),
    ]
    if differ:
        raise BadInput(
            f"{adapter.folder}: its adapter does not fit {adapter.base}: {len(differ)} arrays are of one of the two alone, "
            f"{differ[0]} among them"
        )
    return cast("nn.Module", found.merge_and_unload(safe_merge=True))
