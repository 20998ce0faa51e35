"""The rules of the verdict on query norms, one by one, on tables made by hand; and its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_query_norm import planted_sample

from qk_taxonomy.statistics.correlations import effective_size
from qk_taxonomy.studies.query_norm.controls import correlate_control, mismatched
from qk_taxonomy.studies.query_norm.correlations import HeadCorrelations, correlate, judge
from qk_taxonomy.studies.query_norm.criteria import load_criteria
from qk_taxonomy.studies.query_norm.records import Sample
from qk_taxonomy.studies.query_norm.verdict import decide

CRITERIA = load_criteria()

#: Pearson's r, Spearman's r, and the p of each, of one head in one text.
Text = tuple[float, float, float, float]

PASSES: Text = (-0.6, -0.6, 1e-9, 1e-9)
OPPOSITE: Text = (0.6, 0.6, 1e-9, 1e-9)
NOTHING: Text = (0.0, 0.0, 1.0, 1.0)


def judged(
    raw: Sequence[Sequence[Text]], partial: Sequence[Sequence[Text]] | None = None, **of_all: float
) -> HeadCorrelations:
    """Heads of one layer, each with its texts; given position the same, unless told otherwise."""
    rows = []
    for head, (measured, given) in enumerate(zip(raw, partial or raw, strict=True)):
        for number, texts in enumerate(zip(measured, given, strict=True)):
            row: dict[str, object] = {
                "sample": f"text {number}", "stack": "", "layer": 0, "head": head, "n_given": 1,
                "n_tokens": 100, "n_effective": 50.0, "n_effective_ranks": 50.0,
                "position_entropy": 0.5, "position_norm": 0.2, "shuffled_mean": 0.0,
                "shuffled_once": 0.0, "shuffled_mean_abs": 0.03, "shuffled_max_abs": 0.1,
                "shuffled_share": 0.0,
            }  # fmt: skip
            for prefix, (linear, monotone, p, p_ranks) in zip(("", "partial_"), texts, strict=True):
                row |= {f"{prefix}pearson": linear, f"p_{prefix}pearson": p}
                row |= {f"{prefix}spearman": monotone, f"p_{prefix}spearman": p_ranks}
            rows.append(row | of_all)
    return judge(pd.DataFrame(rows), CRITERIA)


def share(texts: Sequence[Text], *others: Sequence[Text]) -> tuple[float, float]:
    """The share of the texts in which the first head is consistent, and its sign; the same of raw
    and of partial correlations.
    """
    heads = judged([texts, *others]).heads
    (first,) = heads[heads["head"] == 0].to_dict("records")
    assert first["consistent_raw"] == first["consistent_partial"]
    assert first["sign_raw"] == first["sign"]
    return first["consistent_partial"], first["sign"]


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        (PASSES, True),
        (OPPOSITE, True),
        ((0.5, 0.5, 1e-9, 1e-9), True),
        ((0.6, 0.4, 1e-9, 1e-9), False),
        ((0.4, 0.6, 1e-9, 1e-9), False),
        ((0.6, -0.6, 1e-9, 1e-9), False),
        ((-0.6, -0.6, 0.0099, 0.0099), True),
        ((-0.6, -0.6, 0.01, 1e-9), False),
        ((-0.6, -0.6, 1e-9, 0.01), False),
        ((np.nan, np.nan, np.nan, np.nan), False),
    ],
    ids=str,
)
def test_what_passes_in_a_text(text: Text, passes: bool) -> None:
    assert share([text]) == (float(passes), np.sign(text[0]) if passes else 0)


def test_p_values_are_corrected_for_the_heads_of_a_text() -> None:
    nearly = (-0.6, -0.6, 0.009, 0.009)
    assert share([nearly])[0] == 1
    assert share([nearly], [NOTHING])[0] == 0
    assert share([(-0.6, -0.6, 0.009, 1e-9)], [NOTHING])[0] == 0
    assert share([(-0.6, -0.6, 1e-9, 0.009)], [NOTHING])[0] == 0
    # Each text by itself: heads of another count for nothing.
    found = judged([[nearly, NOTHING], [PASSES, NOTHING]]).by_sample
    assert found["q_pearson"].tolist() == pytest.approx([0.009, 1, 2e-9, 1])


@pytest.mark.parametrize(
    ("texts", "expected", "sign", "counts"),
    [
        ([PASSES] + 3 * [NOTHING], 0.25, -1, False),
        (3 * [PASSES] + 7 * [NOTHING], 0.3, -1, True),
        ([PASSES, OPPOSITE] + 3 * [NOTHING], 0.2, 0, False),
        (2 * [PASSES] + 2 * [OPPOSITE], 0.5, 0, True),
        ([PASSES] + 3 * [OPPOSITE], 0.75, 1, True),
    ],
)
def test_consistent_is_with_one_sign(
    texts: Sequence[Text], expected: float, sign: int, counts: bool
) -> None:
    assert share(texts) == (pytest.approx(expected), sign)
    numbers = decide(judged([texts]), CRITERIA).numbers
    assert (numbers["raw"], numbers["partial"], numbers["both"]) == (counts, counts, counts)
    negative, positive = (numbers[f"partial_{side}"] for side in ("negative", "positive"))
    assert (negative, positive) == (counts and sign < 0, counts and sign > 0)


def several(n: int, of: int, text: Text = PASSES) -> list[list[Text]]:
    return [[text]] * n + [[NOTHING]] * (of - n)


@pytest.mark.parametrize(
    ("raw", "partial", "of_all", "kind"),
    [
        (several(1, 10), None, {}, "go"),
        (several(1, 11), None, {}, "no-go"),
        (several(0, 10), several(1, 10), {}, "go"),
        (several(10, 10), several(0, 10), {}, "confounded by position"),
        (several(1, 11), several(0, 11), {}, "no-go"),
        (several(1, 10), None, {"shuffled_share": 0.05}, "go"),
        (several(1, 10), None, {"shuffled_share": 0.051}, "control failed"),
        (several(1, 10), None, {"shuffled_mean": -0.05}, "go"),
        (several(1, 10), None, {"shuffled_mean": -0.051}, "control failed"),
        (several(1, 10), None, {"shuffled_mean": 0.051}, "control failed"),
        (several(0, 10), None, {"shuffled_mean": np.nan, "shuffled_share": np.nan}, "no-go"),
    ],
)
def test_kinds(
    raw: list[list[Text]], partial: list[list[Text]] | None, of_all: dict[str, float], kind: str
) -> None:
    verdict = decide(judged(raw, partial, **of_all), CRITERIA)
    assert verdict.kind == kind
    assert verdict.line.startswith(f"{kind.capitalize()}: ")


def test_the_line_tells_all_three_counts_and_the_sign_first() -> None:
    raw = [*several(2, 4), *several(1, 6, OPPOSITE)]
    partial = [*several(1, 4), *several(4, 6, OPPOSITE)]
    verdict = decide(judged(raw, partial), CRITERIA)
    assert verdict.line == (
        "Go, with the opposite sign: query norm goes with entropy, by |r| ≥ 0.5 in 30% of the "
        "windows, in 3 of 10 heads (30.0%) as measured, in 5 of 10 heads (50.0%) given position "
        "and in 2 of 10 heads (20.0%) both ways; 10% were wanted. Of the correlations given "
        "position, 1 are negative (a larger norm, sharper attention: the hypothesis) and 4 "
        "positive (a larger norm, broader attention)."
    )
    confounded = decide(judged(raw, several(0, 10)), CRITERIA).line
    assert confounded.startswith("Confounded by position: ")
    assert "Of the correlations as measured, 2 are negative" in confounded
    no_go = decide(judged(several(0, 10)), CRITERIA).line
    assert no_go.endswith("both ways; 10% were wanted.")


def test_controls_are_told_and_mismatched_texts_can_fail() -> None:
    own = judged(several(5, 10))
    verdict = decide(
        own,
        CRITERIA,
        untrained=judged(several(6, 10), several(3, 10)),
        mismatched=judged(several(2, 20), several(1, 20)),
    )
    assert verdict.kind == "go"
    assert verdict.line.endswith(
        "attention). An untrained model of this shape has 60.0% as measured and 30.0% given "
        "position. Norms of each window with entropies of the next have 10.0% as measured and 5.0% "
        "given position."
    )
    numbers = verdict.numbers
    assert (numbers["untrained_partial"], numbers["untrained_raw_share"]) == (3, 0.6)
    assert numbers["untrained_median_partial_pearson"] == 0.0
    assert (numbers["mismatched_samples"], numbers["mismatched_heads"]) == (1, 20)
    # Position alone makes them correlate as measured, and that is no failure.
    by_position = judged(several(10, 10), several(0, 10))
    assert decide(own, CRITERIA, mismatched=by_position).kind == "go"
    failed = decide(own, CRITERIA, mismatched=judged(several(1, 19)))
    assert failed.kind == "control failed"
    assert "in 1 of 19 heads (5.3%), where at most 5% was allowed" in failed.line
    # However many heads of an untrained model pass: it is told, and decides nothing.
    for n, learned in ((4, True), (5, False), (10, False)):
        said = decide(own, CRITERIA, untrained=judged(several(10, 10), several(n, 10)))
        assert said.kind == "go"
        assert ("no sign of anything learned" not in said.line) == learned
    nothing = decide(judged(several(0, 10)), CRITERIA, untrained=judged(several(0, 10)))
    assert nothing.line.endswith("has 0.0% as measured and 0.0% given position.")


def planted(n: int, n_tokens: Sequence[int] = (300,), **options: float) -> list[Sample]:
    slopes = np.full((2, 3), -2.0)
    return [
        planted_sample(f"{i}", i, slopes, n_tokens=n_tokens[i % len(n_tokens)], **options)  # type: ignore[arg-type]
        for i in range(n)
    ]


def test_mismatched_texts_have_norms_of_one_and_entropies_of_the_next() -> None:
    samples = planted(3, n_tokens=(300, 200))
    apart = mismatched(samples)
    assert [one.name for one in apart] == ["0", "1", "2"]
    assert [len(one.tokens) for one in apart] == [200, 200, 300]
    for norms, entropies, one in zip(samples, [*samples[1:], samples[0]], apart, strict=True):
        n = len(one.tokens)
        for layer in (0, 1):
            found = one.layers[layer]
            assert found.layer == layer
            np.testing.assert_array_equal(found.n_keys, np.arange(1, n + 1))
            for name, source in (("query_norm", norms), ("entropy", entropies)):
                expected = source.layers[layer].values[name][:, :n]
                np.testing.assert_array_equal(found.values[name], expected)
    assert mismatched(samples[:1]) == ()


def test_mismatched_texts_correlate_by_what_they_share_alone() -> None:
    samples = planted(4, position=3.0)
    own = correlate(samples, CRITERIA)
    control = correlate_control(mismatched(samples), CRITERIA)
    verdict = decide(own, CRITERIA, mismatched=control)
    assert verdict.kind == "go"
    assert verdict.numbers["mismatched_raw_share"] == 1.0
    assert verdict.numbers["mismatched_partial"] == 0
    # A place in the text, other than along its length, that norm and entropy of all texts share.
    for sample in samples:
        for layer in sample.layers:
            for name in ("query_norm", "entropy"):
                layer.values[name][:, 100:120] += 20
    failed = decide(
        correlate(samples, CRITERIA), CRITERIA,
        mismatched=correlate_control(mismatched(samples), CRITERIA),
    )  # fmt: skip
    assert failed.kind == "control failed"
    assert "such as special tokens" in failed.line


def test_p_values_have_the_degrees_of_freedom_that_tokens_and_position_leave() -> None:
    (sample,) = planted(1, coefficient=0.9)
    found = correlate([sample], CRITERIA).by_sample
    layer = sample.layers[0]
    position = np.log(np.arange(1, 301))[None]
    n = effective_size(layer.values["query_norm"], layer.values["entropy"], position)
    assert (n < 150).all()
    first = found[found["layer"] == 0]
    np.testing.assert_allclose(first["n_effective"], n)
    for name, n_given in (("pearson", 0), ("partial_pearson", 1)):
        r, df = first[name].to_numpy(), n - 2 - n_given
        expected = 2 * stats.t.sf(np.abs(r) * np.sqrt(df / (1 - r**2)), df)
        np.testing.assert_allclose(first[f"p_{name}"], expected, rtol=1e-6)
    head = correlate([sample], CRITERIA).heads.iloc[0]
    z = np.arctanh(first["partial_pearson"].iloc[0])
    half = stats.norm.ppf(0.975) / np.sqrt(n[0] - 4)
    ends = head["partial_pearson_low"], head["partial_pearson_high"]
    assert ends == pytest.approx((np.tanh(z - half), np.tanh(z + half)), abs=1e-6)


def test_layers_and_texts_are_shuffled_in_orders_of_their_own() -> None:
    (one,) = planted(1)
    twice = replace(one, layers=(one.layers[0], replace(one.layers[0], layer=7)))
    found = correlate([twice, replace(twice, name="again")], CRITERIA).by_sample
    first_heads = found[found["head"] == 0]
    assert first_heads["pearson"].nunique() == 1
    assert first_heads["shuffled_mean"].nunique() == 4
