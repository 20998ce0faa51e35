"""Tiny random models of every architecture, and variants of them."""

from dataclasses import replace

from tiny_base import BERT, BLOCKS, GPT2_BLOCKS, GROUPED, QK_NORMS, SMALL, one
from tiny_decoders import MODELS as DECODERS
from tiny_decoders import VARIANTS as DECODER_VARIANTS
from tiny_encoders import MODELS as ENCODERS
from tiny_encoders import VARIANTS as ENCODER_VARIANTS
from tiny_hybrids import MODELS as HYBRIDS
from tiny_hybrids import VARIANTS as HYBRID_VARIANTS

_GEMMA3_UNSAID = ("num_attention_heads", "num_key_value_heads", "query_pre_attn_scalar")

_LLAMA = one("llama", {**GROUPED, "head_dim": 6})
_GEMMA = one("gemma", {**GROUPED, "head_dim": 12})
_GEMMA2 = replace(_GEMMA, model_type="gemma2").but(
    query_pre_attn_scalar=23,
    attn_logit_softcapping=None,  # a capped score is not bilinear
)
_GEMMA3 = replace(_GEMMA2, model_type="gemma3_text").but(stack={"qk_norms": QK_NORMS})
_GPT2 = one("gpt2", GPT2_BLOCKS, layers="h", attention="attn", norm="layer", rotary=False)

_EXPERTS = {"experts_implementation": "eager"}  # others: no float64
_MANY = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    **_EXPERTS,
}

_ALL = (
    _LLAMA,
    one("qwen2_moe", {**GROUPED, **_MANY}),
    one("qwen3_moe", {**GROUPED, **_MANY, "head_dim": 6}, qk_norms=QK_NORMS),
    *(one(name, {**GROUPED, "head_dim": 6}) for name in ("ernie4_5", "seed_oss")),
    one("helium", {**GROUPED, "head_dim": 8}),
    one("smollm3", {**GROUPED, "no_rope_layers": [1, 0]}),
    one("granite", {**GROUPED, "attention_multiplier": 0.3}),
    one(
        "granitemoe",
        {**GROUPED, "attention_multiplier": 0.3, "num_local_experts": 2, **_EXPERTS},
    ),
    one("olmo", GROUPED, norm="layer"),
    one("olmo3", GROUPED, norm=None, qk_norms=QK_NORMS),
    one("olmoe", {**GROUPED, **_MANY}, qk_norms=QK_NORMS),
    one("starcoder2", GROUPED, norm="layer"),
    one("cohere", GROUPED, norm="layer"),
    one("cohere2", {**GROUPED, "head_dim": 6}, norm="layer"),
    one("stablelm", GROUPED, norm="layer"),
    one("nemotron", {**GROUPED, "head_dim": 6}, norm="layer"),
    one("phi3", GROUPED),
    replace(_LLAMA, model_type="mistral"),
    one(
        "mixtral",
        {
            **GROUPED,
            "num_local_experts": 2,
            "experts_implementation": "eager",
        },  # others: no float64
    ),
    one("qwen2", GROUPED),
    replace(_LLAMA, model_type="qwen3").but(stack={"qk_norms": QK_NORMS}),
    _GEMMA,
    _GEMMA2,
    _GEMMA3,
    one(
        "gemma3",
        {
            "text_config": _GEMMA3.config,
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 8,
            },
            "mm_tokens_per_image": 4,
        },
        layers="language_model.layers",
        qk_norms=QK_NORMS,
        auto_class="AutoModelForImageTextToText",
    ),
    one("olmo2", GROUPED, norm=None, qk_norms=QK_NORMS),
    one("phi", {**GROUPED, "partial_rotary_factor": 0.5}, norm="layer"),
    one("gpt_neox", {**BLOCKS, "rotary_pct": 0.5}, attention="attention", norm="layer"),
    _GPT2,
    one(
        "gpt_neo",
        {
            **SMALL,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 128,
        },
        layers="h",
        attention="attn.attention",
        norm="layer",
        rotary=False,
        scaling=lambda attention: 1.0,
    ),
    one(
        "gptj",
        {**GPT2_BLOCKS, "rotary_dim": 4},
        layers="h",
        attention="attn",
        norm="layer",
    ),
    one(
        "opt",
        {**BLOCKS, "ffn_dim": 24, "word_embed_proj_dim": 32},
        layers="decoder.layers",
        norm="layer",
        rotary=False,
    ),
    BERT,
    *(replace(BERT, model_type=name) for name in ("camembert", "roberta", "xlm-roberta")),
    replace(BERT, model_type="electra").but(embedding_size=16),
    one(
        "distilbert",
        {**SMALL, "dim": 32, "hidden_dim": 24, "n_layers": 2, "n_heads": 4},
        layers="transformer.layer",
        attention="attention",
        norm=None,
        rotary=False,
        auto_class="AutoModelForMaskedLM",
    ),
)

#: One model for every model type.
TINY_MODELS = {m.model_type: m for m in (*_ALL, *DECODERS, *ENCODERS, *HYBRIDS)}

#: Models whose config changes what the layer computes, or what its tensors are called.
VARIANTS = {
    **DECODER_VARIANTS,
    **ENCODER_VARIANTS,
    **HYBRID_VARIANTS,
    "gpt2-scaled-by-layer": _GPT2.but(scale_attn_by_inverse_layer_idx=True),
    "gpt2-unscaled": _GPT2.but(scale_attn_weights=False),
    "gpt2-scaled-by-layer-alone": _GPT2.but(
        scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True
    ),
    "opt-post-norm": TINY_MODELS["opt"].but(stack={"norm": None}, do_layer_norm_before=False),
    "gpt_neox-sequential": TINY_MODELS["gpt_neox"].but(use_parallel_residual=False),
    "llama-with-biases": _LLAMA.but(attention_bias=True),
    "llama-ungrouped": _LLAMA.but(num_key_value_heads=4),
    "llama-multi-query": _LLAMA.but(num_key_value_heads=1),
    "qwen3-with-biases": TINY_MODELS["qwen3"].but(attention_bias=True),
    "gpt2-with-cross-attention": _GPT2.but(add_cross_attention=True),
    "bert-with-cross-attention": BERT.but(is_decoder=True, add_cross_attention=True),
    "gemma3-by-default": replace(
        TINY_MODELS["gemma3"].but(
            stack={"n_heads": 8},
            text_config={k: v for k, v in _GEMMA3.config.items() if k not in _GEMMA3_UNSAID},
        ),
        unsaid=_GEMMA3_UNSAID,
    ),
}

#: Models saved without their heads, whose tensors then lack the head's prefix.
BASE_MODELS = {
    f"{name}-base": model.but(auto_class="AutoModel") for name, model in TINY_MODELS.items()
}
