"""Is each test what it says? False positives where nothing is, discoveries where something is.

    python tests/benchmarks/calibration.py

Untrained models are dense Gaussian ones (``tests/untrained.py``), never those of the package's own
sampler. Prints the table of README.md here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control, kstest

from qk_taxonomy.statistics.changes import SPECTRAL_DISTANCES, spectral_changes
from qk_taxonomy.statistics.groups import composition_test, kruskal_dunn
from qk_taxonomy.statistics.moments import describe
from qk_taxonomy.statistics.nulls import untrained_spectra
from qk_taxonomy.statistics.ranks import RANK_STATISTICS, rank_test
from qk_taxonomy.statistics.shifts import FLIP_GROUPS, FLIP_LAYERS, WILCOXON, paired_shifts
from qk_taxonomy.statistics.trends import depth_trend
from qk_taxonomy.statistics.unmatched import unmatched_contrast
from qk_taxonomy.studies.circuits.unusual import Cohort, unusual_heads
from qk_taxonomy.studies.circuits.words import head_scores, word_test

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from random_circuits import N_TOKENS, N_WORDS, SERIES, planted_head, random_twin
from untrained import Shape, untrained_model

REPEATS = 400
LEVEL = 0.05

SEPARATE = Shape(layers=6, heads=8, kv_heads=8, d_head=32, d_model=128)
GROUPED = Shape(layers=6, heads=8, kv_heads=2, d_head=32, d_model=128)

Row = tuple[str, str, str, str, str]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def ranks() -> Iterator[Row]:
    """Rank p-values of 480 untrained heads a repeat, and of heads planted in a tenth of them."""
    shape = Shape(layers=10, heads=48, kv_heads=12, d_head=32, d_model=256)
    rng = np.random.default_rng(0)
    null = untrained_spectra(shape.d_head, shape.d_model, 4000)[:, 0]
    names, repeats = list(RANK_STATISTICS), 40
    rejected, uniform, power, false = np.zeros((4, repeats, len(names)))
    seconds = 0.0
    for repeat in range(repeats):
        free = rank_test(untrained_model(rng, shape), null)
        rejected[repeat] = (free.p_values <= LEVEL).mean(0)
        uniform[repeat] = [kstest(p, "uniform").pvalue for p in free.p_values.T]
        planted = rng.choice(shape.n, shape.n // 10, replace=False)
        lam = untrained_model(rng, shape, planted, decay=0.05)
        start = time.perf_counter()
        test = rank_test(lam, null)
        seconds += time.perf_counter() - start
        found, is_planted = test.q_values <= LEVEL, np.isin(np.arange(shape.n), planted)
        power[repeat] = found[is_planted].mean(0)
        false[repeat] = found[~is_planted].sum(0) / np.maximum(found.sum(0), 1)
    for column, name in enumerate(names):
        ks = np.median(uniform[:, column])
        law = f"uniform (median KS p {ks:.2f})" if ks > 0.01 else "discrete, on the safe side"
        yield (
            f"rank: {name.replace('_', ' ')}",
            f"{percent(rejected[:, column].mean())}; {law}",
            percent(power[:, column].mean()),
            percent(false[:, column].mean()),
            f"{1e6 * seconds / repeats / shape.n / len(names):.0f} µs a head",
        )


def shifts() -> Iterator[Row]:
    """Shifts between two untrained models, and with all heads of one a little lower in rank."""
    methods = (WILCOXON, FLIP_GROUPS, FLIP_LAYERS)
    columns = [2, 4, 9]
    for shape, how in ((SEPARATE, "a key each"), (GROUPED, "4 heads a key")):
        rng, (layers, groups) = np.random.default_rng(1), shape.places
        rejected: dict[tuple[str, bool], list[bool]] = {}
        seconds = 0.0
        for repeat in range(REPEATS):
            control = describe(untrained_model(rng, shape))
            every = np.arange(shape.n)
            for planted in (False, True):
                lam = untrained_model(rng, shape, every if planted else None, decay=0.02)
                difference = (describe(lam) - control)[:, columns]
                start = time.perf_counter()
                found = paired_shifts(difference, layers, groups, permutations=999, seed=repeat)
                seconds += time.perf_counter() - start
                for shift in found:
                    if shift.layer is None:
                        # Of the planted shift, the effective rank of λ.
                        if planted and shift.column != columns.index(9):
                            continue
                        hit = shift.finding.p_value <= LEVEL
                        rejected.setdefault((shift.finding.method, planted), []).append(hit)
        for method in methods:
            yield (
                f"shift: {method.partition(';')[0].partition(',')[0]}; {how}",
                percent(np.mean(rejected[method, False])),
                percent(np.mean(rejected[method, True])),
                "",
                f"{1e3 * seconds / (2 * REPEATS * len(columns)):.1f} ms a statistic",
            )


def changes() -> Iterator[Row]:
    """Changed heads between untrained models, and with a tenth of one's heads planted."""
    null = untrained_spectra(SEPARATE.d_head, SEPARATE.d_model, 4000)[:, 0]
    for shape, how in ((SEPARATE, "a key each"), (GROUPED, "4 heads a key")):
        rng, places = np.random.default_rng(2), shape.places
        rejected, false, power = np.zeros((3, 2, REPEATS, len(SPECTRAL_DISTANCES)))
        seconds = 0.0
        for repeat in range(REPEATS):
            control = untrained_model(rng, shape)
            start = time.perf_counter()
            free = spectral_changes(untrained_model(rng, shape), control, *places, null)
            seconds += time.perf_counter() - start
            planted = rng.choice(shape.n, shape.n // 10, replace=False)
            other = untrained_model(rng, shape, planted, decay=0.08)
            found = spectral_changes(other, control, *places, null)
            is_planted = np.isin(np.arange(shape.n), planted)
            for row, name in enumerate(("p_untrained", "p_within")):
                rejected[row, repeat] = (getattr(free, name) <= LEVEL).mean(0)
                hits = false_discovery_control(getattr(found, name), axis=0) <= LEVEL
                wrong = (hits & ~is_planted[:, None]).sum(0)
                false[row, repeat] = wrong / np.maximum(hits.sum(0), 1)
                power[row, repeat] = hits[is_planted].mean(0)
        for row, against in enumerate(("untrained heads", "the control's heads")):
            for column, distance in enumerate(SPECTRAL_DISTANCES):
                yield (
                    f"changed heads: {distance.replace('_', '–').title()}, {against}; {how}",
                    percent(rejected[row, :, column].mean()),
                    percent(power[row, :, column].mean()),
                    percent(false[row, :, column].mean()),
                    f"{1e3 * seconds / REPEATS:.0f} ms a contrast",
                )


def family_profiles(rng: np.random.Generator, shift: float) -> tuple[np.ndarray, list[str]]:
    """Depth profiles of 4 families of 3 models, whose layers go up and down together."""
    names = [family for family in "abcd" for _ in range(3)]
    own = rng.normal(size=(12, 1)) + 0.3 * rng.normal(size=(12, 10))
    return own + shift * np.array([[name == "a"] for name in names]), names


def families() -> Iterator[Row]:
    """Between families of models that differ, and whose layers and heads are alike within one."""
    rng = np.random.default_rng(3)
    found: dict[tuple[str, bool], list[bool]] = {}
    seconds = dict.fromkeys(("classes", "profiles", "mixed", "medians"), 0.0)
    for repeat in range(REPEATS):
        for planted in (False, True):
            profiles, names = family_profiles(rng, 4.0 if planted else 0.0)
            weight = np.array(
                [[3.0, 1.0, 1.0] if n == "a" and planted else [1.0] * 3 for n in names]
            )
            shares = np.stack([rng.dirichlet(4 * row) for row in weight])
            start = time.perf_counter()
            p = composition_test(shares, names, n_permutations=999, seed=repeat).p_value
            found.setdefault(("classes", planted), []).append(p <= LEVEL)
            middle = time.perf_counter()
            p = kruskal_dunn(profiles, names, n_permutations=999, seed=repeat).overall.p_value
            found.setdefault(("profiles", planted), []).append(p <= LEVEL)
            seconds["classes"] += middle - start
            seconds["profiles"] += time.perf_counter() - middle
            models = np.repeat(np.arange(12), 40)
            values = rng.normal(size=12)[models] + rng.normal(size=480)
            treated = models < 6
            start = time.perf_counter()
            both = unmatched_contrast(
                values + (2.5 if planted else 0.0) * treated, models.tolist(), treated,
                n_permutations=999, seed=repeat,
            )  # fmt: skip
            seconds["mixed"] += time.perf_counter() - start
            found.setdefault(("mixed", planted), []).append(both.mixed.p_value <= LEVEL)
            found.setdefault(("medians", planted), []).append(both.medians.p_value <= LEVEL)
    labels = {
        "classes": "families: class composition, 4 × 3 models",
        "profiles": "families: Kruskal–Wallis by depth, 4 × 3 models",
        "mixed": "unmatched: mixed model, 6 against 6 models",
        "medians": "unmatched: permutation, 6 against 6 models",
    }
    for key, label in labels.items():
        cost = seconds["mixed" if key == "medians" else key] / (2 * REPEATS)
        row = (percent(np.mean(found[key, False])), percent(np.mean(found[key, True])))
        yield label, *row, "", f"{1e3 * cost:.0f} ms a statistic"


def trends() -> Iterator[Row]:
    """Of 32 layers without a trend, independent or correlated; and with one of 4 sd in all."""
    rng = np.random.default_rng(4)
    for correlation in (0.0, 0.3, 0.5):
        hits: dict[tuple[str, bool], list[bool]] = {}
        seconds = 0.0
        for _ in range(REPEATS):
            noise = rng.normal(size=82)
            for t in range(1, 82):
                noise[t] = correlation * noise[t - 1] + np.sqrt(1 - correlation**2) * noise[t]
            for planted in (False, True):
                series = noise[50:] + (np.linspace(0, 4, 32) if planted else 0.0)
                start = time.perf_counter()
                trend = depth_trend([np.array([value, value]) for value in series])
                seconds += time.perf_counter() - start
                hits.setdefault(("mk", planted), []).append(trend.mann_kendall_p_value <= LEVEL)
                bds = trend.bds_permutation_p_value <= LEVEL
                hits.setdefault(("bds", planted), []).append(bds)
        cost = f"{1e3 * seconds / (2 * REPEATS):.0f} ms a statistic"
        yield (
            f"trend: Mann–Kendall, layers correlated {correlation}",
            percent(np.mean(hits["mk", False])),
            percent(np.mean(hits["mk", True])),
            "",
            cost,
        )
        if correlation == 0.0:
            yield (
                "trend: BDS, independent layers",
                percent(np.mean(hits["bds", False])),
                "",
                "",
                cost,
            )


def unusual() -> Iterator[Row]:
    """Heads of a random twin against another's, and with half of them planted."""
    shapes = {
        "a key each": Shape(layers=8, heads=8, kv_heads=8, d_head=16, d_model=64),
        "3 heads a key": Shape(layers=30, heads=9, kv_heads=3, d_head=16, d_model=64),
    }
    for how, shape in shapes.items():
        for n_tokens in (100, 1000):
            rng, repeats = np.random.default_rng(5), REPEATS // 4
            rejected, some, power, false = np.zeros((4, repeats))
            seconds = 0.0
            for repeat in range(repeats):
                control = random_twin(rng, shape, n_tokens)
                planted = rng.permutation(shape.n) < shape.n // 2
                sigma, _ = random_twin(rng, shape, n_tokens)
                start = time.perf_counter()
                free = unusual_heads([Cohort(sigma, *control)])
                seconds += time.perf_counter() - start
                sigma, _ = random_twin(rng, shape, n_tokens, 0.15 * planted)
                found = unusual_heads([Cohort(sigma, *control)]).q_values <= LEVEL
                rejected[repeat] = (free.p_values <= LEVEL).mean()
                some[repeat] = (free.q_values <= LEVEL).any()
                power[repeat] = found[planted].mean()
                false[repeat] = found[~planted].sum() / max(found.sum(), 1)
            yield (
                f"unusual heads, {n_tokens} tokens; {how}",
                f"{percent(rejected.mean())}; corrected, any in {percent(some.mean())} of models",
                percent(power.mean()),
                percent(false.mean()),
                f"{1e3 * seconds / repeats:.0f} ms a model",
            )


def words() -> Iterator[Row]:
    """Word series in random heads that share an embedding, and with a tenth of heads planted."""
    rng, repeats, n_heads = np.random.default_rng(6), REPEATS // 4, 40
    parts = ("scaling", "positive", "negative", "ordering")
    rejected, power, false = np.zeros((3, repeats, len(parts)))
    by_sign = np.zeros((2, repeats))
    seconds = 0.0
    for repeat in range(repeats):
        embed = rng.standard_normal((48, N_TOKENS))
        factors = [tuple(rng.standard_normal((2, 16, 48)) @ embed) for _ in range(n_heads)]
        for planted in (False, True):
            if planted:
                factors[:4] = [tuple(planted_head(rng, 1.0, 1.0, noise=0.6)) for _ in range(4)]
            heads = [
                head_scores(a[:, :N_WORDS], b[:, :N_WORDS], b @ a.T, SERIES) for a, b in factors
            ]
            start = time.perf_counter()
            test = word_test(heads, SERIES, n_shuffles=1999, seed=repeat)
            seconds += time.perf_counter() - start
            by_sign[int(planted), repeat] = test.signs.p_value <= LEVEL
            for column, part in enumerate(parts):
                effects = getattr(test, part)
                hits = effects.q_values <= LEVEL
                if planted:
                    power[repeat, column] = hits[:4].mean()
                    false[repeat, column] = hits[4:].sum() / max(hits.sum(), 1)
                else:
                    rejected[repeat, column] = (effects.matched.p_values <= LEVEL).mean()
    cost = f"{1e6 * seconds / (2 * repeats * n_heads):.0f} µs a head"
    labels = ("all of F", "positive eigenvalues", "negative eigenvalues", "order of grades")
    for column, label in enumerate(labels):
        # Planted heads scale and reverse at once, and have no order: only their parts can be found.
        found = parts[column] in ("positive", "negative")
        yield (
            f"word series: {label}",
            percent(rejected[:, column].mean()),
            percent(power[:, column].mean()) if found else "",
            percent(false[:, column].mean()) if found else "",
            cost,
        )
    yield (
        "word series: share of heads by sign",
        percent(by_sign[0].mean()),
        percent(by_sign[1].mean()),
        "",
        cost,
    )


def main() -> None:
    parts: tuple[Callable[[], Iterator[Any]], ...] = (
        ranks, shifts, changes, families, trends, unusual, words,
    )  # fmt: skip
    print("| test | p ≤ 0.05 where nothing is | planted, found | false discoveries | cost |")
    print("|---|---|---|---|---|")
    for part in parts:
        for row in part():
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
