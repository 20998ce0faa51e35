"""Reports of the study of query norms: what is written, and that it says what was found."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from readable import with_captions
from synthetic_query_norm import planted_study

from qk_taxonomy.outputs.query_norm import FIGURES, TABLES, query_norm_folder, write_query_norm
from qk_taxonomy.studies.query_norm.criteria import Criteria, load_criteria
from qk_taxonomy.studies.query_norm.study import QueryNormStudy

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def study() -> QueryNormStudy:
    return planted_study(6, 4)


@pytest.fixture(scope="module")
def written(study: QueryNormStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reports")
    paths = list(write_query_norm(study, root))
    folder = query_norm_folder(study, root)
    assert folder == root / "plots" / "query-norm" / "planted" / "planted-1M-90"
    assert paths[-1] == folder / "report.md"
    names = [path.name for path in folder.iterdir()]
    assert sorted(names) == sorted(with_captions(path.name for path in paths))
    # What may be there is known by name, so that it is deleted where a later run has none.
    assert {path.stem for path in paths} == {*TABLES, *FIGURES, "report"}
    return folder


def rows(report: str, heading: str) -> list[list[str]]:
    """The rows of the first table after a heading, in cells; bars in cells are escaped."""
    lines = report[report.index(heading) :].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| ---"))
    table = []
    for line in lines[first + 1 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return table


class TestFiles:
    def test_tables_hold_what_was_found(self, study: QueryNormStudy, written: Path) -> None:
        assert study.bridge is not None
        for name, table in (
            ("heads", study.correlations.heads),
            ("samples", study.correlations.by_sample),
            ("behaviour", study.behaviour),
            ("prediction", study.bridge.prediction),
            ("associations", study.bridge.associations),
            ("classes", study.bridge.classes),
        ):
            read = pd.read_csv(written / f"{name}.csv", dtype={"stack": str})
            if "stack" in read:
                read["stack"] = read["stack"].fillna("")
            pd.testing.assert_frame_equal(read, table, check_dtype=False, rtol=1e-5)
        scaling = pd.read_csv(written / "scaling.csv")
        assert study.scaling is not None
        at = scaling[(scaling["layer"] == 2) & (scaling["alpha"] == 1.5)]
        assert at["entropy"].item() == pytest.approx(study.scaling.entropy[2, -1], rel=1e-5)

    def test_every_figure_is_in_the_report(self, written: Path) -> None:
        shown = re.findall(r"!\[.*?\]\((.*?)\)", (written / "report.md").read_text())
        assert sorted(shown) == sorted(path.name for path in written.glob("*.png"))
        assert len(shown) == 8
        for name in shown:
            with Image.open(written / name) as image:
                assert min(image.size) > 200


class TestReport:
    def test_the_verdict_is_on_top(self, study: QueryNormStudy, written: Path) -> None:
        title, _, verdict = (written / "report.md").read_text().splitlines()[:3]
        assert title == "# Query norm and attention entropy: planted-1M, 90 tokens"
        assert verdict == f"**Verdict.** {study.verdict.line}"

    def test_its_numbers_are_those_of_the_verdict(
        self, study: QueryNormStudy, written: Path
    ) -> None:
        found = study.verdict.numbers
        table = rows((written / "report.md").read_text(), "## What the verdict rests on")
        assert table[0][1:] == [str(found["raw"]), str(found["partial"])]
        assert table[1][1:] == [f"{found[f'{side}_share']:.1%}" for side in ("raw", "partial")]
        assert [int(table[2][2]), int(table[3][2])] == [
            found["partial_negative"],
            found["partial_positive"],
        ]

    def test_what_was_run_and_by_which_criteria(self, study: QueryNormStudy, written: Path) -> None:
        report = (written / "report.md").read_text()
        assert ["windows", r"3 \| planted"] in rows(report, "## What was run")
        values = {name: value for name, value, _ in rows(report, "## Criteria")}
        assert values["`correlation`"] == f"{study.criteria.correlation:g}"
        assert values["`n_permutations`"] == "10"

    def test_criteria_tell_where_they_are_from(self, study: QueryNormStudy, tmp_path: Path) -> None:
        def told(criteria: Criteria) -> str:
            *_, path = write_query_norm(
                replace(study, criteria=criteria, bridge=None, scaling=None), tmp_path
            )
            return path.read_text().partition("## Criteria\n\n")[2].partition("\n\n")[0]

        built_in = load_criteria()
        fixed = (
            "The built-in ones, fixed before the study was run on any model (what `control` says "
            "of another window was added later)"
        )
        assert told(built_in) == f"{fixed}."
        assert told(replace(built_in, source="mine.toml")) == f"{fixed}, as are those of mine.toml."
        other = told(replace(built_in, correlation=0.3, n_permutations=10, source="mine.toml"))
        assert other.startswith(
            "Those of mine.toml, which differ from the built-in ones in `correlation` (0.3 for "
            "0.5), `n_permutations` (10 for 100)."
        )
        assert told(replace(built_in, seed=1)).startswith("Given by the caller, which differ")

    def test_windows_of_one_text(self, study: QueryNormStudy, tmp_path: Path) -> None:
        said = "All 3 windows are of one text, planted"
        for texts, n in ((("planted",), 1), (("a", "b"), 0)):
            bare = replace(study, texts=texts, bridge=None, scaling=None)
            *_, path = write_query_norm(bare, tmp_path)
            assert path.read_text().count(said) == n

    def test_keys_that_are_scaled(self, study: QueryNormStudy, written: Path) -> None:
        report = (written / "report.md").read_text()
        assert [row[0] for row in rows(report, "## Intervention")] == ["0.0", "keys of 1.0", "2.0"]
        assert "numbers are means over these" in report

    def test_heads_are_in_order(self, study: QueryNormStudy, written: Path) -> None:
        report = (written / "report.md").read_text()
        heads = study.correlations.heads
        lowest = heads.loc[heads["pearson"].idxmin()]
        first = rows(report, "### Lowest r as measured")[0]
        assert first[0] == f"{lowest['layer']}.{lowest['head']}"
        assert first[1].startswith(f"−{-lowest['pearson']:.2f} [")
        highest = [row[1].split()[0] for row in rows(report, "### Highest r as measured")]
        numbers = [float(one.replace("−", "-")) for one in highest]
        assert numbers == sorted(numbers, reverse=True)
        assert len(numbers) == 10

    def test_limits_are_told_once(self, study: QueryNormStudy, written: Path) -> None:
        report = (written / "report.md").read_text()
        assert study.bridge is not None
        for note in (*study.notes, *study.correlations.notes, *study.bridge.notes):
            assert report.count(note) == 1

    def test_the_bridge_is_told_whatever_it_says(
        self, study: QueryNormStudy, written: Path
    ) -> None:
        report = (written / "report.md").read_text()
        assert study.bridge is not None
        assert study.bridge.line in report
        first = study.bridge.associations.sort_values("spearman", key=abs).iloc[-1]
        told = rows(report[report.index("associations within layers") :], "")[0]
        assert told[1] == "QK MEAN"
        assert first["statistic"] == "qk_MEAN"


class TestEdges:
    def test_without_spectra_and_without_an_intervention(
        self, study: QueryNormStudy, tmp_path: Path
    ) -> None:
        assert set(write_query_norm(study, tmp_path)) > set()
        own = query_norm_folder(study, tmp_path) / "mine.png"
        own.write_bytes(b"a file of the user's")
        why = "The spectra are of another revision."
        bare = replace(study, bridge=None, scaling=None, without_bridge=why)
        names = {path.name for path in write_query_norm(bare, tmp_path)}
        assert names == {
            *("heads.csv", "samples.csv", "behaviour.csv", "report.md"),
            *("correlation_map.png", "histograms.png", "layers.png", "scatter.png"),
        }
        # What the run before left there would be taken for this one's.
        assert {path.name for path in own.parent.iterdir()} == {*with_captions(names), own.name}
        report = (query_norm_folder(bare, tmp_path) / "report.md").read_text()
        assert f"Behaviour is not held against spectra: {why}" in report
        assert "Intervention" not in report
        assert "scaling.csv" not in report

    def test_heads_without_values(self, study: QueryNormStudy, tmp_path: Path) -> None:
        heads = study.correlations.heads.copy()
        heads.loc[:, "pearson":"partial_spearman_high"] = np.nan
        correlations = replace(study.correlations, heads=heads)
        numbers = {**study.verdict.numbers, "median_pearson": np.nan, "heads_undefined": 24}
        verdict = replace(study.verdict, numbers=numbers)
        none = replace(
            study, correlations=correlations, verdict=verdict, bridge=None, scaling=None
        )  # fmt: skip
        names = {path.name for path in write_query_norm(none, tmp_path)}
        assert "scatter.png" not in names
        report = (query_norm_folder(none, tmp_path) / "report.md").read_text()
        assert "24 heads have no correlation in any window." in report
        assert "nan" not in report

    def test_stacks_have_figures_of_their_own(self, tmp_path: Path) -> None:
        study = planted_study(2, 2, stacks=("encoder", "decoder"), with_bridge=False)
        names = {path.name for path in write_query_norm(study, tmp_path)}
        assert {"encoder_layers.png", "decoder_layers.png", "decoder_scatter.png"} <= names
        report = (query_norm_folder(study, tmp_path) / "report.md").read_text()
        assert "](encoder_correlation_map.png)" in report
        first = rows(report, "### Highest r as measured")[0][0]
        assert first.split()[0] in {"encoder", "decoder"}
