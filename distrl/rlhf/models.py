"""Models on their way: from a transformers folder to a worker and back, as a configuration and arrays.

What travels to a worker is arrays, so a cluster needs no shared disk. Nothing is unpickled from a file, and code that
a folder brings is never run (`trust_remote_code` stays false).
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distrl.errors import BadInput, translated
from distrl.maths.random import derive_seed
from distrl.policies.lm import context_length as context_length
from distrl.policies.lm import core, router_coefficient
from distrl.policies.protocol import load_parameters, parameters_and_buffers
from distrl.rlhf.fast_paths import fused_activations
from distrl.rlhf.folders import quiet
from distrl.rlhf.pretrained import GENERATION, Kind, read_pretrained
from distrl.rlhf.stored_dtype import rounded, stored_dtype
from distrl.rlhf.tokenizers import end_tokens, vocabulary_size
from distrl.rlhf.trial import try_causal, try_scalar

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class ModelParts:
    """A model taken apart: its family's configuration, what stands on the trunk, and its arrays."""

    kind: Kind
    config: Any  # a transformers configuration
    arrays: dict[str, NDArray[Any]]
    lora: Any = None  # a peft configuration: its adapters alone are learned
    generation: Any = None  # a causal LM's generation configuration, to be saved with it
    fused: bool = True  # GPT-2's GELU as one operation (`fast_paths`)
    dtype: Dtype = "float32"  # of its parameters once built; `arrays` are float32
    notes: tuple[str, ...] = ()  # how it was read, where that is to be said
    stored: str = "float32"  # dtype that it is saved in, its folder's: "bfloat16", "float16" or "float32"

    @classmethod
    def of(cls, model: nn.Module, kind: Kind, lora: Any = None) -> ModelParts:
        own = cast(Any, core(model))
        generation = own.generation_config if kind == "causal" else None
        return cls(kind, own.config, parameters_and_buffers(model), lora, generation)

    def build(self, device: str = "cpu") -> nn.Module:
        """The model, in evaluation mode: no dropout, from the first log-prob on."""
        model = empty_model(self.kind, self.config, self.lora, drawn=False)  # all of it is loaded
        for parameter in model.parameters():
            # buffers stay: in bfloat16 the frequencies of rotary positions would be others
            parameter.data = parameter.data.to(torch_dtype(self.dtype))
        load_parameters(model, self.arrays)
        if self.fused:
            fused_activations(model)
        return model.eval().to(device)

    def with_arrays(self, arrays: dict[str, NDArray[Any]]) -> ModelParts:
        """The same model with other parameters."""
        return replace(self, arrays=arrays)


def torch_dtype(name: Dtype) -> torch.dtype:
    """By its name."""
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def empty_model(kind: Kind, config: Any, lora: Any = None, drawn: bool = True) -> nn.Module:
    """A model of that configuration with parameters of its family's own initialisation, or any if not `drawn`; float32."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.initialization import no_init_weights

    auto: Any = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
    with nullcontext() if drawn else no_init_weights():
        model = auto.from_config(config, trust_remote_code=False)
        model.tie_weights()  # is a part of the initialisation
        return cast(nn.Module, (model if lora is None else _adapted(model, lora)).float())


def _adapted(model: nn.Module, lora: Any) -> nn.Module:
    from peft import get_peft_model

    with warnings.catch_warnings():
        # peft asks transformers for names that it will drop
        warnings.filterwarnings("ignore", category=FutureWarning)
        return get_peft_model(cast(Any, model), copy.deepcopy(lora))


def new_causal(config: Any, seed: int) -> ModelParts:
    """A causal LM of that configuration with random parameters, its family's own initialisation."""
    with _seeded(seed, "initial parameters"):
        return ModelParts.of(empty_model("causal", config), "causal")


