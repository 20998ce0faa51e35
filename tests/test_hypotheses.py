"""Hypotheses on surveyed models: what is compared, what is refused, and the table on disk."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from planted_heads import write_heads
from scipy.stats import ks_2samp, wilcoxon
from untrained import Shape, untrained_model

from qk_taxonomy.cache import load_spectra, write_spectra
from qk_taxonomy.cli import main
from qk_taxonomy.errors import CatalogError, HypothesisError, SpectraFileError
from qk_taxonomy.hypotheses.contrast import CHANGE, KIND, SHIFT, matched_contrast
from qk_taxonomy.hypotheses.family import COMPOSITION, PAIRS, PROFILE, UNMATCHED
from qk_taxonomy.hypotheses.heads import load_heads, untrained_like
from qk_taxonomy.hypotheses.run import Outcome, compare_models, run_hypotheses
from qk_taxonomy.hypotheses.table import COLUMNS
from qk_taxonomy.records import PREDECESSOR_FORMULA, Circuit, ModelSpectra
from qk_taxonomy.statistics.moments import STATISTICS, effective_rank_lambda
from qk_taxonomy.statistics.nulls import untrained_spectra
from qk_taxonomy.statistics.shifts import WILCOXON

ROOT = Path(__file__).resolve().parents[1]
SHAPE = Shape(layers=12, heads=6, kv_heads=6, d_head=16, d_model=64)


def qk(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def write_model(
    root: Path,
    name: str,
    lam: np.ndarray | int = 0,
    *,
    shape: Shape = SHAPE,
    circuit: Circuit = "qk",
    **metadata: str,
) -> Path:
    """A spectra file of given λ (heads, d_head), or of an untrained model of that seed."""
    if isinstance(lam, int):
        lam = untrained_model(np.random.default_rng(lam), shape)
    sizes = {"n_kv_heads": str(shape.kv_heads), "d_model": str(shape.d_model)}
    by_layer = lam.reshape(shape.layers, shape.heads, -1)
    return write_heads(root, name, by_layer, circuit=circuit, **{**sizes, **metadata})


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """All hypotheses on the real models whose results the repository has."""
    root = tmp_path_factory.mktemp("real")
    for family in ("minilm", "rxnfp", "smollm2-gguf"):
        shutil.copytree(ROOT / "data" / family, root / "data" / family)
    return root, run_hypotheses(root)


class TestOnRealModels:
    def test_one_row_a_test(self, real: tuple[Path, Outcome]) -> None:
        table = real[1].table
        assert tuple(table.columns) == COLUMNS
        subject = ["family", "model", "against", "layer", "head", "hypothesis", "statistic"]
        assert not table.duplicated([*subject, "method"]).any()
        assert table["p_value"].dropna().between(0, 1).all()
        known = table.dropna(subset=["p_value", "q_value"])
        assert (known["q_value"] >= known["p_value"] - 1e-12).all()
        # What has no p-value says why, or is a description by its method.
        described = table["method"].str.contains("number of|share of|slope")
        silent = table[table["p_value"].isna() & ~described & (table["note"] == "")]
        assert not len(silent), silent

    def test_ranks_of_trained_heads(self, real: tuple[Path, Outcome]) -> None:
        table = real[1].table
        rank = table[(table["hypothesis"] == "rank") & table["head"].notna()]
        rejected = rank[rank["q_value"] <= 0.05].groupby(["model", "statistic"]).size()
        assert rejected["SmolLM2-135M-Instruct.Q4_1", "effective_rank_lambda"] == 270
        assert 50 < rejected["all-MiniLM-L6-v2", "effective_rank_lambda"] < 72
        # Its first layer is the flattest known: 18 of 64 directions.
        smollm = rank[(rank["model"].str.startswith("SmolLM2")) & (rank["layer"] == 0)]
        flat = smollm[smollm["statistic"] == "effective_rank_lambda"]["effect"]
        assert (flat < 0.5).all()
        above = smollm[smollm["statistic"] == "above_untrained_edge"]["effect"]
        assert (above > 10).all()

    def test_the_contrasts_of_rxnfp(self, real: tuple[Path, Outcome]) -> None:
        root, outcome = real
        twin = "all-MiniLM-L6-v2-against-random-0"
        assert {c.name for c in outcome.contrasts} == {"rxnfp-ft", "rxnfp-ft-10k", twin}
        table = outcome.table
        shift = table[
            (table["hypothesis"] == SHIFT)
            & (table["model"] == "bert_ft")
            & (table["statistic"] == "effective_rank_lambda")
            & (table["method"] == WILCOXON)
            & table["layer"].isna()
        ].iloc[0]
        sides = [
            np.concatenate(
                [
                    x.statistics[:, list(STATISTICS).index("effective_rank_lambda")]
                    for x in load_spectra(root / f"data/rxnfp/{name}.safetensors").select(
                        "qk", "raw"
                    )
                ]
            ).astype(float)
            for name in ("bert_ft", "bert_pretrained")
        ]
        assert shift["p_value"] == pytest.approx(wilcoxon(sides[0] - sides[1]).pvalue)
        assert (shift["n"], shift["against"]) == (48, "rxnfp/bert_pretrained")
        mean = table[
            (table["hypothesis"] == SHIFT)
            & (table["model"] == "bert_ft")
            & (table["statistic"] == "MEAN")
            & (table["method"] == WILCOXON)
            & table["layer"].isna()
        ].iloc[0]
        # In nats: fine-tuning shrinks the mean λ by some 13 %.
        assert -0.16 < mean["low"] < mean["effect"] < mean["high"] < -0.11
        assert mean["q_value"] < 1e-6

    def test_minilm_against_its_random_twin(self, real: tuple[Path, Outcome]) -> None:
        outcome = real[1]
        contrast = next(c for c in outcome.contrasts if c.kind == "random twin")
        shifts = contrast.overall.set_index("statistic")
        # Training makes every head's spectrum less even, whatever the layer.
        assert shifts.loc["effective_rank_lambda", "effect"] < -0.9
        assert shifts.loc["effective_rank_lambda", "q_value"] <= 0.05
        assert (contrast.heads["q_wasserstein_within"] <= 0.05).sum() > 60
        twin = next(r for r in outcome.ranks if r.heads.spectra.is_random_twin).test
        assert twin is not None
        assert (twin.q_values > 0.05).all()

    def test_models_of_one_training_count_once(self, real: tuple[Path, Outcome]) -> None:
        outcome = real[1]
        (families,) = outcome.families
        names = {heads.model for heads in families.models}
        assert names == {"all-MiniLM-L6-v2", "bert_pretrained", "SmolLM2-135M-Instruct.Q4_1"}
        assert any("bert_ft" in note for note in outcome.notes)
        tested = outcome.table[outcome.table["hypothesis"].isin([COMPOSITION, PROFILE, PAIRS])]
        assert tested["p_value"].isna().all()
        assert tested["note"].str.contains("needs").all()

    def test_too_few_pairs_for_a_kind(self, real: tuple[Path, Outcome]) -> None:
        table = real[1].table
        kinds = table[table["hypothesis"] == KIND]
        assert set(kinds["model"]) == {"all base-tuned contrasts", "all random twin contrasts"}
        assert kinds["p_value"].isna().all()
        assert kinds["note"].str.contains("6").all()

    def test_the_most_changed_heads_are_ranked(self, real: tuple[Path, Outcome]) -> None:
        contrast = next(c for c in real[1].contrasts if c.name == "rxnfp-ft")
        heads = contrast.heads
        assert len(heads) == 48
        assert heads["wasserstein"].is_monotonic_decreasing
        assert (heads["layer"].iloc[0], heads["head"].iloc[0]) == (1, 0)
        rows = contrast.rows[contrast.rows["hypothesis"] == CHANGE]
        assert len(rows) == 48 * 4


def test_the_command_writes_what_it_says(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "data" / "rxnfp", tmp_path / "data" / "rxnfp")
    result = qk("test", "--data-root", tmp_path)
    assert result.exit_code == 0, result.output
    made = {str(p.relative_to(tmp_path / "plots")) for p in tmp_path.glob("plots/**/*.*")}
    assert made == {
        "tests.csv",
        *(
            f"tests/rxnfp/bert_{name}_rank.{ending}"
            for name in ("ft", "ft_10k_25s", "pretrained")
            for ending in ("png", "md")
        ),
        *(
            f"tests/contrasts/rxnfp/rxnfp-{name}.{ending}"
            for name in ("ft", "ft-10k")
            for ending in ("png", "md", "csv")
        ),
    }
    assert "rxnfp/bert_ft against rxnfp/bert_pretrained: shifted: MIN" in result.output
    table = pd.read_csv(tmp_path / "plots/tests.csv", keep_default_na=False)
    assert tuple(table.columns) == COLUMNS
    first = (tmp_path / "plots/tests.csv").read_bytes()
    assert qk("test", "--data-root", tmp_path).exit_code == 0
    assert (tmp_path / "plots/tests.csv").read_bytes() == first
    heads = pd.read_csv(tmp_path / "plots/tests/contrasts/rxnfp/rxnfp-ft.csv")
    assert {"layer", "head", "wasserstein", "q_wasserstein_within"} <= set(heads.columns)


def test_other_circuits_have_files_of_their_own(tmp_path: Path) -> None:
    write_model(tmp_path, "one/a", 1, circuit="ov")
    result = qk("test", "--data-root", tmp_path, "--circuit", "ov", "--hypothesis", "rank")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "plots/tests.ov.raw.csv").is_file()
    assert (tmp_path / "plots/tests/one/a.ov.raw_rank.png").is_file()
    result = qk("test", "--data-root", tmp_path)
    assert result.exit_code == 1
    assert "qk raw" in result.output


class TestNamedModels:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        for number, name in enumerate(("one/a", "one/b", "two/a", "two/c")):
            write_model(tmp_path, name, number)
        return tmp_path

    def test_any_two_by_file_or_name(self, root: Path) -> None:
        file = root / "data/one/b.safetensors"
        for treatment in ("b", "one/b", "made/b", str(file)):
            outcome = compare_models([treatment], ["two/c"], root)
            (contrast,) = outcome.contrasts
            assert (contrast.treatment.name, contrast.control.name) == ("one/b", "two/c")

    def test_names_of_none_or_several(self, root: Path) -> None:
        with pytest.raises(HypothesisError, match=r"could be any of one/a, two/a"):
            compare_models(["a"], ["b"], root)
        with pytest.raises(HypothesisError, match=r"No surveyed model .* 'bert'.*There are one/a"):
            compare_models(["bert"], ["b"], root)
        with pytest.raises(HypothesisError, match="one treatment and one control"):
            compare_models(["b"], [], root)
        with pytest.raises(CatalogError, match=r"no contrast no-such.*families --contrasts"):
            run_hypotheses(root, contrasts=["no-such"])
        assert qk("test", "--data-root", root, "--contrast", "no-such").exit_code == 2

    def test_a_file_is_that_file(self, root: Path) -> None:
        with pytest.raises(HypothesisError, match="No surveyed model is called"):
            compare_models(["/elsewhere/data/one/b.safetensors"], ["two/c"], root)

    def test_a_model_counts_once(self, root: Path) -> None:
        with pytest.raises(HypothesisError, match=r"one/b is named more than once"):
            compare_models(["b", "one/b"], ["two/c", "two/a"], root)
        with pytest.raises(HypothesisError, match=r"two/c is named more than once"):
            compare_models(["b", "two/c"], ["two/c"], root)
        with pytest.raises(HypothesisError, match=r"b and made/b are one model"):
            compare_models(["b"], ["made/b"], root)

    def test_the_comparison_has_a_table_of_its_own(self, root: Path) -> None:
        assert qk("test", "--data-root", root, "--hypothesis", "trend").exit_code == 0
        before = (root / "plots/tests.csv").read_bytes()
        result = qk("test", "--data-root", root, "--treatment", "b", "--control", "two/c")
        assert result.exit_code == 0, result.output
        assert (root / "plots/tests.csv").read_bytes() == before
        table = root / "plots/tests/contrasts/one/b-against-two.c.tests.csv"
        assert str(table) in result.output
        assert (root / "plots/tests/contrasts/one/b-against-two.c.png").is_file()

    def test_calls_that_contradict_themselves(self, root: Path) -> None:
        for wrong in (
            ["--treatment", "b"],
            ["--treatment", "b", "--control", "c", "--hypothesis", "rank"],
            ["--treatment", "b", "--control", "c", "--contrast", "rxnfp-ft"],
            ["--contrast", "rxnfp-ft", "--hypothesis", "trend"],
            ["--contrast", "no-such-contrast"],
        ):
            assert qk("test", "--data-root", root, *wrong).exit_code == 2, wrong
        result = qk("test", "--data-root", root, "--contrast", "rxnfp-ft")
        assert result.exit_code == 1
        assert "Both models of rxnfp-ft are wanted" in result.stderr
        assert not (root / "plots").exists()

    def test_checkpoints_of_one_training_are_named(self, root: Path) -> None:
        for step in (1, 2, 3, 4):
            write_model(root, f"one/run@{step}", step + 10, model_id="made/run")
        runs = [f"run@{step}" for step in (1, 2, 3, 4)]
        outcome = compare_models(runs, ["one/a", "one/b", "two/c"], root)
        assert any("run@2" in note and "too small" in note for note in outcome.notes)

    def test_a_model_and_a_copy(self, root: Path) -> None:
        lam = untrained_model(np.random.default_rng(0), SHAPE)
        write_model(root, "one/copy", lam)
        outcome = compare_models(["copy"], ["one/a"], root)
        rows = outcome.table
        assert (rows["effect"].dropna() == 0).all()
        assert (rows["p_value"].dropna() == 1).all()
        shifts = rows[rows["hypothesis"] == SHIFT]
        assert shifts["note"].str.contains("0 of ").all()

    def test_sides_of_two_shapes_are_refused_with_a_way_on(self, root: Path) -> None:
        small = Shape(layers=3, heads=4, kv_heads=4, d_head=16, d_model=64)
        write_model(root, "one/small", 7, shape=small)
        with pytest.raises(HypothesisError, match=r"3 layers × 4 heads.*no head has its match.*--"):
            compare_models(["small"], ["b"], root)
        result = qk("test", "--data-root", root, "--treatment", "small", "--control", "b")
        assert result.exit_code == 1
        assert "Traceback" not in result.output

    def test_groups_of_models_of_any_shape(self, root: Path) -> None:
        small = Shape(layers=3, heads=4, kv_heads=4, d_head=16, d_model=64)
        groups: dict[str, list[str]] = {"low": [], "free": []}
        rng = np.random.default_rng(5)
        for number in range(8):
            side = "low" if number % 2 else "free"
            shape = small if number < 4 else SHAPE
            planted = np.arange(shape.n) if side == "low" else None
            lam = untrained_model(rng, shape, planted, decay=0.1)
            write_model(root, f"{side}/m{number}", lam, shape=shape)
            groups[side].append(f"m{number}")
        outcome = compare_models(groups["low"], groups["free"], root)
        rows = outcome.table
        assert set(rows["hypothesis"]) == {UNMATCHED}
        rank = rows[rows["statistic"] == "effective_rank_lambda"]
        assert len(rank) == 2
        assert (rank["effect"] < 0).all()
        assert (rank["q_value"] <= 0.05).all()
        assert (rank["n"] == 8).all()
        few = compare_models(groups["low"][:2], groups["free"][:2], root).table
        permuted = few[few["method"].str.startswith("permutation")]
        assert permuted["p_value"].isna().all()
        assert permuted["note"].str.contains("needs 4").all()


def test_a_catalogued_contrast_of_two_shapes_gets_a_row(tmp_path: Path) -> None:
    write_model(tmp_path, "rxnfp/bert_ft", 1, model_id="rxnfp/bert_ft")
    small = Shape(layers=3, heads=4, kv_heads=4, d_head=16, d_model=64)
    write_model(tmp_path, "rxnfp/bert_pretrained", 2, shape=small, model_id="rxnfp/bert_pretrained")
    outcome = run_hypotheses(tmp_path, hypotheses=["contrast"])
    assert len(outcome.table) == 1
    assert "no head has its match" in outcome.table["note"].iloc[0]
    result = qk("test", "--data-root", tmp_path, "--hypothesis", "contrast")
    assert result.exit_code == 0
    assert "contrast refused: " in result.output


class TestImported:
    """The predecessor's numbers stay out of comparisons with true spectra."""

    PROVENANCE = json.dumps({"formula": PREDECESSOR_FORMULA})

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        write_model(tmp_path, "true/a", 1)
        write_model(tmp_path, "true/b", 2)
        for number in (3, 4):
            name = f"other/{number}"
            write_model(tmp_path, name, number, provenance=self.PROVENANCE, n_kv_heads="0")
        return tmp_path

    def test_families_leave_them_out_unless_asked(self, root: Path) -> None:
        outcome = run_hypotheses(root, hypotheses=["family"])
        assert outcome.families == ()
        assert any("predecessor" in note for note in outcome.notes)
        outcome = run_hypotheses(root, hypotheses=["family"], include_imported=True)
        assert len(outcome.families[0].models) == 4

    def test_a_named_comparison_is_refused_unless_asked(self, root: Path) -> None:
        with pytest.raises(HypothesisError, match="--include-imported"):
            compare_models(["other/3"], ["true/a"], root)
        outcome = compare_models(["other/3"], ["true/a"], root, include_imported=True)
        assert len(outcome.contrasts) == 1

    def test_among_themselves_they_are_compared(self, root: Path) -> None:
        outcome = compare_models(["3"], ["4"], root)
        notes = set(outcome.table.loc[outcome.table["hypothesis"] == SHIFT, "note"])
        assert any("key-value groups are not known" in note for note in notes)

    def test_they_change_no_other_result(self, tmp_path: Path) -> None:
        shutil.copytree(ROOT / "data/rxnfp", tmp_path / "data/rxnfp")
        alone = run_hypotheses(tmp_path).table
        for path in sorted((tmp_path / "data/rxnfp").glob("*.safetensors")):
            spectra = load_spectra(path)
            metadata = {**spectra.metadata, "provenance": self.PROVENANCE}
            copy = tmp_path / "data/rxnfp-predecessor" / path.name
            write_spectra(copy, ModelSpectra(metadata, spectra.layers))
        outcome = run_hypotheses(tmp_path)
        assert len({(c.treatment.family, c.name) for c in outcome.contrasts}) == 4
        table = outcome.table
        # Kinds of contrast name no family, and those of imported models say so.
        own = (table["family"] == "rxnfp") | (table["model"] == "all base-tuned contrasts")
        pd.testing.assert_frame_equal(
            table[own].reset_index(drop=True), alone.reset_index(drop=True)
        )
        assert qk("test", "--data-root", tmp_path, "--hypothesis", "contrast").exit_code == 0
        figures = {str(p.parent.name) for p in tmp_path.glob("plots/tests/contrasts/*/*.png")}
        assert figures == {"rxnfp", "rxnfp-predecessor"}

    def test_without_d_model_there_is_no_null(self, tmp_path: Path) -> None:
        write_model(tmp_path, "other/x", 3, provenance=self.PROVENANCE, d_model="0")
        outcome = run_hypotheses(tmp_path, hypotheses=["rank"], include_imported=True)
        assert outcome.ranks[0].test is None
        assert outcome.table["note"].str.contains("--d-model").all()
        assert qk("test", "--data-root", tmp_path).exit_code == 0

    def test_they_have_no_rank_test_unless_asked(self, root: Path) -> None:
        outcome = run_hypotheses(root, hypotheses=["rank"])
        assert [rank.test is None for rank in outcome.ranks] == [True, True, False, False]
        outcome = run_hypotheses(root, hypotheses=["rank"], include_imported=True)
        assert all(rank.test for rank in outcome.ranks)

    def test_untrained_heads_have_another_law_by_the_predecessors_formula(self) -> None:
        """The reason for it; the true formula on the same weights has the null's."""
        w_q, w_k = np.random.default_rng(1).standard_normal((2, 1000, 32, 128))
        (_, s_q, vh_q), (_, s_k, vh_k) = (
            np.linalg.svd(w.mT, full_matrices=False) for w in (w_q, w_k)
        )
        null = effective_rank_lambda(untrained_spectra(32, 128, 2000)[:, 0])
        for core, same in ((vh_q @ vh_k.mT, True), (vh_q.mT @ vh_k, False)):
            sigma = np.linalg.svd(s_q[..., None] * core * s_k[:, None, :], compute_uv=False)
            p = ks_2samp(effective_rank_lambda(np.square(sigma)), null).pvalue
            assert (p > 0.01) == same, p


