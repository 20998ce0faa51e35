"""The toy model with a pseudo-head, one instance and one pair at a time, in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.studies.superposition.config import SuperpositionConfig, Target

Array = NDArray[np.float64]


def naive_losses(
    config: SuperpositionConfig,
    targets: tuple[Target, ...],
    w: Array,
    bias: Array,
    omega: Array,
    x: Array,
) -> tuple[float, float]:
    """L₁ and L₂ of one instance; x: (n, batch), the queries in its first half."""
    n, batch = x.shape
    reconstruction = 0.0
    for row in x.T:
        found = np.maximum(w.T @ (w @ row) + bias, 0)
        for i in range(n):
            reconstruction += config.importance_decay**i * (row[i] - found[i]) ** 2
    queries, keys = x[:, : batch // 2].T, x[:, batch // 2 :].T

    def score(query: Array, key: Array) -> float:
        total = 0.0
        for target in targets:
            if config.target_form == "indicator":
                total += target.weight * bool(query[target.i] > 0 and key[target.j] > 0)
            else:
                total += target.weight * query[target.i] * key[target.j]
        return total

    def logit(query: Array, key: Array) -> float:
        return float((w @ query) @ omega @ (w @ key))

    pairs = 0.0
    for number, query in enumerate(queries):
        if config.target_form == "softmax":
            first = number // config.n_keys * config.n_keys
            context = keys[first : first + config.n_keys]
            wanted = np.exp([score(query, key) for key in context])
            found = np.exp([logit(query, key) for key in context])
            pairs -= float(wanted / wanted.sum() @ np.log(found / found.sum()))
        else:
            pairs += (score(query, keys[number]) - logit(query, keys[number])) ** 2
    return reconstruction / (n * batch), pairs / len(queries)
