"""The command line as a user meets it: help, exit codes, readable errors, files on disk."""

from __future__ import annotations

import csv
import functools
import inspect
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import LLAMA_CONFIG, MakeFolder, llama_tensors
from loopback_hub import LoopbackHub
from planted_heads import write_heads
from readable import with_captions
from rich.console import Console

from qk_taxonomy import generate_cluster_figures, generate_joint_taxonomy
from qk_taxonomy.cli import main
from qk_taxonomy.cli.download import print_results
from qk_taxonomy.cli.making import print_files
from qk_taxonomy.records import PREDECESSOR_FORMULA, ModelResult
from qk_taxonomy.speeds import remember_speed
from qk_taxonomy.statistics.moments import STATISTICS

ROOT = Path(__file__).resolve().parents[1]

#: What `cluster` writes for a model.
CLASS_FILES = ("png", "csv", "classes.csv", "agreement.csv", "taxonomy.safetensors")


def qk(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def on_terminal(terminal: Console, *, stderr: bool) -> Console:
    """Stands in for ``console``: bars are drawn on standard error alone."""
    assert stderr
    return terminal


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


# Commands on surveyed families, as they are called for a small one.
OF_FAMILIES = (
    "cluster --clusters 2",
    "cluster --joint --clusters 2",
    "assign {taxonomy}",
    "boxplots --skip MIN --skip MAX",
    "test --hypothesis trend",
    "report --clusters 2",
    "sizes",
    "export x.csv",
)

OWN_FAMILY = (
    'name = "{}"\ntitle = "One"\ndescription = "One."\nlicense = "mit"\n'
    '[[models]]\nid = "org/name"\nparameters = 1\n'
)


@pytest.mark.parametrize("name", main.commands)
def test_every_command_and_option_has_help(name: str) -> None:
    result = qk(name, "--help")
    assert result.exit_code == 0
    for parameter in main.commands[name].params:
        described = getattr(parameter, "help", None) or isinstance(parameter, click.Argument)
        assert described or parameter.type.name == "choice", parameter.name


def test_version_and_no_arguments() -> None:
    assert qk("--version").output.startswith("qk-taxonomy, version ")
    assert "Commands:" in qk().output
    assert qk("classify").exit_code == 2


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``qk-taxonomy run`` makes of the embedded model in an empty folder."""
    folder = tmp_path_factory.mktemp("run")
    result = qk("run", "--output-root", folder)
    assert result.exit_code == 0, result.output
    assert "sentence-transformers/all-MiniLM-L6-v2" in result.output
    return folder


class TestRun:
    def test_files_are_where_the_contract_says(self, surveyed: Path) -> None:
        made = {str(path.relative_to(surveyed)) for path in surveyed.rglob("*") if path.is_file()}
        model = "all-MiniLM-L6-v2"
        assert made == with_captions(
            [
                f"data/minilm/{model}.safetensors",
                *(f"ESDs/minilm/{model}.{suffix}" for suffix in CLASS_FILES),
                *(f"plots/minilm/{stat}/{model}_{stat}_box.png" for stat in STATISTICS),
                "plots/minilm/boxplots.csv",
                "plots/report.html",
                "plots/tests.csv",
                f"plots/tests/minilm/{model}_rank.png",
            ]
        )

    def test_the_class_table(self, surveyed: Path) -> None:
        table = rows(surveyed / "ESDs/minilm/all-MiniLM-L6-v2.csv")
        assert list(table[0]) == ["layer", "head", "class", "umap_x", "umap_y"]
        assert len(table) == 72
        assert {row["class"] for row in table} == set("012345")
        classes = rows(surveyed / "ESDs/minilm/all-MiniLM-L6-v2.classes.csv")
        for row in classes:
            members = [head for head in table if head["class"] == row["class"]]
            assert int(row["heads"]) == len(members)

    def test_the_trend_table(self, surveyed: Path) -> None:
        table = rows(surveyed / "plots/minilm/boxplots.csv")
        assert [row["statistic"] for row in table] == list(STATISTICS)
        assert {"family", "model", "bds", "p_value", "spearman", "note"} <= set(table[0])
        assert all(-1 <= float(row["spearman"]) <= 1 for row in table if row["spearman"])
        for row in table:
            tested = row["mann_kendall_tau"] != ""
            assert tested == ("constant" not in row["note"]), row
            if tested:
                assert -1 <= float(row["mann_kendall_tau"]) <= 1
                assert 0 < float(row["mann_kendall_p_value"]) <= 1
                slope = [float(row[n]) for n in ("slope_low", "theil_sen_slope", "slope_high")]
                assert slope == sorted(slope)

    def test_the_same_input_gives_the_same_bytes(self, surveyed: Path, tmp_path: Path) -> None:
        assert qk("run", "--output-root", tmp_path / "again").exit_code == 0
        for path in [*surveyed.rglob("*.csv"), *surveyed.rglob("*.taxonomy.safetensors")]:
            again = tmp_path / "again" / path.relative_to(surveyed)
            assert again.read_bytes() == path.read_bytes(), path

    def test_each_failure_is_named(self, surveyed: Path, tmp_path: Path) -> None:
        """Steps that fail of one model are told apart."""
        shutil.copytree(surveyed / "data", tmp_path / "full/data")
        for folder in ("ESDs", "plots"):
            (tmp_path / "full" / folder).write_text("in the way")
        result = qk("run", "--output-root", tmp_path / "full")
        assert result.exit_code == 1
        for step in ("classes, minilm/all-MiniLM-L6-v2", "box plots, minilm/all-MiniLM-L6-v2"):
            assert f"{step}: " in result.stderr

    def test_what_is_there_is_not_computed_again(self, surveyed: Path) -> None:
        result = qk("download", "--family", "MiniLM", "--output-root", surveyed, "--json")
        assert [entry["status"] for entry in json.loads(result.output)] == ["present"]

    def test_the_committed_results_are_those_of_this_code(self, surveyed: Path) -> None:
        from qk_taxonomy import load_spectra

        name = "data/minilm/all-MiniLM-L6-v2.safetensors"
        ours, committed = load_spectra(surveyed / name), load_spectra(ROOT / name)
        for a, b in zip(ours.layers, committed.layers, strict=True):
            np.testing.assert_allclose(a.singular_values, b.singular_values, rtol=1e-5)
            np.testing.assert_allclose(a.statistics, b.statistics, rtol=1e-3)
        for kind in (".classes.csv", ".csv"):
            table = f"ESDs/minilm/all-MiniLM-L6-v2{kind}"
            for a, b in zip(rows(surveyed / table), rows(ROOT / table), strict=True):
                assert a["class"] == b["class"]


class TestCluster:
    @pytest.mark.parametrize("make", [generate_cluster_figures, generate_joint_taxonomy])
    def test_defaults_are_those_of_python(self, make: Callable[..., object]) -> None:
        known = inspect.signature(make).parameters
        found = main.commands["cluster"].make_context("cluster", []).params
        names = (found.keys() & known.keys()) - {"families", "data_root"}
        assert {"n_clusters", "n_bins", "distance", "seed"} <= names
        assert {n: found[n] for n in names} == {n: known[n].default for n in names}

    def test_what_is_said_of_the_classes(self, surveyed: Path) -> None:
        result = qk("cluster", "--data-root", surveyed, "--clusters", "auto")
        assert result.exit_code == 0, result.output
        choice = rows(surveyed / "ESDs/minilm/all-MiniLM-L6-v2.choice.csv")
        (chosen,) = [row for row in choice if row["chosen"] == "True"]
        stability = f"{float(chosen['stability']):.2f} ± {float(chosen['standard_error']):.2f}"
        line = f"minilm/all-MiniLM-L6-v2: {chosen['clusters']} classes, stability {stability}, "
        assert line in result.stdout
        agreement = rows(surveyed / "ESDs/minilm/all-MiniLM-L6-v2.agreement.csv")
        lowest = min(float(row["ari"]) for row in agreement)
        assert f"at the lowest {lowest:.2f} (" in result.stdout
        assert len(result.stdout.splitlines()) == 2 + 1 + 9

    def test_another_distance(self, surveyed: Path, tmp_path: Path) -> None:
        shutil.copytree(surveyed / "data", tmp_path / "data")
        arguments = ["--data-root", tmp_path, "--distance", "jensen-shannon", "--clusters", "4"]
        assert qk("cluster", *arguments).exit_code == 0
        classes = rows(tmp_path / "ESDs/minilm/all-MiniLM-L6-v2.classes.csv")
        assert sum(int(row["heads"]) for row in classes) == 72
        assert len(classes) == 4
        agreement = rows(tmp_path / "ESDs/minilm/all-MiniLM-L6-v2.agreement.csv")
        assert agreement[-1]["value"] == "euclidean"

    def test_a_joint_taxonomy_and_its_assignment(
        self, surveyed: Path, make_folder: MakeFolder, tmp_path: Path
    ) -> None:
        shutil.copytree(surveyed / "data", tmp_path / "work/data")
        qk("download", "--model", make_folder(), "--family-name", "mine")
        result = qk("cluster", "--joint", "--clusters", "3")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("ESDs/joint/mine+minilm.png\njoint/mine+minilm: 3 classes")
        file = "ESDs/joint/mine+minilm.taxonomy.safetensors"
        result = qk("assign", file, "--family", "minilm")
        assert result.exit_code == 0, result.output
        named, said = result.stdout.splitlines()
        assert named == "ESDs/minilm/all-MiniLM-L6-v2.assigned.csv"
        assert "0 of 72 (0%) farther" in said
        assert not result.stderr
        assigned = rows(Path("ESDs/minilm/all-MiniLM-L6-v2.assigned.csv"))
        table = [r for r in rows(Path("ESDs/joint/mine+minilm.csv")) if r["family"] == "minilm"]
        assert [row["class"] for row in assigned] == [row["class"] for row in table]

    def test_a_joint_taxonomy_is_named_where_a_model_fails(self, make_folder: MakeFolder) -> None:
        qk("download", "--model", make_folder(), "--family-name", "mine")
        Path("data/mine/broken.safetensors").write_text("no spectra")
        result = qk("cluster", "--joint", "--clusters", "2")
        assert result.exit_code == 1
        figure, said = result.stdout.splitlines()
        assert figure == "ESDs/joint/mine.png"
        assert Path(figure).is_file()
        assert said.startswith("joint/mine: 2 classes")
        assert "mine/broken: " in result.stderr

    def test_work_that_takes_time_is_seen_on_a_terminal(
        self, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        qk("download", "--model", make_folder(), "--family-name", "mine")
        calls = {
            "joint classes": ["cluster", "--joint", "--clusters", "2"],
            "classes of heads": ["assign", "ESDs/joint/mine.taxonomy.safetensors"],
            "heads": ["export"],
        }
        for label, arguments in calls.items():
            terminal = Console(file=io.StringIO(), force_terminal=True, width=200)
            with monkeypatch.context() as patched:
                console = functools.partial(on_terminal, terminal)
                patched.setattr("qk_taxonomy.cli.making.console", console)
                assert qk(*arguments).exit_code == 0
            screen = terminal.file.getvalue()
            assert label in screen
            assert "━" in screen
            silent = qk(*arguments)
            assert silent.exit_code == 0
            assert not silent.stderr


class TestShow:
    def test_one_of_a_thing(self, make_folder: MakeFolder) -> None:
        folder = make_folder(
            tensors=llama_tensors(n_layers=1, n_heads=1, n_kv_heads=1),
            config=LLAMA_CONFIG
            | dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 1),
        )
        qk("download", "--model", folder, "--convention", "raw")
        assert (
            "1 layer × 1 head (1 key-value)" in qk("show", "data/unlisted/tiny.safetensors").stdout
        )
        assert qk("export").stdout == "plots/heads.csv: 1 row\n"

    def test_where_figures_are_many_each_folder_says_how_many(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        many = [Path(f"plots/a/MAX/{number}.png") for number in range(12)]
        print_files([*many, Path("plots/b/MAX/0.png")], "figure")
        assert capsys.readouterr().out == "plots/a: 12 figures\nplots/b: 1 figure\n"

    def test_a_spectra_file(self, surveyed: Path) -> None:
        file = surveyed / "data/minilm/all-MiniLM-L6-v2.safetensors"
        result = qk("show", file)
        assert result.exit_code == 0
        assert "6 layers × 12 heads" in result.output
        assert len(result.output.splitlines()) == 14
        assert json.loads(qk("show", file, "--json").output)["architecture"] == "bert"
        assert "No ov raw spectra" in qk("show", file, "--circuit", "ov").output

    def test_another_file(self, tmp_path: Path) -> None:
        (tmp_path / "x.safetensors").write_text("no")
        result = qk("show", tmp_path / "x.safetensors")
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
        assert "is damaged" in result.output


class TestFamilies:
    def test_all(self) -> None:
        result = qk("families")
        assert result.exit_code == 0
        rows = {line.split()[0]: line.split() for line in result.output.splitlines()}
        assert rows["pythia"][1:] == ["10", "14.1M", "to", "11.8B", "154", "apache-2.0"]
        assert rows["gemma2"][1:] == ["6", "2.61B", "to", "27.2B", "yes", "gemma"]
        assert rows["mistral"][-2:] == ["some", "mixed"]
        assert list(rows)[1:-1] == sorted(list(rows)[1:-1])

    def test_one(self) -> None:
        result = qk("families", "LLAMA")
        assert "meta-llama/Llama-3.1-8B-Instruct" in result.output
        families = json.loads(qk("families", "qwen3", "--json").output)
        assert "Qwen/Qwen3-0.6B" in [model["id"] for model in families[0]["models"]]
        assert "qwen3-4b-thinking" in [pair["name"] for pair in families[0]["contrasts"]]

    def test_checkpoints_and_contrasts_of_one(self) -> None:
        output = qk("families", "pythia").output
        assert "154: step0 … step143000" in output
        assert "databricks/dolly-v2-3b against EleutherAI/pythia-2.8b" in output
        assert "QwQ" not in output
        kept = json.loads(qk("families", "pythia", "--json").output)[0]["models"][0]["checkpoints"]
        assert len(kept["revisions"]) == 154
        assert "SmolLM2-135M-intermediate-checkpoints" in qk("families", "smollm2").output
        assert "not on the hub but in the Python package rxnfp" in qk("families", "rxnfp").output

    def test_contrasts(self) -> None:
        assert "Qwen/QwQ-32B against Qwen/Qwen2.5-32B" in qk("families", "--contrasts").output
        some = json.loads(qk("families", "phi-4", "--contrasts", "--json").output)
        assert {pair["kind"] for pair in some} == {"reasoning"}
        assert "microsoft/phi-4" in [pair["control"] for pair in some]

    def test_unknown(self) -> None:
        result = qk("families", "pithia")
        assert result.exit_code == 2
        assert "Did you mean pythia" in result.output


class TestWrongCalls:
    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["download"], 2, "Name a --family or a --model"),
            (["download", "--family", "pithia"], 2, "Did you mean pythia"),
            (["download", "--model", "/nowhere"], 1, "There is no folder or file /nowhere"),
            (["download", "--model", "no.gguf"], 1, "There is no folder or file no.gguf"),
            (["download", "--model", " "], 2, "--model needs a hub id"),
            (["download", "--family", "minilm", "--family-name", "x"], 2, "is for --model"),
            (["download", "--model", "/etc", "--family-name", "../x"], 2, "cannot name a file"),
            (["download", "--family", "minilm", "--jobs", "0"], 2, "not in the range"),
            (["download", "--family", "minilm", "--catalog", "nowhere"], 2, "not a folder"),
            (["run", "--family", "pithia"], 2, "Did you mean pythia"),
            (["evolve", "pythia-14m", "--family", "pithia"], 2, "Did you mean pythia"),
            (["notebook", "--family", "pithia"], 2, "Did you mean pythia"),
            (["cluster"], 1, "qk-taxonomy download"),
            (["cluster", "--family", "pithia"], 2, "Did you mean pythia"),
            (["cluster", "--clusters", "0"], 2, "not in the range"),
            (["cluster", "--clusters", "many"], 2, "'many' is not a valid"),
            (["cluster", "--distance", "cosine"], 2, "'euclidean', 'jensen-shannon'"),
            (["cluster", "--name", "x"], 2, "--name is for --joint"),
            (["cluster", "--include-imported"], 2, "--include-imported is for --joint"),
            (["cluster", "--joint", "--name", "a/b"], 2, "Give another with --name"),
            (["cluster", "--joint"], 1, "qk-taxonomy download"),
            (["assign"], 2, "Missing argument 'TAXONOMY'"),
            (["assign", "nowhere"], 1, "no taxonomy file nowhere"),
            (["boxplots", "--skip", "MEDIAN"], 2, "no statistic MEDIAN; known are MIN"),
            (["boxplots"], 1, "no spectra"),
            (["show", "nowhere"], 1, "no spectra file nowhere"),
        ],
    )
    def test_one_readable_paragraph(self, arguments: list[str], code: int, message: str) -> None:
        result = qk(*arguments)
        assert result.exit_code == code
        assert message in result.output
        assert "Traceback" not in result.output
        assert not result.stdout or result.exit_code == 1

    def test_debug_shows_the_traceback(self) -> None:
        result = qk("show", "nowhere", "--debug")
        assert "There is no spectra file" in str(result.exception)

    def test_a_broken_family_file_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "mine.toml").write_text('name = "mine"\n')
        result = qk("families", "--catalog", tmp_path)
        assert result.exit_code == 2
        assert "mine.toml, line 1, title" in result.output

    def test_fewer_heads_than_clusters(self, surveyed: Path) -> None:
        result = qk("cluster", "--data-root", surveyed, "--clusters", "73")
        assert result.exit_code == 1
        assert "72 heads" in result.output
        assert "--clusters" in result.output

    def test_what_was_made_is_named_where_the_rest_fails(
        self, make_folder: MakeFolder, tmp_path: Path
    ) -> None:
        for name in ("one", "two"):
            qk("download", "--model", make_folder(name), "--family-name", name)
        Path("data/one/broken.safetensors").write_text("no spectra")
        arguments = ["--family", "one", "--family", "two", "--family", "opt"]
        result = qk("cluster", *arguments, "--clusters", "2")
        assert result.exit_code == 1
        named = [line for line in result.stdout.splitlines() if line.endswith(".png")]
        assert named == ["ESDs/one/one.png", "ESDs/two/two.png"]
        for name in ("one/one", "two/two"):
            assert f"{name}: 2 classes, stability " in result.stdout
        assert "one/broken: " in result.stderr
        assert "no spectra of opt" in result.stderr
        result = qk("boxplots", "--circuit", "ov")
        assert result.exit_code == 1
        assert "no ov raw spectra" in result.stderr

    @pytest.mark.parametrize("command", OF_FAMILIES)
    def test_what_is_no_family_is_a_wrong_call_before_any_work(
        self, make_folder: MakeFolder, command: str
    ) -> None:
        qk("download", "--model", make_folder("one"), "--family-name", "mine")
        words = [part.format(taxonomy="nowhere") for part in command.split()]
        for typo, near in (("mein", "mine"), ("pithia", "pythia")):
            result = qk(*words, "--family", "mine", "--family", typo)
            assert result.exit_code == 2, result.output
            assert f"There is no family '{typo}' in the catalogue. Did you mean" in result.stderr
            assert near in result.stderr.partition("Did you mean")[2].partition("?")[0]
            assert f"Nor are there spectra of {typo} under data." in result.stderr
        assert not result.stdout
        assert {path.name for path in Path().iterdir()} == {"data"}
        result = qk(*words, "--family", "opt")
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: There are no spectra of opt under data. Make them")

    @pytest.mark.parametrize("command", OF_FAMILIES)
    def test_a_family_that_is_not_surveyed_is_passed_by_and_named(
        self, make_folder: MakeFolder, command: str
    ) -> None:
        for name in ("one", "two", "three"):
            qk("download", "--model", make_folder(name), "--family-name", "mine")
        if "{taxonomy}" in command:
            qk("cluster", "--joint", "--clusters", "2", "--name", "all")
        words = [part.format(taxonomy="ESDs/joint/all.taxonomy.safetensors")
                 for part in command.split()]  # fmt: skip
        Path("own").mkdir()
        catalogue = OWN_FAMILY.format("yours")
        Path("own/yours.toml").write_text(catalogue)
        named = ["--family", "mine", "--family", "opt"]
        if any("--catalog" in one.opts for one in main.commands[words[0]].params):
            named += ["--family", "yours", "--catalog", "own"]
        n_missing = named.count("--family") - 1
        result = qk(*words, *named)
        assert result.exit_code == 1
        assert f"Error: {n_missing} failed; what could be done is saved.\nopt: There are no " in (
            result.stderr
        )
        assert result.stderr.count("There are no spectra of ") == n_missing
        assert result.stdout

    @pytest.mark.parametrize("command", OF_FAMILIES)
    def test_a_model_that_lacks_what_is_asked_for_is_named(self, command: str) -> None:
        """No failure where all that there is was asked for; one where its family was named."""
        rng = np.random.default_rng(0)
        for name in ("a", "b", "c"):
            write_heads(Path(), f"mine/{name}", -np.sort(-rng.gamma(2.0, size=(4, 4, 8))))
        if "{taxonomy}" in command:
            qk("cluster", "--joint", "--clusters", "2", "--name", "all")
        lam = np.ones((4, 4, 8))
        write_heads(Path(), "mine/other", lam, circuit="ov")
        words = [part.format(taxonomy="ESDs/joint/all.taxonomy.safetensors")
                 for part in command.split()]  # fmt: skip
        if words[0] == "assign":
            formula = f'{{"formula": "{PREDECESSOR_FORMULA}"}}'
            write_heads(Path(), "old/imported", lam, provenance=formula)
        else:
            words += ["--circuit", "qk", "--convention", "raw"]
        if words[0] != "sizes":  # which is always told of which family
            result = qk(*words)
            assert result.exit_code == 0, result.output
            assert result.stdout
            notes = [line for line in result.stderr.splitlines() if "mine/other: " in line]
            assert len(notes) == 1
            assert notes[0].startswith("Note: mine/other: ")
            assert "`qk-taxonomy download ..." in notes[0]
            assert ("Note: old/imported: " in result.stderr) == (words[0] == "assign")
        result = qk(*words, "--family", "mine")
        assert result.exit_code == 1
        assert result.stdout
        head = "Error: 1 failed; what could be done is saved.\nmine/other: "
        assert head in result.stderr
        for name in ("a", "b", "c"):
            Path(f"data/mine/{name}.safetensors").unlink()
        result = qk(*words)
        if words[0] != "sizes":
            assert result.exit_code == 1
            assert result.stderr.startswith("Error: ")
            assert not result.stdout

    def test_what_is_not_asked_for_is_not_missed(self) -> None:
        for name in ("a", "b", "c"):
            write_heads(Path(), f"mine/{name}", np.ones((4, 4, 8)))
        write_heads(Path(), "mine/other", np.ones((4, 4, 8)), circuit="ov")
        result = qk("export", "x.csv", "--family", "mine")
        assert (result.exit_code, result.stderr) == (0, "")
        assert qk("sizes", "--family", "mine").exit_code == 0

    def test_where_all_fail_no_others_are_said_to_be_saved(self) -> None:
        result = qk("import", "one.pkl", "two.pkl")
        assert result.stderr.startswith("Error: 2 failed; what could be done is saved.\n")
        assert "others" not in result.stderr
        assert not result.stdout

    def test_an_interrupted_command_promises_what_holds_for_all(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("qk_taxonomy.cache.load_spectra", interrupted)
        monkeypatch.setattr("threading.active_count", lambda: 1)  # with more, the process ends
        result = qk("show", "x.safetensors")
        assert result.exit_code == 130
        assert "Files under their final names are whole" in result.stderr
        assert "kept" not in result.stderr

    def test_names_with_brackets_are_printed_as_they_are(self, make_folder: MakeFolder) -> None:
        folder = make_folder("runs[bold]/[/a]/tiny")
        result = qk("download", "--model", folder)
        assert result.exit_code == 0
        assert "runs[bold]/[/a]/tiny" in result.output

    def test_debug_shows_where_a_model_failed(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        result = qk("download", "--model", tmp_path / "empty", "--debug")
        assert "Traceback" in result.stderr
        assert "empty: The folder" in result.stderr

    def test_an_unwritable_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        result = qk("download", "--family", "minilm", "--output-root", tmp_path / "file" / "x")
        assert result.exit_code == 1
        assert "cannot be written" in result.output


class TestResults:
    RESULTS = (
        ModelResult(
            "sentence-transformers/all-MiniLM-L6-v2",
            "computed",
            "data/minilm/all-MiniLM-L6-v2.safetensors",
            *(6, 72, 7_090_000, 90_900_000),
            seconds=0.1,
        ),
        ModelResult("EleutherAI/pythia-14m", "failed", error="a reason", revision="step512"),
    )

    def shown(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
    ) -> list[str]:
        """What is printed of the table, so many letters wide, and of the files."""
        monkeypatch.setattr("qk_taxonomy.cli.options._PIPE_WIDTH", width)
        with click.Context(main):
            print_results(self.RESULTS)
        lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        assert max(map(len, lines)) <= width
        return lines

    def test_files_have_a_column_where_there_is_room(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = self.shown(monkeypatch, capsys, 150)
        assert lines[0].split()[-1] == "file"
        assert lines[1].endswith("s  data/minilm/all-MiniLM-L6-v2.safetensors")
        assert len(lines) == 3

    @pytest.mark.parametrize("width", [100, 80])
    def test_no_cell_is_broken_inside_a_word(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
    ) -> None:
        lines = self.shown(monkeypatch, capsys, width)
        assert lines[0].split()[-1] == "time"
        assert lines[-1] == "data/minilm/all-MiniLM-L6-v2.safetensors"
        words = " ".join(lines).split()
        whole = ["computed", "7.09", "90.9", "83.8", "failed"]
        broken = ["sentence-transformers/", "all-MiniLM-L6-v2", "EleutherAI/", "pythia-14m@step512"]
        named = ["sentence-transformers/all-MiniLM-L6-v2", "EleutherAI/pythia-14m@step512"]
        assert set(whole + (broken if width == 80 else named)) <= set(words)


class TestDownload:
    def test_some_fail_and_the_rest_is_saved_and_named(
        self, make_folder: MakeFolder, tmp_path: Path
    ) -> None:
        (tmp_path / "empty").mkdir()
        result = qk("download", "--model", tmp_path / "empty", "--model", make_folder("good"))
        assert result.exit_code == 1
        assert "is empty" in result.stderr
        assert "computed" in result.stdout
        assert "failed" in result.stdout
        assert Path("data/unlisted/good.safetensors").is_file()

    def test_both_circuits_have_figures_of_their_own(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        arguments = ["--circuit", "qk", "--circuit", "ov", "--family-name", "mine"]
        assert qk("download", "--model", folder, *arguments).exit_code == 0
        chosen = ["--circuit", "ov", "--convention", "folded"]
        assert qk("cluster", "--family", "MINE", "--clusters", "2", *chosen).exit_code == 0
        assert qk("boxplots", *chosen, "--skip", "min").exit_code == 0
        assert Path("ESDs/mine/tiny.ov.folded.png").is_file()
        assert Path("plots/mine/MAX/tiny.ov.folded_MAX_box.png").is_file()
        assert Path("plots/mine/boxplots.ov.folded.csv").is_file()
        assert not Path("plots/mine/MIN").exists()

    def test_a_dry_run(self, make_folder: MakeFolder) -> None:
        result = qk("download", "--model", make_folder(), "--dry-run")
        assert result.exit_code == 0
        assert "planned" in result.output
        assert "15.6 kB" in result.output
        assert not list(Path().iterdir())

    def test_a_dry_run_sums_up_and_tells_how_long(
        self,
        make_folder: MakeFolder,
        hub: LoopbackHub,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        for name in ("a", "b"):
            hub.add(f"me/{name}", make_folder(name))

        def dry_run() -> subprocess.CompletedProcess[str]:
            call = [
                "-m",
                "qk_taxonomy",
                "download",
                "--model",
                "me/a",
                "--model",
                "me/b",
                "--dry-run",
            ]
            env = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")}
            return subprocess.run(
                [sys.executable, *call],
                env=env,
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
            )

        unknown = dry_run()
        total = next(line for line in unknown.stdout.splitlines() if line.startswith("2 models"))
        assert total.split()[2:6] == ["4", "16", "31.1", "kB"]
        assert "How fast the hub's 31.1 kB come was not measured yet" in unknown.stderr
        assert not hub.bytes_served("model.safetensors") > 4 * 3000  # headers alone
        remember_speed(f"hub {hub.endpoint}", 10**8, 10**8 / (15552 / 4))
        known = dry_run()
        lines = known.stdout.splitlines()
        assert [" 4 s " in line for line in lines] == [False, True, True, False]
        assert " 8 s" in lines[-1]
        assert "measured" not in known.stderr

    @pytest.mark.parametrize("memory", ["5MB", "none", "-1", "1e9", "0.01 GB"])
    def test_memory_that_is_too_little_or_no_size(self, memory: str) -> None:
        result = qk("download", "--family", "minilm", "--memory", memory)
        assert result.exit_code == 2
        assert "wanted at least 80 MB, such as 256MB or 1GB" in result.stderr

    def test_a_family_of_ones_own(self, make_folder: MakeFolder, hub: LoopbackHub) -> None:
        hub.add("me/tiny", make_folder())
        Path("mine.toml").write_text(
            'name = "mine"\ntitle = "Mine"\ndescription = "My own."\nlicense = "mit"\n'
            '[[models]]\nid = "me/tiny"\nparameters = 1000\n'
        )
        done = subprocess.run(
            [sys.executable, "-m", "qk_taxonomy", "download", "--family", "mine", "--catalog", "."],
            env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(Path("hf").absolute())},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert Path("data/mine/tiny.safetensors").is_file()


def test_installed_copies_carry_the_catalogue() -> None:
    code = "import qk_taxonomy as q; print(min(len(q.list_families()), len(q.load_contrasts())))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert int(done.stdout) >= 60
