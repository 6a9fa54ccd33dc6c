"""Adapters in a folder, as peft saves them: found with the base that they were trained on, and merged into it.

FOLDER/adapter_config.json, adapter_model.safetensors     base: what base_model_name_or_path names, a folder
with whole weights beside                                 base: the same; "." where the weights beside are the base's
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from distrl.errors import BadInput, translated

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
    with translated(f"{path} must be a JSON object"):
        name = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not (folder / WEIGHTS).is_file():
        raise BadInput(
            f"{folder} has {CONFIG} and no {WEIGHTS}: pickled adapters are not read; save it with safetensors"
        )
    return Adapter(folder, _base(folder, name, has_weights))


def _base(folder: Path, name: Any, has_weights: bool) -> Path:
    """By the name in an adapter's configuration: a path as it stands, or from the adapter's folder on."""
    if isinstance(name, str) and name:
        for path in (Path(name).expanduser(), folder / name):
            if path.is_dir():
                return folder if path.resolve() == folder.resolve() else path
    if has_weights:
        raise BadInput(
            f"{folder} has whole weights and an adapter (of {name!r}, which is no folder here), and nothing says whether the "
            f'weights have the adapter in them; delete {CONFIG} where they do, or set its base_model_name_or_path to "."'
        )
    raise BadInput(
        f"{folder} has an adapter alone, and its base {name!r} is no folder here; model names are not downloaded: set "
        f"base_model_name_or_path of {folder / CONFIG} to the base's folder"
    )


def base_of(folder: str | Path) -> Path:
    """Where the tokenizer of a folder is that has none: with the base of its adapter; else the folder itself."""
    path = Path(folder)
    found = adapter_in(path, False) if (path / CONFIG).is_file() else None
    return path if found is None else found.base


def apply_adapter(model: nn.Module, adapter: Adapter) -> nn.Module:
    """The base with its adapter merged into its weights. BadInput where the two do not fit."""
    from peft import PeftModel

    with translated(f"{adapter.folder}: its adapter does not fit {adapter.base}"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Found `peft_type`")
        warnings.filterwarnings("error", message="Found missing adapter keys")
        found: Any = PeftModel.from_pretrained(cast(Any, model), str(adapter.folder))
        if not hasattr(found.base_model, "merge_and_unload"):
            kind = found.peft_config["default"].peft_type
            raise BadInput(
                f"{adapter.folder}: an adapter of type {getattr(kind, 'value', kind)} cannot be merged into its base; "
                "LoRA's kinds can"
            )
        return cast(nn.Module, found.merge_and_unload(safe_merge=True))
