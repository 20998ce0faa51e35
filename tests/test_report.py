"""The page of a survey: what it shows is what spectra and tests on disk say; the command."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from planted import model_of, planted_layers
from safetensors.numpy import load_file

from qk_taxonomy import generate_joint_taxonomy, generate_report
from qk_taxonomy.cache import of_each_model, write_spectra
from qk_taxonomy.cli import main
from qk_taxonomy.errors import PartialFailureError, SpectraFileError, TaxonomyError
from qk_taxonomy.hypotheses.table import COLUMNS
from qk_taxonomy.outputs import findings
from qk_taxonomy.outputs.report import Choices, load_atlas
from qk_taxonomy.records import ModelSpectra
from qk_taxonomy.report import Atlas
from qk_taxonomy.report.atlas import HEAD
from qk_taxonomy.statistics.moments import STATISTICS

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("minilm", "rxnfp", "neox")


def qk(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def write(place: str, spectra: ModelSpectra | None = None, root: Path = Path()) -> Path:
    """A file of two layers of three heads, or of other spectra, under data/."""
    path = root / "data" / f"{place}.safetensors"
    family = path.parent.name
    write_spectra(path, spectra or model_of(planted_layers(2, 3), f"me/{path.stem}", family=family))
    return path


def atlas_of(*families: str, n_clusters: int = 2, **how: Any) -> Atlas:
    atlas, failures = load_atlas(".", families or None, Choices(n_clusters=n_clusters, **how))
    assert not failures
    return atlas


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed spectra of three families, and all committed tests."""
    folder = tmp_path_factory.mktemp("report")
    for family in FAMILIES:
        shutil.copytree(ROOT / "data" / family, folder / "data" / family)
    (folder / "plots").mkdir()
    shutil.copy(ROOT / "plots/tests.csv", folder / "plots")
    shutil.copytree(ROOT / "plots/tests", folder / "plots/tests")
    return folder


@pytest.fixture(scope="module")
def atlas(root: Path) -> Atlas:
    found, failures = load_atlas(root)
    assert not failures
    return found


@pytest.fixture(scope="module")
def tensors(root: Path, atlas: Atlas) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each head's λ and statistics, from the tensors of the files themselves."""
    files = {
        pair: load_file(root / "data" / pair[0] / f"{pair[1]}.safetensors")
        for pair in set(zip(atlas.heads["family"], atlas.heads["model"], strict=True))
    }
    found = []
    for row in atlas.heads.to_dict("records"):
        file = files[row["family"], row["model"]]
        key = f"layers.{row['layer']}.qk.raw"
        sigma = file[f"{key}.singular_values"][row["head"]].astype(np.float64)
        found.append((sigma**2, file[f"{key}.statistics"][row["head"]]))
    return found


