"""A folder that save_pretrained wrote, read as a model: whole weights, shards, or adapters on a base.

Whatever transformers, safetensors and peft raise is one BadInput with its cause. Nothing is unpickled from a file, code that a
folder brings is never run (`trust_remote_code` stays false), nothing is downloaded, and no parameter that the folder lacks is
drawn at random. Of a model that reads pictures or sounds too, the part that reads text is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from distrl.errors import BadInput, translated
from distrl.policies.lm import trunk
from distrl.rlhf.adapters import adapters_in, apply_adapter, array_names, without_adapter
from distrl.rlhf.folders import (
    CONFIG,
    OWN_CODE,
    configuration,
    json_object,
    quiet,
    require_model_folder,
    require_one_label,
)

Kind = Literal["causal", "scalar"]
GENERATION = "generation_config.json"
SHOWN = 4  # names of parameters in an error


@dataclass(frozen=True)
class Pretrained:
    """A model in evaluation mode, float32, and what to say of how it was read."""

    model: nn.Module
    notes: tuple[str, ...] = ()


def read_pretrained(kind: Kind, folder: str | Path) -> Pretrained:
    """The causal LM, or the sequence classifier with one label, of a folder. BadInput where there is none."""
    path = require_model_folder(folder)
    adapters = adapters_in(path, bool(weights_in(path)))
    base = adapters[0].base if adapters else path
    config = _read_config(base)
    if kind == "scalar":
        require_one_label(path)
    auto, text = _auto(kind, config, base)
    asked = _plain_attention(config)
    with without_adapter(base) as whole:
        model, told = _load(auto, whole, base, kind, config)
    has_head = any("score" in name for adapter in adapters for name in array_names(adapter))
    _check_keys(base, model, kind, told, has_head)
    notes = [*_notes(base, config, text, told)]
    if asked is not None:
        notes.append(f"{base / CONFIG} asks for attention by {asked}, which is not used here")
    if text is not None:
        model = _text_part(model, text)
    for adapter in adapters:
        with quiet():
            model = apply_adapter(model, adapter)
        notes.append(f"{adapter.folder}: its adapter is merged into {adapter.base}")
    return Pretrained(model.eval(), tuple(notes))


def weights_in(path: Path) -> list[Path]:
    """Files of whole weights; an adapter's are none."""
    return [one for one in sorted(path.glob("*.safetensors")) if not one.name.startswith("adapter_")]


def _read_config(path: Path) -> Any:
    """The configuration of a folder with weights, checked for what makes it unreadable here."""
    if not (path / CONFIG).is_file():
        raise BadInput(
            f"{path} must be a model folder, and has no config.json; give one that save_pretrained wrote"
        )
    if not weights_in(path):
        raise BadInput(f"{path} has no *.safetensors: pickled weights are not read; save it with safetensors")
    described = json_object(path / CONFIG)
    _check_generation_file(path / GENERATION)
    _check_whole(path, described)
    config = configuration(path)
    if config is None:
        if described.get("auto_map"):
            raise BadInput(f"{path} cannot be read: it {OWN_CODE}")
        raise BadInput(
            f"{path / CONFIG}: model_type must be a family that transformers {_version()} has, got "
            f"{described.get('model_type')!r}; a newer transformers may have it"
        )
    return config


def _version() -> str:
    return version("transformers")


def _check_whole(path: Path, described: dict[str, Any]) -> None:
    """BadInput for quantised weights: they can be neither trained as they are nor saved as they were."""
    parts = [described, *(part for part in described.values() if isinstance(part, dict))]
    found = next((part["quantization_config"] for part in parts if part.get("quantization_config")), None)
    if found is not None:
        method = found.get("quant_method", "unknown") if isinstance(found, dict) else found
        raise BadInput(
            f"{path} has quantised weights (quantization_config of {CONFIG}: quant_method {method}), which are not trained "
            "or saved here; give the folder of the model before it was quantised"
        )


def _auto(kind: Kind, config: Any, path: Path) -> tuple[Any, Any]:
    """The auto class that reads it, and the text part's configuration where that has to be taken out of a whole."""
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
        AutoModelForSequenceClassification,
    )

    family = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise BadInput(
            f"{path}: a {family} model has an encoder and a decoder, so it is not a causal LM (causality: it reads its "
            "input both ways); give a decoder-only model"
        )
    auto: Any = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
    text = config.get_text_config()
    known = _class_for(auto, config)
    if text is config:
        if known is None:
            raise BadInput(f"{path}: transformers has no {_words(kind)} of the family {family}")
        return auto, None
    if _class_for(auto, text) is None:
        raise BadInput(f"{path}: transformers has no {_words(kind)} of the text part of a {family} model")
    if known is not None and known.config_class is type(text):
        return auto, None
    if kind == "scalar":
        raise BadInput(
            f"{path}: a {family} model reads more than text, and is not read as a reward model or a critic"
        )
    wholes = (auto, AutoModelForImageTextToText, AutoModelForMultimodalLM)
    whole = next((one for one in wholes if _class_for(one, config) is not None), None)
    if whole is None:
        raise BadInput(f"{path}: transformers reads no text with a {family} model as a {_words(kind)}")
    return whole, text


