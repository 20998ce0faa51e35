"""Layouts: what a config and tensor names make, and what is refused.

That heads are split as the models themselves split them is shown in test_conformance.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from conftest import LLAMA_CONFIG, llama_tensors

from qk_taxonomy.architectures import attention_layout, restrict
from qk_taxonomy.errors import LayoutError
from qk_taxonomy.records import TensorInfo


def infos(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, "F32", shape, "m", 0, 4) for name, shape in shapes.items()}


def llama(**changes: Any) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    return LLAMA_CONFIG | changes, {name: array.shape for name, array in llama_tensors().items()}


def test_a_plan_names_what_a_circuit_needs() -> None:
    config, shapes = llama()
    layout = attention_layout(config, infos(shapes))
    assert [plan.layer for plan in layout.layers] == [0, 1]
    plan = layout.layers[1]
    assert (plan.geometry.n_heads, plan.geometry.n_kv_heads) == (4, 2)
    assert (plan.geometry.d_head, plan.geometry.d_model) == (8, 24)
    assert plan.geometry.group_size == 2
    assert plan.scale == pytest.approx(8**-0.5)
    assert set(restrict(plan, ["qk"]).tensors) == {"q", "k", "input_norm"}
    assert set(restrict(plan, ["ov"]).tensors) == {"v", "o", "input_norm"}
    assert plan.tensors["q"].name == "model.layers.1.self_attn.q_proj.weight"


def test_layers_are_numbered_as_the_model_numbers_them() -> None:
    shapes = {}
    for i in range(12):
        shapes |= {
            f"model.layers.{i}.self_attn.{x}_proj.weight": (24, 24) for x in ("q", "k", "v", "o")
        }
        shapes[f"model.layers.{i}.input_layernorm.weight"] = (24,)
    config = {"model_type": "llama", "num_hidden_layers": 12, "num_attention_heads": 3}
    layout = attention_layout(config, infos(dict(reversed(shapes.items()))))
    assert [plan.layer for plan in layout.layers] == list(range(12))
    assert layout.layers[11].geometry.d_head == 8


@pytest.mark.parametrize("model_type", ["unheard-of", 7])
def test_unknown_architectures_are_refused_with_the_way_to_add_them(model_type: object) -> None:
    config, shapes = llama(model_type=model_type)
    with pytest.raises(LayoutError) as caught:
        attention_layout(config, infos(shapes))
    message = str(caught.value)
    assert repr(model_type) in message
    assert "model.layers.0.self_attn.q_proj.weight" in message
    assert "--architecture" in message
    assert "architectures.toml" in message


def test_an_architecture_given_by_name() -> None:
    config, shapes = llama(model_type=None)
    assert attention_layout(config, infos(shapes), "llama").architecture == "llama"
    assert attention_layout(config, infos(shapes), "mistral").architecture == "llama"
    with pytest.raises(LayoutError, match="no architecture 'lama'"):
        attention_layout(config, infos(shapes), "lama")


@pytest.mark.parametrize(
    ("changes", "reshape", "message"),
    [
        (
            {"num_attention_heads": None, "head_dim": None},
            {},
            r"no number of attention heads.*o_proj.*\[24, 32\]",
        ),
        ({"num_attention_heads": "4"}, {}, r"num_attention_heads = '4'"),
        ({"num_attention_heads": 3}, {}, r"q_proj.*\[32, 24\].*3 query heads"),
        ({"num_attention_heads": 6, "head_dim": None}, {}, r"\[32, 24\].*do not divide by the 6"),
        ({"head_dim": 16}, {}, r"d_head = 16.*makes it 8"),
        (
            {"num_key_value_heads": 4},
            {},
            r"4 query and 4 key-value.*k_proj.*\[16, 24\].*2 key-value",
        ),
        ({"num_hidden_layers": 3}, {}, r"3 layers.*holds 2 of them.*layer 2 is missing"),
        ({"num_hidden_layers": 1}, {}, r"1 layers.*holds layer 1"),
        ({}, {"q_proj.weight": (32,)}, "a matrix is wanted"),
        ({}, {"k_proj.weight": (16, 23)}, r"layer 0: .*k_proj.*\[16, 23\]"),
        ({}, {"input_layernorm.weight": (23,)}, r"input_layernorm.*\[23\].*\[24\]"),
        ({}, {"k_proj.weight": None}, "k_proj.weight is missing"),
        ({}, {"q_proj.weight": None}, "q_proj.weight is missing"),
        ({}, {"o_proj.weight": None}, "No layer of a llama model"),
        (
            {},
            {"k_proj.weight": (15, 24)},
            r"layer 0: .*k_proj.*\[15, 24\].*q_proj.weight of \[32, 24\]",
        ),
    ],
)
def test_contradictions_name_what_was_wanted_and_found(
    changes: dict[str, Any], reshape: dict[str, tuple[int, ...] | None], message: str
) -> None:
    config, shapes = llama(**changes)
    for ending, shape in reshape.items():
        for name in [name for name in shapes if name.endswith(ending)]:
            if shape is None:
                del shapes[name]
            else:
                shapes[name] = shape
    with pytest.raises(LayoutError, match=message):
        attention_layout(config, infos(shapes))


def test_a_scale_that_the_config_must_give() -> None:
    config, shapes = llama(model_type="gemma2", query_pre_attn_scalar=16)
    assert attention_layout(config, infos(shapes)).layers[0].scale == 0.25
    config["query_pre_attn_scalar"] = "16"
    with pytest.raises(LayoutError, match="needs query_pre_attn_scalar"):
        attention_layout(config, infos(shapes))


def test_values_that_a_config_may_leave_out() -> None:
    tensors = infos(
        {
            "model.language_model.layers.0.input_layernorm.weight": (20,),
            "model.language_model.layers.0.self_attn.q_proj.weight": (64, 20),
            "model.language_model.layers.0.self_attn.k_proj.weight": (32, 20),
            "model.language_model.layers.0.self_attn.v_proj.weight": (32, 20),
            "model.language_model.layers.0.self_attn.o_proj.weight": (20, 64),
            "model.language_model.layers.0.self_attn.q_norm.weight": (8,),
            "model.language_model.layers.0.self_attn.k_norm.weight": (8,),
            "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight": (9, 9),
        }
    )
    config = {"model_type": "gemma3", "text_config": {"num_hidden_layers": 1}}
    plan = attention_layout(config, tensors).layers[0]
    assert (plan.geometry.n_heads, plan.geometry.n_kv_heads) == (8, 4)
    assert plan.scale == 256**-0.5


@pytest.mark.parametrize(
    ("model_type", "output", "said", "message"),
    [
        (
            "mpt",
            "transformer.blocks.0.attn.out_proj.weight",
            {"attn_config": {"qk_ln": True}},
            "attn_config.qk_ln = True: a LayerNorm over all heads mixes them",
        ),
        (
            "mpt",
            "transformer.blocks.0.attn.out_proj.weight",
            {"attn_config": {"qk_ln": False, "softmax_scale": 0.1}},
            "attn_config.softmax_scale = 0.1",
        ),
        (
            "codegen",
            "transformer.h.0.attn.out_proj.weight",
            {"head_dim": 256},
            "CodeGen2's projections are in eight blocks",
        ),
        (
            "hf_olmo",
            "model.transformer.blocks.0.attn_out.weight",
            {"attention_layer_norm": True},
            "a LayerNorm over all heads mixes them",
        ),
    ],
)
def test_attention_that_a_row_does_not_describe_is_refused(
    model_type: str, output: str, said: dict[str, Any], message: str
) -> None:
    tensors = infos({output: (8, 8)})
    with pytest.raises(LayoutError, match=message):
        attention_layout({"model_type": model_type, **said}, tensors)
    with pytest.raises(LayoutError, match="is missing from the checkpoint"):
        attention_layout({"model_type": model_type}, tensors)


@pytest.mark.parametrize("n_next", [None, 1])
def test_layers_that_predict_further_tokens_are_left_out(n_next: int | None) -> None:
    config, shapes = llama(model_type="glm4_moe")
    config["num_hidden_layers"] -= 1
    if n_next is None:
        with pytest.raises(LayoutError, match="layers and the checkpoint holds layer"):
            attention_layout(config, infos(shapes))
    else:
        layout = attention_layout(config | {"num_nextn_predict_layers": n_next}, infos(shapes))
        assert [plan.layer for plan in layout.layers] == list(range(config["num_hidden_layers"]))
        assert "predict further tokens" in layout.notes[0]


def test_head_counts_that_the_config_leaves_out_are_those_of_the_shapes() -> None:
    config, shapes = llama(num_attention_heads=None, num_key_value_heads=None)
    geometry = attention_layout(config, infos(shapes)).layers[0].geometry
    assert (geometry.n_heads, geometry.n_kv_heads, geometry.d_head) == (4, 2, 8)
    fused = {
        "h.0.ln_1.weight": (24,),
        "h.0.attn.c_attn.weight": (24, 72),
        "h.0.attn.c_proj.weight": (24, 24),
    }
    geometry = (
        attention_layout({"model_type": "gpt2", "n_head": 3}, infos(fused)).layers[0].geometry
    )
    assert (geometry.n_heads, geometry.n_kv_heads, geometry.d_head) == (3, 3, 8)


def test_a_model_type_that_the_config_leaves_out() -> None:
    config, shapes = llama(model_type=None)
    with pytest.raises(LayoutError, match=r"fit several architectures \(.*gemma, .*--architecture"):
        attention_layout(config, infos(shapes))
    with pytest.raises(LayoutError, match=r"fit no architecture.*Tensors found: x"):
        attention_layout({}, infos({"x": (2, 2)}))
    bert = {
        f"encoder.layer.{i}.attention.{x}.weight": (24, 24)
        for i in range(2)
        for x in ("self.query", "self.key", "self.value", "output.dense")
    }
    layout = attention_layout({"num_attention_heads": 3}, infos(bert))
    assert (layout.architecture, len(layout.layers)) == ("bert", 2)
    assert "names no model_type" in layout.notes[0]


def test_a_model_without_attention_is_refused_with_the_reason() -> None:
    with pytest.raises(LayoutError, match="mamba model has no attention heads"):
        attention_layout({"model_type": "mamba"}, {})


def test_code_of_its_own_is_named_and_not_run() -> None:
    config, shapes = llama(model_type="theirs", auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(LayoutError, match="auto_map, which is never run"):
        attention_layout(config, infos(shapes))


@pytest.mark.parametrize(
    "name", ["q_norm.weight", "k_norm.weight", "q_layernorm.norms.0.weight", "layer_norm_q.weight"]
)
def test_a_norm_of_queries_or_keys_that_no_row_lists_is_refused(name: str) -> None:
    config, shapes = llama()
    shapes[f"model.layers.1.self_attn.{name}"] = (8,)
    with pytest.raises(LayoutError, match=r"layer 1: .* norms queries or keys"):
        attention_layout(config, infos(shapes))


def test_norms_of_other_modules_are_nobodys_business() -> None:
    config, shapes = llama()
    for name in (
        "self_attn.indexer.k_norm.weight",
        "mlp.norm.weight",
        "self_attn.sink_norm.weight",
    ):
        shapes[f"model.layers.1.{name}"] = (8,)
    assert len(attention_layout(config, infos(shapes)).layers) == 2


def test_layers_that_stand_in_two_places_are_refused() -> None:
    config, shapes = llama()
    shapes |= {name.removeprefix("model."): shape for name, shape in shapes.items()}
    with pytest.raises(LayoutError, match=r"under model\.layers\.\{i\}\. and under layers\."):
        attention_layout(config, infos(shapes))


def test_a_number_written_in_another_way_is_no_layer() -> None:
    config, shapes = llama()
    for name, shape in list(shapes.items()):
        shapes[name.replace("layers.1.", "layers.01.")] = shape
        shapes[name.replace("layers.1.", f"layers.{'9' * 5000}.")] = shape
    assert [plan.layer for plan in attention_layout(config, infos(shapes)).layers] == [0, 1]


def clip_towers(n_heads: int = 2) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for tower, width in (("text_model", 16), ("vision_model", 24)):
        layer = f"{tower}.encoder.layers.0."
        shapes[f"{layer}layer_norm1.weight"] = (width,)
        for x in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{layer}self_attn.{x}.weight"] = (width, width)
    return shapes


def test_a_tower_alone_is_the_one_that_the_config_describes() -> None:
    config = {"num_hidden_layers": 1, "num_attention_heads": 2}
    for model_type, width in (("clip_text_model", 16), ("clip_vision_model", 24)):
        layout = attention_layout(config | {"model_type": model_type}, infos(clip_towers()))
        assert layout.layers[0].geometry.d_model == width


def test_what_clip_says_twice_is_what_transformers_takes() -> None:
    one = {"num_hidden_layers": 1}
    config = {
        "model_type": "clip",
        "text_config": one | {"num_attention_heads": 2},
        "text_config_dict": one | {"num_attention_heads": 4},
        "vision_config": one | {"num_attention_heads": 3},
    }
    heads = attention_layout(config, infos(clip_towers())).stacks
    assert {stack: g.n_heads for stack, g in heads.items()} == {"text": 4, "vision": 3}


@pytest.mark.parametrize(
    ("model_type", "said", "message"),
    [
        (["llama"], {}, "is not in the table"),
        ("llama", {"num_attention_heads": 10**400}, "positive number"),
        ("glm4_moe", {"num_hidden_layers": 1, "num_nextn_predict_layers": [1]}, "positive number"),
        ("granite", {"attention_multiplier": 10**400}, "attention_multiplier"),
        ("deepseek_v3", {"num_hidden_layers": 1, "rope_parameters": [1]}, "rope parameters"),
        (
            "deberta-v2",
            {"num_hidden_layers": 1, "num_key_value_heads": 4, "pos_att_type": [[1]]},
            "pos_att_type",
        ),
        ("mpt", {"norm_type": "rmsnorm"}, "norm_type = 'rmsnorm'"),
    ],
)
def test_values_of_odd_types_are_refused_in_words(
    model_type: Any, said: dict[str, Any], message: str
) -> None:
    config, shapes = llama(model_type=model_type)
    layer = "deberta.encoder.layer.0.attention."
    for name in ("self.query_proj", "self.key_proj", "self.value_proj", "output.dense"):
        shapes[f"{layer}{name}.weight"] = (32, 32)
    shapes["transformer.blocks.0.attn.out_proj.weight"] = (32, 32)
    if model_type == "deepseek_v3":
        shapes = {
            "model.layers.0.input_layernorm.weight": (24,),
            "model.layers.0.self_attn.q_proj.weight": (4 * 10, 24),
            "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": (8, 24),
            "model.layers.0.self_attn.kv_a_layernorm.weight": (6,),
            "model.layers.0.self_attn.kv_b_proj.weight": (4 * 14, 6),
            "model.layers.0.self_attn.o_proj.weight": (24, 4 * 6),
        }
    with pytest.raises(LayoutError, match=message):
        attention_layout(config | said, infos(shapes))


def test_a_layer_norm_over_all_heads_is_refused() -> None:
    config, shapes = llama(model_type="cohere", use_qk_norm=True)
    for i in range(2):
        shapes[f"model.layers.{i}.self_attn.q_norm.weight"] = (4, 8)
        shapes[f"model.layers.{i}.self_attn.k_norm.weight"] = (2, 8)
    assert len(attention_layout(config, infos(shapes)).layers) == 2
    shapes["model.layers.0.self_attn.q_norm.weight"] = (32,)
    with pytest.raises(LayoutError, match="norms all heads together"):
        attention_layout(config, infos(shapes))


def test_cross_attention_that_is_left_out_is_named() -> None:
    layer = "encoder.layer.0."
    bert = {
        f"{layer}attention.{x}.weight": (24, 24)
        for x in ("self.query", "self.key", "self.value", "output.dense")
    }
    config = {"model_type": "bert", "num_attention_heads": 3}
    assert attention_layout(config, infos(bert)).notes == ()
    bert[f"{layer}crossattention.self.query.weight"] = (24, 24)
    assert attention_layout(config, infos(bert)).notes == ("its cross-attention is not surveyed",)
