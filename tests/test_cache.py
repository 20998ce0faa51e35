"""Spectra files: whole under their names, damaged ones named, names that stay inside."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeFolder
from safetensors import safe_open
from safetensors.numpy import load_file, save, save_file

from qk_taxonomy import load_spectra
from qk_taxonomy.cache import (
    UnfinishedSpectra,
    cache_state,
    find_spectra,
    ordered_safetensors,
    remove_file,
    spectra_path,
    write_spectra,
)
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.errors import SpectraFileError
from qk_taxonomy.records import LayerSpectra, ModelRef, ModelSpectra
from qk_taxonomy.statistics.moments import STATISTICS
from qk_taxonomy.survey import survey_model


@pytest.fixture
def surveyed(make_folder: MakeFolder) -> Path:
    ref = model_ref(str(make_folder()), family_name="tiny")
    result = survey_model(ref, circuits=("qk", "ov"))
    assert result.path is not None
    return Path(result.path)


def test_the_files_contract(surveyed: Path) -> None:
    assert surveyed == Path("data/tiny/tiny.safetensors")
    with safe_open(surveyed, framework="numpy") as file:
        metadata = file.metadata()
        for layer in (0, 1):
            for circuit in ("qk", "ov"):
                for convention in ("raw", "folded"):
                    key = f"layers.{layer}.{circuit}.{convention}"
                    sigma = file.get_tensor(f"{key}.singular_values")
                    assert sigma.shape == (4, 8)
                    assert sigma.dtype == np.float32
                    assert (np.diff(sigma) <= 0).all()
                    assert file.get_tensor(f"{key}.statistics").shape == (4, len(STATISTICS))
                    assert file.get_tensor(f"{key}.eigenvalues").shape == (4, 8, 2)
        assert len(file.keys()) == 2 * 2 * 2 * 3
    provenance = json.loads(metadata.pop("provenance"))
    assert provenance["circuits"] == ["qk", "ov"]
    assert provenance["recomputed_heads"]["qk.raw"] == 0
    assert metadata.pop("tool_version")
    stack = {"n_heads": 4, "n_kv_heads": 2, "d_head": 8, "d_value": 8, "d_model": 24}
    assert json.loads(metadata.pop("stacks")) == {
        "": {"n_layers": 2, **stack, "d_input": 24, "d_rotary": 0}
    }
    assert metadata.pop("revision").startswith("local-")
    assert metadata == {
        "format": "qk-taxonomy-spectra",
        "format_version": "1",
        "model_id": "tiny",
        "family": "tiny",
        "architecture": "llama",
        "n_layers": "2",
        "n_heads": "4",
        "n_kv_heads": "2",
        "d_head": "8",
        "d_model": "24",
        "weights_dtype": "F32",
        "source": "folder tiny",
        "statistics": ",".join(STATISTICS),
    }


def test_what_is_loaded_is_what_was_written(surveyed: Path, tmp_path: Path) -> None:
    spectra = load_spectra(surveyed)
    copy = tmp_path / "copy.safetensors"
    write_spectra(copy, spectra)
    again = load_spectra(copy)
    assert again.metadata == spectra.metadata
    for ours, theirs in zip(spectra.layers, again.layers, strict=True):
        np.testing.assert_array_equal(ours.eigenvalues, theirs.eigenvalues)
        np.testing.assert_array_equal(ours.singular_values, theirs.singular_values)
    assert oct(copy.stat().st_mode & 0o777) == oct(surveyed.stat().st_mode & 0o777)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".copy")]
    assert copy.read_bytes() == surveyed.read_bytes()


def test_states(surveyed: Path, tmp_path: Path) -> None:
    assert cache_state(tmp_path / "none", "tiny", ["qk"], ["raw"]) == "missing"
    assert cache_state(surveyed, "tiny", ["qk", "ov"], ["raw", "folded"]) == "whole"
    spectra = load_spectra(surveyed)
    fewer = dataclasses.replace(spectra, layers=spectra.select("qk", "raw"))
    write_spectra(surveyed, fewer)
    assert cache_state(surveyed, "tiny", ["qk"], ["raw"]) == "whole"
    assert cache_state(surveyed, "tiny", ["ov"], ["raw"]) == "incomplete"
    write_spectra(surveyed, dataclasses.replace(spectra, layers=fewer.layers[:1]))
    assert cache_state(surveyed, "tiny", ["qk"], ["raw"]) == "incomplete"
    with pytest.raises(SpectraFileError, match=r"spectra of tiny .*those of other/tiny"):
        cache_state(surveyed, "other/tiny", ["qk"], ["raw"])
    older = {**spectra.metadata, "statistics": "MIN,MAX"}
    layers = tuple(
        dataclasses.replace(layer, statistics=layer.statistics[:, :2]) for layer in spectra.layers
    )
    write_spectra(surveyed, dataclasses.replace(spectra, metadata=older, layers=layers))
    assert cache_state(surveyed, "tiny", ["qk"], ["raw"]) == "stale"
    surveyed.write_bytes(surveyed.read_bytes()[:-10])
    assert cache_state(surveyed, "tiny", ["qk"], ["raw"]) == "stale"


@pytest.mark.parametrize("damage", ["cut", "text", "other", "empty", "version"])
def test_damaged_files_are_named(surveyed: Path, damage: str) -> None:
    if damage == "cut":
        surveyed.write_bytes(surveyed.read_bytes()[:1000])
    elif damage == "text":
        surveyed.write_text("these are no spectra")
    elif damage == "empty":
        surveyed.write_bytes(b"")
    else:
        spectra = load_spectra(surveyed)
        key = {"other": "format", "version": "format_version"}[damage]
        write_anyway(surveyed, {**spectra.metadata, key: "2"})
    with pytest.raises(SpectraFileError, match=r"tiny\.safetensors") as caught:
        load_spectra(surveyed)
    assert "download" in str(caught.value) or damage == "other"


def test_what_is_no_spectra_file_is_not_called_damaged(surveyed: Path) -> None:
    Path("tests.csv").write_text("hypothesis,effect\n")
    Path("x.taxonomy.safetensors").write_bytes(save({}, {"format": "qk-taxonomy-taxonomy"}))
    wanted = {
        "tests.csv": "wanted one that ends in .safetensors",
        "x.taxonomy.safetensors": "wanted format qk-taxonomy-spectra, found qk-taxonomy-taxonomy",
    }
    for name, message in wanted.items():
        with pytest.raises(
            SpectraFileError, match=f"^{name} is not a spectra file: {message}"
        ) as e:
            load_spectra(name)
        assert "under data/" in str(e.value)
        assert "`qk-taxonomy assign`" in str(e.value)
        assert "--force" not in str(e.value)
    metadata = {k: v for k, v in load_spectra(surveyed).metadata.items() if k != "d_head"}
    write_anyway(surveyed, metadata)
    with pytest.raises(SpectraFileError, match=r"is damaged \(its metadata lacks d_head\)"):
        load_spectra(surveyed)


@pytest.mark.parametrize("provenance", ["{", "[]", "2"])
def test_a_provenance_that_is_none(surveyed: Path, provenance: str) -> None:
    metadata = {**load_spectra(surveyed).metadata, "provenance": provenance}
    save_file(load_file(surveyed), surveyed, metadata=metadata)
    with pytest.raises(SpectraFileError, match=r"tiny\.safetensors is damaged"):
        load_spectra(surveyed)


def write_anyway(path: Path, metadata: dict[str, str]) -> None:
    save_file({"layers.0.qk.raw.statistics": np.zeros(1)}, path, metadata=metadata)


def test_a_missing_file_says_how_to_make_it() -> None:
    with pytest.raises(SpectraFileError, match="qk-taxonomy download"):
        load_spectra("nowhere.safetensors")
    with pytest.raises(SpectraFileError, match="--data-root"):
        find_spectra(".")


def test_a_failed_write_leaves_the_old_file(
    surveyed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = surveyed.read_bytes()
    spectra = load_spectra(surveyed)

    def full_disk(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(
        SpectraFileError, match=r"No space left.*Free some space .*same command again"
    ):
        write_spectra(surveyed, spectra)
    assert surveyed.read_bytes() == before
    assert [path.name for path in surveyed.parent.iterdir()] == ["tiny.safetensors"]


@pytest.mark.parametrize(("family", "name"), [("..", "x"), ("a", "../../x"), ("a/b", "x")])
def test_names_that_would_leave_the_folder(family: str, name: str) -> None:
    with pytest.raises(SpectraFileError, match="outside"):
        spectra_path(".", ModelRef("r", family, name))


def test_a_revision_is_part_of_the_name() -> None:
    ref = ModelRef("o/m", "f", "m", revision="refs/pr/2")
    assert spectra_path("r", ref) == Path("r/data/f/m@refs%2Fpr%2F2.safetensors")


def test_unfinished_layers_are_found_again_unless_they_are_of_another_survey(
    surveyed: Path,
) -> None:
    spectra = load_spectra(surveyed)
    first = [s for s in spectra.layers if s.layer == 0]
    identity = {key: value for key, value in spectra.metadata.items() if key != "provenance"}
    path = Path("data/tiny/again.safetensors")
    UnfinishedSpectra(path, identity).add([dataclasses.replace(s, n_recomputed=2) for s in first])
    found = UnfinishedSpectra(path, identity)
    assert list(found.layers) == [("", 0)]
    assert found.recomputed_heads["qk.raw"] == 2
    next(found.folder.iterdir()).write_bytes(b"cut")
    assert not UnfinishedSpectra(path, identity).layers
    assert not list(found.folder.iterdir())
    found.add(first)
    mirrored = UnfinishedSpectra(path, {**identity, "source": "hub https://mirror.example"})
    assert list(mirrored.layers) == [("", 0)]
    another = UnfinishedSpectra(path, {**identity, "revision": "another"})
    assert not another.layers
    another.add([s for s in spectra.layers if s.layer == 1])
    assert list(UnfinishedSpectra(path, identity).layers) == [("", 0)]
    assert find_spectra(".") == [surveyed]
    found.add([s for s in spectra.layers if s.layer == 1])
    found.finish(spectra.metadata)
    assert sorted(surveyed.parent.iterdir()) == [path, surveyed]
    assert path.read_bytes() == surveyed.read_bytes()


def test_a_layer_that_a_power_cut_took_in_part_is_dropped(surveyed: Path) -> None:
    spectra = load_spectra(surveyed)
    layers = [s for s in spectra.layers if s.layer == 0]
    path = Path("data/tiny/again.safetensors")
    UnfinishedSpectra(path, spectra.metadata).add(layers)
    unfinished = UnfinishedSpectra(path, spectra.metadata)
    assert list(unfinished.layers) == [("", 0)]
    (file,) = unfinished.folder.iterdir()
    whole = file.read_bytes()
    data = 8 + int.from_bytes(whole[:8], "little")
    file.write_bytes(whole[:data] + bytes(len(whole) - data))
    assert not load_spectra(file).layers[0].singular_values.any()  # sound but for the checksum
    assert not UnfinishedSpectra(path, spectra.metadata).layers
    assert not file.exists()


def test_files_are_those_of_the_library_but_for_the_order_of_metadata() -> None:
    rng = np.random.default_rng(0)
    tensors = {
        name: np.asarray(rng.integers(9, size=shape), dtype)
        for name, shape, dtype in (
            *(("b", (3, 1), np.float32), ("a", (2,), np.int64), ("z", (2, 2), np.float64)),
            *(("é", (5,), np.float32), ("y", (0, 4), np.float64), ("c", (), np.float64)),
        )
    }
    ours = b"".join(ordered_safetensors(tensors, {"only": 'a "quoted" é'}))
    assert ours == save(tensors, {"only": 'a "quoted" é'})
    many = {str(i): "x" for i in range(20)}
    again = b"".join(ordered_safetensors(tensors, many))
    header = json.loads(again[8 : 8 + int.from_bytes(again[:8], "little")])
    assert list(header["__metadata__"]) == sorted(many)


def test_writing_a_file_takes_little_memory_beside_its_layers(surveyed: Path) -> None:
    one = load_spectra(surveyed)
    n_layers, n_heads, d_head = 24, 32, 64
    numbers = {"n_layers": n_layers, "n_heads": n_heads, "d_head": d_head}
    stack = numbers | {"n_kv_heads": 8, "d_model": 2048}
    metadata = {**one.metadata, "stacks": json.dumps({"": stack})}
    layer = dataclasses.replace(
        one.layers[0],
        singular_values=np.ones((n_heads, d_head)),
        eigenvalues=np.full((n_heads, d_head), 1 + 2j),
        statistics=np.ones((n_heads, len(STATISTICS))),
    )
    path = Path("data/tiny/large.safetensors")
    tracemalloc.start()
    try:
        unfinished = UnfinishedSpectra(path, metadata)
        for number in range(n_layers):
            unfinished.add([dataclasses.replace(layer, layer=number)])
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        unfinished.finish(metadata)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = path.stat().st_size
    assert held < 1.3 * size
    assert peak - held < 0.5 * size


def test_a_familys_folder_is_found_by_its_own_name_or_an_alias(surveyed: Path) -> None:
    for folder, name in (("llama-3", "Llama"), ("Mine", "mine")):
        copy = Path("data") / folder / "copy.safetensors"
        write_spectra(copy, load_spectra(surveyed))
        assert find_spectra(".", name) == [copy]


def test_records_are_short_in_a_notebook(surveyed: Path) -> None:
    spectra = load_spectra(surveyed)
    assert len(repr(spectra.layers[0])) < 200
    assert isinstance(spectra.layers[0], LayerSpectra)
    assert isinstance(spectra, ModelSpectra)


def test_files_of_an_earlier_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    remove_file(tmp_path / "file" / "below.csv")  # which is not there
    remove_file(tmp_path / "file")
    remove_file(tmp_path / "file")
    assert not list(tmp_path.glob("file*"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(SpectraFileError, match=r"folder, of an earlier run, cannot be removed"):
        remove_file(tmp_path / "folder")