def _words(kind: Kind) -> str:
    return "causal LM" if kind == "causal" else "sequence classifier"


def _class_for(auto: Any, config: Any) -> Any:
    found = auto._model_mapping.get(type(config), None)
    return found[0] if isinstance(found, (list, tuple)) else found


def _plain_attention(config: Any) -> str | None:
    """Leaves the choice of a kernel to transformers; returns one that was asked for, such as flash-attention."""
    found: str | None = None
    for part in (config, config.get_text_config()):
        asked = part._attn_implementation
        if asked not in (None, "sdpa", "eager"):
            found, part._attn_implementation_internal = str(asked), None
    return found


def _load(auto: Any, whole: Path, path: Path, kind: Kind, config: Any) -> tuple[nn.Module, dict[str, Any]]:
    """From the files in `whole`, those of `path`."""
    what = f"{path / CONFIG} describes no model that transformers {_version()} makes"
    with translated(what), quiet(), torch.device("meta"):
        auto.from_config(config, trust_remote_code=False)
    if kind == "scalar":
        config.num_labels = 1
    with translated(f"{path} cannot be read as a {kind} model"), quiet():
        model, told = auto.from_pretrained(
            whole,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are an error of ours
        )
    return cast(nn.Module, model), told


def _text_part(whole: nn.Module, text: Any) -> nn.Module:
    """A causal LM of its own, with the weights of the text part of a larger model."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model: Any = AutoModelForCausalLM.from_config(text, trust_remote_code=False).float()
    own = trunk(model)
    part = next(one for one in whole.modules() if type(one) is type(own))
    own.load_state_dict(part.state_dict())
    head = cast(Any, whole).get_output_embeddings()
    model.get_output_embeddings().load_state_dict(head.state_dict())
    model.tie_weights()
    model.generation_config = cast(Any, whole).generation_config
    return cast(nn.Module, model)


def _check_keys(path: Path, model: nn.Module, kind: Kind, told: dict[str, Any], has_head: bool) -> None:
    """BadInput where config.json and the weights are of two models. `has_head`: an adapter brings a reward model's."""
    missing = [
        name for name in sorted(map(str, told["missing_keys"])) if not has_head or name != "score.weight"
    ]
    if missing:
        raise BadInput(f"{path} lacks parameters of a {kind} model: {_some(missing)}")
    if kind == "causal" and any(str(name).startswith("score.") for name in told["unexpected_keys"]):
        raise BadInput(f"{path} is a sequence classifier (such as a reward model), not a causal LM")
    wrong = sorted(
        (str(name), tuple(found), tuple(wanted)) for name, found, wanted in told["mismatched_keys"]
    )
    if wrong:
        name, found, wanted = wrong[0]
        raise BadInput(
            f"{path} cannot be read: {len(wrong)} arrays have other shapes than {CONFIG} says, {name} among them: "
            f"{list(found)}, not {list(wanted)}"
        )
    known = {_layerless(name) for name, _ in model.named_parameters()}
    further = [name for name in sorted(map(str, told["unexpected_keys"])) if _layerless(name) in known]
    if further:
        raise BadInput(
            f"{path} has more layers than its {CONFIG} says: {_some(further)}; give the {CONFIG} of these weights"
        )


def _layerless(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _notes(path: Path, config: Any, text: Any, told: dict[str, Any]) -> Iterator[str]:
    if config.get_text_config() is not config:
        kind = (text or config.get_text_config()).model_type
        yield f"{path}: of a {config.model_type} model the text part alone ({kind}) is used and saved"
    elif told["unexpected_keys"]:
        names = sorted(map(str, told["unexpected_keys"]))
        yield f"{path}: {len(names)} arrays that no {config.model_type} model has are left out: {_some(names)}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _check_generation_file(path: Path) -> None:
    """BadInput where it is there and no good: transformers would pass over it, and over the ends of text in it."""
    if not path.is_file():
        return
    ends = json_object(path).get("eos_token_id")
    every = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(type(one) is int for one in every):
        raise BadInput(f"{path}: eos_token_id must be an id or a list of ids, got {ends!r}")