class TestHeads:
    def test_each_is_there_once(self, atlas: Atlas) -> None:
        assert tuple(atlas.heads.columns) == (*HEAD, *STATISTICS)
        assert not atlas.heads.duplicated(list(HEAD[:5])).any()
        # Of each NeoX, of four layers and 1, 2, 3, 4 and 6 heads in each, the last step alone.
        neox = {"80k": 4, "200k": 8, "400k": 12, "640k": 16, "1m": 24}
        assert atlas.heads.index.equals(pd.RangeIndex(72 + 3 * 48 + sum(neox.values())))
        counts = atlas.heads.groupby(["family", "model"]).size().to_dict()
        assert counts == {
            ("minilm", "all-MiniLM-L6-v2"): 72,
            **{("neox", f"neox-{size}@step1000"): heads for size, heads in neox.items()},
            **{("rxnfp", f"bert_{name}"): 48 for name in ("pretrained", "ft", "ft_10k_25s")},
        }

    def test_statistics_are_the_files(
        self, atlas: Atlas, tensors: list[tuple[np.ndarray, np.ndarray]]
    ) -> None:
        theirs = np.stack([statistics for _, statistics in tensors])
        np.testing.assert_array_equal(atlas.heads[list(STATISTICS)].to_numpy(), theirs)

    def test_histograms_are_densities_on_common_bins(
        self, atlas: Atlas, tensors: list[tuple[np.ndarray, np.ndarray]]
    ) -> None:
        shapes = [lam / lam.mean() for lam, _ in tensors]
        end = np.quantile(np.concatenate(shapes), 0.96)
        np.testing.assert_allclose(atlas.edges, np.linspace(0, end, 25))
        theirs = [np.histogram(x, atlas.edges, density=True)[0] for x in shapes]
        np.testing.assert_allclose(atlas.histograms, np.stack(theirs), rtol=1e-5, atol=1e-6)

    def test_classes_are_those_of_the_heads(self, atlas: Atlas) -> None:
        assert [c.number for c in atlas.classes] == list(range(6))
        sizes = atlas.heads["class"].value_counts().sort_index()
        assert [c.n_heads for c in atlas.classes] == sizes.tolist()
        for c in atlas.classes:
            own = atlas.histograms[atlas.heads["class"] == c.number]
            np.testing.assert_allclose(own.mean(0), c.mean, rtol=1e-4, atol=1e-6)

    def test_classes_and_map_are_those_of_the_joint_taxonomy(self) -> None:
        for name, seed in (("one/a", 0), ("two/b", 1)):
            model = model_of(planted_layers(3, seed=seed), f"me/{name}", family=name[:3])
            write(name, model)
        atlas = atlas_of(n_clusters=3)
        generate_joint_taxonomy(n_clusters=3)
        joint = pd.read_csv("ESDs/joint/one+two.csv", keep_default_na=False)
        for name in HEAD[:6]:
            assert atlas.heads[name].tolist() == joint[name].tolist()
        np.testing.assert_allclose(atlas.heads[["umap_x", "umap_y"]], joint[["umap_x", "umap_y"]])

    def test_models_tell_what_their_files_do(self, atlas: Atlas) -> None:
        models = atlas.models.set_index("model")
        assert all(isinstance(value, str) for value in atlas.models.to_numpy().ravel())
        mini = models.loc["all-MiniLM-L6-v2"]
        assert mini["model_id"] == "sentence-transformers/all-MiniLM-L6-v2"
        wanted = {"n_layers": "6", "n_heads": "12", "d_head": "32", "d_model": "384", "heads": "72"}
        assert mini[list(wanted)].to_dict() == wanted
        assert models.loc["neox-1m@step1000", "revision"].startswith("42700c8d")
        assert len(models) == atlas.heads.groupby(["family", "model"]).ngroups

    def test_shares_beyond_are_the_files(
        self, atlas: Atlas, tensors: list[tuple[np.ndarray, np.ndarray]]
    ) -> None:
        theirs = [np.mean(lam / lam.mean() > atlas.edges[-1]) for lam, _ in tensors]
        np.testing.assert_array_equal(atlas.beyond, theirs)
        assert 0 < atlas.beyond.max() < 0.5

    def test_sources_name_hubs_by_their_host_alone(self, atlas: Atlas) -> None:
        source = atlas.models.set_index("model")["source"]
        assert source["neox-1m@step1000"] == "hub at 127.0.0.1"
        assert source["all-MiniLM-L6-v2"] == "Python package"
        spectra = model_of(planted_layers(2, 3), "me/a")
        public = {**spectra.metadata, "source": "hub https://huggingface.co"}
        write("mine/a", ModelSpectra(public, spectra.layers))
        assert atlas_of().models["source"].tolist() == ["hub"]

    def test_a_commit_is_told_where_the_package_came_from_a_repository(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Installed:
            version = "1.2"

            def read_text(self, name: str) -> str | None:
                told = '{"url": "https://x", "vcs_info": {"vcs": "git", "commit_id": "abc1"}}'
                return told if name == "direct_url.json" else None

        monkeypatch.setattr("qk_taxonomy.outputs.report.distribution", lambda _: Installed())
        write("mine/a")
        assert atlas_of().provenance["qk-taxonomy"] == "1.2, commit abc1"

    def test_the_page_tells_how_it_was_made(self, atlas: Atlas) -> None:
        told = atlas.provenance
        assert told["command"] == "qk-taxonomy report"
        assert told["classes"].startswith("6, stability 0.")
        assert told["torch of the survey"].startswith("2.")
        assert not [label for label in told if "date" in label]


class TestLeftOut:
    def test_notes_of_the_committed_survey(self, atlas: Atlas) -> None:
        controls, revisions, *_ = atlas.notes
        assert controls.startswith("1 control is left out")
        assert "Of 20 revisions of neox/neox-1m the last is shown, step1000" in revisions

    def test_each_kind_is_counted_for_itself(self) -> None:
        """Two imported models, beside a damaged file and an earlier revision."""
        write("mine/exact@step8")
        write("mine/exact@step64")
        for seed in (1, 2):
            own = planted_layers(2, 3, seed=seed)
            write(f"old/i{seed}", model_of(own, f"me/i{seed}", family="old", imported=True))
        Path("data/mine/broken.safetensors").write_text("no spectra")
        atlas, _ = load_atlas(choices=Choices(n_clusters=2))
        (imported,) = [note for note in atlas.notes if "imported" in note]
        assert imported.startswith("2 models are left out")
        assert len([note for note in atlas.notes if "could not be shown" in note]) == 1
        assert len([note for note in atlas.notes if "Of 2 revisions" in note]) == 1

    def test_all_revisions_are_shown_on_request(self) -> None:
        for step in (0, 8, 64):
            write(f"mine/a@step{step}")
        assert set(atlas_of().heads["model"]) == {"a@step64"}
        every = atlas_of(revisions=True)
        assert len(set(every.heads["model"])) == 3
        assert every.provenance["command"] == "qk-taxonomy report --clusters 2 --revisions"
        assert not [note for note in every.notes if "revisions" in note]

    @pytest.mark.parametrize(
        ("names", "last"),
        [
            (["a@step128", "a@step9", "a"], "a"),
            (["a@step128", "a@main", "a@step9"], "a@main"),
            (["a@step128", "a@step9", "a@v2"], "a@step128"),
            (["a@stage2-step5", "a@stage1-step900"], "a@stage2-step5"),
            (["a@v1", "a@v2"], "a@v2"),
        ],
    )
    def test_which_revision_is_the_last(self, names: Sequence[str], last: str) -> None:
        paths = [Path("data/mine") / f"{name}.safetensors" for name in (*names, "b", "a~random-0")]
        groups = of_each_model(paths)
        assert [group[-1].stem for group in groups] == [last, "b", "a~random-0"]
        assert len(groups[0]) == len(names)

    def test_imported_spectra(self) -> None:
        write("mine/exact")
        write("old/imported", model_of(planted_layers(2, 3, seed=1), family="old", imported=True))
        left = atlas_of()
        assert set(left.heads["model"]) == {"exact"}
        assert "1 model is left out, whose imported spectra" in " ".join(left.notes)
        both = atlas_of(include_imported=True)
        assert both.models["formula"].tolist() == ["exact", "predecessor"]

    def test_what_cannot_be_read_is_named_and_the_rest_shown(self) -> None:
        write("mine/good")
        write("mine/other", model_of(planted_layers(2, 3, circuit="ov"), "me/other"))
        Path("data/mine/broken.safetensors").write_text("no spectra")
        atlas, failures = load_atlas(choices=Choices(n_clusters=2))
        assert set(atlas.heads["model"]) == {"good"}
        assert failures.keys() == {"mine/broken", "mine/other"}
        told = " ".join(atlas.notes)
        assert "mine/broken could not be shown: " in told
        assert "no qk raw spectra" in told

    def test_where_nothing_can_be_read(self) -> None:
        with pytest.raises(SpectraFileError, match="qk-taxonomy download"):
            load_atlas()
        path = write("mine/a")
        with pytest.raises(TaxonomyError, match="cannot be sorted into 7 classes"):
            load_atlas(choices=Choices(n_clusters=7))
        path.write_text("no spectra")
        with pytest.raises(PartialFailureError, match="mine/a"):
            load_atlas()


def test_stacks_and_other_circuits() -> None:
    layers = [
        replace(layer, stack=stack)
        for stack, n in (("encoder", 3), ("decoder", 2))
        for layer in planted_layers(n, 3, circuit="ov", convention="folded", seed=n)
    ]
    write("mine/both", model_of(layers, "me/both"))
    atlas = atlas_of(circuit="ov", convention="folded")
    assert atlas.heads.groupby("stack").size().to_dict() == {"encoder": 9, "decoder": 6}
    assert atlas.models.loc[0, "n_layers"] == "encoder 3, decoder 2"
    assert (atlas.circuit, atlas.convention) == ("ov", "folded")
    assert "`qk-taxonomy test --circuit ov --convention folded`" in " ".join(atlas.notes)


def test_statistics_that_a_file_of_an_older_version_lacks() -> None:
    write("mine/new")
    old = model_of(planted_layers(2, 3, seed=1), "me/old")
    layers = tuple(replace(layer, statistics=layer.statistics[:, :6]) for layer in old.layers)
    first = list(STATISTICS)[:6]
    metadata = {**old.metadata, "statistics": ",".join(first)}
    write("mine/old", ModelSpectra(metadata, layers))
    heads = atlas_of().heads
    assert tuple(heads.columns) == (*HEAD, *STATISTICS)
    lacking = heads[list(STATISTICS)[6:]].isna().all(axis=1)
    assert lacking.tolist() == (heads["model"] == "old").tolist()


class TestFindings:
    def test_tests_are_those_of_the_file(self, root: Path, atlas: Atlas) -> None:
        file = pd.read_csv(root / "plots/tests.csv", keep_default_na=False)
        shown = set(atlas.heads["model"])
        for table in (atlas.tests, atlas.contrasts):
            assert tuple(table.columns) == COLUMNS
        own = file[(file["hypothesis"] == "rank") & file["model"].isin(shown)]
        ranks = atlas.tests[atlas.tests["hypothesis"] == "rank"]
        assert len(ranks) == len(own) == 534 + 3 * 396
        np.testing.assert_allclose(ranks["effect"], pd.to_numeric(own["effect"]))
        shifts = file[file["hypothesis"] == "contrast: shift"]
        assert set(atlas.contrasts["hypothesis"]) == {"contrast: shift"}
        assert len(atlas.contrasts) == len(shifts) == 897
        assert (atlas.tests["hypothesis"] == "contrast: shift").sum() == 897

    def test_tests_of_other_models_are_left_out_and_counted(self, root: Path, atlas: Atlas) -> None:
        file = pd.read_csv(root / "plots/tests.csv", keep_default_na=False)
        changed = (file["hypothesis"] == "contrast: changed head").sum()
        n_out = len(file) - changed - len(atlas.tests)
        assert f"{n_out} tests are left out" in " ".join(atlas.notes)
        # The twin, and families that are not here: comparisons of all families count them.
        assert set(atlas.tests["model"]) - {""} <= set(atlas.heads["model"])
        pairs = atlas.tests[atlas.tests["hypothesis"] == "families: pairs"]
        assert set(pairs["family"]) | set(pairs["against"]) == {"minilm", "rxnfp"}
        assert "families: by depth" not in set(atlas.tests["hypothesis"])
        assert "contrast: kind" not in set(atlas.tests["hypothesis"])

    def test_families_without_tests_are_told(self, atlas: Atlas) -> None:
        assert "No tests of neox are here: `qk-taxonomy test` makes them." in atlas.notes

    def test_changed_heads_are_ranked_as_in_their_files(self, root: Path, atlas: Atlas) -> None:
        assert tuple(atlas.changed.columns[:6]) == findings.PLACE
        assert len(atlas.changed) == 72 + 2 * 48
        for file, model in (("rxnfp-ft", "bert_ft"), ("rxnfp-ft-10k", "bert_ft_10k_25s")):
            theirs = pd.read_csv(root / f"plots/tests/contrasts/rxnfp/{file}.csv")
            ours = atlas.changed[atlas.changed["model"] == model]
            assert set(ours["against"]) == {"rxnfp/bert_pretrained"}
            for name in ("layer", "head", "wasserstein", "effective_rank_shift"):
                np.testing.assert_array_equal(ours[name], theirs[name])
        subjects = set(map(tuple, atlas.contrasts[list(findings.PLACE[:4])].to_numpy()))
        assert set(map(tuple, atlas.changed[list(findings.PLACE[:4])].to_numpy())) == subjects

    def test_a_family_alone(self, root: Path) -> None:
        atlas, _ = load_atlas(root, "RXNFP", Choices(n_clusters=3))
        assert set(atlas.heads["family"]) == {"rxnfp"}
        assert set(atlas.changed["family"]) == {"rxnfp"}
        assert not [note for note in atlas.notes if "control" in note or "revisions" in note]
        assert atlas.title == "Attention heads of rxnfp"
        command = "qk-taxonomy report --family RXNFP --clusters 3"
        assert atlas.provenance["command"] == command

    def test_of_many_changed_heads_the_most_changed(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(findings, "MOST_CHANGED", 30)
        models = ["minilm/all-MiniLM-L6-v2", "rxnfp/bert_ft", "rxnfp/bert_ft_10k_25s"]
        found = findings.read_findings(root, models, "qk", "raw")
        assert found.changed.groupby("model").size().tolist() == [10, 10, 10]
        for _, heads in found.changed.groupby("model"):
            assert heads["wasserstein"].is_monotonic_decreasing
        assert "the 10 most changed heads" in found.notes[-1]

    def test_a_named_comparison_has_its_own_table(self) -> None:
        for name in ("a", "b", "c"):
            write(f"mine/{name}", model_of(planted_layers(2, 3, seed=ord(name)), f"me/{name}"))
        for others in (["c"], ["c", "a"]):
            controls = [part for other in others for part in ("--control", other)]
            result = qk("test", "--treatment", "b", *controls, "--permutations", 99)
            assert result.exit_code == 0, result.output
        atlas = atlas_of()
        assert set(atlas.contrasts["against"]) == {"mine/c"}
        groups = atlas.tests[atlas.tests["hypothesis"] == "contrast: unmatched models"]
        assert set(groups["against"]) == {"mine/c + mine/a"}
        assert len(atlas.changed) == 6
        assert "There are no tests here: `qk-taxonomy test` writes them" in " ".join(atlas.notes)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\x89PNG\r\n\x1a\n\x00\x00",
            b"family,model,p\nmine,a,0.5\n",
            (",".join(COLUMNS) + "\n" + "mine,a,,,qk,raw,one,,rank,MAX,,,,,,,,\n").encode(),
            (",".join(COLUMNS) + "\n" + "mine,a,,,qk,raw,1.5,,rank,MAX,,,,,,,,\n").encode(),
            (",".join(COLUMNS) + "\n" + '"mine,a').encode(),
        ],
    )
    def test_a_damaged_table_is_a_note(self, content: bytes) -> None:
        write("mine/a")
        contrast = Path("plots/tests/contrasts/mine/x.csv")
        contrast.parent.mkdir(parents=True)
        for path in (Path("plots/tests.csv"), contrast):
            path.write_bytes(content)
        atlas = atlas_of()
        assert atlas.tests.empty
        assert atlas.changed.empty
        for path in ("plots/tests.csv", contrast):
            (note,) = [note for note in atlas.notes if note.startswith(f"{path} is left out")]
            assert "`qk-taxonomy test` writes it anew" in note
            assert "\n" not in note


