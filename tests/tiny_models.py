"""Tiny random models of every architecture, made by transformers, and where their parts are.

Nothing here comes from qk_taxonomy: a test that compares the two must know a model's modules
independently of the package's own table.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn

SEED = 20240229


def _own_scaling(attention: Any) -> float:
    return float(attention.scaling)


@dataclass(frozen=True)
class TinyStack:
    """One stack of layers, and the names of the modules that its attention runs through.

    ``layers`` is relative to the base model, the other names to a layer; a layer without a module
    ``attention`` has none. ``writer`` is the module whose output joins the residual stream, where
    that is not the attention module itself; ``entrance`` the one that the residual stream enters,
    where that is not the layer; ``norm`` what happens to it before the attention. ``memory`` is the
    module of the base model through which what cross-attention looks at passes, and
    ``memory_norm`` what it does. ``silent``: parts of modules' outputs that tell positions only.
    """

    name: str = ""
    layers: str = "layers"
    attention: str = "self_attn"
    writer: str | None = None
    entrance: str = ""
    norm: Literal["rms", "layer"] | None = "rms"
    cross: bool = False
    memory: str | None = None
    memory_norm: Literal["rms", "layer"] | None = None
    qk_norms: tuple[str, ...] = ()
    silent: Mapping[str, slice] = field(default_factory=dict)
    gated: bool = False
    scaling: Callable[[Any], float] = _own_scaling
    n_heads: int = 4
    d_input: int = 32

    def layers_of(self, model: transformers.PreTrainedModel) -> nn.ModuleList:
        found = model.base_model.get_submodule(self.layers)
        assert isinstance(found, nn.ModuleList)
        return found

    def numbers(self, model: transformers.PreTrainedModel) -> list[int]:
        """Layers with attention of their own: not shared with an earlier one."""
        seen: dict[int, int] = {}
        for number, layer in enumerate(self.layers_of(model)):
            modules = dict(layer.named_modules())
            if self.attention in modules:
                seen.setdefault(id(modules[self.attention]), number)
        return list(seen.values())


def text(batch: int, n_tokens: int) -> dict[str, Any]:
    """Token ids of a text model without rotary positions."""
    ids = torch.zeros(batch, n_tokens, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def rotary_text(batch: int, n_tokens: int) -> dict[str, Any]:
    """Token ids, all at position 0."""
    ids = torch.zeros(batch, n_tokens, dtype=torch.long)
    return {**text(batch, n_tokens), "position_ids": ids}


@dataclass(frozen=True)
class TinyModel:
    """A model type's config, small, its stacks, and how to run it.

    ``zero`` names parameters, by the end of their names, that are relative position terms and
    nothing else. ``unsaid`` are keys that the saved config.json leaves out, as some published ones
    do. ``rewrite`` saves the model in ``folder`` anew as another program would have, and gives the
    path to survey.
    """

    model_type: str
    config: Mapping[str, Any]
    stacks: tuple[TinyStack, ...] = (TinyStack(),)
    inputs: Callable[[int, int], dict[str, Any]] = rotary_text
    auto_class: str = "AutoModelForCausalLM"
    zero: tuple[str, ...] = ()
    unsaid: tuple[str, ...] = ()
    said_architecture: str | None = None
    rewrite: Callable[[transformers.PreTrainedModel, Path], Path] | None = None

    def but(
        self,
        *,
        auto_class: str | None = None,
        stack: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> "TinyModel":
        """The same model with other values in its config or stacks, or of another auto class."""
        return replace(
            self,
            config={**self.config, **config},
            stacks=tuple(replace(s, **(stack or {})) for s in self.stacks),
            auto_class=auto_class or self.auto_class,
        )

    def build(self, folder: Path) -> tuple[transformers.PreTrainedModel, Path]:
        """The model with random parameters, run in float64, and where it is saved in float32."""
        config = transformers.AutoConfig.for_model(self.model_type, **self.config)
        auto_class = getattr(transformers, self.auto_class)
        model: transformers.PreTrainedModel = auto_class.from_config(
            config, attn_implementation="eager"
        )
        randomise(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(self.zero):
                    parameter.zero_()
        model.save_pretrained(folder)
        self._leave_out(folder / "config.json")
        saved = folder if self.rewrite is None else self.rewrite(model, folder)
        return model.eval().double(), saved

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


def _one(
    model_type: str,
    config: Mapping[str, Any],
    *,
    rotary: bool = True,
    auto_class: str = "AutoModelForCausalLM",
    unsaid: tuple[str, ...] = (),
    zero: tuple[str, ...] = (),
    **stack: Any,
) -> TinyModel:
    """A text model of one stack."""
    return TinyModel(
        model_type,
        config,
        (TinyStack(**stack),),
        inputs=rotary_text if rotary else text,
        auto_class=auto_class,
        unsaid=unsaid,
        zero=zero,
    )


_LLAMA = _one("llama", {**_GROUPED, "head_dim": 6})
_GEMMA = _one("gemma", {**_GROUPED, "head_dim": 12})
_GEMMA2 = replace(_GEMMA, model_type="gemma2").but(
    query_pre_attn_scalar=23,
    attn_logit_softcapping=None,  # a capped score is not bilinear
)
_GEMMA3 = replace(_GEMMA2, model_type="gemma3_text").but(stack={"qk_norms": _QK_NORMS})
_GPT2 = _one("gpt2", _GPT2_BLOCKS, layers="h", attention="attn", norm="layer", rotary=False)
_BERT = _one(
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
    _one("qwen2_moe", {**_GROUPED, **_MANY}),
    _one("qwen3_moe", {**_GROUPED, **_MANY, "head_dim": 6}, qk_norms=_QK_NORMS),
    *(_one(name, {**_GROUPED, "head_dim": 6}) for name in ("ernie4_5", "seed_oss")),
    _one("helium", {**_GROUPED, "head_dim": 8}),
    _one("smollm3", {**_GROUPED, "no_rope_layers": [1, 0]}),
    _one("granite", {**_GROUPED, "attention_multiplier": 0.3}),
    _one(
        "granitemoe",
        {**_GROUPED, "attention_multiplier": 0.3, "num_local_experts": 2, **_EXPERTS},
    ),
    _one("olmo", _GROUPED, norm="layer"),
    _one("olmo3", _GROUPED, norm=None, qk_norms=_QK_NORMS),
    _one("olmoe", {**_GROUPED, **_MANY}, qk_norms=_QK_NORMS),
    _one("starcoder2", _GROUPED, norm="layer"),
    _one("cohere", _GROUPED, norm="layer"),
    _one("cohere2", {**_GROUPED, "head_dim": 6}, norm="layer"),
    _one("stablelm", _GROUPED, norm="layer"),
    _one("nemotron", {**_GROUPED, "head_dim": 6}, norm="layer"),
    _one("phi3", _GROUPED),
    replace(_LLAMA, model_type="mistral"),
    _one(
        "mixtral",
        {
            **_GROUPED,
            "num_local_experts": 2,
            "experts_implementation": "eager",
        },  # others: no float64
    ),
    _one("qwen2", _GROUPED),
    replace(_LLAMA, model_type="qwen3").but(stack={"qk_norms": _QK_NORMS}),
    _GEMMA,
    _GEMMA2,
    _GEMMA3,
    _one(
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
    _one("olmo2", _GROUPED, norm=None, qk_norms=_QK_NORMS),
    _one("phi", {**_GROUPED, "partial_rotary_factor": 0.5}, norm="layer"),
    _one("gpt_neox", {**_BLOCKS, "rotary_pct": 0.5}, attention="attention", norm="layer"),
    _GPT2,
    _one(
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
    _one(
        "gptj",
        {**_GPT2_BLOCKS, "rotary_dim": 4},
        layers="h",
        attention="attn",
        norm="layer",
        scaling=lambda attention: 1.0 / float(attention.scale_attn),
    ),
    _one(
        "opt",
        {**_BLOCKS, "ffn_dim": 24, "word_embed_proj_dim": 32},
        layers="decoder.layers",
        norm="layer",
        rotary=False,
    ),
    _BERT,
    *(replace(_BERT, model_type=name) for name in ("camembert", "roberta", "xlm-roberta")),
    replace(_BERT, model_type="electra").but(embedding_size=16),
    _one(
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
    "opt-post-norm": TINY_MODELS["opt"].but(stack={"norm": None}, do_layer_norm_before=False),
    "gpt_neox-sequential": TINY_MODELS["gpt_neox"].but(use_parallel_residual=False),
    "llama-with-biases": _LLAMA.but(attention_bias=True),
    "llama-ungrouped": _LLAMA.but(num_key_value_heads=4),
    "llama-multi-query": _LLAMA.but(num_key_value_heads=1),
    "qwen3-with-biases": TINY_MODELS["qwen3"].but(attention_bias=True),
    "gpt2-with-cross-attention": _GPT2.but(add_cross_attention=True),
    "bert-with-cross-attention": _BERT.but(is_decoder=True, add_cross_attention=True),
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
