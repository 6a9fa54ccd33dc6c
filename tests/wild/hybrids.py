"""Tiny sizes of families whose caches are no plain keys and values, and how each must be written with."""

from __future__ import annotations

from typing import Any

from tests.wild.kit import CONTEXT, FAMILIES

_SIZES = FAMILIES["llama"]
_MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_expand": 2, "mamba_chunk_size": 8}
_ONE_EXPERT = {"num_experts_per_tok": 1}
CONV = ["conv", "full_attention", "conv"]
# family -> (how it is written with, its sizes)
HYBRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bamba": ("joined", {**_SIZES, **_HEADS, "num_hidden_layers": 3, "attn_layer_indices": [1]}),
    "falcon_h1": (
        "joined",
        {
            **_SIZES,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
        }
        | {"mamba_chunk_size": 8, "head_dim": 8},
    ),
    "falcon_mamba": ("joined", _MAMBA),
    "granitemoehybrid": (
        "joined",
        {
            **_SIZES,
            **_HEADS,
            **_ONE_EXPERT,
            "num_hidden_layers": 3,
            "layer_types": ["mamba", "attention", "mamba"],
        }
        | {"num_local_experts": 2, "shared_intermediate_size": 64},
    ),
    "jamba": (
        "joined",
        {**_SIZES, **_ONE_EXPERT, "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1}
        | {"expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8},
    ),
    "lfm2": ("joined", {**_SIZES, "num_hidden_layers": 3, "layer_types": CONV}),
    "mamba": ("joined", _MAMBA),
    "mamba2": (
        "joined",
        {**_MAMBA, "num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "chunk_size": 8},
    ),
    "minimax": (
        "joined",
        {**_SIZES, **_ONE_EXPERT, "num_local_experts": 2, "head_dim": 8, "block_size": 8},
    ),
    # a step of its recurrence does not clamp the time step, as a pass over a text does
    "nemotron_h": (
        "recomputed",
        {
            **_SIZES,
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "attention", "mlp"],
            "mamba_num_heads": 8,
        }
        | {"mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8, "head_dim": 8},
    ),
    "olmo_hybrid": ("joined", {**_SIZES, "num_hidden_layers": 4}),
    "qwen3_5_text": (
        "joined",
        {
            **_SIZES,
            "num_hidden_layers": 4,
            "head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        }
        | {"linear_key_head_dim": 8, "linear_value_head_dim": 8},
    ),
    "qwen3_next": ("joined", {**FAMILIES["qwen3_next"], "num_hidden_layers": 4}),
    "recurrent_gemma": (
        "by length",
        {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
        | {"num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 16, "head_dim": 8},
    ),
    # the family's code mixes up the rows of a batch that has states
    "rwkv": ("recomputed", {"hidden_size": 32, "num_hidden_layers": 2, "context_length": CONTEXT}),
    "zamba": (
        "joined",
        {
            **_SIZES,
            "num_hidden_layers": 6,
            "num_key_value_heads": 4,
            "attn_layer_period": 3,
            "attn_layer_offset": 2,
        }
        | {"mamba_d_state": 8, "n_mamba_heads": 2, "attention_hidden_size": 64, "attention_head_dim": 16},
    ),
}
