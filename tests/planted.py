"""Planted kinds of heads: layers and models whose spectra are drawn from known densities."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.records import PREDECESSOR_FORMULA, Circuit, Convention, LayerSpectra, ModelSpectra
from qk_taxonomy.statistics.moments import STATISTICS, describe

SHAPES = (0.3, 1.0, 8.0)


def layer_of(
    lam: NDArray[np.float64],
    layer: int = 0,
    *,
    circuit: Circuit = "qk",
    convention: Convention = "raw",
    stack: str = "",
) -> LayerSpectra:
    """A layer whose heads have the λ (n_heads, d_head)."""
    sigma = np.sort(np.sqrt(lam), axis=-1)[:, ::-1].astype(np.float32)
    no_mu = np.zeros(sigma.shape, dtype=np.complex64)
    return LayerSpectra(layer, circuit, convention, sigma, no_mu, describe(lam), stack=stack)


def planted_layers(
    n_layers: int = 4,
    n_heads: int = 12,
    d_head: int = 64,
    *,
    shapes: Sequence[float] = SHAPES,
    seed: int = 0,
    circuit: Circuit = "qk",
    convention: Convention = "raw",
    stack: str = "",
) -> list[LayerSpectra]:
    """Heads of several kinds, in turn: gamma spectra of these shapes, of any size."""
    rng = np.random.default_rng(seed)
    return [
        layer_of(
            np.stack(
                [
                    rng.gamma(shapes[h % len(shapes)], 10 ** rng.uniform(-3, 3), d_head)
                    for h in range(n_heads)
                ]
            ),
            layer,
            circuit=circuit,
            convention=convention,
            stack=stack,
        )
        for layer in range(n_layers)
    ]


def model_of(
    layers: Sequence[LayerSpectra],
    model_id: str = "me/model",
    *,
    family: str = "mine",
    imported: bool = False,
    control: str = "",
) -> ModelSpectra:
    """A model of these layers, whole enough for a spectra file."""
    stacks: dict[str, dict[str, int]] = {}
    for layer in layers:
        n_heads, d_head = layer.singular_values.shape
        table = {"n_heads": n_heads, "n_kv_heads": n_heads, "d_head": d_head, "d_model": 8 * d_head}
        n_layers = len({x.layer for x in layers if x.stack == layer.stack})
        stacks[layer.stack] = {"n_layers": n_layers, **table}
    metadata = {
        "format": "qk-taxonomy-spectra",
        "format_version": "1",
        "model_id": model_id,
        "family": family,
        "revision": "abc",
        "architecture": "llama",
        "weights_dtype": "F32",
        "source": "drawn",
        "statistics": ",".join(STATISTICS),
        "tool_version": "0",
        "stacks": json.dumps(stacks),
        "provenance": json.dumps({"formula": PREDECESSOR_FORMULA if imported else "exact"}),
        **{key: str(value) for key, value in next(iter(stacks.values())).items()},
    }
    if control:
        metadata["control"] = control
    return ModelSpectra(metadata, tuple(layers))