class TestCommand:
    @pytest.fixture
    def small(self) -> None:
        write("mine/a")
        write("yours/b")

    @pytest.mark.usefixtures("small")
    def test_one_page_whose_size_is_told(self) -> None:
        result = qk("report", "--clusters", 2)
        assert result.exit_code == 0, result.output
        page = Path("plots/report.html")
        assert list(page.parent.iterdir()) == [page]
        first, *notes = result.stdout.splitlines()
        megabytes = page.stat().st_size / 1e6
        assert first == f"plots/report.html: {megabytes:.1f} MB, 12 heads of 2 models"
        assert notes == [
            "There are no tests here: `qk-taxonomy test` writes them to plots/tests.csv."
        ]
        assert "Attention heads of mine, yours" in page.read_text()

    @pytest.mark.usefixtures("small")
    def test_the_same_survey_gives_the_same_page(self) -> None:
        (page,) = generate_report(n_clusters=2)
        first = page.read_bytes()
        assert generate_report(n_clusters=2) == [page]
        assert page.read_bytes() == first

    @pytest.mark.usefixtures("small")
    def test_of_a_family_elsewhere(self, tmp_path: Path) -> None:
        write("mine/c", model_of(planted_layers(2, 3, circuit="ov"), "me/c"), tmp_path)
        arguments = ["--data-root", tmp_path, "--family", "mine", "--circuit", "ov"]
        result = qk("report", *arguments, "--clusters", 2)
        assert result.exit_code == 0, result.output
        page = tmp_path / "plots/report.ov.raw.html"
        assert result.stdout.startswith(f"{page}: ")
        assert str(tmp_path) not in page.read_text()

    @pytest.mark.usefixtures("small")
    def test_what_fails_is_named_when_the_page_is_there(self) -> None:
        Path("data/mine/broken.safetensors").write_text("no spectra")
        result = qk("report", "--clusters", 2)
        assert result.exit_code == 1
        assert result.stdout.startswith("plots/report.html: ")
        assert "mine/broken could not be shown" in Path("plots/report.html").read_text()
        assert "could not be shown" not in result.output
        assert result.stderr.startswith("Error: 1 failed; what could be done is saved.\nmine/brok")

    def test_defaults_are_those_of_python(self) -> None:
        known = inspect.signature(generate_report).parameters
        found = main.commands["report"].make_context("report", []).params
        names = (found.keys() & known.keys()) - {"families", "data_root"}
        assert {"n_clusters", "n_bins", "distance", "seed", "revisions", "circuit"} <= names
        assert {n: found[n] for n in names} == {n: known[n].default for n in names}

    def test_the_recorded_command_makes_the_same_page(self) -> None:
        """Each option off its default is named, and read by the command as it was."""
        own: dict[str, Any] = {
            "n_clusters": 3,
            "n_bins": 12,
            "distance": "jensen-shannon",
            "seed": 7,
            "circuit": "ov",
            "convention": "folded",
            "include_imported": True,
            "revisions": True,
        }
        assert own.keys() == {choice.name for choice in fields(Choices)}
        for name, value in own.items():
            words = Choices(**{name: value}).options
            found = main.commands["report"].make_context("report", list(words)).params
            assert {n: found[n] for n in own} == {**asdict(Choices()), name: value}
        write("mine/a", model_of(planted_layers(2, 3, circuit="ov", convention="folded"), "me/a"))
        told = atlas_of(seed=7, circuit="ov", convention="folded").provenance["command"]
        words = "report --clusters 2 --seed 7 --circuit ov --convention folded"
        assert told == f"qk-taxonomy {words}"

    def test_nothing_surveyed(self) -> None:
        result = qk("report")
        assert result.exit_code == 1
        assert "There are no spectra under data" in result.stderr
        assert "qk-taxonomy download" in result.stderr
        assert not Path("plots").exists()

    @pytest.mark.usefixtures("small")
    @pytest.mark.parametrize("started", [True, False])
    def test_opening_it(self, started: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        opened: list[str] = []

        def browse(url: str) -> bool:
            opened.append(url)
            return started

        monkeypatch.setattr("webbrowser.open", browse)
        result = qk("report", "--clusters", 2, "--open")
        assert result.exit_code == 0, result.output
        assert opened == [Path("plots/report.html").resolve().as_uri()]
        assert ("No browser could be started" in result.stderr) == (not started)

    def test_where_it_cannot_be_written(self) -> None:
        write("mine/a")
        Path("plots").write_text("a file in the way")
        result = qk("report", "--clusters", 2)
        assert result.exit_code == 1
        assert "plots" in result.stderr
        assert "Traceback" not in result.output