def test_circuits_and_conventions_are_not_mixed(tmp_path: Path) -> None:
    paths = [write_model(tmp_path, "one/a", 1), write_model(tmp_path, "one/b", 2, circuit="ov")]
    surveyed = load_heads(paths, "qk", "raw")
    (qk_heads,), (ov_heads,) = surveyed.sets, load_heads(paths, "ov", "raw").sets
    assert surveyed.without.keys() == {"one/b"}
    with pytest.raises(HypothesisError, match="two circuits"):
        matched_contrast("x", "named", qk_heads, ov_heads)
    write_model(tmp_path, "one/a2", 3)
    outcome = run_hypotheses(tmp_path, hypotheses=["rank"])
    assert "b.safetensors has no qk raw" in str(outcome.failures.pop("one/b"))
    assert not outcome.failures
    # Two named models are compared whatever others have.
    assert not compare_models(["a"], ["a2"], tmp_path).failures


class TestEdges:
    def test_one_model_of_one_layer_with_one_head(self, tmp_path: Path) -> None:
        shape = Shape(layers=1, heads=1, kv_heads=1, d_head=8, d_model=32)
        write_model(tmp_path, "one/a", 1, shape=shape)
        result = qk("test", "--data-root", tmp_path)
        assert result.exit_code == 0, result.output
        assert "trend  one/a: none" in result.output

    def test_one_head_a_layer(self, tmp_path: Path) -> None:
        shape = Shape(layers=14, heads=1, kv_heads=1, d_head=8, d_model=32)
        write_model(tmp_path, "one/a", 1, shape=shape)
        write_model(tmp_path, "one/b", 2, shape=shape)
        result = qk("test", "--data-root", tmp_path, "--treatment", "a", "--control", "b")
        assert result.exit_code == 0, result.output
        (file,) = tmp_path.glob("plots/tests/contrasts/one/a-against-b.tests.csv")
        table = pd.read_csv(file, keep_default_na=False)
        shift = table[(table["hypothesis"] == SHIFT) & (table["layer"] == "")]
        assert (shift["n"].astype(int) == 14).all()

    def test_constant_spectra_and_dead_heads(self, tmp_path: Path) -> None:
        lam = np.ones((SHAPE.n, SHAPE.d_head))
        write_model(tmp_path, "one/flat", lam)
        lam = lam.copy()
        lam[3] = 0.0
        write_model(tmp_path, "two/dead", lam)
        result = qk("test", "--data-root", tmp_path, "--treatment", "flat", "--control", "dead")
        assert result.exit_code == 0, result.output
        result = qk("test", "--data-root", tmp_path)
        assert "Traceback" not in result.output
        table = pd.read_csv(tmp_path / "plots/tests.csv", keep_default_na=False)
        trend = table[table["hypothesis"] == "trend with depth"]
        assert trend["note"].str.contains("constant|no finite").all()
        rank = table[(table["hypothesis"] == "rank") & (table["model"] == "flat")]
        assert not (rank["q_value"].replace("", 1).astype(float) <= 0.05).any()

    def test_a_damaged_file_among_others(self, tmp_path: Path) -> None:
        write_model(tmp_path, "one/a", 1)
        (tmp_path / "data/one/b.safetensors").write_bytes(b"no spectra")
        result = qk("test", "--data-root", tmp_path, "--hypothesis", "rank")
        assert result.exit_code == 1
        assert "one/b: " in result.stderr
        assert "is damaged" in result.stderr
        assert (tmp_path / "plots/tests/one/a_rank.png").is_file()
        (tmp_path / "data/one/a.safetensors").unlink()
        assert qk("test", "--data-root", tmp_path).exit_code == 1

    def test_a_figure_that_cannot_be_written(self, tmp_path: Path) -> None:
        write_model(tmp_path, "one/a", 1)
        write_model(tmp_path, "two/b", 2)
        (tmp_path / "plots/tests").mkdir(parents=True)
        (tmp_path / "plots/tests/one").touch()  # a file where a folder is wanted
        result = qk("test", "--data-root", tmp_path, "--hypothesis", "rank")
        assert result.exit_code == 1
        assert "plots/tests/one/a_rank" in result.stderr
        assert "Traceback" not in result.output
        # What was found is printed all the same, and the rest is there.
        assert "rank  one/a: of 72 heads" in result.stdout
        assert (tmp_path / "plots/tests.csv").is_file()
        assert (tmp_path / "plots/tests/two/b_rank.png").is_file()

    def test_nothing_surveyed(self, tmp_path: Path) -> None:
        with pytest.raises(SpectraFileError, match="qk-taxonomy download"):
            run_hypotheses(tmp_path)
        assert qk("test", "--data-root", tmp_path).exit_code == 1


