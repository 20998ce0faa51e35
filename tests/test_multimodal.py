"""Models that hold a language model: it is surveyed, and nothing else of them is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tiny_models import BASE_MODELS, TINY_MODELS, VARIANTS
from transformers import AutoConfig

from qk_taxonomy.architectures import architecture_table, attention_layout
from qk_taxonomy.checkpoints.open import open_checkpoint
from qk_taxonomy.errors import LayoutError
from qk_taxonomy.records import TensorInfo

WRAPPERS = sorted(
    name
    for row in architecture_table().rows.values()
    if row.wraps is not None
    for name in row.model_types
)
MODELS = TINY_MODELS | BASE_MODELS | VARIANTS

#: Parts of the names of tensors that see or hear, or join that to the language model.
OTHERS = ("vision", "visual", "audio", "image", "projector", "connector", "embed_vision", "vit.")


def infos(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, "F32", shape, "m", 0, 4) for name, shape in shapes.items()}


def llama_layers(
    prefix: str, n_layers: int, d_head: int, n_heads: int, n_kv_heads: int
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(n_layers):
        layer = f"{prefix}layers.{i}."
        shapes |= {
            f"{layer}input_layernorm.weight": (24,),
            f"{layer}self_attn.q_proj.weight": (n_heads * d_head, 24),
            f"{layer}self_attn.k_proj.weight": (n_kv_heads * d_head, 24),
            f"{layer}self_attn.v_proj.weight": (n_kv_heads * d_head, 24),
            f"{layer}self_attn.o_proj.weight": (24, n_heads * d_head),
        }
    return shapes


@pytest.mark.parametrize("name", [*WRAPPERS, *(f"{name}-base" for name in WRAPPERS)])
def test_nothing_but_the_language_model_is_read(name: str, tmp_path: Path) -> None:
    _, folder = MODELS[name].build(tmp_path / "model")
    checkpoint = open_checkpoint(str(folder))
    others = {tensor for tensor in checkpoint.tensors if any(part in tensor for part in OTHERS)}
    assert any(re.search(r"(layers?|blocks?)\.\d+\.", tensor) for tensor in others)
    layout = attention_layout(checkpoint.config, checkpoint.tensors)
    taken = {info.name for plan in layout.layers for info in plan.tensors.values()}
    assert not taken & others
    assert "of this model only the language model is surveyed" in layout.notes
    alone = {key: info for key, info in checkpoint.tensors.items() if key in others}
    with pytest.raises(LayoutError, match="No layer of a"):
        attention_layout(checkpoint.config, alone)


@pytest.mark.parametrize(
    ("inner", "n_heads", "n_kv_heads", "n_layers"),
    [("llama", 32, 32, 32), ("mistral", 32, 8, 32), ("qwen2", 32, 4, 32), ("gemma", 16, 16, 28)],
)
def test_what_a_nested_config_leaves_out(
    inner: str, n_heads: int, n_kv_heads: int, n_layers: int
) -> None:
    """LLaVA's say the model type and little else where the language model's defaults hold."""
    config = {"model_type": "llava", "text_config": {"model_type": inner}}
    shapes = llama_layers("language_model.model.", n_layers, 6, n_heads, n_kv_heads)
    layout = attention_layout(config, infos(shapes))
    assert len(layout.layers) == n_layers
    geometry = layout.layers[0].geometry
    assert (geometry.n_heads, geometry.n_kv_heads, geometry.d_head) == (n_heads, n_kv_heads, 6)
    shapes = llama_layers("language_model.model.", n_layers - 1, 6, n_heads, n_kv_heads)
    with pytest.raises(LayoutError, match=f"layer {n_layers - 1} is missing"):
        attention_layout(config, infos(shapes))


@pytest.mark.parametrize("inner", architecture_table().rows["multimodal"].left_out)
def test_what_is_left_out_is_what_transformers_takes(inner: str) -> None:
    config = AutoConfig.for_model(inner)
    left_out = architecture_table().rows["multimodal"].left_out[inner]
    assert left_out == {key: getattr(config, key) for key in left_out}


def test_a_flat_config() -> None:
    """The first LLaVA's, which adds to a Llama's."""
    config: dict[str, Any] = {
        "model_type": "llava",
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    }
    shapes = llama_layers("model.", 2, 6, 4, 4)
    shapes |= llama_layers("model.vision_tower.vision_tower.vision_model.encoder.", 3, 8, 2, 2)
    layout = attention_layout(config, infos(shapes))
    assert (layout.model_type, len(layout.layers)) == ("llava", 2)
    assert layout.layers[0].tensors["q"].name == "model.layers.0.self_attn.q_proj.weight"


def test_a_language_model_that_is_not_in_the_table() -> None:
    config = {"model_type": "llava", "text_config": {"model_type": "ferret"}}
    with pytest.raises(LayoutError, match=r"llava model holds.*text_config.*'ferret'"):
        attention_layout(config, infos(llama_layers("language_model.model.", 2, 6, 4, 4)))


def test_a_nested_config_that_names_no_model_type_is_refused() -> None:
    with pytest.raises(
        LayoutError, match=r"holds another under text_config.*None is not in the table"
    ):
        attention_layout({"model_type": "qwen3_vl", "text_config": {"num_hidden_layers": 1}}, {})
