"""The bridge from spectra to behaviour: planted relations, calibration, and what may be missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_query_norm import planted_sample

from qk_taxonomy.errors import ShapeError, StudyError
from qk_taxonomy.statistics.prediction import (
    Prediction,
    centred_within,
    normal_scores,
    permutations_within,
    predict,
    ranks_within,
)
from qk_taxonomy.studies.query_norm.behaviour import (
    distinct_measures,
    head_behaviour,
    spectral_table,
)
from qk_taxonomy.studies.query_norm.bridge import bridge, predicted
from qk_taxonomy.studies.query_norm.correlations import HEAD
from qk_taxonomy.studies.query_norm.records import MEASURES
from qk_taxonomy.tables import head_table

REPOSITORY = Path(__file__).parents[1]


def planted(seed: int, n_layers: int = 8, n_heads: int = 6, group: int = 1, tied: float = 0.0):  # type: ignore[no-untyped-def]
    """Behaviours and statistics without a relation but through depth; ``tied``: what heads of a
    key-value group share in both, independently.
    """
    rng = np.random.default_rng(seed)
    layer, head = (v.ravel() for v in np.indices((n_layers, n_heads)))
    key = {"stack": "", "layer": layer, "head": head}
    shape = (n_layers, n_heads // group)

    def values() -> np.ndarray:
        shared = np.repeat(rng.normal(size=shape), group, axis=1).ravel()
        return layer / 2 + tied * shared + rng.normal(size=layer.size)

    behaviour = pd.DataFrame(key | {name: values() for name in MEASURES})
    spectral = pd.DataFrame(
        key
        | {"kv_head": head // group}
        | {f"{c}_S{i}": values() for c in ("qk", "ov") for i in (0, 1)}
    )
    return behaviour, spectral


def test_permutations_keep_groups_and_blocks() -> None:
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat([3, 1, 2], 12))
    blocks = np.zeros(36, dtype=np.int64)
    for group in (1, 2, 3):
        blocks[groups == group] = rng.permutation(np.repeat([0, 1, 2], 4))
    blocks[np.flatnonzero(groups == 2)[0]] = 9
    seen = set()
    for rows in permutations_within(groups, blocks, 300):
        np.testing.assert_array_equal(np.sort(rows), np.arange(36))
        np.testing.assert_array_equal(groups[rows], groups)
        for group in (1, 2, 3):
            for block in np.unique(blocks[groups == group]):
                mine = (groups == group) & (blocks == block)
                assert len(set(blocks[rows][mine])) == 1
        seen.add(tuple(blocks[rows][groups == 1]))
    assert len(seen) == 6
    (alone,) = permutations_within(groups, None, 1)
    assert (blocks[alone] != blocks).any()
    # Every row comes everywhere equally often, in blocks too.
    for blocked in (None, np.array([0, 0, 0, 1, 1, 1])):
        counts = np.zeros((6, 6))
        for rows in permutations_within(np.zeros(6, dtype=np.int64), blocked, 3600):
            counts[np.arange(6), rows] += 1
        assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_predictions_are_of_groups_held_out() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(6), 20)
    x = rng.normal(size=(120, 3))
    y = np.column_stack([x @ [1.0, -2.0, 0.5] + 0.5 * rng.normal(size=120), rng.normal(size=120)])
    found = predict(x, y, groups, n_permutations=50)
    assert found.r2[0] == pytest.approx(1 - 0.25 / 5.5, abs=0.03)
    assert found.spearman[0] > 0.95
    assert found.p_values[0] == pytest.approx(1 / 51)
    assert found.r2[1] < 0.05 < found.p_values[1]
    assert np.median(found.null) < 0.02
    again = predict(x, y, groups, n_permutations=50)
    np.testing.assert_array_equal(again.null, found.null)
    assert np.isnan(predict(x, y, groups).p_values).all()
    assert np.isnan(predict(x, np.ones((120, 1)), groups, n_permutations=3).p_values).all()
    with pytest.raises(ShapeError, match="two groups or more"):
        predict(x, y, np.zeros(120, dtype=np.int64))
    with pytest.raises(ShapeError, match="n groups"):
        predict(x[1:], y, groups)


def test_permuted_values_are_fitted_as_if_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    groups, x, y = np.repeat(np.arange(4), 8), rng.normal(size=(32, 3)), rng.normal(size=(32, 2))
    together = predict(x, y, groups, n_permutations=7)
    monkeypatch.setattr("qk_taxonomy.statistics.prediction._AT_ONCE", 1)
    np.testing.assert_allclose(predict(x, y, groups, n_permutations=7).null, together.null)


def test_more_groups_than_parts_stay_whole() -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(25), 4)
    level = rng.normal(size=25)[groups][:, None]
    # What tells groups apart is of no use for groups that were not seen.
    names = np.eye(25)[groups]
    assert predict(names, level, groups).r2[0] < 0.05


def test_ranks_and_centres_are_within_groups() -> None:
    rng = np.random.default_rng(4)
    groups = rng.integers(0, 3, 30)
    values = np.round(rng.normal(size=(30, 2)), 1)
    for group in range(3):
        mine = groups == group
        ranks = stats.rankdata(values[mine], axis=0)
        np.testing.assert_allclose(ranks_within(values, groups)[mine], ranks - ranks.mean(0))
        np.testing.assert_allclose(
            centred_within(values, groups)[mine], values[mine] - values[mine].mean(0)
        )
    # Equal values leave nothing, not even rounding.
    assert not centred_within(0.1 + groups[:, None] / 3, groups).any()
    scores = normal_scores(np.exp(rng.normal(size=(500, 1))))
    assert stats.kstest(scores[:, 0], "norm").pvalue > 0.99


@pytest.mark.parametrize(("group", "tied"), [(1, 0.0), (3, 2.0)])
def test_tests_are_calibrated_where_heads_share_keys(
    group: int, tied: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qk_taxonomy.studies.query_norm.bridge._PERMUTATIONS", 199)
    tables, p_values, classes = [], [], []
    for seed in range(40):
        behaviour, spectral = planted(seed, n_layers=6, group=group, tied=tied)
        behaviour = behaviour.drop(columns=list(MEASURES[3:])).assign(
            **dict.fromkeys(MEASURES[3:], np.nan)
        )
        label = (spectral["qk_S0"] > spectral.groupby("layer")["qk_S0"].transform("mean")) * 1
        found = bridge(
            behaviour, spectral, spectral[["layer", "head"]].assign(**{"class": label}),
            n_permutations=39, seed=seed,
        )  # fmt: skip
        p_values.append(found.prediction["p"])
        tables.append(found.associations["p"])
        classes.append(found.classes["p"])
    for p in (p_values, tables, classes):
        assert 0.005 <= (np.concatenate(p) <= 0.05).mean() <= 0.1
        assert 0.35 <= np.concatenate(p).mean() <= 0.65


def test_heads_that_share_keys_need_their_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without blocks the same heads are found related three times as often as is right."""
    monkeypatch.setattr("qk_taxonomy.studies.query_norm.bridge._PERMUTATIONS", 199)
    p = []
    for seed in range(20):
        behaviour, spectral = planted(seed, n_layers=6, group=3, tied=2.0)
        spectral = spectral.drop(columns="kv_head")
        behaviour[list(MEASURES[1:])] = np.nan
        p.append(bridge(behaviour, spectral, None, n_permutations=1, seed=seed).associations["p"])
    assert (np.concatenate(p) <= 0.05).mean() > 0.12