def test_layers_that_differ_in_d_head(tmp_path: Path) -> None:
    """Trends and families are tested all the same; what compares spectra says why it cannot."""
    for number, name in enumerate(("one/a", "one/b", "two/c")):
        path = write_model(tmp_path, name, number)
        spectra = load_spectra(path)
        cut = [
            dataclasses.replace(
                layer,
                singular_values=layer.singular_values[:, : 16 - 8 * (layer.layer % 2)],
                eigenvalues=layer.eigenvalues[:, : 16 - 8 * (layer.layer % 2)],
            )
            for layer in spectra.layers
        ]
        write_spectra(path, ModelSpectra(spectra.metadata, tuple(cut)))
    result = qk("test", "--data-root", tmp_path)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "plots/tests.csv", keep_default_na=False)
    assert {"trend with depth", COMPOSITION} <= set(table["hypothesis"])
    ranks = table[table["hypothesis"] == "rank"]
    assert ranks["note"].str.contains("differ in d_head (8, 16)", regex=False).all()
    result = qk("test", "--data-root", tmp_path, "--treatment", "a", "--control", "b")
    assert result.exit_code == 1
    assert "one/a: its layers differ in d_head (8, 16)" in result.stderr


def test_stacks_are_told_apart(tmp_path: Path) -> None:
    geometry = {"n_layers": 12, "n_heads": 6, "n_kv_heads": 6, "d_head": 16, "d_model": 64}
    stacks = json.dumps(dict.fromkeys(("encoder", "decoder"), geometry))
    for number in range(4):
        path = write_model(tmp_path, f"fam{number % 2}/m{number}", number)
        spectra = load_spectra(path)
        layers = [
            dataclasses.replace(layer, stack=stack)
            for stack in ("encoder", "decoder")
            for layer in spectra.layers
        ]
        write_spectra(path, ModelSpectra({**spectra.metadata, "stacks": stacks}, tuple(layers)))
    result = qk("test", "--data-root", tmp_path)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "plots/tests.csv", keep_default_na=False)
    assert set(table["stack"]) == {"encoder", "decoder"}
    assert "families  encoder, class composition" in result.output
    assert (tmp_path / "plots/tests/families.decoder.png").is_file()
    assert (tmp_path / "plots/tests/fam0/m0.encoder_rank.png").is_file()


