"""Tiny models with latent attention, with attention in some layers only, or that hold others."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tiny_base import BLOCKS, GROUPED, QK_NORMS, TinyModel, one
from transformers import PreTrainedModel

_EXPERTS = {"experts_implementation": "eager"}  # others: no float64

_LATENT = {
    **BLOCKS,
    **_EXPERTS,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-20,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "attention_bias": True,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}

_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "mscale": 0.8,
    "mscale_all_dim": 0.7,
    "original_max_position_embeddings": 64,
}


def _latent(model_type: str, **config: Any) -> TinyModel:
    return one(
        model_type,
        {**_LATENT, **config},
        qk_norms=("q_a_layernorm", "kv_a_layernorm"),
        silent={"kv_a_proj_with_mqa": slice(-4, None)},
    )


def _resaved(change: Callable[[dict[str, Any]], None]) -> Callable[[PreTrainedModel, Path], Path]:
    """A ``rewrite`` that changes config.json alone."""

    def rewrite(model: PreTrainedModel, folder: Path) -> Path:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))
        return folder

    return rewrite


def _scaling_of_version_4(config: dict[str, Any]) -> None:
    """As transformers 4 and the published models say it."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {**rope, "type": rope.pop("rope_type")}


def _kimi(config: dict[str, Any]) -> None:
    _scaling_of_version_4(config)
    config["model_type"] = "kimi_k2"


def _predict_further_tokens(model: PreTrainedModel, folder: Path) -> Path:
    """With a layer after the last that predicts further tokens, as DeepSeek-V3 is published."""
    tensors = load_file(folder / "model.safetensors")
    last = "model.layers.1."
    more = {name.replace(last, "model.layers.2."): name for name in tensors if last in name}
    tensors |= {name: tensors[source].clone() for name, source in more.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


_DEEPSEEK = _latent("deepseek_v3")

_MAMBA = {
    "use_mamba_kernels": False,
    "mamba_d_state": 4,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_chunk_size": 8,
}
_TYPES = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_FOUR = {**GROUPED, "num_hidden_layers": 4, "head_dim": 6}
_DELTA = {
    **_EXPERTS,
    "layer_types": _TYPES,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_LFM2 = one(
    "lfm2",
    {
        **_FOUR,
        **_EXPERTS,
        "norm_eps": 1e-20,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "num_dense_layers": 1,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
    },
    qk_norms=("q_layernorm", "k_layernorm"),
)
_ZAMBA = {
    **BLOCKS,
    "num_hidden_layers": 6,
    "num_key_value_heads": 4,
    "layers_block_type": ["mamba", "hybrid", "hybrid", "mamba", "hybrid", "hybrid"],
    "n_mamba_heads": 4,
    "mamba_d_state": 4,
    "use_mamba_kernels": False,
}

MODELS: tuple[TinyModel, ...] = (
    _DEEPSEEK,
    _latent("deepseek_v2"),
    _latent("axk1"),
    _latent("glm4_moe_lite"),
    _latent("minicpm3"),
    _latent("youtu"),
    _latent("mistral4", rope_parameters={**_YARN, "llama_4_scaling_beta": 0.1}).but(
        auto_class="AutoModel"
    ),
    _latent("deepseek_v32"),
    _latent("glm_moe_dsa"),
    replace(
        _latent("kimi_k2", rope_parameters=_YARN), made_as="deepseek_v3", rewrite=_resaved(_kimi)
    ),
    one(
        "jamba",
        {**_FOUR, **_MAMBA, **_EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1}
        | {"num_experts": 2, "num_experts_per_tok": 1, "mamba_dt_rank": 2},
    ),
    one("bamba", {**_FOUR, **_MAMBA, "attn_layer_indices": [1, 3], "attention_bias": True}),
    one(
        "granitemoehybrid",
        {**_FOUR, **_MAMBA, **_EXPERTS, "layer_types": _TYPES, "attention_multiplier": 0.3}
        | {"num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    one(
        "falcon_h1",
        {**_FOUR, **_MAMBA, "mamba_d_ssm": 64, "key_multiplier": 0.4},
        scaling=lambda attention: float(attention.scaling * attention.key_multiplier),
    ),
    one(
        "nemotron_h",
        {**_FOUR, **_EXPERTS, "layers_block_type": ["mamba", "attention", "moe", "mlp"]}
        | {"ssm_state_size": 4, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1},
        attention="mixer",
        has="q_proj",
    ),
    one(
        "zamba2",
        {**_ZAMBA, "num_mem_blocks": 2, "mamba_ngroups": 1, "chunk_size": 8},
        attention="shared_transformer.self_attn",
        entrance="shared_transformer.input_layernorm",
        d_input=64,
    ),
    one(
        "zamba",
        {**_ZAMBA, "mamba_dt_rank": 2},
        attention="shared_transf.self_attn",
        entrance="shared_transf.input_layernorm",
        d_input=64,
    ),
    *(
        one(name, {**_FOUR, **_DELTA}, qk_norms=QK_NORMS, gated=True)
        for name in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
    ),
    one("olmo_hybrid", {**_FOUR, **_DELTA}, norm=None, qk_norms=QK_NORMS),
    one(
        "minimax",
        {**_FOUR, **_EXPERTS, "layer_types": _TYPES, "num_local_experts": 2}
        | {"num_experts_per_tok": 1, "block_size": 8},
        has="q_proj",
    ),
    _LFM2,
    replace(_LFM2, model_type="lfm2_moe"),
    one(
        "recurrent_gemma",
        {**_FOUR, "num_key_value_heads": 1, "attention_bias": True}
        | {"block_types": ["recurrent", "attention"], "lru_width": 32},
        attention="temporal_block",
        has="q_proj",
    ),
)

VARIANTS: dict[str, TinyModel] = {
    "deepseek_v3-yarn": _DEEPSEEK.but(rope_parameters=_YARN),
    "deepseek_v3-with-further-layers": replace(_DEEPSEEK, rewrite=_predict_further_tokens),
    "deepseek_v2-yarn-of-version-4": replace(
        _latent("deepseek_v2", rope_parameters=_YARN), rewrite=_resaved(_scaling_of_version_4)
    ),
    "deepseek_v2-whole-queries": _latent("deepseek_v2", q_lora_rank=None).but(
        stack={"qk_norms": ("kv_a_layernorm",)}
    ),
}
