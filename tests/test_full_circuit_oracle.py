"""The oracle of full circuits itself: its products against what the models compute."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from full_circuit_oracle import (
    FULL_MODELS,
    Weights,
    antisymmetric,
    dense_circuits,
    eigenvalues,
    ends,
    observed,
    set_error,
    singular_values,
    symmetric,
)

from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Convention

# Part of what models compute is float32: every RMSNorm, and GPT-Neo's scores.
TOLERANCE = 2e-6


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", FULL_MODELS)
def test_products_are_what_the_model_computes(
    name: str, convention: Convention, tmp_path: Path
) -> None:
    full = FULL_MODELS[name]
    model = full.build(tmp_path)
    assert ends(full.tiny, model) == full.ends
    dense = dense_circuits(full, model)
    tokens = np.random.default_rng(0).permutation(dense[0, "qk", "raw"].shape[1])[:30]
    for layer in {key[0] for key in dense}:
        computed = observed(full.tiny, model, full.ends, layer, convention, tokens)
        wanted = {
            "qk": dense[layer, "qk", convention][:, tokens][:, :, tokens],
            "ov": dense[layer, "ov", convention][:, :, tokens],
        }
        for circuit in CIRCUITS:
            found = computed[circuit]
            assert found.shape == wanted[circuit].shape
            error = np.abs(found - wanted[circuit]).max() / np.abs(wanted[circuit]).max()
            assert error < TOLERANCE, f"layer {layer}, {circuit}: {error}"


def _transposed(layer: Any) -> Weights:
    weights = FULL_MODELS["gpt2"].weights(layer)
    return replace(weights, q=weights.k, k=weights.q, o=weights.v.mT, v=weights.o.mT)


@pytest.mark.parametrize(
    ("name", "mistake", "seen_in"),
    [
        pytest.param("gpt2", {"weights": _transposed}, {"qk", "ov"}, id="transposed"),
        pytest.param("gpt2", {"centres": False}, {"ov"}, id="centring-of-logits"),
        pytest.param("gpt2", {"final_norm": None}, {"ov"}, id="final-norm"),
        pytest.param("gemma3", {"offset": 0.0}, {"ov"}, id="offset-of-a-gain"),
        pytest.param("bloom", {"embed_norm": None}, {"qk", "ov"}, id="norm-of-embeddings"),
        pytest.param("llama-untied", {"head": "model.embed_tokens"}, {"ov"}, id="tied"),
    ],
)
def test_a_wrong_product_is_seen(
    name: str, mistake: dict[str, Any], seen_in: set[str], tmp_path: Path
) -> None:
    full = FULL_MODELS[name]
    model = full.build(tmp_path)
    wrong = dense_circuits(replace(full, **mistake), model)
    tokens = np.arange(20)
    computed = observed(full.tiny, model, full.ends, 0, "folded", tokens)
    errors = {
        "qk": computed["qk"] - wrong[0, "qk", "folded"][:, :20, :20],
        "ov": computed["ov"] - wrong[0, "ov", "folded"][:, :, :20],
    }
    for circuit in CIRCUITS:
        error = np.abs(errors[circuit]).max() / np.abs(computed[circuit]).max()
        assert (error > 0.01) == (circuit in seen_in), f"{circuit}: {error}"


@pytest.mark.parametrize("name", ["gpt_neo", "llama-few-tokens"])
def test_values_fit_together(name: str, tmp_path: Path) -> None:
    """Traces and norms, which no factorisation enters; parts of both signs."""
    full = FULL_MODELS[name]
    for heads in dense_circuits(full, full.build(tmp_path)).values():
        sigma, mu = singular_values(heads), eigenvalues(heads)
        sym, anti = symmetric(heads), antisymmetric(heads)
        squares = np.square(heads).sum((1, 2))
        np.testing.assert_allclose(np.square(sigma).sum(1), squares)
        np.testing.assert_allclose(np.square(sym).sum(1) + np.square(anti).sum(1), squares)
        trace = np.trace(heads, axis1=1, axis2=2)
        np.testing.assert_allclose(sym.sum(1), trace, atol=1e-10 * sigma[:, 0].max())
        np.testing.assert_allclose(mu.sum(1).real, trace, atol=1e-9 * sigma[:, 0].max())
        assert set_error(anti, -anti) < 1e-12
