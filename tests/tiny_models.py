"""Tiny random models of every architecture, made by transformers, and where their parts are.

Nothing here comes from qk_taxonomy: a test that compares the two must know a model's modules
independently of the package's own table.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn

SEED = 20240229


def _own_scaling(attention: Any) -> float:
    return float(attention.scaling)


@dataclass(frozen=True)
class TinyModel:
    """A model type's config, small, and the names of the modules that attention runs through.

    ``layers`` is relative to the base model, the other names to a layer. ``writer`` is the module
    whose output joins the residual stream, where that is not the attention module itself.
    ``norm`` is what a layer does to the residual stream before its attention. ``unsaid`` are keys
    that the saved config.json leaves out, as some published ones do.
    """

    model_type: str
    config: Mapping[str, Any]
    layers: str = "layers"
    attention: str = "self_attn"
    writer: str | None = None
    norm: Literal["rms", "layer"] | None = "rms"
    qk_norms: tuple[str, ...] = ()
    rotary: bool = True
    scaling: Callable[[Any], float] = _own_scaling
    auto_class: str = "AutoModelForCausalLM"
    unsaid: tuple[str, ...] = ()

    def but(self, *, auto_class: str | None = None, **config: Any) -> "TinyModel":
        """The same model with other values in its config, or made by another auto class."""
        changed = {**self.config, **config}
        return replace(self, config=changed, auto_class=auto_class or self.auto_class)

    def build(self, folder: Path) -> transformers.PreTrainedModel:
        """The model with random parameters, saved to ``folder`` in float32, run in float64."""
        config = transformers.AutoConfig.for_model(self.model_type, **self.config)
        auto_class = getattr(transformers, self.auto_class)
        model: transformers.PreTrainedModel = auto_class.from_config(
            config, attn_implementation="eager"
        )
        randomise(model)
        model.save_pretrained(folder)
        self._leave_out(folder / "config.json")
        return model.eval().double()

    def layers_of(self, model: transformers.PreTrainedModel) -> nn.ModuleList:
        found = model.base_model.get_submodule(self.layers)
        assert isinstance(found, nn.ModuleList)
        return found

    def _leave_out(self, path: Path) -> None:
        config = json.loads(path.read_text())
        for table in (config, config.get("text_config", {})):
            for key in self.unsaid:
                table.pop(key, None)
        path.write_text(json.dumps(config))


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Move every parameter away from its initial value, so that none can be left out unseen.

    Vectors are added to, since a gain starts at 1 or, where the model adds the 1 itself, at 0.
    """
    generator = torch.Generator().manual_seed(SEED)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise * parameter.shape[-1] ** -0.5)
        else:
            parameter.add_(noise * 0.5)


