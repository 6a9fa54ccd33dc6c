"""The dtype of a model's folder: what is trained in float32 is saved in it again."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from distrl.rlhf.pretrained import weights_in

_HALVES = {"BF16": "bfloat16", "F16": "float16"}  # safetensors' names; any other is saved in float32


def stored_dtype(folder: str | Path) -> str:
    """Of most of its parameters; "float32" where that is not bfloat16 or float16, and where there are none."""
    from safetensors import safe_open

    counted: Counter[str] = Counter()
    for path in weights_in(Path(folder)):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                part = file.get_slice(name)
                counted[part.get_dtype()] += int(torch.Size(part.get_shape()).numel())
    return _HALVES.get(max(counted, key=counted.__getitem__), "float32") if counted else "float32"


def stored_note(dtype: str) -> str | None:
    """What to say where a model is not saved in the dtype that it is trained in."""
    if dtype == "float32":
        return None
    return f"parameters are trained in float32 and saved in {dtype}, as --model has them; checkpoints hold float32"


def rounded(model: Any, dtype: str) -> Any:
    """The model to be saved in that dtype, in place; in float32, with a warning, where a number does not fit float16."""
    if dtype == "float32":
        return model
    target = getattr(torch, dtype)
    if not all(bool(torch.isfinite(one.to(target)).all()) for one in model.parameters()):
        warnings.warn(
            f"the trained parameters do not fit {dtype}: the model is saved in float32",
            RuntimeWarning,
            stacklevel=2,
        )
        return model
    for parameter in model.parameters():
        parameter.data = parameter.data.to(target)
    model.config.dtype = target
    return model
