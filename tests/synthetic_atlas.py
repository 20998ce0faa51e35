"""Atlases of heads with drawn spectra: gamma-distributed λ, of a shape that changes with depth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from qk_taxonomy.hypotheses.table import COLUMNS
from qk_taxonomy.report.atlas import Atlas
from qk_taxonomy.statistics.densities import histogram_densities, mean_normalised
from qk_taxonomy.statistics.moments import STATISTICS, describe
from qk_taxonomy.taxonomy.classes import describe_classes

D_HEAD = 64


def synthetic_atlas(
    n_heads: int = 96,
    *,
    n_layers: int = 6,
    heads_a_layer: int = 4,
    n_families: int = 2,
    n_classes: int = 3,
    stacks: tuple[str, ...] = ("",),
    n_tests: int = 0,
    seed: int = 0,
    **changes: Any,
) -> Atlas:
    """Heads of as many models as it takes; ``changes``: of the atlas's fields."""
    rng = np.random.default_rng(seed)
    order = np.arange(n_heads)
    head, rest = order % heads_a_layer, order // heads_a_layer
    layer, rest = rest % n_layers, rest // n_layers
    stack, model = rest % len(stacks), rest // len(stacks)
    shape = 0.3 + 3.0 * (layer + rng.random(n_heads)) / n_layers
    lam = rng.gamma(shape[:, None], size=(n_heads, D_HEAD)) * rng.lognormal(0, 2, (n_heads, 1))
    normalised = mean_normalised(lam)
    edges = np.linspace(0.0, 3.5, 25)
    histograms = histogram_densities(normalised, edges)
    cuts = np.quantile(shape, np.linspace(0, 1, n_classes + 1)[1:-1])
    labels = np.searchsorted(cuts, shape)
    beyond = np.where(normalised > edges[-1], normalised, 0).sum(-1) / D_HEAD
    names = [f"model-{number}" for number in range(int(model.max()) + 1)]
    identity = pd.DataFrame(
        {
            "family": [f"family-{number % n_families}" for number in model],
            "model": [names[number] for number in model],
            "stack": [stacks[number] for number in stack],
            "layer": layer,
            "head": head,
            "class": labels,
            "umap_x": 5 * np.cos(shape) + rng.normal(0, 0.7, n_heads),
            "umap_y": 5 * np.sin(shape) + rng.normal(0, 0.7, n_heads),
        }
    )
    statistics = pd.DataFrame(describe(lam).astype(np.float32), columns=list(STATISTICS))
    empty = pd.DataFrame(columns=list(COLUMNS))
    atlas = Atlas(
        title="Atlas of drawn heads",
        circuit="qk",
        convention="raw",
        heads=identity.join(statistics),
        histograms=histograms.astype(np.float32),
        edges=edges,
        beyond=(normalised > edges[-1]).mean(-1),
        classes=describe_classes(histograms, beyond, labels, edges),
        models=pd.DataFrame(
            {"family": [f"family-{i % n_families}" for i in range(len(names))], "model": names}
        ).assign(architecture="drawn", d_head=str(D_HEAD)),
        tests=synthetic_tests(n_tests, names, seed=seed) if n_tests else empty,
        contrasts=empty,
        changed=pd.DataFrame(),
        provenance={"command": "none", "seed": str(seed)},
        notes=("These heads are drawn at random.",),
    )
    return replace(atlas, **changes)


def synthetic_tests(n: int, models: list[str], *, seed: int = 0) -> pd.DataFrame:
    """Rank tests of single heads, p uniform."""
    rng = np.random.default_rng(seed)
    order = np.arange(n)
    effect = rng.lognormal(0, 0.3, n)
    table = pd.DataFrame(
        {
            "family": "family-0",
            "model": [models[i % len(models)] for i in order],
            "circuit": "qk",
            "convention": "raw",
            "layer": pd.array(order // 4 % 32, dtype="Int64"),
            "head": pd.array(order % 4, dtype="Int64"),
            "hypothesis": "rank",
            "statistic": np.take(["effective_rank_sigma", "r90"], order % 2),
            "effect": effect,
            "low": effect * 0.9,
            "high": effect * 1.1,
            "p_value": rng.random(n),
            "q_value": rng.random(n),
            "n": pd.array(np.full(n, 4000), dtype="Int64"),
            "method": "against n untrained heads; ratio to their median",
        }
    )
    return table.reindex(columns=list(COLUMNS))
