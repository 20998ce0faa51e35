"""Tiny encoders, encoder-decoders and vision models."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_base import BLOCKS, TinyModel, one
from transformers import PreTrainedModel

_MASKED = "AutoModelForMaskedLM"


@torch.no_grad()
def _first_position(model: PreTrainedModel) -> None:
    """Give every token the rotation of position 0: sines 0, cosines 1."""
    table = model.base_model.encoder.embed_positions.weight
    table[:, : table.shape[1] // 2] = 0.0
    table[:, table.shape[1] // 2 :] = 1.0


def _as_new(model: PreTrainedModel, folder: Path) -> Path:
    """Save a gte model the way its repositories do, which bring their own code."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "new", "architectures": ["NewModel"], "pack_qkv": True}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    renamed = {re.sub("^gte", "new", name): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors")
    return folder


def _by_head_size(attention: Any) -> float:
    return float(attention.attention_head_size) ** -0.5


_BERT = one(
    "bert",
    BLOCKS,
    layers="encoder.layer",
    attention="attention.self",
    writer="attention.output.dense",
    norm=None,
    rotary=False,
    auto_class=_MASKED,
)
_UNSAID_SCALE = {"scaling": _by_head_size}
_PRE_NORM = _BERT.but(stack={"norm": "layer", "entrance": "attention"})
_RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
_DEBERTA = replace(_BERT, model_type="deberta", zero=("rel_embeddings.weight",)).but(
    **_RELATIVE, stack={"scaling": lambda attention: (3 * attention.attention_head_size) ** -0.5}
)
_MODERNBERT = one(
    "modernbert",
    {**BLOCKS, "num_hidden_layers": 3, "local_attention": 256},
    attention="attn",
    norm="layer",
    unnormed=(0,),
    scaling=lambda attention: attention.head_dim**-0.5,
    auto_class=_MASKED,
)
_GTE = one("gte", BLOCKS, norm=None, auto_class=_MASKED)
_ESM = replace(_PRE_NORM, model_type="esm", zero=("inv_freq",)).but(
    position_embedding_type="rotary", mask_token_id=3, stack=_UNSAID_SCALE
)

_ENCODERS = (
    one(
        "albert",
        {**BLOCKS, "num_hidden_layers": 5, "num_hidden_groups": 2, "embedding_size": 16},
        layers="encoder.albert_layer_groups",
        attention="albert_layers.0.attention",
        writer="albert_layers.0.attention.dense",
        norm=None,
        rotary=False,
        auto_class=_MASKED,
    ),
    _DEBERTA,
    replace(_DEBERTA, model_type="deberta-v2"),
    replace(_BERT, model_type="mpnet", zero=("relative_attention_bias.weight",)).but(
        stack={
            "attention": "attention.attn",
            "writer": "attention.attn.o",
            **_UNSAID_SCALE,
        }
    ),
    _MODERNBERT,
    replace(_MODERNBERT, model_type="modernbert-decoder", auto_class="AutoModelForCausalLM"),
    _ESM,
    *(
        replace(_BERT, model_type=name)
        for name in ("data2vec-text", "ernie", "layoutlm")
    ),
    replace(_BERT, model_type="rembert").but(stack=_UNSAID_SCALE),
    replace(_BERT, model_type="splinter", auto_class="AutoModelForQuestionAnswering"),
    replace(_BERT, model_type="xmod").but(languages=["en_XX"], default_language="en_XX"),
    replace(_BERT, model_type="roformer", still=_first_position).but(
        stack=_UNSAID_SCALE
    ),
    *(
        replace(_PRE_NORM, model_type=name)
        for name in ("roberta-prelayernorm", "xlm-roberta-xl")
    ),
    replace(_PRE_NORM, model_type="megatron-bert").but(stack=_UNSAID_SCALE),
    one("nomic_bert", BLOCKS, norm=None, auto_class=_MASKED),
    _GTE,
    replace(_GTE, model_type="new", made_as="gte", rewrite=_as_new),
    one("eurobert", {**BLOCKS, "num_key_value_heads": 2}, auto_class=_MASKED),
)

MODELS: tuple[TinyModel, ...] = _ENCODERS

VARIANTS: dict[str, TinyModel] = {
    "deberta-absolute": _DEBERTA.but(relative_attention=False),
}
