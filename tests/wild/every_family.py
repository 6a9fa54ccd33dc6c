"""Every causal LM that transformers has, made tiny from its own configuration."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 120
# what families call their sizes; a configuration takes those that it has
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "n_token"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size", "emb_dim", "dim"), 32),
    **dict.fromkeys(("attention_hidden_size", "lru_width", "hidden_dim", "moe_intermediate_size"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("d_inner", "feed_forward_size", "intermediate_size_mlp"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "moe_k", "n_groups", "expansion_ratio"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_buckets"), 4),
    **dict.fromkeys(("n_group", "topk_group", "mamba_n_groups", "n_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "sliding_window"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "head_dim", "global_head_dim", "d_head"), 8),
    **dict.fromkeys(("attention_head_size", "d_kv", "state_size", "ssm_state_size", "mamba_d_state"), 8),
    **dict.fromkeys(("mamba_num_heads", "mamba_n_heads", "mamba_head_dim", "mamba_d_head"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "index_head_dim", "index_topk"), 8),
    **dict.fromkeys(("hidden_size_per_layer_input", "query_pre_attn_scalar", "block_size", "router_hidden_size"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "context_length"), 256),
    "shared_expert_intermediate_size": 32, "qk_head_dim": 16, "rotary_dim": 4, "conv_kernel": 4, "num_mtp_modules": 0,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "index_n_heads": 2, "num_kv_shared_layers": 0,
    "axial_pos_shape": (16, 16), "axial_pos_embds_dim": (16, 16), "num_mem_blocks": 1, "moe_layers": [1],
    "block_types": ["recurrent", "attention"], "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "is_decoder": True,
}  # fmt: skip
LARGEST = 20_000_000  # parameters
# whose configurations have no tiny values that fit each other, or which want another library or a language
NOT_TINY = (
    "axk1", "axk2", "blt", "cohere_compass_text", "cpmant", "dbrx", "deepseek_v2", "deepseek_v3", "deepseek_v32",
    "dots3_note", "dots3_note_text", "falcon_h1", "gemma3n", "gemma4_assistant", "gemma4_unified",
    "gemma4_unified_assistant", "glm4_moe_lite", "glm_moe_dsa", "gpt_neo", "lfm2_moe", "longcat_flash", "mamba2",
    "minicpm3", "musicgen", "musicgen_melody", "prophetnet", "xlnet", "xlstm", "xmod", "youtu", "zamba", "zamba2", "zaya",
)  # fmt: skip


def causal_families() -> list[str]:
    """All that can be made tiny."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - {*NOT_TINY})


def tiny(family: str) -> Any:
    """A causal LM of the family, every parameter drawn, so that none hides behind a zero."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = _shrunk(type(AutoConfig.for_model(family)))
    with torch.device("meta"):
        size = sum(one.numel() for one in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{family} has {size} parameters")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config).eval()
        for name, one in model.named_parameters():
            if one.dim() > 1:
                one.normal_(0, 0.1)
            elif "A_log" not in name and "dt" not in name:
                one.add_(0.1 * torch.randn_like(one))
    return model


def _shrunk(kind: Any) -> Any:
    default = kind()
    known = {*default.to_dict(), *getattr(kind, "attribute_map", {})}
    given = {name: size for name, size in SIZES.items() if name in known or hasattr(default, name)}
    if "qk_rope_head_dim" in known or isinstance(getattr(kind, "head_dim", None), property):
        given.pop("head_dim", None)
    for name in getattr(kind, "sub_configs", None) or {}:
        if (part := getattr(default, name, None)) is not None:
            given[name] = _shrunk(type(part))
    return kind(**given)