def test_planted_relations_are_found() -> None:
    behaviour, spectral = planted(0, n_layers=12, n_heads=8)
    behaviour["gain"] = np.exp(spectral["qk_S1"] + 0.3 * behaviour["gain"])
    label = np.digitize(spectral["qk_S1"] - spectral["layer"] / 2, [-0.5, 0.5])
    found = bridge(behaviour, spectral, spectral[HEAD].assign(**{"class": label}))
    prediction = found.prediction.set_index("behaviour")
    assert prediction.loc["gain", "r2_spectra"] > 0.8
    assert prediction.loc["gain", "r2_within"] > max(0.8, prediction.loc["gain", "null_high"])
    assert prediction.loc["gain", "spearman_within"] > 0.9
    assert (prediction["q"] <= 0.05).sum() == 1
    assert (prediction["null_low"] < prediction["null_high"]).all()
    best = found.associations.sort_values("q").iloc[0]
    assert (best["behaviour"], best["statistic"]) == ("gain", "qk_S1")
    expected = np.mean(
        [
            stats.spearmanr(behaviour["gain"][rows], spectral["qk_S1"][rows]).statistic
            for rows in spectral.groupby("layer").indices.values()
        ]
    )
    assert best["spearman"] == pytest.approx(expected)
    classes = found.classes.set_index("behaviour")
    assert classes["eta_squared"].idxmax() == "gain"
    assert classes.loc["gain", "q"] < 0.01
    assert (classes["n_classes"] == 3).all()
    assert found.line.startswith("In layers held out, spectra predict 1 of 9 behaviours beyond ")
    r2 = prediction["r2_within"]
    assert f"at best {r2['gain']:.2f}, of gain, and {r2.median():.2f} in the median" in found.line
    assert "strongest ρ = 0.9" in found.line
    assert "classes tell 1 of 9" in found.line
    assert list(found.heads["class"]) == list(label)
    (note,) = found.notes
    assert note.startswith("Behaviours depend on each other, so that 9 are not as many findings")