def test_a_contrast_shows_the_same_whatever_else_there_is(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "data/rxnfp", tmp_path / "data/rxnfp")
    alone = run_hypotheses(tmp_path, hypotheses=["contrast"], contrasts=["rxnfp-ft"]).table
    steep = np.arange(1.0, SHAPE.n * 16 + 1).reshape(SHAPE.n, 16) ** 3
    write_model(tmp_path, "rxnfp/strong", steep[:, ::-1])
    write_model(tmp_path, "rxnfp/strong~random-0", 1, control="random-0", model_id="made/strong")
    both = run_hypotheses(tmp_path, hypotheses=["contrast"])
    assert len(both.contrasts) == 3
    again = both.table[(both.table["model"] == "bert_ft")].reset_index(drop=True)
    kinds = alone["hypothesis"] == KIND
    pd.testing.assert_frame_equal(again, alone[~kinds].reset_index(drop=True))


def test_too_few_draws_say_so(tmp_path: Path) -> None:
    twin = {"architecture": "deepseek", "control": "random-0", "model_id": "made/a"}
    write_model(tmp_path, "one/a", 1, architecture="deepseek")
    write_model(tmp_path, "one/a~random-0", 2, **twin)
    table = run_hypotheses(tmp_path, hypotheses=["rank"]).table
    own = table[(table["model"] == "a") & table["p_value"].notna()]
    # 72 heads, 72 draws: p ≥ 1 / 73, so at least 72 / (0.05 · 73) heads must be extreme together.
    assert own["note"].str.contains("fewer than 20 heads cannot be rejected").all()
    # The only twin is no null of its own.
    twins = table[table["model"] == "a~random-0"]
    assert twins["p_value"].isna().all()


