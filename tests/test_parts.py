"""Layers cut by heads: the parts have the layer's heads, each once, and fit the memory given."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import TINY_MODELS

from qk_taxonomy import open_checkpoint
from qk_taxonomy.architectures import attention_layout, parts, restrict
from qk_taxonomy.architectures.parts import memory_bytes
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.checkpoints.fetched import Fetched, spans
from qk_taxonomy.circuits.conventions import circuit_factors
from qk_taxonomy.circuits.heads import split_heads
from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Circuit, LayerPart, LayerPlan, TensorInfo
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
    limit = share * memory_bytes(whole)
    cut = parts(plan, [circuit], limit)
    assert len(cut) > 1 or cut[0].o_blocks
    if share == 0:
        assert sum(part.plan.geometry.n_heads for part in cut) == plan.geometry.n_heads
        assert {part.plan.geometry.n_heads for part in cut} == {1}
    for convention in CONVENTIONS:
        left, right = factors(checkpoint, whole, circuit, convention)
        keys = right.repeat_interleave(len(left) // len(right), dim=0)
        found = [factors(checkpoint, part, circuit, convention) for part in cut]
        assert torch.equal(torch.cat([a for a, _ in found]), left)
        of_parts = [b.repeat_interleave(len(a) // len(b), dim=0) for a, b in found]
        assert torch.equal(torch.cat(of_parts), keys)


def test_parts_fit_the_memory_where_heads_do(tiny: tuple[Checkpoint, LayerPlan]) -> None:
    _, plan = tiny
    (whole,) = parts(plan, CIRCUITS, np.inf)
    for share in (0.9, 0.6, 0.4):
        limit = share * memory_bytes(whole)
        for part in parts(plan, CIRCUITS, limit):
            one_head = part.plan.geometry.n_heads == 1
            assert memory_bytes(part) <= limit or one_head


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
    from qk_taxonomy.architectures.parts import _rows
    from qk_taxonomy.records import BlockScale

    scale = BlockScale(TensorInfo("s", "F32", (2, 3), "a", 1000, 1024), (4, 4))
    weights = TensorInfo("w", "F8_E4M3", (8, 12), "a", 0, 96, scale=scale)
    cut = _rows(weights, 4, 8)
    assert cut is not None
    assert cut.scale is not None
    assert (cut.start, cut.end, cut.scale.tensor.start) == (48, 96, 1012)
    assert _rows(weights, 2, 6) is None
    whole = dataclasses.replace(
        weights, scale=BlockScale(TensorInfo("s", "F32", (1,), "a", 1000, 1004), (8, 12))
    )
    one = _rows(whole, 2, 6)
    assert one is not None
    assert one.scale == whole.scale