def test_depth_alone_is_no_relation() -> None:
    behaviour, spectral = planted(1, n_layers=12)
    found = bridge(behaviour, spectral, None)
    assert (found.prediction["r2_spectra"] > 0.3).all()
    assert (found.prediction["r2_depth"] > found.prediction["r2_spectra"]).all()
    assert (found.prediction["r2_within"] < 0.1).all()
    assert (found.prediction["q"] > 0.05).all()
    assert found.classes.empty
    assert "class" not in found.heads
    # Of what does not hold, no best is told.
    assert found.line.startswith("In layers held out, spectra predict 0 of 9 behaviours")
    assert "=" not in found.line


def test_depth_that_spectra_tell_adds_nothing_within_layers() -> None:
    """Of values as they are, spectra predict as well as depth: it is depth that they tell."""
    rng = np.random.default_rng(6)
    behaviour, spectral = planted(6, n_layers=12)
    depth = behaviour["layer"].to_numpy() / 11
    behaviour["entropy"] = 10 * (depth - 0.5) ** 2 + 0.3 * rng.normal(size=len(depth))
    spectral["qk_S0"] = (depth - 0.5) ** 2 + 0.01 * rng.normal(size=len(depth))
    found = bridge(behaviour, spectral, None, behaviours=["entropy", "gain"])
    row = found.prediction.set_index("behaviour").loc["entropy"]
    assert row["r2_spectra"] > 0.75
    # A parabola needs the square of depth.
    assert row["r2_depth"] > 0.75
    assert row["r2_both"] > 0.75
    assert row["r2_within"] < 0.05 < row["q"]
    assert list(found.prediction["behaviour"]) == ["entropy", "gain"]


@pytest.mark.parametrize(
    ("q", "r2", "holds"),
    [(0.05, 0.01, True), (0.051, 0.9, False), (0.005, -0.01, False), (np.nan, np.nan, False)],
)
def test_what_counts_as_predicted(q: float, r2: float, holds: bool) -> None:
    table = pd.DataFrame({"behaviour": ["gain"], "q": [q], "r2_within": [r2]})
    assert predicted(table).tolist() == [holds]


