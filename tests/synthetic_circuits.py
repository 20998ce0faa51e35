"""Full circuits of random factors, and their table: models in shape and in behaviour, not real."""

from __future__ import annotations

import numpy as np
import pandas as pd

from qk_taxonomy.records import CIRCUITS, Circuit, Convention
from qk_taxonomy.studies.circuits.records import LayerCircuits, ModelCircuits


def _layer(
    rng: np.random.Generator, layer: int, stack: str, circuit: Circuit, convention: Convention,
    n_heads: int, n_kv: int, e: int, r: int, trained: float,
) -> LayerCircuits:  # fmt: skip
    """Heads of factors a (queries or outputs) and b (keys or values) that resemble each other by
    ``trained``, with columns of unequal size.
    """
    decay = 10 ** (-2.5 * trained * np.linspace(0, 1, e))
    b = np.repeat(rng.normal(size=(n_kv, e, r)), n_heads // n_kv, axis=0)
    own = rng.normal(size=(n_heads, e, r))
    alike = trained * rng.uniform(-0.4, 1.0, size=(n_heads, 1, 1))
    a = (alike * b + np.sqrt(1 - alike**2) * own) * decay[:, None]
    f = np.swapaxes(a, -1, -2) @ b
    mu = np.linalg.eigvals(b @ np.swapaxes(a, -1, -2))
    cores = [np.linalg.qr(np.swapaxes(side, -1, -2), mode="r") for side in (a, b)]
    order = np.argsort(-np.abs(mu), axis=-1)
    symmetric = np.linalg.eigvalsh((f + np.swapaxes(f, -1, -2)) / 2)
    apart = np.abs(np.linalg.eigvalsh(1j * (f - np.swapaxes(f, -1, -2)) / 2))
    largest = np.argsort(-np.abs(symmetric), axis=-1)[:, : 2 * e]
    centred = f - f.mean(-1, keepdims=True)
    sigma = np.linalg.svd(centred, compute_uv=False)[:, :e]
    return LayerCircuits(
        layer=layer,
        stack=stack,
        n_kv_heads=n_kv,
        circuit=circuit,
        convention=convention,
        singular_values=np.linalg.svd(cores[0] @ np.swapaxes(cores[1], -1, -2), compute_uv=False),
        eigenvalues=np.take_along_axis(mu, order, -1).astype(np.complex128),
        symmetric=-np.sort(-np.take_along_axis(symmetric, largest, -1), axis=-1),
        antisymmetric=-np.sort(-apart, axis=-1)[:, : 2 * e : 2],
        centred_singular_values=sigma,
        centred_symmetry=np.trace(centred @ centred, axis1=-2, axis2=-1) / np.square(sigma).sum(-1),
    )


def model_circuits(
    n_layers: int, n_heads: int, e: int, *, n_kv: int | None = None, trained: float = 0.8,
    stack: str = "", circuits: tuple[Circuit, ...] = CIRCUITS, seed: int = 0,
    convention: Convention = "folded", control: str = "random",
) -> ModelCircuits:  # fmt: skip
    rng = np.random.default_rng(seed)
    layers = tuple(
        _layer(
            rng, layer, stack, circuit, convention, n_heads, n_kv or n_heads, e, 2 * e + 8,
            trained * (0.5 + 0.5 * layer / max(n_layers - 1, 1)),
        )
        for layer in range(n_layers)
        for circuit in circuits
    )  # fmt: skip
    metadata = {"model_id": "made/up-33m", "family": "made-up", "control": control}
    return ModelCircuits({**metadata, "n_tokens": "50257", "d_model": "768"}, layers)


def _numbers(layer: LayerCircuits) -> dict[str, np.ndarray]:
    sigma, mu = layer.singular_values, layer.eigenvalues
    share = sigma / sigma.sum(-1, keepdims=True)
    return {
        "largest": sigma[:, 0],
        "copying": mu.sum(-1).real / np.abs(mu).sum(-1),
        "positive_share": (mu.real > 0).mean(-1),
        "near_zero": (sigma**2 < 1e-3 * sigma[:, :1] ** 2).mean(-1),
        "near_zero_eigenvalues": (np.abs(mu) ** 2 < 1e-3 * np.abs(mu[:, :1]) ** 2).mean(-1),
        "symmetry": (mu**2).sum(-1).real / (sigma**2).sum(-1),
        "effective_rank": np.exp(-(share * np.log(share)).sum(-1)),
        "rank_bound": np.full(len(sigma), sigma.shape[-1]),
    }


def circuit_table(
    model: ModelCircuits, *, control: bool = True, name: str = "up-33m", seed: int = 0
) -> pd.DataFrame:
    """The columns of the study's table; distances, p and z are drawn, ranks follow from them."""
    rng = np.random.default_rng(seed)
    heads: dict[tuple[str, int, str], pd.DataFrame] = {}
    for layer in model.layers:
        n_heads = len(layer.singular_values)
        rows = heads.setdefault(
            (layer.stack, layer.layer, layer.convention),
            pd.DataFrame(
                {
                    "family": "made-up", "model": name, "revision": "main",
                    "control": "random" if control else "", "stack": layer.stack,
                    "layer": layer.layer, "head": np.arange(n_heads),
                    "convention": layer.convention,
                }
            ),
        )  # fmt: skip
        for statistic, values in _numbers(layer).items():
            rows[f"{layer.circuit}_{statistic}"] = values
    table = pd.concat(heads.values(), ignore_index=True)
    n = len(table)
    for circuit in (c for c in CIRCUITS if f"{c}_largest" in table):
        z = rng.standard_t(3, size=n)
        table[f"{circuit}_peer_z"] = z
        if control:
            table[f"{circuit}_distance"] = rng.gamma(2.0, 0.1, size=n) + 0.03 * np.abs(z)
            table[f"{circuit}_p"] = rng.uniform(size=n) ** 3
            table[f"{circuit}_q"] = np.minimum(1.0, 1.5 * table[f"{circuit}_p"])
            for statistic, value in (("symmetry", 0.01), ("copying", 0.0), ("near_zero", 0.05)):
                table[f"{circuit}_{statistic}_control"] = value
            table[f"{circuit}_effective_rank_control"] = 0.8 * table[f"{circuit}_rank_bound"]
        table[f"{circuit}_unusual"] = (-np.abs(z)).argsort().argsort() + 1
    return table
