"""Full circuits over the vocabulary, of checkpoints, against dense V×V matrices."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_circuit_oracle import (
    FULL_MODELS,
    FullModel,
    Heads,
    antisymmetric,
    dense_circuits,
    eigenvalues,
    ends,
    observed,
    set_error,
    singular_values,
    symmetric,
)
from oracle import PAIRS
from safetensors.numpy import load_file, save_file
from tiny_models import TINY_MODELS
from transformers import PreTrainedModel

from qk_taxonomy.catalog import model_ref
from qk_taxonomy.circuits.full import FullSpectra, full_spectra
from qk_taxonomy.errors import QKTaxonomyError
from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Circuit, Convention
from qk_taxonomy.studies.circuits.compute import full_circuits
from qk_taxonomy.studies.circuits.records import LayerCircuits, ModelCircuits
from qk_taxonomy.studies.circuits.source import CircuitSource

#: Of the largest value of a head.
TOLERANCE = 1e-8
#: Part of what models compute is float32.
OBSERVED_TOLERANCE = 2e-6

Place = tuple[int, Circuit, Convention]


@dataclass(frozen=True)
class Computed:
    """What is found of a tiny model, computed and read from its file, and its dense matrices."""

    exact: dict[Place, FullSpectra]
    found: ModelCircuits
    dense: Heads


def exact(folder: Path) -> dict[Place, FullSpectra]:
    """Spectra of a checkpoint folder as computed, before they are stored."""
    source = CircuitSource.open(model_ref(str(folder), family_name="tiny", families=()))
    return {
        (plan.layer, circuit, convention): full_spectra(
            pair, source.vocabulary(convention), circuit
        )
        for plan in source.layers
        for (circuit, convention), pair in source.factors(plan, CIRCUITS, CONVENTIONS).items()
    }


def public(folder: Path, output_root: Path) -> ModelCircuits:
    ref = model_ref(str(folder), family_name="tiny", families=())
    return full_circuits(ref, output_root=output_root)


def errors(found: FullSpectra | LayerCircuits, dense: np.ndarray[Any, Any]) -> dict[str, float]:
    """By kind of value: the largest error over a layer's heads, relative to a head's largest.

    Parts of F are measured by F: a part of nothing, in a symmetric circuit, is of rounding alone.
    """
    sigma = singular_values(dense)
    theta = np.asarray(found.antisymmetric)
    parts = {
        "σ": (found.singular_values, sigma),
        "μ": (found.eigenvalues, eigenvalues(dense)),
        "symmetric": (found.symmetric, symmetric(dense)),
        "antisymmetric": (np.concatenate([theta, -theta], axis=1), antisymmetric(dense)),
    }
    largest = {"symmetric": sigma[:, 0], "antisymmetric": sigma[:, 0]}
    return {
        name: set_error(np.asarray(one), other, largest.get(name))
        for name, (one, other) in parts.items()
    }


@pytest.fixture(scope="module", params=FULL_MODELS)
def computed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Computed:
    full = FULL_MODELS[request.param]
    root = tmp_path_factory.mktemp("full")
    model = full.build(root / "model")
    return Computed(
        exact(root / "model"), public(root / "model", root), dense_circuits(full, model)
    )


def test_all_values_are_those_of_the_dense_matrices(computed: Computed) -> None:
    assert computed.exact.keys() == computed.dense.keys()
    for place, spectra in computed.exact.items():
        found = errors(spectra, computed.dense[place])
        assert max(found.values()) < TOLERANCE, f"{place}: {found}"


@pytest.mark.parametrize(("circuit", "convention"), PAIRS)
def test_a_file_holds_them(computed: Computed, circuit: Circuit, convention: Convention) -> None:
    layers = computed.found.select(circuit, convention)
    assert [layer.layer for layer in layers] == sorted({place[0] for place in computed.dense})
    for layer in layers:
        found = errors(layer, computed.dense[layer.layer, circuit, convention])
        assert max(found.values()) < TOLERANCE, f"layer {layer.layer}: {found}"


def test_values_come_in_their_order(computed: Computed) -> None:
    for layer in computed.found.layers:
        e = layer.singular_values.shape[1]
        moduli = np.abs(layer.eigenvalues)
        for values in (layer.singular_values, moduli, layer.symmetric, layer.antisymmetric):
            assert (np.diff(values, axis=1) <= TOLERANCE * np.abs(values).max()).all()
        assert layer.eigenvalues.shape == layer.antisymmetric.shape == layer.singular_values.shape
        assert layer.symmetric.shape[1] == 2 * e
        assert (layer.singular_values >= 0).all()
        assert (layer.antisymmetric >= 0).all()


def test_what_a_model_is_said_to_be(computed: Computed) -> None:
    metadata = computed.found.metadata
    (n_tokens,) = {heads.shape[1] for heads in computed.dense.values()}
    assert metadata["n_tokens"] == str(n_tokens)
    assert metadata["d_model"] == "32"
    assert metadata["control"] == ""


#: Each with ends unlike the others': multipliers and logit scales; norms of other kinds, or none;
#: values of another length than keys; layers without attention.
OTHER_ENDS = (
    "cohere",
    "deepseek_v3",
    "falcon",
    "gpt_neox",
    "granite",
    "jamba",
    "lfm2",
    "megatron-bert",
    "mpt",
    "nemotron",
    "nomic_bert",
    "openai-gpt",
    "opt",
)


@pytest.mark.parametrize("model_type", OTHER_ENDS)
def test_circuits_are_those_that_models_compute_on_tokens(model_type: str, tmp_path: Path) -> None:
    tiny = TINY_MODELS[model_type]
    model, folder = tiny.build(tmp_path / "model")
    place, number = ends(tiny, model), tiny.stacks[0].numbers(model)[0]
    tokens = np.arange(model.get_input_embeddings().weight.shape[0])
    found = exact(folder)
    for convention in CONVENTIONS:
        computed = observed(tiny, model, place, number, convention, tokens)
        for circuit in CIRCUITS:
            spectra = found[number, circuit, convention]
            sigma, mu = singular_values(computed[circuit]), eigenvalues(computed[circuit])
            assert set_error(spectra.singular_values.numpy(), sigma) < OBSERVED_TOLERANCE
            error = set_error(spectra.eigenvalues.numpy(), mu, sigma[:, 0])
            assert error < OBSERVED_TOLERANCE


def test_real_weights(minilm: Path) -> None:
    """All tokens of MiniLM, by factors that keep a row for each of them."""
    stored = load_file(minilm / "model.safetensors")
    tensors = {name.removeprefix("bert."): array for name, array in stored.items()}
    words = tensors["embeddings.word_embeddings.weight"].astype(np.float64)
    embed = (words - words.mean(1, keepdims=True)) * tensors["embeddings.LayerNorm.weight"]
    unembed = words - words.mean(0)
    found = exact(minilm)
    layer = "encoder.layer.4.attention."
    q, k, v = (
        tensors[f"{layer}self.{role}.weight"].astype(np.float64).reshape(12, 32, 384)
        for role in ("query", "key", "value")
    )
    o = tensors[f"{layer}output.dense.weight"].astype(np.float64).reshape(384, 12, 32)
    for head in (0, 7):
        factors = {
            "qk": (embed @ q[head].T * 32**-0.5, embed @ k[head].T),
            "ov": (unembed @ o[:, head], embed @ v[head].T),
        }
        for circuit, (a, b) in factors.items():
            cores = [np.linalg.qr(side, mode="r") for side in (a, b)]
            sigma = np.linalg.svd(cores[0] @ cores[1].T, compute_uv=False)
            spectra = found[4, circuit, "folded"]  # type: ignore[index]
            one = slice(head, head + 1)
            assert set_error(spectra.singular_values.numpy()[one], sigma[None]) < TOLERANCE
            mu = np.linalg.eigvals(b.T @ a)[None]
            assert set_error(spectra.eigenvalues.numpy()[one], mu) < TOLERANCE


def rebuilt(
    full: FullModel,
    folder: Path,
    change: Callable[[PreTrainedModel], None] = lambda model: None,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A model saved anew with other weights; in float64, with the values that are stored."""
    model = full.build(folder).to(torch.float32)
    with torch.no_grad():
        change(model)
    model.to(dtype).save_pretrained(folder)
    return model.double()


