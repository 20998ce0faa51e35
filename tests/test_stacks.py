"""Models of several stacks: surveyed, resumed, tabled and drawn, each stack by itself."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from readable import with_captions
from tiny_models import TINY_MODELS

from qk_taxonomy import head_table, load_spectra
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.checkpoints.local import LocalCheckpoint
from qk_taxonomy.cli import main
from qk_taxonomy.records import ModelResult
from qk_taxonomy.statistics.moments import STATISTICS
from qk_taxonomy.survey import survey_model

#: Layers and heads of the tiny T5, stack by stack.
STACKS = {"encoder": (2, 4), "decoder": (3, 4), "cross": (3, 4)}


def qk(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5: encoder, decoder, and cross-attention."""
    _, folder = TINY_MODELS["t5"].build(tmp_path_factory.mktemp("models") / "tiny-t5")
    return folder


@pytest.fixture(scope="module")
def surveyed(t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands make of it in an empty folder."""
    root = tmp_path_factory.mktemp("root")
    qk("download", "--model", t5, "--family-name", "tiny", "--output-root", root)
    qk("cluster", "--family", "tiny", "--clusters", 2, "--data-root", root)
    skipped = [part for name in STATISTICS if name != "MEAN" for part in ("--skip", name)]
    qk("boxplots", "--family", "tiny", "--data-root", root, *skipped)
    return root


def test_one_figure_a_stack(surveyed: Path) -> None:
    made = {path.name for path in (surveyed / "ESDs/tiny").iterdir()}
    assert made == with_captions(
        f"tiny-t5.{stack}{suffix}"
        for stack in STACKS
        for suffix in (
            *(".png", ".csv", ".classes.csv"),
            *(".agreement.csv", ".taxonomy.safetensors"),
        )
    )
    means = {path.name for path in (surveyed / "plots/tiny/MEAN").iterdir()}
    assert means == with_captions(f"tiny-t5.{stack}_MEAN_box.png" for stack in STACKS)
    for stack, (n_layers, n_heads) in STACKS.items():
        with (surveyed / f"ESDs/tiny/tiny-t5.{stack}.csv").open() as stream:
            assert len(list(csv.DictReader(stream))) == n_layers * n_heads


def test_the_trend_table_tells_stacks_apart(surveyed: Path) -> None:
    with (surveyed / "plots/tiny/boxplots.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["statistic"] == "MEAN"]
    found = {row["stack"]: (int(row["n_layers"]), int(row["n_heads"])) for row in rows}
    assert found == STACKS
    assert len(rows) == len(STACKS)


def test_show_names_each_stack(surveyed: Path) -> None:
    output = qk("show", surveyed / "data/tiny/tiny-t5.safetensors").output
    lines = [
        f"{stack}: {layers} layers × {heads} heads" for stack, (layers, heads) in STACKS.items()
    ]
    places = [output.index(line) for line in lines]
    assert places == sorted(places)
    for stack in STACKS:
        assert f"λ = σ², {stack} stack, qk circuit, raw" in output


def test_the_head_table_has_the_stack(surveyed: Path) -> None:
    table = head_table(surveyed)
    raw = table[table["convention"] == "raw"]
    counts = raw.groupby("stack", sort=False).size().to_dict()
    assert counts == {stack: layers * heads for stack, (layers, heads) in STACKS.items()}
    assert not raw.duplicated(["stack", "layer", "head"]).any()


def test_the_file_names_tensors_by_stack(surveyed: Path) -> None:
    spectra = load_spectra(surveyed / "data/tiny/tiny-t5.safetensors")
    assert spectra.stacks == tuple(STACKS)
    stacks = json.loads(spectra.metadata["stacks"])
    assert {name: (g["n_layers"], g["n_heads"]) for name, g in stacks.items()} == STACKS


def test_what_is_there_is_not_computed_again(t5: Path, surveyed: Path) -> None:
    again = qk(
        "download", "--model", t5, "--family-name", "tiny", "--output-root", surveyed, "--json"
    )
    (result,) = json.loads(again.output)
    assert (result["status"], result["layers"], result["heads"]) == ("present", 8, 32)


def survey_folder(folder: Path, output_root: str = ".") -> ModelResult:
    ref = model_ref(str(folder), family_name="tiny")
    return survey_model(ref, jobs=1, output_root=output_root)


def test_finished_layers_of_each_stack_are_kept(t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_bytes: Callable[..., bytearray] = LocalCheckpoint.read_bytes
    layers_read = []

    def read(self: LocalCheckpoint, file: str, start: int, end: int) -> bytearray:
        for info in getattr(self, "tensors", {}).values():
            inside = start <= info.start and info.end <= end
            if inside and info.name.endswith("Attention.q.weight"):
                layers_read.append(info.name.removesuffix(".q.weight"))
                if stopping and layers_read[-1] == "decoder.block.1.layer.0.SelfAttention":
                    raise KeyboardInterrupt
        return read_bytes(self, file, start, end)

    monkeypatch.setattr(LocalCheckpoint, "read_bytes", read)
    stopping = True
    with pytest.raises(KeyboardInterrupt):
        survey_folder(t5)
    kept = {path.stem for path in Path("data/tiny/.tiny-t5.unfinished").glob("*/*.safetensors")}
    assert kept >= {"encoder00000", "encoder00001", "decoder00000"}
    assert "decoder00001" not in kept
    stopping, layers_read[:] = False, []
    result = survey_folder(t5)
    assert result.status == "computed"
    assert len(layers_read) == 8 - len(kept)
    assert not any(name.startswith("encoder") for name in layers_read)
    resumed = load_spectra(str(result.path))
    whole = load_spectra(str(survey_folder(t5, "whole").path))
    for a, b in zip(resumed.layers, whole.layers, strict=True):
        assert (a.place, a.circuit, a.convention) == (b.place, b.circuit, b.convention)
        np.testing.assert_array_equal(a.singular_values, b.singular_values)
