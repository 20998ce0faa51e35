"""What is measured on a finished run: singular vectors, targets and orthogonality over training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.errors import StudyError
from qk_taxonomy.statistics.decomposition import SingularVectors, singular_vectors
from qk_taxonomy.studies.superposition.alignment import ALIGNED, align
from qk_taxonomy.studies.superposition.measures import feature_norms, orthogonality, represented
from qk_taxonomy.studies.superposition.onsets import settled
from qk_taxonomy.studies.superposition.records import Snapshot, SuperpositionRun

Array = NDArray[np.float64]

#: Singular vectors of less than this share of σ₁ carry next to nothing of what a head does.
CARRIES = 0.05


@dataclass(frozen=True, eq=False)
class TargetCourses:
    """Targets over snapshots, all (snapshots, instances, targets), nan where an instance has fewer.

    ``left``, ``right``: |cos(W_i, u_k)| and |cos(W_j, v_k)| with the target's own singular vector
    ``singular``, k, of σ ``sigma``, and the ``p_value`` and the level of ``chance`` of an
    :class:`~qk_taxonomy.studies.superposition.alignment.Alignment`. A target without one has −1,
    cosines of 0, and nan for the others. ``left_norm``, ``right_norm``: ‖W_i‖ and ‖W_j‖.
    """

    left: Array
    right: Array
    sigma: Array
    singular: Array
    p_value: Array
    chance: Array
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
        shape = (8, len(run.snapshots), len(run.targets), most)
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
                found.p_values,
                found.chance,
                norms[:, pairs[:, 0]],
                norms[:, pairs[:, 1]],
            )
        return TargetCourses(*out)

    @cached_property
    def alignment(self) -> Array:
        """The least of all targets' |cos| on both sides, (snapshots, instances); nan for none."""
        lesser = self.targets.lesser
        least = np.nanmin(lesser, axis=-1, initial=np.inf)
        return np.where(np.isinf(least), np.nan, least)

    @cached_property
    def orthogonality(self) -> Array:
        """Orthogonality of the features represented in the end, (snapshots, instances)."""
        w = np.stack([one.w for one in self.run.snapshots])
        return orthogonality(w, represented(w[-1]))

    def onsets(
        self, shares: Sequence[float], snapshots: Sequence[int] | None = None
    ) -> tuple[Array, Array]:
        """Steps from which alignment, and orthogonality, have come such shares of their way.

        (shares, instances) each, of all ``snapshots`` or of those named, such as those of a phase;
        steps are counted over all phases. Targets that are not aligned in the end never align.
        """
        kept = slice(None) if snapshots is None else list(snapshots)
        steps = np.array([one.step for one in self.run.snapshots])[kept]
        alignment, orthogonality = self.alignment[kept], self.orthogonality[kept]
        return (
            np.stack([settled(alignment, steps, share, ALIGNED) for share in shares]),
            np.stack([settled(orthogonality, steps, share) for share in shares]),
        )

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
