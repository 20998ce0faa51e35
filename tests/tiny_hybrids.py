"""Tiny models with latent attention, with attention in some layers only, or that hold others."""

import functools
import json
import re
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


_LATENT_STACK = {
    "qk_norms": ("q_a_layernorm", "kv_a_layernorm"),
    "silent": {"kv_a_proj_with_mqa": slice(-4, None)},
}


def _latent(model_type: str, **config: Any) -> TinyModel:
    return one(model_type, {**_LATENT, **config}, **_LATENT_STACK)


def _resaved(change: Callable[[dict[str, Any]], None]) -> Callable[[PreTrainedModel, Path], Path]:
    """A ``rewrite`` that changes config.json alone."""

    def rewrite(model: PreTrainedModel, folder: Path) -> Path:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))
        return folder

    return rewrite


def _typed(model_type: str, config: dict[str, Any]) -> None:
    config["model_type"] = model_type


def _scaling_of_version_4(config: dict[str, Any]) -> None:
    """As transformers 4 and the published models say it."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {**rope, "type": rope.pop("rope_type")}


def _kimi(config: dict[str, Any]) -> None:
    _scaling_of_version_4(config)
    config["model_type"] = "kimi_k2"


def _renamed(folder: Path, old: str, new: str) -> None:
    """Save a model's weights under other names."""
    tensors = load_file(folder / "model.safetensors")
    renamed = {re.sub(old, new, name): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / "model.safetensors")


def _kimi_k25(model: PreTrainedModel, folder: Path) -> Path:
    """As published; transformers saves layers of the language model as blocks, too."""
    _renamed(folder, r"^(language_model.*\.)blocks\.", r"\1layers.")
    return _resaved(lambda config: config["text_config"].update(model_type="kimi_k2"))(
        model, folder
    )


def _internvl_chat(config: dict[str, Any]) -> None:
    config["model_type"] = "internvl_chat"
    config["llm_config"] = config.pop("text_config")


def _flat(config: dict[str, Any]) -> None:
    """As transformers 4 says it: the language model's values beside the others."""
    model_type = config["model_type"]
    config.update(config.pop("text_config"))
    config["model_type"] = model_type


def _nested_names(model: PreTrainedModel, folder: Path) -> Path:
    """Under the names of the modules of transformers 5."""
    _renamed(folder, r"^model\.layers\.", "model.language_model.layers.")
    return folder


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
_MINIMAX = one(
    "minimax",
    {**_FOUR, **_EXPERTS, "layer_types": _TYPES, "num_local_experts": 2}
    | {"num_experts_per_tok": 1, "block_size": 8},
    has="q_proj",
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

_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 16,
}
_SIGLIP = {**_CLIP, "model_type": "siglip_vision_model", "vision_use_head": False}
_PIXTRAL = {**_CLIP, "model_type": "pixtral", "head_dim": 8}
_WHISPER = {
    "d_model": 16,
    "hidden_size": 16,
    "intermediate_size": 16,
    "encoder_layers": 3,
    "num_hidden_layers": 3,
    "encoder_attention_heads": 2,
    "num_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "max_source_positions": 20,
    "num_mel_bins": 4,
}
_LLAMA = {**GROUPED, "model_type": "llama", "head_dim": 6}
_MISTRAL = {**_LLAMA, "model_type": "mistral"}
_QWEN2 = {**GROUPED, "model_type": "qwen2"}
_GEMMA = {**GROUPED, "model_type": "gemma", "head_dim": 12}
_COHERE2 = {**GROUPED, "model_type": "cohere2", "head_dim": 6}


def _holding(
    model_type: str,
    held: dict[str, Any],
    *,
    other: str = "vision_config",
    layers: str = "language_model.layers",
    stack: dict[str, Any] | None = None,
    auto_class: str = "AutoModelForImageTextToText",
    **config: Any,
) -> TinyModel:
    """A model that holds a language model and, under ``other``, what sees or hears for it."""
    part = config.pop(other, _CLIP)
    return one(
        model_type,
        {"text_config": held, other: part, **config},
        layers=layers,
        auto_class=auto_class,
        **(stack or {}),
    )