def read_config(path: str | Path, tokenizer: Any) -> Any:
    """The configuration in a JSON file such as a model folder's config.json, for that tokenizer. Raises BadInput.

    Special ids are the file's where it has some that the tokenizer has too, else the tokenizer's, never the family's.
    """
    from transformers import AutoConfig

    try:
        described = json.loads(Path(path).read_text())
        family = described.pop("model_type")
        rows = vocabulary_size(tokenizer)
        described |= {"vocab_size": rows}
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if not _are_ids(described.get(name), rows):
                described[name] = getattr(tokenizer, name)
        if described["pad_token_id"] == described["eos_token_id"]:
            described["pad_token_id"] = None  # the embedding of a pad is not learned, an end's is
        return AutoConfig.for_model(family, **described)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(
            f"{path} must describe a transformers model as config.json does, model_type included: "
            f"{type(error).__name__}: {error}"
        ) from error


def _are_ids(found: Any, rows: int) -> bool:
    every = found if isinstance(found, list) else [found]
    return bool(every) and all(type(one) is int and 0 <= one < rows for one in every)


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters: W + alpha / rank * B A, of which A and B are learned (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()  # names of layers; none: all linear ones but the head


def with_lora(parts: ModelParts, options: LoraOptions, seed: int) -> ModelParts:
    """With adapters that change nothing yet. A scalar model's head is learned beside them. Raises BadInput."""
    from peft import LoraConfig

    if parts.lora is not None:
        raise BadInput("the model has adapters already: merge them first")
    model = parts.build()
    config = LoraConfig(
        r=options.rank,
        lora_alpha=cast(Any, options.alpha),
        target_modules=list(options.targets) if options.targets else "all-linear",
        task_type="CAUSAL_LM" if parts.kind == "causal" else "SEQ_CLS",
        modules_to_save=None if parts.kind == "causal" else ["score"],
        # GPT-2 keeps its weights the other way round
        fan_in_fan_out=any(type(layer).__name__ == "Conv1D" for layer in model.modules()),
    )
    with translated("LoRA does not fit the model"), _seeded(seed, "adapters"):
        adapted = _adapted(model, config)
    return replace(parts, arrays=parameters_and_buffers(adapted), lora=config)


def merged(parts: ModelParts) -> ModelParts:
    """The same model without adapters: they are added to the weights that they adapt."""
    if parts.lora is None:
        return parts
    model = cast(Any, parts.build()).merge_and_unload()
    return replace(parts, arrays=parameters_and_buffers(model), lora=None)


@contextmanager
def _seeded(seed: int, purpose: str) -> Iterator[None]:
    """torch's own random numbers, keyed, for code that takes no generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, purpose))
        yield


def read_causal(folder: str | Path, writes: bool = False) -> ModelParts:
    """The causal LM of a folder, tried on a few tokens. BadInput where there is none, or a part of it fails.

    `writes`: it is to generate, too.
    """
    found = read_pretrained("causal", folder)
    parts = replace(ModelParts.of(found.model, "causal"), notes=found.notes, stored=stored_dtype(folder))
    try_causal(found.model, str(folder), writes, context_length(parts.config))
    return parts


def tried(parts: ModelParts, where: str) -> ModelParts:
    """A causal LM that no folder holds, tried on a few tokens. BadInput where a part of it fails."""
    with translated(f"{where}: no model can be made of it"):
        try_causal(parts.build(), where, length=context_length(parts.config))
    return parts


def read_scalar(folder: str | Path) -> ModelParts:
    """The sequence classifier with one label of a folder, such as a reward model, tried on a few tokens."""
    found = read_pretrained("scalar", folder)
    parts = replace(ModelParts.of(found.model, "scalar"), notes=found.notes, stored=stored_dtype(folder))
    try_scalar(found.model, str(folder), context_length(parts.config))
    return parts


def scalar_from(causal: ModelParts, initial_std: float = 0.0, seed: int = 0) -> ModelParts:
    """A scalar model on a causal LM's trunk; the head is drawn with this deviation, 0 for a critic's.

    A reward model's is 1 / sqrt(width + 1) (Stiennon et al. 2020; "The N implementation details of RLHF with PPO").
    """
    causal = merged(causal)
    described = {
        name: value for name, value in causal.config.to_dict().items() if not name.endswith(("2id", "2label"))
    }
    config = type(causal.config).from_dict(described | {"num_labels": 1})
    try:
        model = empty_model("scalar", config)
    except ValueError as error:
        raise BadInput(
            f"transformers has no sequence classifier for {type(config).__name__}, so no critic or reward model on such "
            "a trunk; use --value-head, or a reward function"
        ) from error
    source = causal.build()
    own, theirs = cast(Any, model).base_model, cast(Any, core(source)).base_model
    head: Any = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or own.state_dict().keys() != theirs.state_dict().keys():
        raise BadInput(
            f"transformers' sequence classifier for {type(config).__name__} is no head named `score` on this trunk, so no "
            "critic or reward model comes of it; use --value-head, or a reward function"
        )
    own.load_state_dict(theirs.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * initial_std)
        if getattr(head, "bias", None) is not None:
            head.bias.zero_()
    return replace(ModelParts.of(model, "scalar"), stored=causal.stored)


def router_note(parts: ModelParts, used: bool) -> str | None:
    """What to say of the auxiliary loss that a mixture's configuration asks for; None where it asks for none."""
    if not (coefficient := router_coefficient(parts.config)):
        return None
    told = (
        "is added to the loss" if used else "is a part of supervised fine-tuning alone, and is not used here"
    )
    return f"the router's auxiliary loss (router_aux_loss_coef {coefficient:g} of config.json) {told}"


def width(parts: ModelParts) -> int:
    """Of the hidden states."""
    return int(parts.config.get_text_config().hidden_size)


def save(parts: ModelParts, folder: str | Path, tokenizer: Any = None) -> None:
    """In transformers' own layout, safetensors only; adapters are merged into the model that they adapt.

    With a tokenizer, GENERATION lists all tokens that end a response, so that other libraries stop at them too.
    A new folder is there whole or not at all; in one with files, each of them is replaced whole.
    """
    whole = merged(parts)
    # a copy: where a parameter is rounded, the configuration that it is rounded by must stay as it is
    model = cast(Any, replace(whole, config=copy.deepcopy(whole.config)).build())
    model = rounded(model, whole.stored)
    if whole.generation is not None:
        model.generation_config = copy.deepcopy(whole.generation)
    with filled_aside(Path(folder)) as aside:
        with quiet():
            model.save_pretrained(aside)
        if tokenizer is not None:
            tokenizer.save_pretrained(aside)
            if whole.generation is not None:
                _write_ends(aside / GENERATION, end_tokens(tokenizer, whole.generation))


def _write_ends(path: Path, ends: Sequence[int]) -> None:
    """Adds end tokens to a generation configuration's file, and leaves its other fields as they are.

    Not by transformers: once a field has changed, it refuses to save others of a published file that it only warned of.
    """
    described = json.loads(path.read_text()) if path.is_file() else {}
    before = described.get("eos_token_id")
    listed = before if isinstance(before, list) else [] if before is None else [before]
    if set(ends) <= set(listed):
        return
    every = [*dict.fromkeys([*listed, *ends])]
    described["eos_token_id"] = every if len(every) > 1 else every[0]
    path.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")


def save_adapter(parts: ModelParts, folder: str | Path, base: str | Path) -> None:
    """The adapters alone as peft has them, for the model in `base`; whole, as `save`."""
    model = cast(Any, parts.build())
    model.peft_config["default"].base_model_name_or_path = str(Path(base).resolve())
    with filled_aside(Path(folder)) as aside, quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft looks for the base's own page
        model.save_pretrained(aside, save_embedding_layers=False)


@contextmanager
def filled_aside(folder: Path) -> Iterator[Path]:
    """Gives a folder to fill, whose files come to `folder` once the block ends well: by one rename where it is new."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        if not folder.exists() or not any(folder.iterdir()):
            aside.rename(folder)
        else:
            for path in sorted(aside.iterdir()):
                path.replace(folder / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def parameter_count(parts: ModelParts) -> int:
    """Numbers in it, shared ones counted twice."""
    return int(sum(np.size(array) for array in parts.arrays.values()))
