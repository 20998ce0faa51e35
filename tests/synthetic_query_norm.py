"""Studies of query norms that were planted, not captured: what they hold is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from synthetic_samples import planted_sample

from qk_taxonomy.studies.query_norm.behaviour import head_behaviour
from qk_taxonomy.studies.query_norm.bridge import bridge
from qk_taxonomy.studies.query_norm.correlations import correlate
from qk_taxonomy.studies.query_norm.criteria import load_criteria
from qk_taxonomy.studies.query_norm.records import Sample
from qk_taxonomy.studies.query_norm.scaling import ScalingResult
from qk_taxonomy.studies.query_norm.study import QueryNormStudy
from qk_taxonomy.studies.query_norm.verdict import decide

#: Texts of a planted study, and tokens of each.
N_TEXTS, N_TOKENS = 3, 90


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
        heads=tuple((number, 0) for number in range(n)),
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
        description={"model": "planted, no revision", "texts": "3 | planted"},
        criteria=criteria,
        correlations=correlations,
        verdict=decide(correlations, criteria),
        behaviour=behaviour,
        bridge=bridge(behaviour, *planted_spectra(behaviour), n_permutations=20)
        if with_bridge
        else None,
        scaling=planted_scaling(3),
        samples=samples,
        notes=("The text was shorter than the context.", correlations.notes[0]),
    )