def test_families_with_enough_models_are_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    shape = Shape(layers=4, heads=6, kv_heads=6, d_head=16, d_model=64)
    for number in range(8):
        family = "low" if number < 4 else "free"
        planted = np.arange(shape.n) if family == "low" else None
        lam = untrained_model(rng, shape, planted, decay=0.1)
        write_model(tmp_path, f"{family}/m{number}", lam, shape=shape)
    outcome = run_hypotheses(tmp_path, hypotheses=["family"])
    table = outcome.table
    classes = table[table["hypothesis"] == COMPOSITION].iloc[0]
    assert classes["p_value"] == pytest.approx(1 / 35)
    pairs = table[(table["hypothesis"] == PAIRS) & (table["statistic"] == "effective_rank_lambda")]
    assert set(zip(pairs["family"], pairs["against"], strict=True)) == {("free", "low")}
    assert pairs["effect"].iloc[0] == 1.0
    assert qk("test", "--data-root", tmp_path, "--hypothesis", "family").exit_code == 0
    assert (tmp_path / "plots/tests/families.png").is_file()


class TestWithoutALawOfTheShape:
    """Heads that are no product of two Gaussian matrices are compared with the random twin's."""

    def test_latent_attention_needs_its_twin(self, tmp_path: Path) -> None:
        write_model(tmp_path, "one/a", 1, architecture="deepseek")
        outcome = run_hypotheses(tmp_path, hypotheses=["rank"])
        assert outcome.ranks[0].test is None
        assert outcome.table["note"].str.contains("download --control random").all()
        result = qk("test", "--data-root", tmp_path, "--hypothesis", "rank")
        assert result.exit_code == 0
        assert "not tested: untrained heads of this architecture" in result.output
        twin = {"architecture": "deepseek", "control": "random-0", "model_id": "made/a"}
        write_model(tmp_path, "one/a~random-0", 2, **twin)
        other = {**twin, "model_id": "made/b"}
        write_model(tmp_path, "one/b~random-0", 3, **other)
        heads, twin_heads, _ = load_heads(
            sorted((tmp_path / "data/one").glob("*.safetensors")), "qk", "raw"
        ).sets
        null = untrained_like(heads, [twin_heads]).lam
        assert null is not None
        np.testing.assert_array_equal(null, twin_heads.lam)
        outcome = run_hypotheses(tmp_path, hypotheses=["rank"])
        assert outcome.ranks[0].test is not None

    def test_a_norm_that_centres_queries(self, tmp_path: Path) -> None:
        path = write_model(tmp_path, "one/a", 1, architecture="cohere")
        (raw,) = load_heads([path], "qk", "raw").sets
        assert untrained_like(raw).lam is not None
        folded = dataclasses.replace(raw, convention="folded")
        assert "no law of their shape" in untrained_like(folded).reason


