"""Controls beside their models: one layer of them, files of their own, and how to ask for them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import LLAMA_CONFIG, MakeFolder, llama_tensors
from tiny_models import TINY_MODELS
from twins import ONE_LAYER, RANDOM, spectra_of, survey_control

from qk_taxonomy import generate_family_spectra, head_table, load_spectra
from qk_taxonomy.cache import find_spectra
from qk_taxonomy.checkpoints.random_twin import RandomTwin
from qk_taxonomy.cli import main
from qk_taxonomy.controls import make_control
from qk_taxonomy.errors import CheckpointError, QKTaxonomyError, SpectraFileError
from qk_taxonomy.records import CIRCUITS, Control


def qk(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


class TestOneLayer:
    def test_it_is_the_first_layer_of_the_model(self, minilm: Path) -> None:
        model = spectra_of(survey_control(minilm, None, circuits=CIRCUITS))
        result = survey_control(minilm, ONE_LAYER, circuits=CIRCUITS)
        twin = spectra_of(result)
        assert (result.layers, result.heads) == (1, 12)
        assert twin.metadata["n_layers"] == "1"
        first = [layer for layer in model.layers if layer.layer == 0]
        for a, b in zip(twin.layers, first, strict=True):
            assert (a.layer, a.circuit, a.convention) == (b.layer, b.circuit, b.convention)
            np.testing.assert_array_equal(a.singular_values, b.singular_values)
            np.testing.assert_array_equal(a.eigenvalues, b.eigenvalues)
            np.testing.assert_array_equal(a.statistics, b.statistics)

    @pytest.mark.parametrize(
        ("name", "places"),
        [
            ("t5", [("encoder", 0), ("decoder", 0), ("cross", 0)]),
            ("jamba", [("", 1)]),  # layer 0 has no attention
        ],
    )
    def test_the_first_of_each_stack(
        self, name: str, places: list[tuple[str, int]], tmp_path: Path
    ) -> None:
        _, path = TINY_MODELS[name].build(tmp_path / "model")
        result = survey_control(path, ONE_LAYER, conventions=("raw",))
        twin = spectra_of(result)
        assert [layer.place for layer in twin.layers] == places
        said = ", ".join(f"{stack} layer {layer}".strip() for stack, layer in places)
        assert result.notes[0] == f"this is the model's one-layer twin: of its layers, {said} alone"
        assert survey_control(path, ONE_LAYER, conventions=("raw",)).status == "present"


class TestFiles:
    def test_twins_and_model_lie_side_by_side(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        controls = [None, RANDOM, Control("random", 1), ONE_LAYER]
        spectra = [spectra_of(survey_control(folder, control)) for control in controls]
        names = [path.name for path in find_spectra(".", controls=True)]
        assert sorted(names) == sorted(
            f"tiny{mark}.safetensors" for mark in ("", "~random-0", "~random-1", "~one-layer")
        )
        assert [s.control for s in spectra] == ["", "random-0", "random-1", "one-layer"]
        assert [s.metadata.get("seed") for s in spectra] == [None, "0", "1", None]
        for key in ("model_id", "revision", "architecture"):
            assert len({s.metadata[key] for s in spectra}) == 1
        sigma = [s.select("qk", "raw")[0].singular_values for s in spectra]
        assert np.array_equal(sigma[0], sigma[3])
        assert not np.allclose(sigma[1], sigma[2], rtol=0.01)
        assert all(survey_control(folder, control).status == "present" for control in controls)

    def test_figures_leave_controls_out_and_tables_name_them(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        survey_control(folder, RANDOM)
        with pytest.raises(SpectraFileError, match="no spectra"):
            find_spectra(".")
        survey_control(folder, None)
        assert [path.name for path in find_spectra(".")] == ["tiny.safetensors"]
        table = head_table(".").query("circuit == 'qk' and convention == 'raw'")
        assert table.groupby("control").size().to_dict() == {"": 8, "random-0": 8}

    def test_a_control_under_the_name_of_another(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        Path(str(survey_control(folder, RANDOM).path)).rename("data/tiny/tiny.safetensors")
        with pytest.raises(SpectraFileError, match=r"control random-0.*\(control \) would take"):
            survey_control(folder, None)

    def test_what_was_drawn_is_said(self, tmp_path: Path) -> None:
        _, path = TINY_MODELS["t5"].build(tmp_path / "model")
        result = survey_control(path, Control("random", 3))
        by_role = {"q": 192**-0.5, "k, v": 32**-0.5, "o": 24**-0.5}
        drawn = "; ".join(f"{std:.4g} for {roles}" for roles, std in by_role.items())
        note = (
            "these are not the model's weights but its random twin's, drawn with seed 3: gains of "
            f"norms are 1, projections normal, of standard deviation encoder {drawn}; "
            f"decoder {drawn}; cross {drawn}"
        )
        assert result.notes[0] == note
        twin = spectra_of(result)
        assert json.loads(twin.metadata["provenance"])["notes"][0] == note
        assert twin.metadata["source"] == "draws with seed 3, shaped as in folder model"


class TestResuming:
    def test_finished_layers_are_drawn_once_and_mix_with_no_other_s(
        self, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = make_folder(
            tensors=llama_tensors(n_layers=4), config=LLAMA_CONFIG | {"num_hidden_layers": 4}
        )
        decode, drawn = RandomTwin.decode, []

        def stopping(self: RandomTwin, info: Any, read_bytes: Any) -> torch.Tensor:
            drawn.append((self.seed, int(info.name.split(".")[2])))
            if stop and drawn[-1][1] == 2:
                raise CheckpointError("gone")
            return decode(self, info, read_bytes)

        monkeypatch.setattr(RandomTwin, "decode", stopping)
        stop = True
        for seed in (0, 1):
            with pytest.raises(CheckpointError, match="gone"):
                survey_control(folder, Control("random", seed), jobs=1)
        unfinished = sorted(Path("data/tiny").iterdir())
        assert [part.name for part in unfinished] == [
            ".tiny~random-0.unfinished",
            ".tiny~random-1.unfinished",
        ]
        kept = [{int(file.stem) for file in part.glob("*/*")} for part in unfinished]
        assert all(layers >= {0, 1} for layers in kept)
        stop, drawn[:] = False, []
        survey_control(folder, None)
        found = [spectra_of(survey_control(folder, Control("random", s), jobs=1)) for s in (0, 1)]
        wanted = {(s, layer) for s in (0, 1) for layer in set(range(4)) - kept[s]}
        assert set(drawn) == wanted
        for seed, resumed in enumerate(found):
            again = spectra_of(survey_control(folder, Control("random", seed), force=True))
            for a, b in zip(resumed.layers, again.layers, strict=True):
                np.testing.assert_array_equal(a.singular_values, b.singular_values)

    def test_layers_of_another_control_are_dropped(
        self, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = make_folder()
        with monkeypatch.context() as patched:
            patched.setattr("qk_taxonomy.cache.UnfinishedSpectra.finish", stop_before_the_end)
            with pytest.raises(KeyboardInterrupt):
                survey_control(folder, RANDOM)
        Path("data/tiny/.tiny~random-0.unfinished").rename("data/tiny/.tiny~random-1.unfinished")
        found = spectra_of(survey_control(folder, Control("random", 1)))
        fresh = spectra_of(survey_control(folder, Control("random", 1), force=True))
        for a, b in zip(found.layers, fresh.layers, strict=True):
            np.testing.assert_array_equal(a.singular_values, b.singular_values)


def stop_before_the_end(*_: Any) -> None:
    raise KeyboardInterrupt


class TestPython:
    def test_of_a_family(self) -> None:
        paths = [
            *generate_family_spectra("minilm", control="random", seed=2),
            *generate_family_spectra("minilm", control="one-layer"),
        ]
        stem = "data/minilm/all-MiniLM-L6-v2"
        assert paths == [
            Path(f"{stem}~random-2.safetensors"),
            Path(f"{stem}~one-layer.safetensors"),
        ]
        assert load_spectra(paths[0]).control == "random-2"

    @pytest.mark.parametrize(("kind", "seed"), [("two-layer", 0), ("random", -1), ("", 0)])
    def test_a_control_that_there_is_not(self, kind: Any, seed: int) -> None:
        with pytest.raises(QKTaxonomyError, match="wanted random or one-layer, and a seed"):
            generate_family_spectra("minilm", control=kind, seed=seed)

    def test_labels(self) -> None:
        assert make_control("random", 5).label == "random-5"
        assert make_control("one-layer", 5) == Control("one-layer")


class TestCommandLine:
    def test_controls_alone_are_surveyed(self, make_folder: MakeFolder) -> None:
        model = ("--model", make_folder(), "--family-name", "tiny")
        both = ("--control", "random", "--control", "one-layer", "--seed", 4)
        planned = qk("download", *model, *both, "--dry-run")
        assert planned.exit_code == 0
        assert not list(Path().iterdir())
        assert re.search(r"planned +2 +8 +0 B", planned.output)
        done = json.loads(qk("download", *model, *both, "--json").stdout)
        assert [(entry["layers"], entry["bytes_read"] > 0) for entry in done] == [
            (2, False),
            (1, True),
        ]
        assert [entry["control"] for entry in done] == ["random-4", "one-layer"]
        made = sorted(path.name for path in Path("data/tiny").iterdir())
        assert made == ["tiny~one-layer.safetensors", "tiny~random-4.safetensors"]
        shown = qk("show", "data/tiny/tiny~random-4.safetensors").output
        assert "a control of that model: random-4" in shown
        assert "standard deviation 0.02 for q, k, v, o" in shown
        shown = qk("show", "data/tiny/tiny~one-layer.safetensors").output
        assert "a control of that model: one-layer" in shown
        assert "1 layer × 4 heads" in shown

    @pytest.mark.parametrize("state", ["planned", "computed", "present", "failed"])
    def test_what_is_said_of_a_control_names_it(self, make_folder: MakeFolder, state: str) -> None:
        folder = make_folder()
        arguments = ["--model", folder, "--control", "one-layer", "--family-name", "tiny"]
        if state == "present":
            qk("download", *arguments)
        if state == "failed":
            (folder / "model.safetensors").unlink()
        result = qk("download", *arguments, *(["--dry-run"] if state == "planned" else []))
        assert re.search(rf"tiny \(one-layer\) +{state}", result.stdout)
        said = {"present": "", "failed": "Error: "}.get(state, "Note: ")
        assert bool(result.stderr) == bool(said)
        assert all(
            line.startswith(f"{said}{folder} (one-layer): ") for line in result.stderr.splitlines()
        )
        assert "(" not in qk("download", "--model", folder, "--dry-run").stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--control", "two-layer"), "'two-layer' is not one of 'random', 'one-layer'"),
            (("--control", "random", "--seed", "-1"), "-1 is not in the range"),
            (("--control", "one-layer", "--seed", "1"), "--seed is for --control random"),
            (("--seed", "1"), "--seed is for --control random"),
        ],
    )
    def test_wrong_calls(self, arguments: tuple[str, ...], message: str) -> None:
        result = qk("download", "--family", "minilm", *arguments)
        assert result.exit_code == 2
        assert message in result.output

    def test_cluster_and_boxplots_leave_controls_out(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        for control in (RANDOM, ONE_LAYER):
            survey_control(folder, control)
        for command in ("cluster", "boxplots"):
            result = qk(command)
            assert result.exit_code == 1
            assert "There are no spectra" in result.output
        survey_control(folder, None)
        assert qk("boxplots").exit_code == 0
        made = list(Path("plots").rglob("*.*"))
        assert made
        assert not [path for path in made if "~" in path.name]
