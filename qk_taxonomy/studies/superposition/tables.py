"""Tables of the end of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from qk_taxonomy.statistics.decomposition import SingularVectors
from qk_taxonomy.studies.superposition.measured import CARRIES, MeasuredRun
from qk_taxonomy.studies.superposition.measures import (
    dimensions_per_feature,
    feature_dimensionality,
    feature_logits,
    feature_norms,
    interference,
    orthogonality,
    represented,
    target_subspaces,
    tegum_factors,
)
from qk_taxonomy.studies.superposition.sharing import feature_capture
from qk_taxonomy.studies.superposition.theory import (
    QuadraticForm,
    compare_with_optimum,
    optimum,
    pair_problem,
)

Array = NDArray[np.float64]


def tables(measured: MeasuredRun) -> Mapping[str, pd.DataFrame]:
    """Tables of the end of training, by name, one row an instance, a feature of it, a target of
    it, or a singular value of it.

    Of instances, ``left_capture`` and ``left_angle`` (degrees, the largest principal one) are those
    of the subspace of the targets' features i and of the leading left singular vectors; of frozen
    heads whose loss is quadratic, ``excess_loss``, ``sigma_ratio``, ``u1_cosine`` and ``v1_cosine``
    compare with the best head of their rank. Of a feature, ``left_capture`` is how much of it lies
    in the span of the u_k that carry the head; of a target, ``logit`` is what the head gives its
    two features, and ``chance`` what the lesser cosine reaches in one of twenty random rotations.
    """
    run, last = measured.run, measured.last
    probability, seed = run.instances.probability, run.instances.seed
    w = last.w.astype(np.float64)
    vectors = SingularVectors(*(one[-1] for one in measured.vectors))
    number = np.arange(len(probability))

    def rows(first: NDArray[np.intp], **columns: object) -> pd.DataFrame:
        return pd.DataFrame({"probability": probability[first], "seed": seed[first], **columns})

    n, r = w.shape[-1], run.config.d_head
    feature, rank = np.arange(n), np.arange(r)
    of_features, of_ranks = np.repeat(number, n), np.repeat(number, r)
    targets = [
        (instance, place, target)
        for instance, several in enumerate(run.targets)
        for place, target in enumerate(several)
    ]
    instance = np.array([one[0] for one in targets], dtype=np.intp)
    place = np.array([one[1] for one in targets], dtype=np.intp)
    i = np.array([one[2].i for one in targets], dtype=np.intp)
    j = np.array([one[2].j for one in targets], dtype=np.intp)
    found = measured.targets
    carried = (vectors.sigma >= CARRIES * vectors.sigma[..., :1])[..., None, :]
    return {
        "instances": rows(
            number,
            reconstruction_loss=run.reconstruction_loss[-1],
            pair_loss=run.pair_loss[-1],
            represented=represented(w).sum(axis=-1),
            dimensions_per_feature=dimensions_per_feature(w),
            orthogonality=orthogonality(w),
            factors=tegum_factors(w).max(axis=-1) + 1,
            **_of_targets(measured, vectors),
        ),
        "features": rows(
            of_features,
            feature=np.tile(feature, len(number)),
            norm=feature_norms(w).ravel(),
            bias=last.bias.astype(np.float64).ravel(),
            interference=interference(w).ravel(),
            dimensionality=feature_dimensionality(w).ravel(),
            factor=tegum_factors(w).ravel(),
            left_capture=feature_capture(w, vectors.u * carried).ravel(),
            right_capture=feature_capture(w, vectors.v * carried).ravel(),
        ),
        "targets": rows(
            instance,
            i=i,
            j=j,
            weight=[one[2].weight for one in targets],
            # Singular vectors are counted from 1; 0: none is left for the target.
            singular_vector=found.singular[-1, instance, place].astype(np.int64) + 1,
            sigma=found.sigma[-1, instance, place],
            left_cosine=found.left[-1, instance, place],
            right_cosine=found.right[-1, instance, place],
            chance=found.chance[-1, instance, place],
            p_value=found.p_value[-1, instance, place],
            left_norm=found.left_norm[-1, instance, place],
            right_norm=found.right_norm[-1, instance, place],
            logit=feature_logits(w, vectors)[instance, i, j],
        ),
        "singular_values": rows(
            of_ranks,
            singular_vector=np.tile(rank + 1, len(number)),
            sigma=vectors.sigma.ravel(),
        ),
    }


def _of_targets(measured: MeasuredRun, vectors: SingularVectors) -> dict[str, Array]:
    """What an instance's targets as a whole are held against, (instances,); nan without any."""
    config = measured.run.config
    names = ["left_capture", "right_capture", "left_angle", "right_angle"]
    has_optimum = config.training == "frozen" and config.target_form != "softmax"
    if has_optimum:
        names += ["excess_loss", "sigma_ratio", "u1_cosine", "v1_cosine"]
    columns = {name: np.full(len(measured.run.targets), np.nan) for name in names}
    for number, targets in enumerate(measured.run.targets):
        if not targets:
            continue
        own = SingularVectors(*(one[number] for one in vectors))
        w, p = measured.last.w[number], measured.run.instances.probability[number]
        pairs = np.array([(target.i, target.j) for target in targets])
        values: list[Any] = [*_subspaces(w, own, pairs)]
        if has_optimum:
            form = cast(QuadraticForm, config.target_form)
            weights = [target.weight for target in targets]
            problem = pair_problem(w, p, pairs, weights, form, config.groups)
            agreed = compare_with_optimum(problem, own, optimum(problem, config.d_head))
            values += [agreed.excess_loss, agreed.sigma_ratio, agreed.left[0], agreed.right[0]]
        for name, value in zip(names, values, strict=True):
            columns[name][number] = value
    return columns


def _subspaces(
    w: ArrayLike, vectors: SingularVectors, pairs: NDArray[np.intp]
) -> tuple[float, float, float, float]:
    """Captures and largest principal angles in degrees, left and right; nan for none."""
    sides = target_subspaces(w, vectors, pairs)
    angles = [np.rad2deg(side.angles[np.isfinite(side.angles)]) for side in sides]
    largest = [float(one.max()) if one.size else float("nan") for one in angles]
    return (float(sides[0].capture), float(sides[1].capture), largest[0], largest[1])
