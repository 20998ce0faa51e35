"""Circuits of latent attention against dense matrices composed by NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from dense import contract_error, dense_singular_values, eigenvalue_error

from qk_taxonomy.architectures import restrict
from qk_taxonomy.architectures.geometry import check_shapes
from qk_taxonomy.circuits.conventions import circuit_factors
from qk_taxonomy.circuits.spectra import circuit_spectra
from qk_taxonomy.records import (
    CIRCUITS,
    CONVENTIONS,
    Circuit,
    Convention,
    HeadGeometry,
    LayerPlan,
    Norm,
    TensorInfo,
)

Array = np.ndarray[Any, np.dtype[np.float64]]

OFFSET, SCALE, D_ROTARY = 0.5, 0.07, 3
NORMS = ("input_norm", "q_latent_norm", "kv_latent_norm")


def stored(g: HeadGeometry, q_rank: int, kv_rank: int) -> dict[str, Array]:
    """Tensors of a layer as a checkpoint holds them, of spectra as steep as trained ones."""
    rng = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> Array:
        return rng.standard_normal((rows, columns)) * np.logspace(0, -2, columns)

    return {
        "q_latent": matrix(q_rank, g.d_model),
        "q": matrix(g.n_heads * (g.d_head + g.d_rotary), q_rank),
        "kv_latent": matrix(kv_rank + g.d_rotary, g.d_model),
        "kv": matrix(g.n_heads * (g.d_head + g.d_value), kv_rank),
        "o": matrix(g.d_model, g.n_heads * g.d_value),
        "input_norm": rng.uniform(0.5, 2.0, g.d_model),
        "q_latent_norm": rng.uniform(0.5, 2.0, q_rank),
        "kv_latent_norm": rng.uniform(0.5, 2.0, kv_rank),
    }


def composed(
    weights: dict[str, Array], g: HeadGeometry, kind: str, circuit: Circuit, convention: Convention
) -> tuple[Array, Array]:
    """Left and right factors, (n_heads, rows, d_model), every matrix multiplied out."""
    d = g.d_model
    to_q, to_kv = weights["q_latent"], weights["kv_latent"][: -g.d_rotary]
    if convention == "folded":
        gains = {role: np.diag(weights[role] + OFFSET) for role in NORMS}
        normed = gains["input_norm"]
        if kind == "layer":
            normed = normed @ (np.eye(d) - np.full((d, d), 1 / d))
        to_q = gains["q_latent_norm"] @ to_q @ normed
        to_kv = gains["kv_latent_norm"] @ to_kv @ normed
    q = (weights["q"] @ to_q).reshape(g.n_heads, g.d_head + g.d_rotary, d)[:, : g.d_head]
    kv = (weights["kv"] @ to_kv).reshape(g.n_heads, g.d_head + g.d_value, d)
    if circuit == "qk":
        return q * (SCALE if convention == "folded" else 1.0), kv[:, : g.d_head]
    o = weights["o"].reshape(d, g.n_heads, g.d_value)
    return np.moveaxis(o, 0, 2), kv[:, g.d_head :]


# 20 heads of 132 dimensions are converted to float64 198 columns at a time; 24 of 150 are worth a
# thread each.
@pytest.mark.parametrize(
    ("n_heads", "d_head", "d_value", "q_rank", "kv_rank", "d_model", "kind"),
    [
        pytest.param(4, 6, 5, 12, 9, 40, "rms", id="small"),
        pytest.param(3, 12, 8, 7, 40, 40, "layer", id="rank-below-d-head"),
        pytest.param(20, 132, 135, 150, 140, 210, "rms", id="two-pieces"),
        pytest.param(20, 132, 135, 150, 140, 210, "layer", id="two-pieces-centred"),
        pytest.param(36, 152, 150, 160, 170, 195, "rms", id="threads"),
    ],
)
@pytest.mark.parametrize("circuit", CIRCUITS)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_spectra_are_of_the_composed_matrices(
    n_heads: int,
    d_head: int,
    d_value: int,
    q_rank: int,
    kv_rank: int,
    d_model: int,
    kind: Any,
    circuit: Circuit,
    convention: Convention,
) -> None:
    geometry = HeadGeometry(n_heads, n_heads, d_head, d_value, d_model, d_model, D_ROTARY)
    weights = stored(geometry, q_rank, kv_rank)
    norms = {role: Norm("rms", OFFSET) for role in NORMS} | {"input_norm": Norm(kind, OFFSET)}
    infos = {
        role: TensorInfo(role, "F64", a.shape, "m", 0, a.nbytes) for role, a in weights.items()
    }
    plan = LayerPlan(0, geometry, "latent", SCALE, infos, norms)
    check_shapes(plan)
    # What the other circuit alone is made of never crosses the network.
    needed = restrict(plan, [circuit]).tensors
    assert ("o" in needed, "q" in needed) == (circuit == "ov", circuit == "qk")
    tensors = {role: torch.from_numpy(weights[role]) for role in needed}
    ((left, right, scale),) = circuit_factors(plan, tensors, circuit, [convention])
    found = circuit_spectra(left, right, scale=scale)

    a, b = composed(weights, geometry, kind, circuit, convention)
    assert found.singular_values.shape == (n_heads, d_head if circuit == "qk" else d_value)
    assert contract_error(found.singular_values.numpy(), dense_singular_values(a, b)) < 1e-5
    assert found.eigenvalues is not None
    for head in range(n_heads):
        assert eigenvalue_error(found.eigenvalues[head].numpy(), a[head].T @ b[head]) < 1e-4
