"""Samples of the query-norm study with planted relations of norm, entropy and position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from qk_taxonomy.studies.query_norm.records import (
    FEWEST_KEYS,
    MEASURES,
    LayerMeasures,
    Sample,
)

Array = NDArray[np.float64]


def autoregressive(rng: np.random.Generator, shape: tuple[int, ...], coefficient: float) -> Array:
    """Stationary AR(1) series of variance 1 along the last axis."""
    noise = rng.standard_normal((*shape[:-1], shape[-1] + 200))
    series = lfilter([1.0], [1.0, -coefficient], noise, axis=-1)[..., 200:]
    return np.asarray(series * np.sqrt(1 - coefficient**2))


def planted_sample(
    name: str,
    seed: int,
    slopes: Array,
    *,
    n_tokens: int = 400,
    position: float = 0.0,
    coefficient: float = 0.3,
    causal: bool = True,
    window: int | None = None,
    layers: Sequence[int] | None = None,
) -> Sample:
    """A text in which entropy = slope · norm + position · log position + noise, head by head.

    slopes: (layers, heads). Norms have the same weight of position. All other measures are noise
    about their head's number.
    """
    rng = np.random.default_rng(seed)
    n_layers, n_heads = slopes.shape
    index = np.arange(1, n_tokens + 1)
    trend = (np.log(index) - np.log(index).mean()) / np.log(index).std()
    n_keys = np.minimum(index, window or n_tokens) if causal else np.full(n_tokens, n_tokens)
    numbers = layers if layers is not None else range(n_layers)
    found = []
    for number, row in zip(numbers, slopes, strict=True):
        norm, noise = (autoregressive(rng, (n_heads, n_tokens), coefficient) for _ in range(2))
        entropy = row[:, None] * norm + noise + position * trend
        values = {
            measure: rng.normal(size=(n_heads, n_tokens)) + np.arange(n_heads)[:, None]
            for measure in MEASURES
        }
        values |= {"query_norm": 10 + norm + position * trend, "entropy": 5 + entropy}
        for measure in MEASURES[1:]:
            values[measure][:, n_keys < FEWEST_KEYS] = np.nan
        found.append(
            LayerMeasures(
                number, "", n_keys, {key: v.astype(np.float32) for key, v in values.items()}
            )
        )
    return Sample(name, np.arange(n_tokens), causal, tuple(found))
