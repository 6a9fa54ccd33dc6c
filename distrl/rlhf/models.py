"""Models on their way: from a transformers folder to a worker and back, as a configuration and arrays.

What travels to a worker is arrays, so a cluster needs no shared disk. Nothing is unpickled from a file, and code that
a folder brings is never run (`trust_remote_code` stays false).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distrl.errors import BadInput
from distrl.policies.lm import core
from distrl.policies.protocol import load_parameters, parameters_and_buffers

Kind = Literal["causal", "scalar"]


@dataclass(frozen=True)
class ModelParts:
    """A model taken apart: its family's configuration, what stands on the trunk, and its arrays."""

    kind: Kind
    config: Any  # a transformers configuration
    arrays: dict[str, NDArray[Any]]
    lora: Any = None  # a peft configuration

    @classmethod
    def of(cls, model: nn.Module, kind: Kind, lora: Any = None) -> ModelParts:
        return cls(kind, cast(Any, core(model)).config, parameters_and_buffers(model), lora)

    def build(self, device: str = "cpu") -> nn.Module:
        """The model, in evaluation mode: no dropout, from the first log-prob on."""
        model = empty_model(self.kind, self.config, self.lora)
        load_parameters(model, self.arrays)
        return model.eval().to(device)

    def with_arrays(self, arrays: dict[str, NDArray[Any]]) -> ModelParts:
        """The same model with other parameters."""
        return replace(self, arrays=arrays)


def empty_model(kind: Kind, config: Any, lora: Any = None) -> nn.Module:
    """A model of that configuration with parameters of its family's own initialisation; float32."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto: Any = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
    model: nn.Module = auto.from_config(config)
    if lora is not None:
        from peft import get_peft_model

        model = get_peft_model(cast(Any, model), lora)
    return model.float()


def read_causal(folder: str | Path) -> ModelParts:
    """The causal LM of a folder. BadInput where there is none that can be read."""
    return ModelParts.of(_from_pretrained("causal", folder), "causal")


def read_scalar(folder: str | Path) -> ModelParts:
    """The sequence classifier with one label of a folder, a reward model say."""
    return ModelParts.of(_from_pretrained("scalar", folder), "scalar")


def scalar_from(causal: ModelParts, initial_std: float = 0.0, seed: int = 0) -> ModelParts:
    """A scalar model on a causal LM's trunk; the head is drawn with this deviation, 0 for a critic's.

    A reward model's is 1 / sqrt(width + 1) (Stiennon et al. 2020; "The N implementation details of RLHF with PPO").
    """
    described = {
        name: value for name, value in causal.config.to_dict().items() if not name.endswith(("2id", "2label"))
    }
    config = type(causal.config).from_dict(described | {"num_labels": 1})
    model = empty_model("scalar", config)
    source = causal.build()
    own, theirs = cast(Any, model).base_model, cast(Any, core(source)).base_model
    own.load_state_dict(theirs.state_dict())
    head = cast(Any, model).score
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * initial_std)
        if getattr(head, "bias", None) is not None:
            head.bias.zero_()
    return ModelParts.of(model, "scalar")


def width(parts: ModelParts) -> int:
    """Of the hidden states."""
    return int(parts.config.hidden_size)


def save(parts: ModelParts, folder: str | Path, tokenizer: Any = None) -> None:
    """In transformers' own layout, safetensors only; adapters are merged into the model that they adapt."""
    model = cast(Any, parts.build())
    if parts.lora is not None:
        model = model.merge_and_unload()
    model.save_pretrained(folder, safe_serialization=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _from_pretrained(kind: Kind, folder: str | Path) -> nn.Module:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    path = Path(folder)
    if not (path / "config.json").is_file():
        raise BadInput(
            f"{path} is no model folder: it has no config.json; give one that save_pretrained wrote"
        )
    if not list(path.glob("*.safetensors")):
        raise BadInput(f"{path} has no *.safetensors: pickled weights are not read; save it with safetensors")
    auto: Any = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
    more = {} if kind == "causal" else {"num_labels": 1}
    try:
        model, told = auto.from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            **more,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"{path} cannot be read as a {kind} model: {str(error).splitlines()[0]}") from error
    missing = sorted(told["missing_keys"])
    if missing:
        raise BadInput(f"{path} lacks parameters of a {kind} model: {', '.join(map(str, missing[:4]))}")
    return cast(nn.Module, model.eval())


def parameter_count(parts: ModelParts) -> int:
    """Numbers in it, shared ones counted twice."""
    return int(sum(np.size(array) for array in parts.arrays.values()))
