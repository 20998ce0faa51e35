"""What an answer is, and means over seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qk_taxonomy.statistics.findings import Finding, join_notes, nan
from qk_taxonomy.studies.superposition.measured import MeasuredRun

_N_RESAMPLES = 9999
_SEED = 0


@dataclass(frozen=True)
class Effects:
    """Numbers of one measure: a name of each, and what was found over ``n`` seeds.

    reference: the value that says "no effect", or the one that is predicted; None: neither.
    chance: of each effect, what chance reaches in one case of twenty; empty where it is not known.
    """

    measure: str
    effects: tuple[tuple[str, Finding], ...]
    reference: float | None = None
    chance: tuple[float, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A question, its answer in a line, and the measures that it rests on."""

    question: str
    answer: str
    measures: tuple[Effects, ...]


def mean_over_seeds(values: ArrayLike) -> Finding:
    """Mean over seeds (seeds,) with a bootstrap interval; seeds without a value are left out.

    The interval is within the range of the values, so a mean of cosines has none beyond 1. Its
    percentiles are the expanded ones of Hesterberg (2015), which make up for the few seeds as
    Student's t does: of three seeds it reaches from the lowest to the highest. Seeds that are all
    alike have none.
    """
    from scipy.stats import norm, t

    x = np.asarray(values, dtype=np.float64)
    left_out = int((~np.isfinite(x)).sum())
    x = x[np.isfinite(x)]
    n, method = len(x), "mean over seeds, expanded percentiles of a bootstrap of seeds"
    note = f"seeds without a value: {left_out}" if left_out else ""
    if n < 2:
        note = join_notes(note, "fewer than two seeds have no interval")
        return Finding(float(x[0]) if n else nan, n=n, method=method, note=note)
    mean = float(x.mean())
    if np.ptp(x) <= 1e-9 * np.abs(x).max():
        note = join_notes(note, f"{n} seeds are alike, which gives no interval")
        return Finding(mean, n=n, method=method, note=note)
    tail = float(norm.cdf(np.sqrt(n / (n - 1)) * t.ppf(0.025, n - 1)))
    drawn = np.random.default_rng(_SEED).integers(n, size=(_N_RESAMPLES, n))
    low, high = np.quantile(x[drawn].mean(axis=1), (tail, 1 - tail))
    return Finding(mean, float(low), float(high), n=n, method=method, note=note)


def instances_by_probability(measured: MeasuredRun) -> Iterator[tuple[float, NDArray[np.bool_]]]:
    """Each probability, the densest first, and which instances have it."""
    probability = measured.run.instances.probability
    for p in np.unique(probability)[::-1]:
        yield float(p), probability == p


def with_interval(found: Finding, digits: int = 3) -> str:
    """An effect as a sentence has it, such as "0.98 [0.95, 0.99]"; without an interval, or
    one that is to be seen in so many digits, it is alone.
    """
    numbers = (found.effect, found.low, found.high)
    # Effects are of the order of one: what is less than this is rounding.
    effect, low, high = (f"{round(number, 6) + 0.0:.{digits}g}" for number in numbers)
    if np.isnan(numbers[1:]).any() or effect == low == high:
        return effect
    return f"{effect} [{low}, {high}]"


def listed(parts: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def seeds_without_interval(n_seeds: int) -> str:
    """What to say where one seed is all there is; else nothing."""
    return " One seed gives no interval: --seeds 10 gives one." if n_seeds == 1 else ""
