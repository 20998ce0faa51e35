"""Layouts of encoders and encoder-decoders: published names and configs, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from qk_taxonomy.architectures import attention_layout
from qk_taxonomy.errors import LayoutError
from qk_taxonomy.records import AttentionLayout, TensorInfo

D_MODEL = 24


def infos(names: Iterable[str], rows: int = D_MODEL) -> dict[str, TensorInfo]:
    """Square projections, and vectors for norms."""
    return {
        name: TensorInfo(name, "F32", (D_MODEL,) if "orm" in name else (rows, D_MODEL), "m", 0, 4)
        for name in names
    }


def projections(layer: str, names: str) -> list[str]:
    return [f"{layer}{name}.weight" for name in names.split()]


def albert(**changes: Any) -> AttentionLayout:
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0.attention."
    config = {
        "model_type": "albert",
        "num_attention_heads": 3,
        "num_hidden_groups": 1,
        "num_hidden_layers": 12,
        "inner_group_num": 1,
    }
    return attention_layout(config | changes, infos(projections(layer, "query key value dense")))


def test_layers_that_share_weights_are_surveyed_once() -> None:
    layout = albert()
    assert [plan.layer for plan in layout.layers] == [0]
    assert layout.notes == ("12 layers share the weights of 1, surveyed once",)
    with pytest.raises(LayoutError, match=r"inner_group_num = 2: a group has several layers"):
        albert(inner_group_num=2)


def t5_tensors(*stacks: str) -> dict[str, TensorInfo]:
    names = []
    for stack in stacks:
        for i in range(2):
            layer = f"{stack}.block.{i}.layer."
            names += [f"{layer}0.layer_norm.weight"]
            names += projections(f"{layer}0.SelfAttention.", "q k v o")
            if stack == "decoder":
                names += [f"{layer}1.layer_norm.weight"]
                names += projections(f"{layer}1.EncDecAttention.", "q k v o")
        names.append(f"{stack}.final_layer_norm.weight")
    return infos(names)


T5_CONFIG = {"model_type": "t5", "num_layers": 2, "num_heads": 4, "d_kv": 6}


def test_a_decoder_of_as_many_layers_as_the_encoder() -> None:
    layout = attention_layout(T5_CONFIG, t5_tensors("encoder", "decoder"))
    assert list(layout.stacks) == ["encoder", "decoder", "cross"]
    places = [plan.place for plan in layout.layers]
    assert places == [(stack, i) for stack in ("encoder", "decoder", "cross") for i in (0, 1)]
    cross = layout.layers[-1]
    assert cross.cross
    assert cross.tensors["memory_norm"].name == "encoder.final_layer_norm.weight"
    assert cross.tensors["input_norm"].name == "decoder.block.1.layer.1.layer_norm.weight"
    assert {plan.scale for plan in layout.layers} == {1.0}
    with pytest.raises(LayoutError, match=r"gives 3 layers.*decoder layer 2 is missing"):
        attention_layout(T5_CONFIG | {"num_decoder_layers": 3}, t5_tensors("encoder", "decoder"))


def test_an_encoder_saved_alone() -> None:
    layout = attention_layout(T5_CONFIG, t5_tensors("encoder"))
    assert list(layout.stacks) == ["encoder"]
    assert layout.notes == (
        "there is no decoder stack in this checkpoint",
        "there is no cross stack in this checkpoint",
    )


def mbart(prefix: str) -> AttentionLayout:
    names = [f"{prefix}encoder.layer_norm.weight"]
    for stack in ("encoder", "decoder"):
        layer = f"{prefix}{stack}.layers.0."
        names += [f"{layer}self_attn_layer_norm.weight"]
        names += projections(f"{layer}self_attn.", "q_proj k_proj v_proj out_proj")
    names += [f"{layer}encoder_attn_layer_norm.weight"]
    names += projections(f"{layer}encoder_attn.", "q_proj k_proj v_proj out_proj")
    config = {
        "model_type": "mbart",
        "num_hidden_layers": 12,  # published configs say so, of nothing in particular
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 2,
    }
    return attention_layout(config, infos(names))


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_the_norm_at_the_end_of_the_encoder_is_found(prefix: str) -> None:
    layout = mbart(prefix)
    assert {name: g.n_heads for name, g in layout.stacks.items()} == {
        "encoder": 4,
        "decoder": 2,
        "cross": 2,
    }
    assert layout.layers[-1].tensors["memory_norm"].name == f"{prefix}encoder.layer_norm.weight"


def bert_tensors(*more: str) -> dict[str, TensorInfo]:
    layer = "encoder.layer.0.attention."
    names = projections(layer, "self.query self.key self.value output.dense")
    return infos([*names, *projections(layer, " ".join(more))])


def test_rows_that_agree_need_no_model_type() -> None:
    layout = attention_layout({"num_attention_heads": 4}, bert_tensors())
    assert layout.architecture == "bert"
    assert "names no model_type" in layout.notes[0]
    esm = bert_tensors("LayerNorm")  # read with the norm as ESM does, or without it as BERT does
    with pytest.raises(LayoutError, match=r"fit several architectures .*bert.*esm"):
        attention_layout({"num_attention_heads": 4}, esm)


def test_norms_that_mix_heads_are_refused() -> None:
    tensors = bert_tensors("self.layer_norm_q", "self.layer_norm_k")
    with pytest.raises(LayoutError, match=r"layer_norm_q.*norms queries or keys"):
        attention_layout({"model_type": "bert", "num_attention_heads": 4}, tensors)


@pytest.mark.parametrize(
    ("pos_att_type", "n_terms"), [(None, 1), (["p2c"], 2), ("c2p|p2c", 3), ("p2c|c2p", 3)]
)
def test_the_scale_of_deberta_counts_its_terms(pos_att_type: object, n_terms: int) -> None:
    names = projections("deberta.encoder.layer.0.attention.", "self.in_proj output.dense")
    tensors = infos(names[1:]) | infos(names[:1], rows=3 * D_MODEL)
    config = {"model_type": "deberta", "num_attention_heads": 4, "pos_att_type": pos_att_type}
    (plan,) = attention_layout(config, tensors).layers
    assert plan.scale == pytest.approx((6 * n_terms) ** -0.5)
    with pytest.raises(LayoutError, match="talking_head = True: scores of different heads"):
        attention_layout(config | {"talking_head": True}, tensors)


def test_a_tower_of_a_config_that_says_nothing() -> None:
    names = ["vision_model.encoder.layers.0.layer_norm1.weight"]
    names += projections(
        "vision_model.encoder.layers.0.self_attn.", "q_proj k_proj v_proj out_proj"
    )
    tensors = infos(name.replace(".0.", f".{i}.") for name in names for i in range(12))
    config = {
        "model_type": "siglip",
        "text_config": {"model_type": "siglip_text_model"},
        "vision_config": {"model_type": "siglip_vision_model"},
    }
    layout = attention_layout(config, tensors)
    assert {name: g.n_heads for name, g in layout.stacks.items()} == {"vision": 12}
    assert layout.notes == ("there is no text stack in this checkpoint",)
