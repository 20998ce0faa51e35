"""Query norm against attention entropy, head by head and text by text, with position held fixed.

The unit of replication is the text. Tokens of a text follow each other and are alike, so that a
p-value within a text takes their effective number
(:func:`~qk_taxonomy.statistics.correlations.effective_size`), and intervals of a head are over
texts. Position confounds both: a later query has more keys to spread over, and norms drift along a
text. So the partial correlation given log position stands beside the raw one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qk_taxonomy.errors import StudyError
from qk_taxonomy.statistics.correlations import (
    correlation_p_values,
    effective_size,
    fisher_interval,
    pearson,
    ranked,
    shuffled_pearson,
)
from qk_taxonomy.statistics.findings import benjamini_hochberg
from qk_taxonomy.studies.query_norm.criteria import Criteria
from qk_taxonomy.studies.query_norm.records import LayerMeasures, Sample

Array = NDArray[np.float64]

#: What tells a head from the others of its model.
HEAD = ["stack", "layer", "head"]

#: The four correlations of query norm and entropy, by the effective number of tokens they take.
CORRELATIONS = {
    "pearson": "n_effective",
    "spearman": "n_effective_ranks",
    "partial_pearson": "n_effective",
    "partial_spearman": "n_effective_ranks",
}

# An r of 1, of a head that is an exact function, still has a mean with others.
_LARGEST_R = 1 - 1e-12


@dataclass(frozen=True, eq=False)
class HeadCorrelations:
    """Correlations of every head: in every text, and over texts.

    ``by_sample``: a row a text and head: sample, :data:`HEAD`; n_tokens; n_effective and
    n_effective_ranks; n_given, what is held fixed in partial ones; each of :data:`CORRELATIONS`
    with p_… and q_… (Benjamini–Hochberg over the text's heads); position_entropy and position_norm,
    r with log position; passes_raw and passes_partial; shuffled_once, the r of
    the first shuffle of entropies, and of all shuffles shuffled_mean, shuffled_mean_abs,
    shuffled_max_abs and shuffled_share (of |r| ≥ the criterion).

    ``heads``: a row a head: :data:`HEAD`, n_samples with a correlation; the mean of each of
    :data:`CORRELATIONS` (of Fisher's z, and back) with its 95 % interval, …_low and …_high;
    ``interval``, what that is over; consistent_raw and consistent_partial, the share of all texts
    in which the head passes with its more frequent sign, sign_raw and sign (of the partial one): ±1
    or, where it passes nowhere or equally often with both, 0; position_entropy and position_norm;
    control, the mean of the r of entropies shuffled once.

    ``notes``: what a reader of the numbers must know.
    """

    by_sample: pd.DataFrame
    heads: pd.DataFrame
    notes: tuple[str, ...]


def correlate(samples: Sequence[Sample], criteria: Criteria) -> HeadCorrelations:
    """Correlate query norm with attention entropy over each text's tokens, and then over texts.

    Position is log(index of the query + 1), which in causal attention without a window is the log
    of the number of allowed keys. Where a sliding window makes that number another, its log is held
    fixed as well. Raises StudyError where there are no samples, or samples of one name.
    """
    names = [sample.name for sample in samples]
    if not any(sample.layers for sample in samples):
        raise StudyError("Wanted samples with layers of attention to correlate, found none.")
    if len(set(names)) < len(names):
        raise StudyError(f"Wanted a name for each sample, found {', '.join(names)}.")
    tables = []
    for number, sample in enumerate(samples):
        table = pd.concat(
            [_layer_rows(layer, criteria, (number, i)) for i, layer in enumerate(sample.layers)],
            ignore_index=True,
        )
        table.insert(0, "sample", sample.name)
        tables.append(table)
    return judge(pd.concat(tables, ignore_index=True), criteria, _notes(samples))


def judge(
    measured: pd.DataFrame, criteria: Criteria, notes: Sequence[str] = ()
) -> HeadCorrelations:
    """What the criteria make of correlations: which heads pass in which texts, and over all texts.

    measured: :attr:`HeadCorrelations.by_sample` but for q_… and passes_….
    """
    by_sample = measured.copy()
    of_text = by_sample.groupby("sample", sort=False)
    for name in CORRELATIONS:
        by_sample[f"q_{name}"] = of_text[f"p_{name}"].transform(benjamini_hochberg)
    for kind, prefix in (("raw", ""), ("partial", "partial_")):
        by_sample[f"passes_{kind}"] = _passes(by_sample, prefix, criteria)
    return HeadCorrelations(by_sample, _over_samples(by_sample), tuple(notes))


def _layer_rows(layer: LayerMeasures, criteria: Criteria, place: tuple[int, int]) -> pd.DataFrame:
    norm, entropy = (layer.values[name].astype(np.float64) for name in ("query_norm", "entropy"))
    given = _held_fixed(layer.n_keys)
    ranks = ranked(norm, entropy, given)
    found: dict[str, Any] = {
        "stack": layer.stack,
        "layer": layer.layer,
        "head": np.arange(layer.n_heads),
        "n_tokens": (~np.isnan(norm + entropy)).sum(-1),
        "n_effective": effective_size(norm, entropy, given),
        "n_effective_ranks": effective_size(*ranks),
        "n_given": len(given),
        "pearson": pearson(norm, entropy),
        "spearman": pearson(*ranks[:2]),
        "partial_pearson": pearson(norm, entropy, given),
        "partial_spearman": pearson(*ranks),
    }
    for name, size in CORRELATIONS.items():
        n_given = len(given) if name.startswith("partial") else 0
        found[f"p_{name}"] = correlation_p_values(found[name], found[size], n_given)
    position = np.broadcast_to(given[0], norm.shape)
    found["position_entropy"] = pearson(position, entropy)
    found["position_norm"] = pearson(position, np.where(np.isnan(entropy), np.nan, norm))
    # A seed for each layer and text, so that the order of one is not that of the next.
    seed = int(np.random.SeedSequence([criteria.seed, *place]).generate_state(1)[0])
    shuffled = shuffled_pearson(norm, entropy, criteria.n_permutations, seed)
    return pd.DataFrame(found | _shuffled(shuffled, criteria.correlation))


def _shuffled(r: Array, threshold: float) -> dict[str, Array]:
    """What is kept of shuffled correlations (shuffles, heads)."""
    reached = np.where(np.isnan(r), np.nan, np.abs(r) >= threshold)
    return {
        "shuffled_once": r[0],
        "shuffled_mean": r.mean(0),
        "shuffled_mean_abs": np.abs(r).mean(0),
        "shuffled_max_abs": np.abs(r).max(0),
        "shuffled_share": reached.mean(0),
    }


def _held_fixed(n_keys: NDArray[np.int64]) -> Array:
    """Log position (1, T), and, in a sliding window, the log of the number of keys: (2, T)."""
    index = np.arange(1, len(n_keys) + 1)
    position = np.log(index)
    if np.array_equal(n_keys, index) or len(np.unique(n_keys)) == 1:
        return position[None]
    return np.stack([position, np.log(np.maximum(n_keys, 1))])


def _passes(table: pd.DataFrame, prefix: str, criteria: Criteria) -> pd.Series:
    linear, monotone = (f"{prefix}pearson", f"{prefix}spearman")
    return (
        (table[linear].abs() >= criteria.correlation)
        & (table[monotone].abs() >= criteria.correlation)
        & (table[linear] * table[monotone] > 0)
        & (table[f"q_{linear}"] < criteria.p_value)
        & (table[f"q_{monotone}"] < criteria.p_value)
    )


def _over_samples(by_sample: pd.DataFrame) -> pd.DataFrame:
    groups = by_sample.groupby(HEAD, sort=True)
    heads = groups.size().rename("n_texts").reset_index()
    heads["n_samples"] = groups["pearson"].count().to_numpy()
    for name, size in CORRELATIONS.items():
        mean, low, high = _mean_correlation(by_sample, name, size)
        heads[name], heads[f"{name}_low"], heads[f"{name}_high"] = mean, low, high
    over = np.select([heads["n_samples"] > 1, heads["n_samples"] == 1], ["windows", "tokens"], "")
    heads["interval"] = over
    for kind, linear, sign in (
        ("raw", "pearson", "sign_raw"),
        ("partial", "partial_pearson", "sign"),
    ):
        signed = by_sample[f"passes_{kind}"] * np.sign(by_sample[linear].fillna(0.0))
        counts = [
            (signed == side).groupby([by_sample[key] for key in HEAD]).sum().to_numpy()
            for side in (1, -1)
        ]
        heads[f"consistent_{kind}"] = np.maximum(*counts) / heads["n_texts"].to_numpy()
        heads[sign] = np.sign(counts[0] - counts[1])
    for name in ("position_entropy", "position_norm"):
        heads[name] = groups[name].mean().to_numpy()
    heads["control"] = groups["shuffled_once"].mean().to_numpy()
    return heads.drop(columns="n_texts")


def _mean_correlation(by_sample: pd.DataFrame, name: str, size: str) -> tuple[Array, Array, Array]:
    """Each head's mean over texts with its 95 % interval, on Fisher's z.

    Student's t over texts; of one text, :func:`fisher_interval` of its effective tokens.
    """
    from scipy.stats import t

    keys = [by_sample[key] for key in HEAD]
    z = np.arctanh(by_sample[name].clip(-_LARGEST_R, _LARGEST_R)).groupby(keys)
    mean, n = z.mean().to_numpy(), z.count().to_numpy()
    half = t.ppf(0.975, np.maximum(n - 1, 1)) * z.std().to_numpy() / np.sqrt(np.maximum(n, 1))
    low, high = np.tanh(mean - half), np.tanh(mean + half)
    known = by_sample[by_sample[name].notna()].groupby(HEAD)[[size, "n_given"]].first()
    known = known.reindex(z.mean().index)
    n_given = known["n_given"].fillna(0) if name.startswith("partial") else 0
    alone = fisher_interval(np.tanh(mean), known[size], n_given)
    one = n == 1
    return np.tanh(mean), np.where(one, alone[0], low), np.where(one, alone[1], high)


def _notes(samples: Sequence[Sample]) -> list[str]:
    notes = []
    if len(samples) == 1:
        notes.append(
            "There is one window: intervals are over its tokens and say nothing of other texts, "
            "and a head is consistent in all windows or in none."
        )
    if not all(sample.causal for sample in samples):
        notes.append(
            "The model is bidirectional: every query may attend to the same keys wherever it "
            "stands, so that the control is for position in the text only, not for the number of "
            "keys."
        )
    if any(len(_held_fixed(layer.n_keys)) > 1 for s in samples for layer in s.layers):
        notes.append(
            "In layers whose number of allowed keys is not the query's position (a sliding "
            "window), partial correlations hold the log of that number fixed as well as log "
            "position."
        )
    return notes