def test_beyond_chance_is_not_enough_to_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spectra that mislead from layer to layer, and permuted heads still more."""

    def misled(x: np.ndarray, y: np.ndarray, *_: object, **__: object) -> Prediction:
        n = y.shape[1]
        return Prediction(np.full(n, -0.1), np.zeros(n), np.full((99, n), -0.5), np.full(n, 0.01))

    monkeypatch.setattr("qk_taxonomy.studies.query_norm.bridge.predict", misled)
    found = bridge(*planted(0), None)
    assert (found.prediction["q"] <= 0.05).all()
    assert "spectra predict 0 of 9" in found.line


def test_behaviours_that_say_the_same_are_told_and_left_out() -> None:
    slopes = np.zeros((3, 4))
    full = [planted_sample(f"{i}", i, slopes, n_tokens=60) for i in range(2)]
    assert distinct_measures(full) == tuple(m for m in MEASURES if m != "normalised_entropy")
    both_ways = [planted_sample("a", 0, slopes, n_tokens=60, causal=False)]
    assert "normalised_entropy" not in distinct_measures(both_ways)
    sliding = planted_sample("c", 0, slopes, n_tokens=60, window=20)
    assert distinct_measures([*full, sliding]) == MEASURES
    behaviour, spectral = planted(5)
    behaviour["k_eff"] = np.exp(behaviour["entropy"])
    note = bridge(behaviour, spectral, None, n_permutations=1).notes[-1]
    assert "1.00 at most (entropy and k eff)" in note


def test_eta_squared_is_that_of_two_way_analysis() -> None:
    import statsmodels.formula.api as smf

    behaviour, spectral = planted(2)
    label = np.random.default_rng(2).integers(0, 3, len(spectral))
    found = bridge(behaviour, spectral, spectral[HEAD].assign(**{"class": label}), n_permutations=1)
    y = normal_scores(behaviour[["entropy"]].to_numpy())[:, 0]
    data = behaviour[["layer"]].assign(y=y, label=label)
    layers, both = (smf.ols(f"y ~ C(layer){more}", data).fit().ssr for more in ("", " + C(label)"))
    eta = found.classes.set_index("behaviour").loc["entropy", "eta_squared"]
    assert eta == pytest.approx((layers - both) / layers)


def test_what_is_missing_is_told() -> None:
    behaviour, spectral = planted(3)
    behaviour["gain"], behaviour["k_eff"] = np.nan, 4.0
    spectral["ov_S0"] = 1.0
    spectral.loc[:20, "ov_S1"] = np.nan
    spectral.loc[5, "qk_S0"] = np.nan
    found = bridge(
        behaviour.iloc[:-2], spectral.iloc[1:], spectral[HEAD].assign(**{"class": 1}).iloc[6:],
        n_permutations=1,
    )  # fmt: skip
    assert found.notes[5].startswith("Behaviours depend on each other, so that 7")
    assert (*found.notes[:5], *found.notes[6:]) == (
        "1 of 46 measured heads have no spectra.",
        "2 of 47 surveyed heads were not measured.",
        "Statistics that do not vary, or that more than 10% of the heads lack, are left out: "
        "ov_S0, ov_S1.",
        "Behaviours that do not vary are left out: k_eff, gain.",
        "1 of 45 heads lack a behaviour or a statistic and are left out.",
        "4 of 44 heads have no class.",
        "Heads of a layer do not differ in class: classes are not tested.",
    )
    assert len(found.heads) == 44
    assert found.classes["eta_squared"].isna().all()
    assert "classes" not in found.line
    with pytest.raises(StudyError, match="48 heads \\(stack 'vision', layers 0 to 7\\) surveyed"):
        bridge(behaviour, spectral.assign(stack="vision"), None)
    with pytest.raises(StudyError, match="behaviours that vary over heads"):
        bridge(behaviour.assign(**dict.fromkeys(MEASURES, 1.0)), spectral, None)
    with pytest.raises(StudyError, match=r"statistics .* that vary over heads"):
        bridge(behaviour, spectral.drop(columns=["qk_S0", "qk_S1"]), None)


def test_one_layer_is_associated_but_not_predicted() -> None:
    behaviour, spectral = planted(4, n_layers=1, n_heads=30)
    spectral["qk_S0"] = behaviour["distance"]
    found = bridge(behaviour, spectral, None)
    assert found.prediction[["r2_within", "r2_spectra"]].isna().all(axis=None)
    assert any("one layer" in note for note in found.notes)
    best = found.associations.sort_values("q").iloc[0]
    assert (best["behaviour"], best["spearman"]) == ("distance", pytest.approx(1.0))
    assert found.line.startswith("Nothing could be predicted")


def test_behaviour_is_the_mean_over_tokens_then_texts() -> None:
    slopes = np.zeros((2, 3))
    samples = [
        planted_sample("a", 0, slopes, n_tokens=50), planted_sample("b", 1, slopes, n_tokens=400)
    ]  # fmt: skip
    samples[0].layers[1].values["gain"][2] = np.nan
    found = head_behaviour(samples)
    assert found[HEAD].to_numpy().tolist() == [["", i, h] for i in range(2) for h in range(3)]
    row = found.iloc[4]
    means = [np.nanmean(s.layers[1].values["entropy"][1].astype(np.float64)) for s in samples]
    assert row["entropy"] == pytest.approx(np.mean(means))
    assert row["entropy_se"] == pytest.approx(np.std(means, ddof=1) / np.sqrt(2))
    assert (found["n_samples"] == 2).all()
    assert np.isfinite(found.loc[5, "gain"])
    assert np.isnan(found.loc[5, "gain_se"])
    assert head_behaviour(samples[:1])["entropy_se"].isna().all()
    with pytest.raises(StudyError, match="found none"):
        head_behaviour([])


def test_spectra_of_a_surveyed_model_become_a_row_a_head() -> None:
    qk = head_table(REPOSITORY, "smollm2-gguf")
    name = "SmolLM2-135M-Instruct.Q4_1"
    ov = qk[qk["layer"] > 0].assign(circuit="ov", r90=qk["r90"] + 1)
    table = pd.concat([qk, ov], ignore_index=True)
    found = spectral_table(table, "smollm2-gguf", name)
    assert len(found) == 270
    assert found["kv_head"].tolist() == [head // 3 for _ in range(30) for head in range(9)]
    assert np.isfinite(found.filter(regex="^qk_").to_numpy()).all()
    assert (found.filter(regex="^ov_").isna().all(axis=1) == (found["layer"] == 0)).all()
    place = (qk["layer"] == 4) & (qk["head"] == 7) & (qk["convention"] == "folded")
    expected = qk[place].iloc[0]
    mine = found[(found["layer"] == 4) & (found["head"] == 7)].iloc[0]
    assert mine["qk_MAX"] == pytest.approx(np.log(expected["MAX"]))
    assert mine["qk_KURTOSIS"] == pytest.approx(np.log(expected["KURTOSIS"] + 3))
    assert (mine["qk_r90"], mine["ov_r90"]) == (expected["r90"], expected["r90"] + 1)
    with pytest.raises(StudyError, match=r"found none among \d+ heads of smollm2-gguf/SmolLM2"):
        spectral_table(table, "smollm2-gguf", "other")
    zero = qk.assign(MIN=np.where(qk["layer"] == 0, 0.0, qk["MIN"]))
    assert spectral_table(zero, "smollm2-gguf", name)["qk_MIN"].isna().sum() == 9
