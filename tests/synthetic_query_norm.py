"""Samples and studies of query norms that were planted, not captured: what they hold is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.signal import lfilter

from qk_taxonomy.studies.query_norm.behaviour import head_behaviour
from qk_taxonomy.studies.query_norm.bridge import bridge
from qk_taxonomy.studies.query_norm.correlations import correlate
from qk_taxonomy.studies.query_norm.criteria import load_criteria
from qk_taxonomy.studies.query_norm.records import (
    FEWEST_KEYS,
    MEASURES,
    LayerMeasures,
    Sample,
)
from qk_taxonomy.studies.query_norm.scaling import ScaledHead, ScalingResult
from qk_taxonomy.studies.query_norm.study import QueryNormStudy
from qk_taxonomy.studies.query_norm.verdict import decide

Array = NDArray[np.float64]

#: Texts of a planted study, and tokens of each.
N_TEXTS, N_TOKENS = 3, 90


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


def planted_texts(
    n_layers: int, n_heads: int, *, stack: str = "", causal: bool = True
) -> tuple[Sample, ...]:
    """Texts in which entropy falls with the norm in the first heads and rises in the last, and both
    rise with position.
    """
    slopes = np.linspace(-2.0, 2.0, n_layers * n_heads).reshape(n_layers, n_heads)
    samples = (
        planted_sample(f"text {seed}", seed, slopes, n_tokens=N_TOKENS, position=0.7, causal=causal)
        for seed in range(N_TEXTS)
    )
    return tuple(
        replace(one, layers=tuple(replace(layer, stack=stack) for layer in one.layers))
        for one in samples
    )


def planted_spectra(behaviour: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Statistics and classes of the heads of a table of behaviour: ``qk_MEAN`` and two of three
    classes follow from the entropy, all else is noise.
    """
    rng = np.random.default_rng(0)
    heads = behaviour[["stack", "layer", "head"]]
    noise = {
        f"{circuit}_{name}": rng.standard_normal(len(heads))
        for circuit in ("qk", "ov")
        for name in ("MEAN", "r90", "near_zero_ratio")
    }
    entropy = behaviour["entropy"].to_numpy()
    spread = (entropy - entropy.mean()) / entropy.std()
    noise["qk_MEAN"] = spread + 0.1 * noise["qk_MEAN"]
    label = np.where(spread > 0, rng.integers(0, 2, len(heads)), 2)
    return heads.assign(**noise), heads.assign(**{"class": label})


def planted_scaling(n: int) -> ScalingResult:
    """Entropies of n heads that are straight lines in log α, with slopes measured 1 % too steep."""
    alphas = np.arange(5, 16) / 10
    gain = np.repeat(np.linspace(0.5, 3.0, n)[:, None], len(alphas), axis=1)
    return ScalingResult(
        heads=tuple(
            ScaledHead(number, 0, "keys" if number == 1 else "queries") for number in range(n)
        ),
        alphas=alphas,
        entropy=5.0 - gain * np.log(alphas),
        slope=-1.01 * gain,
        predicted=-gain,
        deviation=np.full_like(gain, 0.01),
        n_tokens=N_TOKENS - 2,
    )


def planted_study(
    n_layers: int, n_heads: int, *, stacks: tuple[str, ...] = ("",), with_bridge: bool = True
) -> QueryNormStudy:
    """A study of planted texts and spectra."""
    texts = [planted_texts(n_layers, n_heads, stack=stack) for stack in stacks]
    samples = tuple(
        replace(of_one[0], layers=tuple(layer for one in of_one for layer in one.layers))
        for of_one in zip(*texts, strict=True)
    )
    criteria = replace(load_criteria(), n_permutations=10)
    correlations = correlate(samples, criteria)
    behaviour = head_behaviour(samples)
    return QueryNormStudy(
        ref_name="planted-1M",
        family="planted",
        context=N_TOKENS,
        description={"model": "planted, no revision", "windows": "3 | planted"},
        criteria=criteria,
        correlations=correlations,
        verdict=decide(correlations, criteria),
        behaviour=behaviour,
        bridge=bridge(behaviour, *planted_spectra(behaviour), n_permutations=20)
        if with_bridge
        else None,
        scaling=planted_scaling(3),
        samples=samples,
        notes=("The text was shorter than the context.",),
        texts=("planted",),
        without_bridge="" if with_bridge else "planted studies need none.",
    )