_QWEN_VISION = {
    "depth": 3,
    "embed_dim": 16,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
    "deepstack_visual_indexes": [],
    "num_position_embeddings": 16,
    "fullatt_block_indexes": [1],
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_QWEN2_VL = {**GROUPED, "rope_parameters": _MROPE}
_QWEN3_VL = {**GROUPED, **_DELTA, "rope_parameters": {**_MROPE, "mrope_section": [1, 1, 1]}}
_QWEN3_VL = {**{k: v for k, v in _QWEN3_VL.items() if k != "layer_types"}, "head_dim": 6}

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
    _holding("aya_vision", _COHERE2, vision_config=_SIGLIP, stack={"norm": "layer"}),
    _holding("cohere2_vision", _COHERE2, vision_config=_SIGLIP, stack={"norm": "layer"}),
    _holding("deepseek_vl", _LLAMA, vision_config=_SIGLIP),
    _holding("fast_vlm", _QWEN2),
    _holding("idefics2", _MISTRAL, layers="text_model.layers"),
    _holding("idefics3", _LLAMA, layers="text_model.layers"),
    _holding("smolvlm", _LLAMA, layers="text_model.layers"),
    _holding("internvl", _QWEN2),
    replace(
        _holding(
            "kimi_k25", {**_LATENT, "model_type": "deepseek_v3"}, stack=_LATENT_STACK, **_EXPERTS
        ),
        rewrite=_kimi_k25,
    ),
    replace(
        _holding(
            "kimi_vl",
            {**_LATENT, "model_type": "deepseek_v3", "q_lora_rank": None},
            stack={**_LATENT_STACK, "qk_norms": ("kv_a_layernorm",)},
        ),
        made_as="llava",
        rewrite=_resaved(functools.partial(_typed, "kimi_vl")),
    ),
    _holding(
        "lfm2_vl",
        {**_LFM2.config, "model_type": "lfm2"},
        vision_config={**_CLIP, "model_type": "siglip2_vision_model"},
        stack={"qk_norms": _LFM2.stacks[0].qk_norms},
    ),
    replace(
        _holding("internvl_chat", _QWEN2), made_as="internvl", rewrite=_resaved(_internvl_chat)
    ),
    *(
        _holding(name, _LLAMA)
        for name in ("llava", "llava_next", "llava_next_video", "video_llava", "vipllava")
    ),
    *(
        replace(
            one(f"llava_{name}", {**GROUPED, "head_dim": 6}),
            made_as=held,
            rewrite=_resaved(functools.partial(_typed, f"llava_{name}")),
        )
        for name, held in (("llama", "llama"), ("mistral", "mistral"), ("qwen", "qwen2"))
    ),
    _holding("llava_onevision", _QWEN2, vision_config=_SIGLIP),
    _holding("mistral3", _MISTRAL, vision_config=_PIXTRAL),
    _holding("ovis2", _QWEN2),
    _holding(
        "llama4",
        {
            **GROUPED,
            **_EXPERTS,
            "model_type": "llama4_text",
            "head_dim": 6,
            "intermediate_size_mlp": 24,
            "no_rope_layers": [1, 1],
        },
        layers="language_model.model.layers",
        vision_config={**_CLIP, "model_type": "llama4_vision_model", "vision_output_dim": 16},
        stack={"qk_norms": ("qk_norm",)},
    ),
    _holding("paligemma", _GEMMA, vision_config=_SIGLIP),
    *(
        _holding(
            name,
            held,
            other="audio_config",
            audio_config=_WHISPER,
            auto_class="AutoModelForMultimodalLM",
        )
        for name, held in (("qwen2_audio", _QWEN2), ("voxtral", _LLAMA))
    ),
    *(_holding(name, _QWEN2_VL, vision_config=_QWEN_VISION) for name in ("qwen2_vl", "qwen2_5_vl")),
    *(
        _holding(
            name,
            _QWEN3_VL,
            vision_config=_QWEN_VISION,
            stack={"qk_norms": QK_NORMS},
            **_EXPERTS,
        )
        for name in ("qwen3_vl", "qwen3_vl_moe")
    ),
    *(
        _holding(
            name,
            {**_FOUR, **_DELTA},
            vision_config=_QWEN_VISION,
            stack={"qk_norms": QK_NORMS, "gated": True},
            **_EXPERTS,
        )
        for name in ("qwen3_5", "qwen3_5_moe")
    ),
    *(
        one(name, _QWEN2_VL, auto_class="AutoModel")
        for name in ("qwen2_vl_text", "qwen2_5_vl_text")
    ),
    *(
        one(name, _QWEN3_VL, auto_class="AutoModel", qk_norms=QK_NORMS)
        for name in ("qwen3_vl_text", "qwen3_vl_moe_text")
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
    _MINIMAX,
    *(
        replace(
            _MINIMAX,
            model_type=name,
            made_as="minimax",
            rewrite=_resaved(functools.partial(_typed, name)),
        )
        for name in ("minimax_m1", "minimax_text_01")
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

_QWEN2_5_VL = next(model for model in MODELS if model.model_type == "qwen2_5_vl")

VARIANTS: dict[str, TinyModel] = {
    "qwen2_5_vl-of-version-4": replace(_QWEN2_5_VL, rewrite=_resaved(_flat)),
    "qwen2_5_vl-renamed": replace(_QWEN2_5_VL, rewrite=_nested_names),
    "paligemma-of-gemma2": _holding(
        "paligemma",
        {**_GEMMA, "model_type": "gemma2", "query_pre_attn_scalar": 23}
        | {"attn_logit_softcapping": None},
        vision_config=_SIGLIP,
    ),
    "deepseek_v3-yarn": _DEEPSEEK.but(rope_parameters=_YARN),
    "deepseek_v3-with-further-layers": replace(_DEEPSEEK, rewrite=_predict_further_tokens),
    "deepseek_v2-yarn-of-version-4": replace(
        _latent("deepseek_v2", rope_parameters=_YARN), rewrite=_resaved(_scaling_of_version_4)
    ),
    "deepseek_v2-whole-queries": _latent("deepseek_v2", q_lora_rank=None).but(
        stack={"qk_norms": ("kv_a_layernorm",)}
    ),
}
