"""Layers cut by heads: the parts have the layer's heads, each once, and fit the memory given."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from conftest import LLAMA_CONFIG
from gguf_models import finish
from public_layers import BLOCK, public_layers
from safetensors.torch import save_file
from test_adapters import make_adapter
from tiny_models import TINY_MODELS

from qk_taxonomy import open_checkpoint
from qk_taxonomy.architectures import attention_layout, parts, restrict
from qk_taxonomy.architectures.parts import memory_bytes, rows_of
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.checkpoints.fetched import Fetched, spans
from qk_taxonomy.circuits.conventions import circuit_factors
from qk_taxonomy.circuits.heads import split_heads
from qk_taxonomy.records import (
    CIRCUITS,
    CONVENTIONS,
    Circuit,
    HeadGeometry,
    LayerPart,
    LayerPlan,
    LowRankUpdate,
    TensorInfo,
)
from qk_taxonomy.survey.layers import joined, survey_part

# Every packing; norms of queries and keys of each kind; gates, groups, latents, one key for all.
CUT = [
    *("llama", "qwen3", "olmo2", "cohere", "persimmon", "stablelm", "qwen3_5_text"),
    *("phi3", "mpt", "gpt_neox", "falcon", "bloom", "codegen", "deepseek_v3", "gpt_bigcode"),
]


@pytest.fixture(scope="module", params=CUT)
def tiny(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, LayerPlan]:
    """A tiny model and one of its layers."""
    _, path = TINY_MODELS[request.param].build(tmp_path_factory.mktemp(request.param))
    checkpoint = open_checkpoint(str(path))
    return checkpoint, attention_layout(checkpoint.config, checkpoint.tensors).layers[-1]


def factors(
    checkpoint: Checkpoint, part: LayerPart, circuit: Circuit, convention: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Left and right factors of all heads of a part, gains of heads multiplied in."""
    tensors = checkpoint.read_all(part.plan.tensors)
    if part.o_blocks:
        tensors["o"] = torch.cat([checkpoint.read(block) for block in part.o_blocks])
    left, right, _ = circuit_factors(part.plan, tensors, circuit, [convention])[0]
    return tuple(  # type: ignore[return-value]
        side.weights.double() * (1.0 if side.rows is None else side.rows[..., None])
        for side in (left, right)
    )


