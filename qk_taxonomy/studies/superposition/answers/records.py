"""What an answer is, and means over seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qk_taxonomy.statistics.findings import Finding
from qk_taxonomy.studies.superposition.measured import MeasuredRun


@dataclass(frozen=True)
class Answer:
    """A question, its answer in a line, and the effects it rests on, of one unit.

    effects: a name of each, and what was found over ``n`` seeds. reference: the value that says
    "no effect", or the one that is predicted; None: neither.
    """

    question: str
    answer: str
    unit: str
    effects: tuple[tuple[str, Finding], ...]
    reference: float | None = None


def mean_over_seeds(values: ArrayLike) -> Finding:
    """Mean over seeds (seeds,) with Student's t interval; seeds without a value are left out."""
    from scipy.stats import t

    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    n, method = len(x), "mean over seeds, t interval"
    if n < 2:
        effect = float(x[0]) if n else float("nan")
        return Finding(effect, n=n, method=method, note="fewer than two seeds have no interval")
    half = float(t.ppf(0.975, n - 1) * x.std(ddof=1) / np.sqrt(n))
    mean = float(x.mean())
    return Finding(mean, mean - half, mean + half, n=n, method=method)


def instances_by_probability(measured: MeasuredRun) -> Iterator[tuple[float, NDArray[np.bool_]]]:
    """Each probability, the densest first, and which instances have it."""
    probability = measured.run.instances.probability
    for p in np.unique(probability)[::-1]:
        yield float(p), probability == p
