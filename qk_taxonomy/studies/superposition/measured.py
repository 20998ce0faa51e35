"""What is measured on a finished run: targets over training, and tables of its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qk_taxonomy.errors import StudyError
from qk_taxonomy.statistics.decomposition import SingularVectors, singular_vectors
from qk_taxonomy.studies.superposition.alignment import align
from qk_taxonomy.studies.superposition.measures import (
    dimensions_per_feature,
    feature_dimensionality,
    feature_norms,
    interference,
    orthogonality,
    represented,
    tegum_factors,
)
from qk_taxonomy.studies.superposition.records import Snapshot, SuperpositionRun

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TargetCourses:
    """Targets over snapshots, all (snapshots, instances, targets), nan where an instance has fewer.

    ``left``, ``right``: |cos(W_i, u_k)| and |cos(W_j, v_k)| with the target's own singular vector
    ``singular``, k, of σ ``sigma``. A target without one has −1, cosines of 0, and nan for σ.
    ``left_norm``, ``right_norm``: ‖W_i‖ and ‖W_j‖.
    """

    left: Array
    right: Array
    sigma: Array
    singular: Array
    left_norm: Array
    right_norm: Array

    @property
    def lesser(self) -> Array:
        """The smaller of both cosines."""
        return np.minimum(self.left, self.right)


@dataclass(frozen=True, eq=False)
class MeasuredRun:
    """A run, and what figures and tables measure on it; each measure is taken once."""

    run: SuperpositionRun

    @property
    def last(self) -> Snapshot:
        """The end of training."""
        return self.run.snapshots[-1]

    @cached_property
    def vectors(self) -> SingularVectors:
        """Of all snapshots and instances; signed so that a u points along its foremost feature."""
        a, b = (np.stack([getattr(one, name) for one in self.run.snapshots]) for name in "ab")
        found = singular_vectors(a, b)
        w = np.stack([one.w for one in self.run.snapshots]).astype(np.float64)
        products = w.mT @ found.u
        foremost = np.abs(products).argmax(axis=-2, keepdims=True)
        sign = np.where(np.take_along_axis(products, foremost, axis=-2) < 0, -1.0, 1.0)
        return SingularVectors(found.u * sign, found.sigma, found.v * sign)

    @cached_property
    def targets(self) -> TargetCourses:
        """Each target matched with a singular vector of its own, at each snapshot."""
        run = self.run
        most = max(map(len, run.targets), default=0)
        shape = (6, len(run.snapshots), len(run.targets), most)
        out = np.full(shape, np.nan)
        w = np.stack([one.w for one in run.snapshots])
        for number, targets in enumerate(run.targets):
            if not targets:
                continue
            pairs = np.array([(target.i, target.j) for target in targets])
            vectors = SingularVectors(*(one[:, number] for one in self.vectors))
            found = align(w[:, number], vectors, pairs)
            norms = feature_norms(w[:, number])
            out[:, :, number, : len(targets)] = (
                np.nan_to_num(found.left),
                np.nan_to_num(found.right),
                found.sigma,
                found.singular,
                norms[:, pairs[:, 0]],
                norms[:, pairs[:, 1]],
            )
        return TargetCourses(*out)

    def of_seed(self, seed: int) -> NDArray[np.intp]:
        """The instances of one seed, densest first. Raises StudyError where there are none."""
        instances = self.run.instances
        found = np.flatnonzero(instances.seed == seed)
        if not found.size:
            seeds = ", ".join(map(str, np.unique(instances.seed)))
            raise StudyError(f"Wanted a seed of {self.run.config.name}, {seeds}, found {seed}.")
        return found[np.argsort(-instances.probability[found], kind="stable")]

    def by_probability(self, values: Array) -> Array:
        """Values (..., instances, k) as (probabilities, ..., seeds × k), the densest first."""
        probability = self.run.instances.probability
        rows = []
        for p in np.unique(probability)[::-1]:
            chosen = values[..., probability == p, :]
            rows.append(chosen.reshape(*chosen.shape[:-2], -1))
        return np.stack(rows)

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Tables of the end of training, by name, one row an instance, a feature of it, a target of
        it, or a singular value of it.
        """
        run, last = self.run, self.last
        probability, seed = run.instances.probability, run.instances.seed
        w = last.w.astype(np.float64)
        number = np.arange(len(probability))

        def rows(first: Array | NDArray[np.intp], **columns: object) -> pd.DataFrame:
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
        found = self.targets
        return {
            "instances": rows(
                number,
                reconstruction_loss=run.reconstruction_loss[-1],
                pair_loss=run.pair_loss[-1],
                represented=represented(w).sum(axis=-1),
                dimensions_per_feature=dimensions_per_feature(w),
                orthogonality=orthogonality(w),
                factors=tegum_factors(w).max(axis=-1) + 1,
            ),
            "features": rows(
                of_features,
                feature=np.tile(feature, len(number)),
                norm=feature_norms(w).ravel(),
                bias=last.bias.astype(np.float64).ravel(),
                interference=interference(w).ravel(),
                dimensionality=feature_dimensionality(w).ravel(),
                factor=tegum_factors(w).ravel(),
            ),
            "targets": rows(
                instance,
                i=[one[2].i for one in targets],
                j=[one[2].j for one in targets],
                weight=[one[2].weight for one in targets],
                # Singular vectors are counted from 1; 0: none is left for the target.
                singular_vector=found.singular[-1, instance, place].astype(np.int64) + 1,
                sigma=found.sigma[-1, instance, place],
                left_cosine=found.left[-1, instance, place],
                right_cosine=found.right[-1, instance, place],
                left_norm=found.left_norm[-1, instance, place],
                right_norm=found.right_norm[-1, instance, place],
            ),
            "singular_values": rows(
                of_ranks,
                singular_vector=np.tile(rank + 1, len(number)),
                sigma=self.vectors.sigma[-1].ravel(),
            ),
        }
