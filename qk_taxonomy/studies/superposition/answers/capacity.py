"""(3) As many targets as dimensions of a head, or more: which are kept, are vectors shared?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.statistics.decomposition import SingularVectors
from qk_taxonomy.statistics.findings import Finding, nan
from qk_taxonomy.studies.superposition.alignment import ALIGNED
from qk_taxonomy.studies.superposition.answers.records import (
    Answer,
    Effects,
    instances_by_probability,
    listed,
    mean_over_seeds,
    seeds_without_interval,
    with_interval,
)
from qk_taxonomy.studies.superposition.measured import CARRIES, MeasuredRun
from qk_taxonomy.studies.superposition.sharing import feature_capture, pair_sharing

Array = NDArray[np.float64]

_RECOVERED = f"targets recovered, both |cos| ≥ {ALIGNED:g}"
_WEIGHT = "AUC of the weight, recovered over lost targets"
_SPANNED = "Spearman's ρ of the weight and how much of both features the head spans"
_SPANNED_LEFT, _SPANNED_RIGHT = (
    f"ρ of the importance of feature {side}, likewise" for side in "ij"
)
_OWN = "pairs on a singular vector of a recovered pair"
_OTHER = f"pairs on another singular vector of σ ≥ {CARRIES:.0%} of σ₁"
_OVERLAP = "overlap of two recovered pairs over singular vectors"
_LOST = "singular vectors that a lost pair is spread over"

# Each measure and its value where weight or importance decides nothing and nothing is shared.
_MEASURES = {
    _RECOVERED: None, _WEIGHT: 0.5,
    _SPANNED: 0.0, _SPANNED_LEFT: 0.0, _SPANNED_RIGHT: 0.0,
    _OWN: 1.0, _OTHER: 1.0, _OVERLAP: 0.0, _LOST: 1.0,
}  # fmt: skip

_BELOW = "r < m"

# What the sentence says of the smaller heads together.
_WORDS = {
    _SPANNED: "what these span goes with weight by ρ = {}",
    _SPANNED_LEFT: "with importance of i by {}",
    _SPANNED_RIGHT: "of j by {}",
    _OWN: "a recovered pair's singular vector serves {} pairs",
    _OTHER: "any other {}",
}


def capacity(runs: Sequence[MeasuredRun]) -> Answer:
    """(3) With as many targets as dimensions of the head, or more, which are kept, and are singular
    vectors shared? Of runs that differ in d_head.

    A pair is recovered, or lost. AUC is the probability that a recovered one has more weight than a
    lost one of the same seed, ½ where weight does not matter. A small head may recover next to
    none, and yet have room for some pairs rather than others: what it spans of a pair is the lesser
    of what the carrying u_k have of W_i and the v_k of W_j, which is held against the weight and
    both importances, over all targets. What is not defined in a seed, as where all are recovered,
    is left out of the mean over seeds. Means over heads of r < m are those of a seed's own means.
    """
    ordered = sorted(runs, key=lambda one: one.run.config.d_head)
    config = ordered[0].run.config
    rows: dict[str, list[tuple[str, Finding]]] = {measure: [] for measure in _MEASURES}
    parts = []
    for p, chosen in instances_by_probability(ordered[0]):
        by_head = {one.run.config.d_head: _measures(one, chosen) for one in ordered}
        small = [values for r, values in by_head.items() if r < config.d_hidden]
        found = {
            measure: {
                **{f"r = {r}": values[measure] for r, values in by_head.items()},
                **({_BELOW: _means(small, measure)} if small and measure != _RECOVERED else {}),
            }
            for measure in _MEASURES
        }
        means = {
            measure: {
                name: mean_over_seeds(values)
                for name, values in of_heads.items()
                if np.isfinite(values).any()
            }
            for measure, of_heads in found.items()
        }
        for measure, named in means.items():
            rows[measure] += [(f"p = {p:.3g}, {name}", one) for name, one in named.items()]
        parts.append(f"p = {p:.3g}: {_said(ordered, means)}")
    return Answer(
        config.question,
        f"{' '.join(parts)}{seeds_without_interval(config.n_seeds)}",
        tuple(
            Effects(measure, tuple(rows[measure]), reference)
            for measure, reference in _MEASURES.items()
            if rows[measure]
        ),
    )


def _measures(measured: MeasuredRun, chosen: NDArray[np.bool_]) -> dict[str, Array]:
    """Each measure of the instances chosen, (seeds,); nan where it is not defined."""
    run = measured.run
    targets = run.targets[0]
    pairs = np.array([(target.i, target.j) for target in targets])
    weights = np.abs([target.weight for target in targets])
    importance = run.config.importance_decay**pairs
    recovered = measured.targets.lesser[-1, chosen] >= ALIGNED
    singular = measured.targets.singular[-1, chosen].astype(np.intp)
    vectors = SingularVectors(*(one[-1, chosen] for one in measured.vectors))
    shared = pair_sharing(measured.last.w[chosen], vectors, pairs)
    carried = vectors.sigma >= CARRIES * vectors.sigma[:, :1]
    spanned = np.minimum(
        *(
            feature_capture(measured.last.w[chosen], side * carried[:, None])[:, features]
            for side, features in zip((vectors.u, vectors.v), pairs.T, strict=True)
        )
    )
    whole = run.config.d_head == run.config.d_hidden
    out = {measure: np.full(len(recovered), np.nan) for measure in _MEASURES}
    for seed, kept in enumerate(recovered):
        carries = carried[seed]
        own = np.isin(np.arange(len(carries)), singular[seed, kept])
        both = kept[:, None] & kept & ~np.eye(len(kept), dtype=bool)
        values = {
            _RECOVERED: float(kept.sum()),
            _WEIGHT: _auc(weights, kept),
            _SPANNED: nan if whole else _rho(weights, spanned[seed]),
            _SPANNED_LEFT: nan if whole else _rho(importance[:, 0], spanned[seed]),
            _SPANNED_RIGHT: nan if whole else _rho(importance[:, 1], spanned[seed]),
            _OWN: _mean(shared.pairs_per_vector[seed, own]),
            _OTHER: _mean(shared.pairs_per_vector[seed, carries & ~own]),
            _OVERLAP: _mean(shared.overlap[seed, both]),
            _LOST: _mean(shared.vectors_per_pair[seed, ~kept]),
        }
        for measure, value in values.items():
            out[measure][seed] = value
    return out


def _auc(values: Array, kept: NDArray[np.bool_]) -> float:
    """P(one that is kept has more than one that is not), ties as one half; nan without both."""
    ahead = np.sign(values[kept][:, None] - values[~kept])
    return float((ahead.mean() + 1) / 2) if ahead.size else nan


def _rho(values: Array, spanned: Array) -> float:
    """Spearman's rank correlation; nan where one of both is the same for all targets."""
    from scipy.stats import spearmanr

    # What is nothing but for rounding has no order.
    shares = np.round(spanned, 3)
    if min(np.ptp(values), np.ptp(shares)) == 0:
        return nan
    return float(spearmanr(values, shares).statistic)


