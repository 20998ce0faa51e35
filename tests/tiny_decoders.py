"""Tiny decoders with fused projections, and ones known by other names."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from tiny_base import BLOCKS, GPT2_BLOCKS, GROUPED, QK_NORMS, SMALL, TinyModel, one
from transformers import PreTrainedModel

_QK_LAYERNORMS = ("q_layernorm", "k_layernorm")
_EXPERTS = {
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "experts_implementation": "eager",  # others: no float64
}

Tensors = dict[str, torch.Tensor]
Pack = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


def _concatenated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_kv: int) -> torch.Tensor:
    return torch.cat([q, k, v])


def _grouped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_kv: int) -> torch.Tensor:
    parts = [rearrange(part, "(head row) ... -> head row ...", head=n_kv) for part in (q, k, v)]
    return torch.cat(parts, dim=1).flatten(0, 1)


def _published(
    model_type: str,
    config: Mapping[str, Any],
    *,
    prefixes: tuple[str, str] = ("model.layers.", "layers."),
    names: Mapping[str, str] | None = None,
    outer: Mapping[str, str] | None = None,
    qkv: str | None = None,
    pack: Pack = _concatenated,
    made_as: str = "llama",
    said: Mapping[str, Any],
    **stack: Any,
) -> TinyModel:
    """A model whose code transformers lacks: another one's weights under its names and config.

    ``prefixes`` begin the names of layers, with the head and without; ``names`` are parts of names
    and what takes their place, ``outer`` modules outside the layers and their whole names, with the
    head; ``qkv`` is what q, k and v are packed in, with the name of its
    module. ``said`` is its config.json.
    """

    def rewrite(model: PreTrainedModel, folder: Path) -> Path:
        found: Tensors = {}
        for name, tensor in load_file(folder / "model.safetensors").items():
            for old, new in (names or {}).items():
                name = name.replace(old, new)
            for old, new in (outer or {}).items():
                name = re.sub(rf"^(model\.)?{old}\.", f"{new}.", name)
            name = re.sub(r"^model\.layers\.", prefixes[0], name)
            found[re.sub(r"^layers\.", prefixes[1], name)] = tensor
        if qkv is not None:
            for name in [name for name in found if ".q_proj." in name]:
                parts = [found.pop(name.replace("q_proj", f"{role}_proj")) for role in "qkv"]
                packed = pack(*parts, model.config.num_key_value_heads)
                found[re.sub(r"[^.]*\.q_proj", qkv, name)] = packed
        save_file(found, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": model_type, **said}))
        return folder

    return replace(one(model_type, config, **stack), made_as=made_as, rewrite=rewrite)


_SHARED = {
    "num_experts": 2,
    "n_routed_experts": 2,
    "n_shared_experts": 1,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 24,
    "experts_implementation": "eager",
}
_GLM4_MOE = one(
    "glm4_moe",
    {**GROUPED, **_SHARED, "head_dim": 6, "attention_bias": True, "use_qk_norm": True},
    qk_norms=QK_NORMS,
)
_LLAMA4 = {**GROUPED, **_EXPERTS, "head_dim": 6, "intermediate_size_mlp": 24}
_GRANITE = {**GROUPED, **_EXPERTS, "attention_multiplier": 0.3}
_LONG_QK_NORMS = ("query_layernorm", "key_layernorm")


def _by_d_head(attention: Any) -> float:
    """The scale of attention of four heads that does not name it."""
    return float((attention.split_size // 4) ** -0.5)


_FALCON = one(
    "falcon",
    {**BLOCKS, "multi_query": True, "bias": True},
    layers="h",
    attention="self_attention",
    norm="layer",
    scaling=lambda attention: float(attention.inv_norm_factor),
)
_MANY_KEYS = {"new_decoder_architecture": True, "num_kv_heads": 2}
_GPT_BIGCODE = one(
    "gpt_bigcode", GPT2_BLOCKS, layers="h", attention="attn", norm="layer", rotary=False
)
_MPT = one(
    "mpt",
    {
        **SMALL,
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 128,
        "attn_config": {"clip_qkv": 1e30},
    },
    layers="blocks",
    attention="attn",
    norm="layer",
    rotary=False,
    scaling=lambda attention: float(attention.softmax_scale),
)
_PERSIMMON = one(
    "persimmon", {**BLOCKS, "layer_norm_eps": 1e-20}, norm="layer", qk_norms=_QK_LAYERNORMS
)
_SAID = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
_SAID_GROUPED = {**_SAID, "num_key_value_heads": 2}


def _as_refined_web(
    model_type: str, said: Mapping[str, Any], config: Mapping[str, Any]
) -> TinyModel:
    """Falcon as it was first published."""
    said = {"n_layer": 2, "n_head": 4, "hidden_size": 32, **said}
    made = _FALCON.but(**config)
    published = _published(model_type, made.config, made_as="falcon", said=said)
    return replace(published, stacks=made.stacks)


def _bailing(model_type: str) -> TinyModel:
    with_norms = model_type.endswith("v2")
    return _published(
        model_type,
        {**GROUPED, "head_dim": 6},
        made_as="qwen3" if with_norms else "llama",
        names={
            "o_proj": "dense",
            "q_norm": "query_layernorm",
            "k_norm": "key_layernorm",
            "self_attn": "attention",
        },
        outer={"embed_tokens": "model.word_embeddings"},
        qkv="attention.query_key_value",
        said={**_SAID_GROUPED, "head_dim": 6, "use_qk_norm": with_norms},
        qk_norms=QK_NORMS if with_norms else (),
    )


def _hf_olmo(
    said: Mapping[str, Any], *, made_as: str, names: Mapping[str, str], **stack: Any
) -> TinyModel:
    return _published(
        "hf_olmo",
        GROUPED,
        made_as=made_as,
        prefixes=("model.transformer.blocks.", "transformer.blocks."),
        names={"self_attn.o_proj": "attn_out", **names},
        outer={
            "embed_tokens": "model.transformer.wte",
            "norm": "model.transformer.ln_f",
            "lm_head": "model.transformer.ff_out",
        },
        qkv="att_proj",
        said={
            "n_layers": 2,
            "n_heads": 4,
            "n_kv_heads": 2,
            "d_model": 32,
            "attention_layer_norm": False,
            **said,
        },
        **stack,
    )


def _chatglm(config: Mapping[str, Any], said: Mapping[str, Any], **other: Any) -> TinyModel:
    return _published(
        "chatglm",
        {**GROUPED, "head_dim": 8, "attention_bias": True, **config},
        prefixes=("transformer.encoder.layers.", "encoder.layers."),
        names={"o_proj": "dense", "self_attn": "self_attention"},
        outer={
            "embed_tokens": "transformer.embedding.word_embeddings",
            "norm": "transformer.encoder.final_layernorm",
            "lm_head": "transformer.output_layer",
        },
        qkv="self_attention.query_key_value",
        said={
            "num_layers": 2,
            "num_attention_heads": 4,
            "hidden_size": 32,
            "kv_channels": 8,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "rmsnorm": True,
            **said,
        },
        **other,
    )


MODELS: tuple[TinyModel, ...] = (
    one("exaone", {**GROUPED, "head_dim": 6}),
    one("exaone4", {**GROUPED, "head_dim": 6}, norm=None, qk_norms=QK_NORMS),
    *(one(name, {**GROUPED, "head_dim": 8}) for name in ("glm", "glm4")),
    one(
        "gpt_oss",
        {
            **GROUPED,
            **_EXPERTS,
            "head_dim": 6,
            "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
        },
    ),
    _FALCON,
    _GPT_BIGCODE,
    one(
        "bloom",
        {**SMALL, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        layers="h",
        attention="self_attention",
        writer="self_attention.dense",  # the module itself adds the residual stream
        norm="layer",
        rotary=False,
        scaling=lambda attention: float(attention.inv_norm_factor),
    ),
    _MPT,
    one(
        "dbrx",
        {
            **SMALL,
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 1e30, "rope_theta": 1e4},
            "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 2, "moe_top_k": 1},
        },
        layers="blocks",
        attention="norm_attn_norm.attn",
        norm="layer",
    ),
    one(
        "codegen",
        {**GPT2_BLOCKS, "n_head": 8, "rotary_dim": 2},
        layers="h",
        attention="attn",
        norm="layer",
        n_heads=8,
    ),
    _PERSIMMON,
    *(
        one(name, {**GROUPED, "head_dim": 6})
        for name in (
            "arcee",
            "cwm",
            "internlm3",
            "iquestcoder",
            "ministral",
            "ministral3",
        )
    ),
    one(
        "ernie4_5_moe",
        {
            **GROUPED,
            **_EXPERTS,
            "moe_k": 1,
            "moe_num_experts": 2,
            "moe_intermediate_size": 24,
            "use_bias": True,
        },
    ),
    one("flint", {**GROUPED, **_SHARED, "head_dim": 8}, qk_norms=QK_NORMS),
    one("solar_open", {**GROUPED, **_SHARED, "head_dim": 6}),
    one(
        "llama4_text",
        {**_LLAMA4, "no_rope_layers": [1, 1]},
        qk_norms=("qk_norm",),
        auto_class="AutoModel",
    ),
    one("hyperclovax", {**GROUPED, "head_dim": 6, "attention_multiplier": 0.3}),
    one("granitemoeshared", _GRANITE),
    *(one(name, _GRANITE, gated=True) for name in ("granite_swa", "granitemoe_swa")),
    one("jais2", {**GROUPED, "head_dim": 6}, norm="layer"),
    one("phimoe", {**GROUPED, **_EXPERTS, "attention_bias": True}, norm="layer"),
    one(
        "vaultgemma",
        {**GROUPED, "head_dim": 12, "query_pre_attn_scalar": 23, "attn_logit_softcapping": None},
    ),
    *(
        one(name, {**GROUPED, **_SHARED, "head_dim": 6}, qk_norms=QK_NORMS)
        for name in ("dots1", "exaone_moe", "hy_v3", "kolibri1", "mellum")
    ),
    one("afmoe", {**GROUPED, **_SHARED, "head_dim": 6}, qk_norms=QK_NORMS, gated=True),
    one("apertus", {**GROUPED, "head_dim": 6}, qk_norms=QK_NORMS),
    one("flex_olmo", {**GROUPED, **_SHARED}, norm=None, qk_norms=QK_NORMS),
    one("minimax_m2", {**GROUPED, **_EXPERTS, "head_dim": 6}, qk_norms=QK_NORMS),
    one("nanochat", {**GROUPED, "head_dim": 6}, qk_norms=QK_NORMS),
    _GLM4_MOE,
    one("hunyuan_v1_dense", {**GROUPED, "head_dim": 6}, qk_norms=_LONG_QK_NORMS),
    one(
        "hunyuan_v1_moe",
        {**GROUPED, **_SHARED, "moe_topk": 1, "head_dim": 6},
        qk_norms=_LONG_QK_NORMS,
    ),
    one(
        "xglm",
        {**SMALL, "d_model": 32, "ffn_dim": 24, "num_layers": 2, "attention_heads": 4},
        norm="layer",
        rotary=False,
    ),
    one("biogpt", BLOCKS, norm="layer", rotary=False),
    one(
        "gpt_neox_japanese",
        BLOCKS,
        attention="attention",
        norm="layer",
        scaling=lambda attention: 1.0 / float(attention.norm_factor),
    ),
    one(
        "openai-gpt",
        GPT2_BLOCKS,
        layers="h",
        attention="attn",
        norm=None,
        rotary=False,
        scaling=_by_d_head,
    ),
    one(
        "imagegpt",
        GPT2_BLOCKS,
        layers="h",
        attention="attn",
        rotary=False,
        scaling=_by_d_head,
        auto_class="AutoModelForImageClassification",
    ),
    one(
        "ctrl",
        {**GPT2_BLOCKS, "dff": 24},
        layers="h",
        attention="multi_head_attention",
        norm="layer",
        rotary=False,
    ),
    *(
        _published(name, {**GROUPED, "attention_bias": True}, said=_SAID_GROUPED)
        for name in ("aquila", "deepseek", "internlm", "minicpm", "xverse")
    ),
    *(
        _published(name, GROUPED, made_as="starcoder2", said=_SAID_GROUPED, norm="layer")
        for name in ("orion", "stablelm_epoch")
    ),
    _as_refined_web("RefinedWeb", {"n_head_kv": 2}, _MANY_KEYS),
    _as_refined_web("RefinedWebModel", {"multi_query": True}, {}),
    _hf_olmo({"layer_norm_type": "default"}, made_as="olmo", names={}, norm="layer"),
    _bailing("bailing_moe"),
    _bailing("bailing_moe_v2"),
    _published(
        "internlm2",
        {**GROUPED, "attention_bias": True},
        names={
            "self_attn.o_proj": "attention.wo",
            "input_layernorm": "attention_norm",
        },
        outer={"embed_tokens": "model.tok_embeddings", "lm_head": "output"},
        qkv="attention.wqkv",
        pack=_grouped,
        said=_SAID_GROUPED,
    ),
    _chatglm({}, {}),
    _published(
        "baichuan",
        GROUPED | {"num_key_value_heads": 4},
        qkv="self_attn.W_pack",
        said=_SAID,
    ),
    _published(
        "qwen",
        {**GROUPED, "num_key_value_heads": 4, "head_dim": 6, "attention_bias": True},
        prefixes=("transformer.h.", "h."),
        names={"self_attn.o_proj": "attn.c_proj", "input_layernorm": "ln_1"},
        outer={"embed_tokens": "transformer.wte", "norm": "transformer.ln_f"},
        qkv="attn.c_attn",
        said={**_SAID, "kv_channels": 6},
    ),
)

VARIANTS: dict[str, TinyModel] = {
    "falcon-ungrouped": _FALCON.but(multi_query=False, parallel_attn=False, alibi=True),
    "falcon-grouped": _FALCON.but(**_MANY_KEYS),
    "falcon-grouped-one-norm": _FALCON.but(**_MANY_KEYS, num_ln_in_parallel_attn=1),
    "gpt_bigcode-ungrouped": _GPT_BIGCODE.but(multi_query=False),
    "gpt_bigcode-unscaled": _GPT_BIGCODE.but(scale_attn_weights=False),
    "glm4_moe-without-norms": _GLM4_MOE.but(stack={"qk_norms": ()}, use_qk_norm=False),
    "llama4_text-without-norms": one(
        "llama4_text",
        {**_LLAMA4, "no_rope_layers": [1, 0], "use_qk_norm": False},
        layers="model.layers",
    ),
    "persimmon-without-norms": _PERSIMMON.but(stack={"qk_norms": ()}, qk_layernorm=False),
    "stablelm-with-norms": one(
        "stablelm",
        {**GROUPED, "qk_layernorm": True, "layer_norm_eps": 1e-20},
        norm="layer",
        qk_norms=(
            *(f"q_layernorm.norms.{head}" for head in range(4)),
            *(f"k_layernorm.norms.{head}" for head in range(2)),
        ),
    ),
    "phi-with-norms": one(
        "phi",
        {**GROUPED, "partial_rotary_factor": 0.5, "qk_layernorm": True, "layer_norm_eps": 1e-20},
        norm="layer",
        qk_norms=_QK_LAYERNORMS,
    ),
    "chatglm-ungrouped": _chatglm(
        {"num_key_value_heads": 4}, {"multi_query_attention": False}, pack=_grouped
    ),
    "chatglm-layer-norm": _chatglm({}, {"rmsnorm": False}, made_as="starcoder2", norm="layer"),
    "hf_olmo-rms-norm": _hf_olmo(
        {"layer_norm_type": "rms"}, made_as="llama", names={"input_layernorm": "attn_norm"}
    ),
    "cohere-with-norms": one(
        "cohere",
        {**GROUPED, "use_qk_norm": True, "layer_norm_eps": 1e-20},
        norm="layer",
        qk_norms=QK_NORMS,
    ),
}