def embeddings(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    yield from {
        id(module.weight): module.weight
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
    }.values()


def _narrow(model: PreTrainedModel) -> None:
    """Embeddings of rank 4, fewer than d_head: whole numbers, so that rounding adds none."""
    generator = torch.Generator().manual_seed(0)
    for weight in embeddings(model):
        a, b = (
            torch.randint(-4, 5, (size, 4), generator=generator).float() for size in weight.shape
        )
        weight.copy_(a @ b.T / 8)


def _alike(model: PreTrainedModel) -> None:
    """Ten tokens, nine times each and over again."""
    for weight in embeddings(model):
        weight.copy_(weight[torch.arange(len(weight)) % 10])


def _one_direction(model: PreTrainedModel) -> None:
    """What all tokens share is a few hundred times as long as what tells them apart."""
    for weight in embeddings(model):
        weight.add_(300 * weight[7])


def _late_direction(model: PreTrainedModel) -> None:
    """All but the first tokens share a direction."""
    for weight in embeddings(model):
        weight[20:].add_(300 * weight[7])


def _outliers(model: PreTrainedModel) -> None:
    """Numbers of the stream that are large in every token, and tokens longer than others."""
    for weight in embeddings(model):
        weight[:, [3, 11]] *= 200
        weight[:3] *= 100


def _zero_tokens(model: PreTrainedModel) -> None:
    for weight in embeddings(model):
        weight[30:].zero_()


def _silent_heads(model: PreTrainedModel) -> None:
    """A layer whose first head reads and writes nothing."""
    for name, weight in model.named_parameters():
        if ".0." in name and any(part in name for part in ("q_proj", "v_proj")):
            weight[:8].zero_()


def _twins(model: PreTrainedModel) -> None:
    """Q and K of the first layer are one: QK is symmetric, and definite."""
    parameters = dict(model.named_parameters())
    for name, weight in parameters.items():
        if ".0." in name and "k_proj" in name:
            parameters[name.replace("k_proj", "q_proj")].copy_(weight)


NEO, LLAMA = FULL_MODELS["gpt_neo"], FULL_MODELS["llama-untied"]
NEO_SMALL = NEO.with_config(vocab_size=90)


@pytest.mark.parametrize(
    ("full", "change", "dtype"),
    [
        pytest.param(LLAMA, _narrow, torch.float32, id="rank-deficient"),
        pytest.param(NEO_SMALL, _narrow, torch.float32, id="rank-deficient-tied"),
        pytest.param(LLAMA, _alike, torch.float32, id="tokens-alike"),
        pytest.param(LLAMA, _one_direction, torch.float32, id="one-direction"),
        pytest.param(NEO_SMALL, _one_direction, torch.float32, id="one-direction-tied"),
        pytest.param(LLAMA, _late_direction, torch.float32, id="late-direction"),
        pytest.param(LLAMA, _outliers, torch.float32, id="outliers"),
        pytest.param(NEO_SMALL, _outliers, torch.float32, id="outliers-tied"),
        pytest.param(NEO_SMALL, _zero_tokens, torch.float32, id="zero-tokens"),
        pytest.param(NEO_SMALL, _silent_heads, torch.float32, id="silent-heads"),
        pytest.param(NEO_SMALL, _twins, torch.float32, id="symmetric"),
        pytest.param(LLAMA, _alike, torch.float16, id="float16"),
        pytest.param(FULL_MODELS["gemma3"], _zero_tokens, torch.bfloat16, id="bfloat16"),
        pytest.param(LLAMA.with_config(vocab_size=20), None, torch.float32, id="fewer-than-d"),
        pytest.param(LLAMA.with_config(vocab_size=4), None, torch.float32, id="fewer-than-e"),
        pytest.param(LLAMA.with_config(num_key_value_heads=1), None, torch.float32, id="one-kv"),
        pytest.param(LLAMA.with_config(head_dim=40), None, torch.float32, id="e-beyond-d"),
    ],
)
def test_awkward_weights(
    full: FullModel,
    change: Callable[[PreTrainedModel], None] | None,
    dtype: torch.dtype,
    tmp_path: Path,
) -> None:
    model = rebuilt(full, tmp_path, change or (lambda model: None), dtype)
    dense = dense_circuits(full, model)
    for place, spectra in exact(tmp_path).items():
        found = errors(spectra, dense[place])
        assert max(found.values()) < TOLERANCE, f"{place}: {found}"


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head", "q_proj"])
def test_weights_that_are_no_numbers(name: str, tmp_path: Path) -> None:
    def spoil(model: PreTrainedModel) -> None:
        found = [weight for key, weight in model.named_parameters() if name in key]
        found[0][3, 2] = torch.nan

    rebuilt(LLAMA, tmp_path / "model", spoil)
    with pytest.raises(QKTaxonomyError, match="not finite"):
        public(tmp_path / "model", tmp_path)


def test_more_embeddings_than_unembeddings(tmp_path: Path) -> None:
    """Tokens are those of both; the file says so."""
    model = LLAMA.build(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:70].copy()
    save_file(tensors, path)
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            module.weight = torch.nn.Parameter(module.weight[:70])
    dense = dense_circuits(LLAMA, model)
    found = public(tmp_path / "model", tmp_path)
    assert "first 70" in json.loads(found.metadata["notes"])[-1]
    for layer in found.layers:
        error = errors(layer, dense[layer.layer, layer.circuit, layer.convention])
        assert max(error.values()) < TOLERANCE