def test_models_are_compared_with_their_random_twins(tmp_path: Path) -> None:
    planted = np.arange(SHAPE.n)
    lam = untrained_model(np.random.default_rng(1), SHAPE, planted, decay=0.2)
    write_model(tmp_path, "one/a", lam)
    write_model(tmp_path, "one/a~random-0", 2, control="random-0", model_id="made/a")
    write_model(tmp_path, "one/a~one-layer", 3, control="one-layer", model_id="made/a")
    outcome = run_hypotheses(tmp_path)
    (contrast,) = outcome.contrasts
    assert (contrast.kind, contrast.name) == ("random twin", "a-against-random-0")
    assert (contrast.heads["q_wasserstein_within"] <= 0.05).all()
    ranks = {result.heads.model: result for result in outcome.ranks}
    assert set(ranks) == {"a", "a~random-0"}
    twin = ranks["a~random-0"].test
    assert twin is not None
    assert (twin.q_values > 0.05).all()
    assert {heads.model for heads in outcome.families} == set()


SIDES = (("base", ""), ("tuned", "x"), ("tuned", "y"))


def test_kinds_count_what_models_were_trained_from(tmp_path: Path) -> None:
    """Two fine-tunes of one model are one unit, seven pairs of seven models are seven."""
    lines = []
    for number in range(7):
        base = untrained_model(np.random.default_rng(number), SHAPE)
        write_model(tmp_path, f"fam/base{number}", base)
        for tune in ("x", "y"):
            tuned = base * np.linspace(1.0, 0.5 + 0.01 * number, SHAPE.d_head)
            write_model(tmp_path, f"fam/tuned{number}{tune}", tuned)
            sides = f'treatment = "made/tuned{number}{tune}"\ncontrol = "made/base{number}"'
            lines.append(f'[[contrasts]]\nname = "{number}{tune}"\nkind = "instruct"\n{sides}\n')
    catalog = tmp_path / "catalog"
    (catalog / "families").mkdir(parents=True)
    names = [
        f"{m}{n}{t}" for n in range(7) for m, t in (("base", ""), *(("tuned", t) for t in "xy"))
    ]
    family = 'name = "fam"\ntitle = "f"\ndescription = "f"\nlicense = "none"\n' + "".join(
        f'[[models]]\nid = "made/{name}"\nparameters = 1\n' for name in names
    )
    (catalog / "families/fam.toml").write_text(family)
    (catalog / "contrasts.toml").write_text("\n".join(lines))
    outcome = run_hypotheses(tmp_path, hypotheses=["contrast"], catalog=catalog)
    assert len(outcome.contrasts) == 14
    kinds = outcome.table[outcome.table["hypothesis"] == KIND].set_index("statistic")
    assert (kinds["n"] == 7).all()
    rank = kinds.loc["effective_rank_lambda"]
    assert rank["effect"] == pytest.approx(-1.0)
    assert rank["p_value"] == pytest.approx(2 / 2**7)
