"""What the study of heads through training finds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qk_taxonomy.hypotheses.heads import HeadSet
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.taxonomy import HeadClass

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

#: What a head's path is described by, in the order of the columns of :class:`UnusualPaths`.
PATH_FEATURES = ("travel", "half_time", "rank_change", "largest_change", "class_changes")


@dataclass(frozen=True, eq=False)
class UntrainedNull:
    """Untrained heads of the model's shape, N of them, on the bins of the study.

    ``divergence`` is the mean Jensen–Shannon divergence of two of them, in nats, and ``usual`` what
    one pair in twenty exceeds, both nan where there are none; ``histogram`` (bins,): their mean.
    ``reason`` says why there are none.
    """

    n: int
    divergence: float
    usual: float
    histogram: Array
    reason: str = ""


@dataclass(frozen=True, eq=False)
class UnusualPaths:
    """How unlike the other heads' paths every path is.

    ``features`` (H, 5): :data:`PATH_FEATURES`. ``z`` (H, 5): each less its median over heads, in
    robust standard deviations, nan where it does not vary. ``distance`` (H,): Mahalanobis distance
    of z from the middle of all paths. ``p_values``: among paths of a cloud with the tails of
    Student's t of five degrees of freedom, an assumption; ``q_values``: Benjamini and Hochberg's;
    ``needed``: the distance from which a head that is alone in it has q <= 0.05. nan where it
    cannot be told, and ``note`` says why.
    """

    features: Array
    z: Array
    distance: Array
    p_values: Array
    q_values: Array
    needed: float = float("nan")
    note: str = ""

    @property
    def rank(self) -> Integers:
        """Place of each head among all (H,): 1 is the most unusual; heads without a path last."""
        order = np.argsort(np.where(np.isnan(self.distance), -np.inf, self.distance))[::-1]
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(1, len(order) + 1)
        return rank


@dataclass(frozen=True, eq=False)
class Evolution:
    """Heads of one stack of a model through training: S steps, H heads.

    ``steps`` (S,): training steps, nan for the newest weights where their step is not known;
    ``names``: revisions. ``heads``: one row a head, with stack, layer, head and kv_head. All (S,
    H): ``effective_rank`` of λ; ``largest`` λ; ``n_outliers``, the number of λ beyond the upper
    edge of untrained heads; ``p_untrained``, the p-value of the Kolmogorov–Smirnov distance to
    untrained heads; ``labels``, the class in one taxonomy of all steps; ``from_start``,
    Jensen–Shannon divergence from the first step, in nats. ``travelled`` (S − 1, H): that between
    consecutive steps. ``n_outliers`` and ``p_untrained`` are nan without a null. ``histograms`` (S,
    H, bins): densities of λ over the head's mean on ``edges``.
    """

    sets: tuple[HeadSet, ...]
    names: tuple[str, ...]
    steps: Array
    heads: pd.DataFrame
    effective_rank: Array
    largest: Array
    n_outliers: Array
    p_untrained: Array
    labels: Integers
    classes: tuple[HeadClass, ...]
    edges: Array
    histograms: Array
    travelled: Array
    from_start: Array
    null: UntrainedNull
    unusual: UnusualPaths
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> HeadSet:
        """The heads at the first step."""
        return self.sets[0]

    @property
    def name(self) -> str:
        """The model's name, without a revision."""
        return self.model.stem.model

    @cached_property
    def times(self) -> Array:
        """Where steps lie on an axis of log₁₀(step + 1): (S,)."""
        return step_times(self.steps)

    @cached_property
    def left_class(self) -> Integers:
        """Index of the step from which a head is for good out of its first class (H,); S: never.

        Classes that cut the cloud of untrained heads in two are one: a head that begins like an
        untrained one has not left while it is in a class of another that does.
        """
        untrained = self.p_untrained[0] > LEVEL
        first = self.labels == self.labels[0]
        first |= np.isin(self.labels, self.labels[0][untrained]) & untrained
        return settled_from(~first)

    @cached_property
    def outliers_born(self) -> Integers:
        """Index of the step from which a head for good has outliers (H,); S: never; 0: it has them
        from the first step on, so none were born.
        """
        return settled_from(self.n_outliers > 0)

    @cached_property
    def travelled_beyond(self) -> Array:
        """What of each head's divergences between steps exceeds the mean of two untrained heads,
        summed, in units of that mean: (H,); nan without a null.
        """
        return np.asarray(np.maximum(self.travelled / self.null.divergence - 1, 0.0).sum(0))

    @cached_property
    def composition(self) -> Array:
        """Share of the heads in each class at each step: (S, classes)."""
        return np.stack([(self.labels == c.number).mean(1) for c in self.classes], axis=-1)


def step_times(steps: Array) -> Array:
    """log₁₀(step + 1) of steps (S,); an unknown last one follows by the mean gap of the others."""
    times = np.log10(steps + 1.0)
    if np.isnan(times[-1]):
        known = times[:-1]
        gap = float(np.ptp(known)) / (len(known) - 1) if len(known) > 1 else 1.0
        times[-1] = known[-1] + (gap or 1.0)
    return times


def settled_from(away: NDArray[np.bool_]) -> Integers:
    """The first index from which ``away`` (S, H) holds to the end: (H,); S where it does not."""
    back = ~away[::-1]
    until = np.where(back.any(0), back.argmax(0), len(away))
    return np.asarray(len(away) - until, dtype=np.int64)