@pytest.mark.parametrize("circuit", CIRCUITS)
@pytest.mark.parametrize("share", [0.7, 0.3, 0.0])
def test_parts_have_the_heads_of_the_layer(
    tiny: tuple[Checkpoint, LayerPlan], circuit: Circuit, share: float
) -> None:
    checkpoint, plan = tiny
    (whole,) = parts(plan, [circuit], np.inf)
    cut = parts(plan, [circuit], share * memory_bytes(whole))
    assert sum(part.plan.geometry.n_heads for part in cut) == plan.geometry.n_heads
    if circuit == "ov":
        assert len(cut) == 1
        assert cut[0].o_blocks or share > 0.5
    elif share == 0:
        assert len(cut) == n_pieces(plan)
    for convention in CONVENTIONS:
        left, right = factors(checkpoint, whole, circuit, convention)
        keys = right.repeat_interleave(len(left) // len(right), dim=0)
        found = [factors(checkpoint, part, circuit, convention) for part in cut]
        assert torch.equal(torch.cat([a for a, _ in found]), left)
        of_parts = [b.repeat_interleave(len(a) // len(b), dim=0) for a, b in found]
        assert torch.equal(torch.cat(of_parts), keys)


def n_pieces(plan: LayerPlan) -> int:
    """Parts of QK where memory is short: one a key-value head, or a block of them; of a latent
    layer, whose latents each would read again, one.
    """
    return {"latent": 1, "blocks": plan.n_blocks}.get(plan.packing, plan.geometry.n_kv_heads)


def test_spectra_of_parts_are_those_of_the_layer(tiny: tuple[Checkpoint, LayerPlan]) -> None:
    checkpoint, plan = tiny
    spectra = [
        joined(
            survey_part(checkpoint, part, CONVENTIONS, "cpu")
            for part in parts(plan, CIRCUITS, limit)
        )
        for limit in (np.inf, 0.3 * memory_bytes(LayerPart(plan, CIRCUITS)))
    ]
    assert [(s.circuit, s.convention) for s in spectra[0]] == [
        (s.circuit, s.convention) for s in spectra[1]
    ]
    for a, b in zip(*spectra, strict=True):
        np.testing.assert_allclose(b.singular_values, a.singular_values, rtol=1e-9)
        largest = abs(a.eigenvalues).max(axis=1, keepdims=True)
        assert (abs(abs(b.eigenvalues) - abs(a.eigenvalues)) < 1e-6 * largest).all()
        np.testing.assert_allclose(b.statistics, a.statistics, rtol=1e-5)


PUBLIC = dict(public_layers())

#: What a part may hold, and what is worth a request, at the default memory of 256 MB.
LIMIT, HANDY = (256e6 - 64e6) / 3, 16e6


def fetched_bytes(part: LayerPart) -> int:
    """Bytes of the ranges that reading a part asks for."""
    ranges = [*spans(part.plan.tensors.values())]
    for block in part.o_blocks:
        ranges += [(each.file, each.start, each.end) for each in (block, *block.companions)]
    return sum(end - start for _, start, end in ranges)


@pytest.mark.parametrize("circuits", [("qk",), ("ov",), CIRCUITS], ids="+".join)
@pytest.mark.parametrize("limit", [LIMIT, LIMIT / 8])
def test_cutting_public_layers_reads_nothing_twice(
    circuits: tuple[Circuit, ...], limit: float
) -> None:
    for name, plan in PUBLIC.items():
        cut = parts(plan, circuits, limit, HANDY)
        needed = restrict(plan, circuits)
        gains = sum(info.n_bytes for role, info in needed.tensors.items() if "norm" in role)
        moved = sum(map(fetched_bytes, cut))
        assert needed.n_bytes <= moved, name
        assert moved <= 1.02 * needed.n_bytes + (len(cut) - 1) * gains, name
        assert moved == sum(part.n_bytes for part in cut), name
        for circuit in circuits:
            own = [part.plan.geometry.n_heads for part in cut if circuit in part.circuits]
            assert sum(own) == plan.geometry.n_heads, name


@pytest.mark.parametrize("limit", [LIMIT, LIMIT / 8])
def test_public_layers_fit_the_memory_where_they_can_be_cut(limit: float) -> None:
    for name, plan in PUBLIC.items():
        g = plan.geometry
        in_fp8 = plan.tensors["o"].scale is not None
        if plan.packing == "latent" or g.n_kv_heads == 1 or (in_fp8 and g.d_head % BLOCK):
            continue
        # The least is one key with its queries, or a block of heads.
        least = g.n_heads // plan.n_blocks if plan.packing == "blocks" else g.group_size
        for part in parts(plan, ["qk"], limit, HANDY):
            fits = memory_bytes(part) <= min(limit, HANDY)
            assert fits or part.plan.geometry.n_heads == least, name


def test_heads_that_share_factors_of_fp8_go_together() -> None:
    # 8 heads of 80 rows fill 5 blocks of 128.
    cut = parts(PUBLIC["EleutherAI/pythia-2.8b separate F8_E4M3"], ["qk"], 0)
    assert [part.plan.geometry.n_heads for part in cut] == [8, 8, 8, 8]
    for part in cut:
        scale = part.plan.tensors["q"].scale
        assert scale is not None
        assert scale.tensor.shape == (5, 20)


def test_layers_go_in_the_parts_they_should() -> None:
    def cut(name: str, *circuits: Circuit) -> list[LayerPart]:
        return parts(PUBLIC[name], circuits, LIMIT, HANDY)

    # A key is read with all of its queries, though 16 of them take more than the limit.
    assert len(cut("meta-llama/Llama-3.1-405B separate BF16", "qk")) == 8
    for dtype in ("BF16", "F8_E4M3"):
        for circuits in (("qk",), ("ov",), CIRCUITS):
            (part,) = cut(f"deepseek-ai/DeepSeek-V3 latent {dtype}", *circuits)
            assert bool(part.o_blocks) == ("ov" in circuits)
    # Queries, keys and values that are stored together are read together, in one range.
    for part in cut("EleutherAI/pythia-6.9b grouped BF16", "qk"):
        assert set(part.plan.tensors) == {"qkv", "input_norm"}
        assert part.plan.packing == "grouped"
    (both,) = cut("EleutherAI/pythia-6.9b grouped BF16", *CIRCUITS)
    assert both.circuits == CIRCUITS
    assert both.o_blocks


def test_memory_counts_latents_in_float64_under_both_conventions() -> None:
    (part,) = parts(PUBLIC["deepseek-ai/DeepSeek-V3 latent BF16"], ["qk"], LIMIT, HANDY)
    latents = (1536 + 576) * 7168
    assert memory_bytes(part) > part.n_bytes + 2 * 8 * latents


class Recording:
    """A checkpoint that keeps count of the ranges that are read of it."""

    def __init__(self, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ranges: list[tuple[str, int, int]] = []
        read = checkpoint.read_bytes

        def read_bytes(file: str, start: int, end: int) -> bytearray:
            self.ranges.append((file, start, end))
            return read(file, start, end)

        monkeypatch.setattr(checkpoint, "read_bytes", read_bytes)

    @property
    def n_bytes(self) -> int:
        return sum(end - start for _, start, end in self.ranges)


@pytest.mark.parametrize("share", [np.inf, 0.4, 0.0])
def test_parts_move_what_they_say_and_w_o_once(
    tiny: tuple[Checkpoint, LayerPlan], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, plan = tiny
    limit = share if share == np.inf else share * memory_bytes(LayerPart(plan, CIRCUITS))
    for part in parts(plan, CIRCUITS, limit):
        with monkeypatch.context() as patch:
            recording = Recording(checkpoint, patch)
            spectra = survey_part(checkpoint, part, ["raw"], "cpu")
        assert sum(each.n_recomputed for each in spectra) == 0 or not part.o_blocks
        assert recording.n_bytes == part.n_bytes
        assert len(set(recording.ranges)) == len(recording.ranges)


def test_only_the_rows_that_are_needed_of_a_concatenated_projection(tmp_path: Path) -> None:
    _, path = TINY_MODELS["phi3"].build(tmp_path)
    checkpoint = open_checkpoint(str(path))
    plan = attention_layout(checkpoint.config, checkpoint.tensors).layers[0]
    g, fused = plan.geometry, plan.tensors["qkv"].n_bytes
    values = fused * g.n_kv_heads // (g.n_heads + 2 * g.n_kv_heads)
    of = {c: restrict(plan, [c]).tensors for c in CIRCUITS}
    assert sum(info.n_bytes for role, info in of["qk"].items() if role in "qk") == fused - values
    assert of["ov"]["v"].n_bytes == values
    assert set(restrict(plan, CIRCUITS).tensors) == {"qkv", "o", "input_norm"}
    heads = split_heads(plan, checkpoint.read_all(plan.tensors))
    cut = restrict(plan, ["ov"])
    assert torch.equal(split_heads(cut, checkpoint.read_all(cut.tensors))["v"], heads["v"])


def test_columns_cannot_be_cut(tmp_path: Path) -> None:
    _, path = TINY_MODELS["gpt2"].build(tmp_path)
    checkpoint = open_checkpoint(str(path))
    plan = attention_layout(checkpoint.config, checkpoint.tensors).layers[0]
    assert parts(plan, ["qk"], 1) == [LayerPart(restrict(plan, ["qk"]), ("qk",))]


def test_a_gain_of_heads_that_cannot_be_cut_keeps_the_layer_whole(tmp_path: Path) -> None:
    _, path = TINY_MODELS["olmo2"].build(tmp_path)
    checkpoint = open_checkpoint(str(path))
    plan = attention_layout(checkpoint.config, checkpoint.tensors).layers[0]
    assert len(parts(plan, ["qk"], 0)) > 1
    # Every second number of a storage, as a .bin may have it.
    gain = dataclasses.replace(plan.tensors["q_norm"], stride=(2,))
    strided = dataclasses.replace(plan, tensors={**plan.tensors, "q_norm": gain})
    assert parts(strided, ["qk"], 0) == [LayerPart(restrict(strided, ["qk"]), ("qk",))]


def info(name: str, start: int, end: int, file: str = "a") -> TensorInfo:
    return TensorInfo(name, "F32", ((end - start) // 4,), file, start, end)


def test_neighbours_are_fetched_together_and_others_apart() -> None:
    kilo = 1000
    near = [info("a", 0, 4 * kilo), info("b", 8 * kilo, 12 * kilo)]
    far = [info("c", 20 * kilo, 24 * kilo), info("d", 20 * kilo, 24 * kilo, file="b")]
    assert spans([*far, *reversed(near)]) == [
        ("a", 0, 12 * kilo),
        ("a", 20 * kilo, 24 * kilo),
        ("b", 20 * kilo, 24 * kilo),
    ]
    # A gap that is large in bytes is small beside what the request moves, up to a 64th of it.
    large = 10_000_000
    assert len(spans([info("a", 0, large), info("b", large + 100_000, large + 200_000)])) == 1
    assert len(spans([info("a", 0, large), info("b", large + 200_000, large + 300_000)])) == 2


def test_every_range_is_asked_for_once() -> None:
    stored = bytes(range(256)) * 64
    asked = []

    def read(file: str, start: int, end: int) -> bytearray:
        asked.append((start, end))
        return bytearray(stored[start:end])

    infos = [info("a", 4, 404), info("b", 406, 806), info("c", 12_000, 12_400)]
    fetched = Fetched(read, infos)
    for each in infos:
        assert bytes(fetched.read_bytes("a", each.start, each.end)) == stored[each.start : each.end]
    assert asked == [(4, 806), (12_000, 12_400)]
    assert bytes(fetched.read_bytes("a", 9000, 9004)) == stored[9000:9004]


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16"])
def test_tensors_between_machine_words_are_read(tmp_path: Path, dtype: str) -> None:
    numbers = np.arange(20).astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])
    stored = b"xyz" + numbers.tobytes()
    fetched = Fetched(
        lambda file, start, end: bytearray(stored[start:end]), [info("all", 0, len(stored))]
    )
    piece = fetched.read_bytes("a", 3, len(stored))
    found = torch.frombuffer(piece, dtype={"F64": torch.float64, "F32": torch.float32}.get(
        dtype, torch.float16
    ))  # fmt: skip
    assert found.tolist() == numbers.tolist()


def test_scales_of_blocks_are_cut_with_their_rows() -> None:
    from qk_taxonomy.records import BlockScale

    scale = BlockScale(TensorInfo("s", "F32", (2, 3), "a", 1000, 1024), (4, 4))
    weights = TensorInfo("w", "F8_E4M3", (8, 12), "a", 0, 96, scale=scale)
    cut = rows_of(weights, 4, 8)
    assert cut is not None
    assert cut.scale is not None
    assert (cut.start, cut.end, cut.scale.tensor.start) == (48, 96, 1012)
    assert rows_of(weights, 2, 6) is None
    whole = dataclasses.replace(
        weights, scale=BlockScale(TensorInfo("s", "F32", (1,), "a", 1000, 1004), (8, 12))
    )
    one = rows_of(whole, 2, 6)
    assert one is not None
    assert one.scale == whole.scale


def assert_parts_give_the_spectra_of_the_layer(checkpoint: Checkpoint) -> None:
    """Cut as far as it can be, the first layer has the spectra that it has as a whole, and its
    parts move what they say.
    """
    plan = attention_layout(checkpoint.config, checkpoint.tensors).layers[0]
    (whole,) = parts(plan, CIRCUITS, np.inf)
    cut = parts(plan, CIRCUITS, 0)
    assert len(cut) > 2
    assert cut[-1].o_blocks
    wanted = survey_part(checkpoint, whole, CONVENTIONS, "cpu")
    with pytest.MonkeyPatch.context() as patch:
        recording = Recording(checkpoint, patch)
        found = joined(survey_part(checkpoint, part, CONVENTIONS, "cpu") for part in cut)
    assert sum(each.n_recomputed for each in found) == 0
    assert recording.n_bytes == sum(part.n_bytes for part in cut)
    for a, b in zip(wanted, found, strict=True):
        assert (a.circuit, a.convention) == (b.circuit, b.convention)
        np.testing.assert_allclose(b.singular_values, a.singular_values, rtol=1e-6)


#: Heads of 64 rows, of which two fill a block of fp8, and rows of whole blocks of GGUF.
WIDE = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_hidden_layers": 1,
}


def wide_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.0.self_attn.{role}_proj.weight" for role in "qkvo"]
    tensors = {name: torch.randn(256, 256, generator=generator) for name in names}
    return tensors | {"model.layers.0.input_layernorm.weight": torch.rand(256) + 0.5}


def save_wide(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA_CONFIG | WIDE | config))
    return folder


def test_parts_of_fp8_in_blocks(tmp_path: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in wide_tensors().items():
        if weight.dim() == 2:
            tensors[f"{name}_scale_inv"] = torch.rand(2, 2) + 0.1
            tensors[name] = weight.to(torch.float8_e4m3fn)
        else:
            tensors[name] = weight
    said = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    checkpoint = open_checkpoint(
        str(save_wide(tmp_path / "fp8", tensors, quantization_config=said))
    )
    assert_parts_give_the_spectra_of_the_layer(checkpoint)


def test_parts_of_weights_with_a_lora_update(tmp_path: Path) -> None:
    base = save_wide(tmp_path / "base", wide_tensors())
    # Of rank 1, so that reading A once for each part is little.
    adapter = {
        f"base_model.model.model.layers.0.self_attn.{role}_proj.lora_{side}.weight": torch.randn(
            (1, 256) if side == "A" else (256, 1)
        )
        for role in "qvo"
        for side in "AB"
    }
    said = {"target_modules": ["q_proj", "v_proj", "o_proj"], "r": 1}
    checkpoint = open_checkpoint(str(make_adapter(tmp_path / "lora", base, adapter, **said)))
    assert_parts_give_the_spectra_of_the_layer(checkpoint)


def test_updates_of_a_high_rank_keep_the_heads_together() -> None:
    a = TensorInfo("a", "F32", (64, 256), "b", 0, 64 * 256 * 4)
    b = TensorInfo("b", "F32", (256, 64), "b", a.end, 2 * a.end)
    weights = TensorInfo("w", "F32", (256, 256), "a", 0, 256 * 256 * 4)
    q = dataclasses.replace(weights, update=LowRankUpdate(a, b, 1.0, transposed=False))
    k = dataclasses.replace(weights, file="k")
    plan = LayerPlan(0, HeadGeometry(4, 4, 64, 64, 256, 256), "separate", 1.0, {"q": q, "k": k})
    assert len(parts(plan, ["qk"], 0)) == 1
    plain = dataclasses.replace(plan, tensors={"q": weights, "k": k})
    assert len(parts(plain, ["qk"], 0)) == 4


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_parts_of_gguf_rows(tmp_path: Path, kind: str) -> None:
    quantisation = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    for key, value in {
        "block_count": 1,
        "embedding_length": 256,
        "attention.head_count": 4,
        "attention.head_count_kv": 4,
        "attention.key_length": 64,
        "attention.value_length": 64,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_token_list(["a", "b"])
    rng = np.random.default_rng(0)
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(256, np.float32))
    for role in ("q", "k", "v", "output"):
        weight = rng.standard_normal((256, 256)).astype(np.float32)
        stored = gguf.quants.quantize(weight, quantisation)
        writer.add_tensor(f"blk.0.attn_{role}.weight", stored, raw_dtype=quantisation)
    finish(writer)
    assert_parts_give_the_spectra_of_the_layer(open_checkpoint(str(tmp_path / "tiny.gguf")))
