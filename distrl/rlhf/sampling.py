"""What a model's folder asks of sampling, and RLHF leaves out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# fields of a generation configuration that make of the model's distribution another one -> what changes nothing
NEUTRAL: dict[str, Any] = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": [], "suppress_tokens": [],
    "begin_suppress_tokens": [], "min_length": 0, "min_new_tokens": 0, "sequence_bias": {},
}  # fmt: skip


def left_out(generation: Mapping[str, Any], temperature: float) -> str | None:
    """What to say of fields of a generation configuration that are not followed; None where there is none."""
    neutral = NEUTRAL | {"temperature": temperature}
    asked = [
        f"{name} {generation[name]}"
        for name, value in neutral.items()
        if generation.get(name) is not None and generation[name] != value
    ]
    if not asked:
        return None
    return (
        f"the model's generation_config.json asks for {', '.join(asked)}; left out: the policy that is trained is the "
        f"one that is sampled, the whole vocabulary at --temperature {temperature:g}"
    )


def left_out_of(folder: str | Path, temperature: float) -> str | None:
    """The same of a folder, without reading its model; None where its file is missing or no good."""
    try:
        found = json.loads((Path(folder) / "generation_config.json").read_text())
    except (OSError, ValueError):
        return None
    return left_out(found, temperature) if isinstance(found, dict) else None
