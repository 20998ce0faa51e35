"""Logits of trained pseudo-heads for pairs that have a target, decomposed by singular vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.statistics.decomposition import (
    SingularVectors,
    SparseDecomposition,
    sparse_decomposition,
)
from qk_taxonomy.studies.superposition.config import Target
from qk_taxonomy.studies.superposition.measured import MeasuredRun

Array = NDArray[np.float64]

#: Of a logit that the terms counted by N_recon reach.
SHARE = 0.9

_N_PAIRS = 256


def decomposed_logits(
    measured: MeasuredRun, n_pairs: int = _N_PAIRS
) -> dict[float, list[SparseDecomposition]]:
    """Decompositions of the logits of ``n_pairs`` pairs by the head at the end of training.

    By probability, the densest first, one a seed; instances without targets are left out. Pairs are
    drawn as in training, but each with both features of one of its instance's targets, chosen at
    random, there. The control has the head's σ and random vectors on its subspaces, which exactly
    tests whether the features' directions fit the singular vectors
    (:func:`~qk_taxonomy.statistics.decomposition.sparse_decomposition`, "vectors").
    """
    run = measured.run
    found: dict[float, list[SparseDecomposition]] = {}
    for number in np.argsort(-run.instances.probability, kind="stable"):
        if not run.targets[number]:
            continue
        p, seed = float(run.instances.probability[number]), int(run.instances.seed[number])
        rng = np.random.default_rng([seed, number])
        w = measured.last.w[number].astype(np.float64)
        x, y = _pairs(rng, run.targets[number], p, w.shape[1], n_pairs)
        vectors = SingularVectors(*(one[-1, number] for one in measured.vectors))
        decomposed = sparse_decomposition(
            vectors, x @ w.T, y @ w.T, share=SHARE, control="vectors", seed=seed
        )
        found.setdefault(p, []).append(decomposed)
    return found


def _pairs(
    rng: np.random.Generator, targets: tuple[Target, ...], p: float, n_features: int, n_pairs: int
) -> tuple[Array, Array]:
    """Inputs x and y (n_pairs, n_features), each pair with one of the targets."""
    x, y = (np.maximum(1 - rng.random((n_pairs, n_features)) / p, 0.0) for _ in "xy")
    chosen = rng.integers(len(targets), size=n_pairs)
    rows = np.arange(n_pairs)
    x[rows, np.array([target.i for target in targets])[chosen]] = 1 - rng.random(n_pairs)
    y[rows, np.array([target.j for target in targets])[chosen]] = 1 - rng.random(n_pairs)
    return x, y
