"""Does a head scale words (bad → terrible) or reverse them (bad → good), and by which eigenvalues?

F[t, s] is a head's score of target t from source s, words of graded series. Scaling is that a base
scores its strong word higher than its opposite; the hypothesis is that F's part from eigenvalues of
positive real part scales and that from the negative ones reverses. Heads score some words higher
from any source, and common words are not strong ones: the null deals the bases anew to the series,
which leaves every word in its role. The unit of replication is the series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.errors import HypothesisError, ShapeError
from qk_taxonomy.statistics.findings import benjamini_hochberg, join_notes
from qk_taxonomy.statistics.matching import (
    FEWEST_MATCHED,
    FEWEST_OBJECTS,
    MatchedEffects,
    Shuffles,
    matched_effects,
    shuffled_effects,
    shuffles,
)
from qk_taxonomy.studies.circuits.series import WordSeries, series_words
from qk_taxonomy.studies.circuits.signs import positive_projector

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HeadScores:
    """One head's scores of words: targets of a series (row) from the base of a series (column).

    ``scaling``, ``positive``, ``negative`` (series, series): score of the row's strong word less
    the mean of its opposites, of F and of its parts with Re μ > 0 and with all other μ, which add
    up to it; in standard deviations of F's own between rows and columns of different series. The
    parts are nan where the sign does not split the head, all three where F does not vary.
    ``ordering`` (longer series, longer series): Kendall's τ, in [−1, 1], of the grade with the
    score of the words beyond the base, for series that have two of those.
    """

    scaling: Array
    positive: Array
    negative: Array
    ordering: Array


@dataclass(frozen=True, eq=False)
class WordEffects:
    """One question for every head: its effects, and q-values over the heads (Benjamini & Hochberg).

    ``matched``: effect (a series' own base less others', in the unit of the scores), interval, p
    and what each series says (statistics.matching); ``q_values`` (heads,).
    """

    matched: MatchedEffects
    q_values: Array


@dataclass(frozen=True)
class SignShare:
    """Share of heads whose positive part scales and whose negative part reverses.

    ``share``: of the ``n_heads`` that the sign of eigenvalues splits; ``shuffled``: its mean over
    shuffles; ``p_value``: one-sided, by the same shuffles for all heads, which share their words'
    embeddings. nan where they are not defined.
    """

    share: float
    shuffled: float
    p_value: float
    n_heads: int


@dataclass(frozen=True, eq=False)
class WordTest:
    """Scaling against reversal over all heads of a model, of one circuit in one convention.

    ``series`` were used, ``longer`` of them for ``ordering``. ``note``: what limits it.
    """

    series: tuple[WordSeries, ...]
    longer: tuple[WordSeries, ...]
    scaling: WordEffects
    positive: WordEffects
    negative: WordEffects
    ordering: WordEffects
    signs: SignShare
    note: str


def longer_series(series: Sequence[WordSeries]) -> tuple[WordSeries, ...]:
    """The series with two words or more beyond the base, which have an order."""
    return tuple(one for one in series if len(one.graded) > 2)


def _contrasts(series: Sequence[WordSeries]) -> tuple[Array, list[int]]:
    """Weights of the words (words, series), strong less opposite; and the base's place of each."""
    place = {word: i for i, word in enumerate(series_words(series))}
    weights = np.zeros((len(place), len(series)))
    for column, one in enumerate(series):
        weights[place[one.strong], column] = 1.0
        for word in one.opposite:
            weights[place[word], column] = -1.0 / len(one.opposite)
    return weights, [place[one.base] for one in series]


def _ordering(a: Array, b: Array, series: Sequence[WordSeries]) -> Array:
    place = {word: i for i, word in enumerate(series_words(series))}
    longer = longer_series(series)
    bases = b[:, [place[one.base] for one in longer]]
    rows = np.empty((len(longer), len(longer)))
    for row, one in enumerate(longer):
        # The base is no target: a word's score from itself is copying, not grading.
        graded = a[:, [place[word] for word in one.graded[1:]]].T @ bases
        milder, stronger = np.triu_indices(len(graded), 1)
        rows[row] = np.sign(graded[stronger] - graded[milder]).mean(0)
    return rows