def _mean(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else nan


def _means(heads: Sequence[Mapping[str, Array]], measure: str) -> Array:
    """Each seed's mean over the heads of which it is defined."""
    stacked = np.stack([values[measure] for values in heads], axis=-1)
    return np.array([_mean(of_seed) for of_seed in stacked])


def _said(ordered: Sequence[MeasuredRun], means: Mapping[str, Mapping[str, Finding]]) -> str:
    """The sentence of one probability."""
    recovered = means[_RECOVERED]
    config = ordered[0].run.config
    n_targets = len(ordered[0].run.targets[0])
    heads = [one.run.config.d_head for one in ordered]
    whole = [r for r in heads if r == config.d_hidden]
    below = [r for r in heads if r != config.d_hidden]
    parts = [
        f"r = m = {r} recovers {with_interval(recovered[f'r = {r}'], 2)} of {n_targets} targets"
        for r in whole
    ]
    if below:
        numbers = [with_interval(recovered[f"r = {r}"], 2) for r in below]
        sizes = listed([str(r) for r in below])
        parts.append(f"r = {sizes} {'recover' if below[1:] else 'recovers'} {listed(numbers)}")
    for measure, words in _WORDS.items():
        if found := means[measure].get(_BELOW):
            parts.append(words.format(with_interval(found, 2)))
    return f"{'; '.join(parts)}."
