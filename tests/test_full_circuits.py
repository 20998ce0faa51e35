"""Full circuits over the vocabulary against dense V×V matrices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from full_circuit_oracle import (
    FULL_MODELS,
    Heads,
    antisymmetric,
    dense_circuits,
    eigenvalues,
    set_error,
    singular_values,
    symmetric,
)
from oracle import PAIRS

from qk_taxonomy.catalog import model_ref
from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Circuit, Convention
from qk_taxonomy.studies.circuits import full_circuits
from qk_taxonomy.studies.circuits.records import LayerCircuits, ModelCircuits

TOLERANCE = 1e-8


@dataclass(frozen=True)
class Computed:
    """What is computed of a tiny model, and its dense matrices."""

    found: ModelCircuits
    dense: Heads


def compute(folder: Path, output_root: Path) -> ModelCircuits:
    """Full circuits of a checkpoint folder by the public path."""
    ref = model_ref(str(folder), family_name="tiny", families=())
    return full_circuits(ref, output_root=output_root, circuits=CIRCUITS, conventions=CONVENTIONS)


def worst_errors(found: LayerCircuits, dense: np.ndarray) -> dict[str, float]:
    """By kind of value: the largest error over a layer's heads, relative to a head's largest."""
    theta = np.concatenate([found.antisymmetric, -found.antisymmetric], axis=1)
    return {
        "σ": set_error(found.singular_values, singular_values(dense)),
        "μ": set_error(found.eigenvalues, eigenvalues(dense)),
        "symmetric": set_error(found.symmetric, symmetric(dense)),
        "antisymmetric": set_error(theta, antisymmetric(dense)),
    }


@pytest.fixture(scope="module", params=FULL_MODELS)
def computed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Computed:
    full = FULL_MODELS[request.param]
    folder = tmp_path_factory.mktemp("full")
    model = full.build(folder / "model")
    return Computed(compute(folder / "model", folder), dense_circuits(full, model))


@pytest.mark.parametrize(("circuit", "convention"), PAIRS)
def test_all_values_are_those_of_the_dense_matrices(
    computed: Computed, circuit: Circuit, convention: Convention
) -> None:
    layers = {layer.layer: layer for layer in computed.found.select(circuit, convention)}
    assert layers.keys() == {layer for layer, *_ in computed.dense}
    for number, layer in layers.items():
        errors = worst_errors(layer, computed.dense[number, circuit, convention])
        assert max(errors.values()) < TOLERANCE, f"layer {number}: {errors}"


@pytest.mark.parametrize(("circuit", "convention"), PAIRS)
def test_values_come_in_their_order(
    computed: Computed, circuit: Circuit, convention: Convention
) -> None:
    for layer in computed.found.select(circuit, convention):
        e = layer.singular_values.shape[1]
        moduli = np.abs(layer.eigenvalues)
        for values in (layer.singular_values, moduli, layer.symmetric, layer.antisymmetric):
            assert (np.diff(values, axis=1) <= 1e-12 * np.abs(values).max()).all()
        assert layer.eigenvalues.shape == layer.antisymmetric.shape == layer.singular_values.shape
        assert layer.symmetric.shape[1] == 2 * e
        assert (layer.singular_values >= 0).all()
        assert (layer.antisymmetric >= 0).all()