def head_scores(a: Array, b: Array, x: Array, series: Sequence[WordSeries]) -> HeadScores:
    """A head's scores between series, of F = Aᵀ B.

    a, b: (e, words), the columns of A and of B for :func:`series_words`, in that order; x: (e, e),
    B Aᵀ over the whole vocabulary. For QK, rows of F are queries and columns keys; for OV, columns
    are the token attended to and rows the logits. Raises ShapeError.
    """
    n_words = len(series_words(series))
    if a.shape != (len(x), n_words) or b.shape != a.shape or x.shape != (len(x), len(x)):
        raise ShapeError(
            f"Wanted A and B (e, {n_words}) of the series' words and X (e, e), found {a.shape}, "
            f"{b.shape} and {x.shape}."
        )
    weights, bases = _contrasts(series)
    targets, sources = a @ weights, b[:, bases]
    scaling = targets.T @ sources
    positive = targets.T @ positive_projector(x) @ sources
    unmatched = scaling[~np.eye(len(series), dtype=bool)]
    spread = unmatched.std() if unmatched.size else 0.0
    unit = spread if spread > 0 else np.nan
    return HeadScores(
        scaling / unit, positive / unit, (scaling - positive) / unit, _ordering(a, b, series)
    )


def _effects(matrices: Array, dealt: Shuffles) -> WordEffects:
    matched = matched_effects(matrices, dealt)
    return WordEffects(matched, benjamini_hochberg(matched.p_values))


def _no_effects(n_heads: int, n_series: int) -> WordEffects:
    unknown = np.full(n_heads, np.nan)
    by_series = np.full((n_heads, n_series), np.nan)
    return WordEffects(MatchedEffects(unknown, unknown, unknown, unknown, by_series), unknown)


def _sign_share(positive: Array, negative: Array, dealt: Shuffles) -> SignShare:
    """Both parts (heads, series, series), standardised, of the heads that have them."""
    n_heads = len(positive)
    if not n_heads:
        return SignShare(np.nan, np.nan, np.nan, 0)
    # Row 0 is the matching as it is, in the same arithmetic as the others.
    everything = np.vstack([np.arange(dealt.shape[1]), dealt])
    counts = np.zeros(len(everything))
    blocks = zip(
        shuffled_effects(positive, everything), shuffled_effects(negative, everything), strict=True
    )
    for (_, scaled), (_, reversed_) in blocks:
        counts += ((scaled > 0) & (reversed_ < 0)).sum(0)
    shares = counts / n_heads
    p = float((shares >= shares[0]).mean()) if dealt.shape[1] >= FEWEST_MATCHED else np.nan
    return SignShare(float(shares[0]), float(shares[1:].mean()), p, n_heads)


def word_test(
    heads: Sequence[HeadScores],
    series: Sequence[WordSeries],
    *,
    n_shuffles: int = 9999,
    seed: int = 0,
) -> WordTest:
    """Test all heads of a model against the same shuffles of the bases among the series.

    ``heads``: of :func:`head_scores`, of these ``series``. Raises HypothesisError for fewer than
    three series, and ShapeError.
    """
    if len(series) < FEWEST_OBJECTS:
        raise HypothesisError(
            f"Wanted at least {FEWEST_OBJECTS} series of words that are single tokens of this "
            f"model, found {len(series)}. Give others with --words."
        )
    if not heads:
        raise ShapeError("Wanted the scores of at least one head, found none.")
    longer = longer_series(series)
    dealt = shuffles(len(series), n_shuffles, seed)
    scaling, positive, negative = (
        np.stack([getattr(head, part) for head in heads])
        for part in ("scaling", "positive", "negative")
    )
    if len(longer) < FEWEST_OBJECTS:
        ordering = _no_effects(len(heads), len(longer))
    else:
        own = shuffles(len(longer), n_shuffles, seed)
        ordering = _effects(np.stack([head.ordering for head in heads]), own)
    split = np.isfinite(positive).all((1, 2))
    few = {"series": len(series), "series with an order": len(longer)}
    return WordTest(
        series=tuple(series),
        longer=longer,
        scaling=_effects(scaling, dealt),
        positive=_effects(positive, dealt),
        negative=_effects(negative, dealt),
        ordering=ordering,
        signs=_sign_share(positive[split], negative[split], dealt),
        note=join_notes(
            *(
                f"{n} {what} cannot be tested; needs {FEWEST_MATCHED}"
                for what, n in few.items()
                if n < FEWEST_MATCHED
            ),
            f"{(~split).sum()} of {len(heads)} heads have no split by sign"
            if not split.all()
            else "",
        ),
    )
