"""(3) As many targets as dimensions of a head, or more: which are kept, are vectors shared?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.statistics.decomposition import SingularVectors
from qk_taxonomy.statistics.findings import Finding
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
from qk_taxonomy.studies.superposition.sharing import pair_sharing

Array = NDArray[np.float64]

_RECOVERED = f"targets recovered, both |cos| ≥ {ALIGNED:g}"
_WEIGHT = "AUC of the weight, recovered over lost targets"
_LEFT, _RIGHT = (f"AUC of the importance of feature {side}, likewise" for side in "ij")
_OWN = "pairs on a singular vector of a recovered pair"
_OTHER = f"pairs on another singular vector of σ ≥ {CARRIES:.0%} of σ₁"
_OVERLAP = "overlap of two recovered pairs over singular vectors"
_LOST = "singular vectors that a lost pair is spread over"

# Each measure and its value where weight or importance decides nothing and nothing is shared.
_MEASURES = {
    _RECOVERED: None, _WEIGHT: 0.5, _LEFT: 0.5, _RIGHT: 0.5, _OWN: 1.0, _OTHER: 1.0, _OVERLAP: 0.0,
    _LOST: 1.0,
}  # fmt: skip

_ALL = "all r"


def capacity(runs: Sequence[MeasuredRun]) -> Answer:
    """(3) With as many targets as dimensions of the head, or more, which are kept, and are singular
    vectors shared? Of runs that differ in d_head.

    A pair is recovered, or lost. AUC is the probability that a recovered one has more of something
    than a lost one of the same seed, ½ where it does not matter. What is not defined in a seed, as
    where all are recovered, is left out of the mean over seeds. Means over all sizes of head are
    those of each seed's own means.
    """
    ordered = sorted(runs, key=lambda one: one.run.config.d_head)
    config = ordered[0].run.config
    rows: dict[str, list[tuple[str, Finding]]] = {measure: [] for measure in _MEASURES}
    parts = []
    for p, chosen in instances_by_probability(ordered[0]):
        by_head = {one.run.config.d_head: _measures(one, chosen) for one in ordered}
        found = {
            measure: {
                **{f"r = {r}": values[measure] for r, values in by_head.items()},
                **({_ALL: _means(by_head, measure)} if measure != _RECOVERED else {}),
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
    out = {measure: np.full(len(recovered), np.nan) for measure in _MEASURES}
    for seed, kept in enumerate(recovered):
        carries = vectors.sigma[seed] >= CARRIES * vectors.sigma[seed, 0]
        own = np.isin(np.arange(len(carries)), singular[seed, kept])
        both = kept[:, None] & kept & ~np.eye(len(kept), dtype=bool)
        values = {
            _RECOVERED: float(kept.sum()),
            _WEIGHT: _auc(weights, kept),
            _LEFT: _auc(importance[:, 0], kept),
            _RIGHT: _auc(importance[:, 1], kept),
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
    return float((ahead.mean() + 1) / 2) if ahead.size else float("nan")


def _mean(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def _means(by_head: Mapping[int, Mapping[str, Array]], measure: str) -> Array:
    """Each seed's mean over the heads of which it is defined."""
    stacked = np.stack([values[measure] for values in by_head.values()], axis=-1)
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
        f"a head of all m = r = {r} dimensions recovers {with_interval(recovered[f'r = {r}'])} of "
        f"{n_targets} targets"
        for r in whole
    ]
    if below:
        numbers = listed([with_interval(recovered[f"r = {r}"]) for r in below])
        parts.append(f"of r = {listed(list(map(str, below)))}, {numbers}")

    def over_heads(measure: str, words: str) -> str:
        found = means[measure].get(_ALL)
        return "" if found is None else words.format(with_interval(found))

    kept = [
        over_heads(_WEIGHT, "by weight {}"),
        over_heads(_LEFT, "by importance of i {}"),
        over_heads(_RIGHT, "of j {}"),
    ]
    if any(kept):
        parts.append(f"which are kept, as AUC, {', '.join(filter(None, kept))}")
    shared = [
        over_heads(_OWN, "a recovered pair's singular vector carries {} pairs"),
        over_heads(_OVERLAP, "two recovered pairs overlap by {}"),
        over_heads(_OTHER, "any other singular vector carries {} pairs"),
        over_heads(_LOST, "a lost pair is spread over {} singular vectors"),
    ]
    return "; ".join([*parts, *filter(None, shared)]) + "."