_SMALL = {
    "vocab_size": 40,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BLOCKS = {
    **_SMALL,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_GROUPED = {
    **_BLOCKS,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-20,  # the oracle undoes query and key norms without knowing it
}
_GPT2_BLOCKS = {**_SMALL, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
_QK_NORMS = ("q_norm", "k_norm")
_GEMMA3_UNSAID = ("num_attention_heads", "num_key_value_heads", "query_pre_attn_scalar")

_LLAMA = TinyModel("llama", {**_GROUPED, "head_dim": 6})
_GEMMA = TinyModel("gemma", {**_GROUPED, "head_dim": 12})
_GEMMA2 = replace(_GEMMA, model_type="gemma2").but(
    query_pre_attn_scalar=23,
    attn_logit_softcapping=None,  # a capped score is not bilinear
)
_GEMMA3 = replace(_GEMMA2, model_type="gemma3_text", qk_norms=_QK_NORMS)
_GPT2 = TinyModel("gpt2", _GPT2_BLOCKS, layers="h", attention="attn", norm="layer", rotary=False)
_BERT = TinyModel(
    "bert",
    _BLOCKS,
    layers="encoder.layer",
    attention="attention.self",
    writer="attention.output.dense",
    norm=None,
    rotary=False,
    auto_class="AutoModelForMaskedLM",
)

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
    TinyModel("qwen2_moe", {**_GROUPED, **_MANY}),
    TinyModel("qwen3_moe", {**_GROUPED, **_MANY, "head_dim": 6}, qk_norms=_QK_NORMS),
    *(TinyModel(name, {**_GROUPED, "head_dim": 6}) for name in ("ernie4_5", "seed_oss")),
    TinyModel("helium", {**_GROUPED, "head_dim": 8}),
    TinyModel("smollm3", {**_GROUPED, "no_rope_layers": [1, 0]}),
    TinyModel("granite", {**_GROUPED, "attention_multiplier": 0.3}),
    TinyModel(
        "granitemoe",
        {**_GROUPED, "attention_multiplier": 0.3, "num_local_experts": 2, **_EXPERTS},
    ),
    TinyModel("olmo", _GROUPED, norm="layer"),
    TinyModel("olmo3", _GROUPED, norm=None, qk_norms=_QK_NORMS),
    TinyModel("olmoe", {**_GROUPED, **_MANY}, qk_norms=_QK_NORMS),
    TinyModel("starcoder2", _GROUPED, norm="layer"),
    TinyModel("cohere", _GROUPED, norm="layer"),
    TinyModel("cohere2", {**_GROUPED, "head_dim": 6}, norm="layer"),
    TinyModel("stablelm", _GROUPED, norm="layer"),
    TinyModel("nemotron", {**_GROUPED, "head_dim": 6}, norm="layer"),
    TinyModel("phi3", _GROUPED),
    replace(_LLAMA, model_type="mistral"),
    TinyModel(
        "mixtral",
        {
            **_GROUPED,
            "num_local_experts": 2,
            "experts_implementation": "eager",
        },  # others: no float64
    ),
    TinyModel("qwen2", _GROUPED),
    replace(_LLAMA, model_type="qwen3", qk_norms=_QK_NORMS),
    _GEMMA,
    _GEMMA2,
    _GEMMA3,
    TinyModel(
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
        qk_norms=_QK_NORMS,
        auto_class="AutoModelForImageTextToText",
    ),
    TinyModel("olmo2", _GROUPED, norm=None, qk_norms=_QK_NORMS),
    TinyModel("phi", {**_GROUPED, "partial_rotary_factor": 0.5}, norm="layer"),
    TinyModel("gpt_neox", {**_BLOCKS, "rotary_pct": 0.5}, attention="attention", norm="layer"),
    _GPT2,
    TinyModel(
        "gpt_neo",
        {
            **_SMALL,
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
    replace(
        _GPT2,
        model_type="gptj",
        config={**_GPT2_BLOCKS, "rotary_dim": 4},
        rotary=True,
        scaling=lambda attention: 1.0 / float(attention.scale_attn),
    ),
    TinyModel(
        "opt",
        {**_BLOCKS, "ffn_dim": 24, "word_embed_proj_dim": 32},
        layers="decoder.layers",
        norm="layer",
        rotary=False,
    ),
    _BERT,
    *(replace(_BERT, model_type=name) for name in ("camembert", "roberta", "xlm-roberta")),
    replace(_BERT, model_type="electra").but(embedding_size=16),
    TinyModel(
        "distilbert",
        {**_SMALL, "dim": 32, "hidden_dim": 24, "n_layers": 2, "n_heads": 4},
        layers="transformer.layer",
        attention="attention",
        norm=None,
        rotary=False,
        auto_class="AutoModelForMaskedLM",
    ),
)

#: One model for every model type.
TINY_MODELS = {model.model_type: model for model in _ALL}

#: Models whose config changes what the layer computes, or what its tensors are called.
VARIANTS = {
    "gpt2-scaled-by-layer": _GPT2.but(scale_attn_by_inverse_layer_idx=True),
    "gpt2-unscaled": _GPT2.but(scale_attn_weights=False),
    "gpt2-scaled-by-layer-alone": _GPT2.but(
        scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True
    ),
    "opt-post-norm": replace(TINY_MODELS["opt"], norm=None).but(do_layer_norm_before=False),
    "gpt_neox-sequential": TINY_MODELS["gpt_neox"].but(use_parallel_residual=False),
    "llama-with-biases": _LLAMA.but(attention_bias=True),
    "llama-ungrouped": _LLAMA.but(num_key_value_heads=4),
    "llama-multi-query": _LLAMA.but(num_key_value_heads=1),
    "qwen3-with-biases": TINY_MODELS["qwen3"].but(attention_bias=True),
    "gpt2-with-cross-attention": _GPT2.but(add_cross_attention=True),
    "bert-with-cross-attention": _BERT.but(is_decoder=True, add_cross_attention=True),
    "gemma3-by-default": replace(
        TINY_MODELS["gemma3"].but(
            text_config={k: v for k, v in _GEMMA3.config.items() if k not in _GEMMA3_UNSAID}
        ),
        unsaid=_GEMMA3_UNSAID,
    ),
}

#: Models saved without their heads, whose tensors then lack the head's prefix.
BASE_MODELS = {
    f"{name}-base": model.but(auto_class="AutoModel") for name, model in TINY_MODELS.items()
}
