"""Spectra, unfinished layers, taxonomies and pickled arrays that contradict themselves."""

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from qk_taxonomy.cache import UnfinishedSpectra, checksum, load_spectra
from qk_taxonomy.checkpoints.numpy_pickle import read_arrays
from qk_taxonomy.errors import CheckpointError, SpectraFileError, TaxonomyError
from qk_taxonomy.taxonomy.saved import load_taxonomy

METADATA = {
    **dict.fromkeys(("model_id", "family", "revision", "architecture", "weights_dtype"), "x"),
    "source": "x",
    "tool_version": "0",
    "format": "qk-taxonomy-spectra",
    "format_version": "1",
    "n_layers": "1",
    "n_heads": "2",
    "n_kv_heads": "2",
    "d_head": "3",
    "d_model": "6",
    "statistics": "MIN,MAX",
}


def spectra(
    changes: dict[str, Any] | None = None, place: str = "layers.0", **metadata: str
) -> bytes:
    arrays: dict[str, Any] = {
        "singular_values": np.array([[3, 2, 1]] * 2, np.float32),
        "eigenvalues": np.ones((2, 3, 2), np.float32),
        "statistics": np.ones((2, 2), np.float32),
    }
    arrays |= changes or {}
    tensors = {f"{place}.qk.raw.{part}": array for part, array in arrays.items()}
    return save(tensors, METADATA | metadata)


def model(**changes: Any) -> str:
    """The models that a taxonomy was made of."""
    said = {"family": "a", "model_id": "b", "revision": "c", "formula": "exact"}
    return json.dumps([said | changes])


class TestOwnFiles:
    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path) -> None:
        self.path = tmp_path / "x.safetensors"

    def test_the_file_is_sound_otherwise(self) -> None:
        self.path.write_bytes(spectra())
        assert load_spectra(self.path).layers[0].singular_values.shape == (2, 3)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (spectra({"eigenvalues": np.ones((2, 3, 1), np.float64)}), "no float32"),
            (spectra({"singular_values": np.ones((2, 3), np.int32)}), "no float32"),
            (spectra({"singular_values": np.ones(6, np.float32)}), "no float32 of shape"),
            (spectra({"singular_values": np.ones((2, 0), np.float32)}), "no float32 of shape"),
            (spectra({"eigenvalues": np.ones((2, 4, 2), np.float32)}), "do not agree on 2 heads"),
            (spectra({"statistics": np.ones((2, 3), np.float32)}), "do not agree on 2 heads"),
            (spectra(n_heads="3"), "do not agree on 3 heads"),
            (spectra({"singular_values": -np.ones((2, 3), np.float32)}), "from 0 on"),
            (spectra({"singular_values": np.full((2, 3), np.nan, np.float32)}), "not finite"),
            (
                spectra({"singular_values": np.array([[1, 2, 3]] * 2, np.float32)}),
                "do not descend",
            ),
            (spectra(n_layers="9" * 5000), "is damaged"),
            (spectra(n_layers="-1"), "those of no model"),
            (spectra(d_head="1" + "0" * 20), "those of no model"),
            (spectra(stacks='{"": {"n_layers": Infinity}}'), "is damaged"),
            (spectra(stacks="[" * 100_000), "is damaged"),
            (spectra(stacks="[]"), "is damaged"),
            (spectra(provenance="[" * 100_000), "is damaged"),
            (spectra(format="x" * 100_000), "found xxx"),
            (spectra(format_version="x" * 100_000), "has format version xxx"),
            (spectra(place="layers.٣"), "unknown tensor"),
            (spectra(place="layers.01"), "unknown tensor"),
            (spectra(place="layers." + "9" * 5000), "unknown tensor"),
            (spectra(place="other.layers.0"), "unknown stack other"),
            (struct.pack("<Q", 90_000_000) + bytes(100), "its header claims 90000000 bytes"),
            (b"", "is damaged"),
        ],
    )
    def test_spectra(self, content: bytes, message: str) -> None:
        self.path.write_bytes(content)
        with pytest.raises(SpectraFileError, match=message) as caught:
            load_spectra(self.path)
        assert len(str(caught.value)) < 700

    @pytest.mark.parametrize(
        "metadata",
        [
            {"recomputed_heads": "["},
            {"recomputed_heads": "[]"},
            {"recomputed_heads": '{"qk.raw": "many"}'},
            {"recomputed_heads": '{"qk.raw": Infinity}'},
            {"checksum": "0"},
            {"checksum": ""},
        ],
    )
    def test_an_unfinished_layer(self, metadata: dict[str, str]) -> None:
        self.path.write_bytes(spectra())
        unfinished = UnfinishedSpectra(self.path, METADATA)
        unfinished.add(load_spectra(self.path).layers)
        assert UnfinishedSpectra(self.path, METADATA).layers
        (file,) = unfinished.folder.iterdir()
        said = load_spectra(file).metadata
        file.write_bytes(spectra(**{**said, **metadata}))
        assert not UnfinishedSpectra(self.path, METADATA).layers
        assert not file.exists()

    def test_an_unfinished_file_without_layers(self) -> None:
        folder = UnfinishedSpectra(self.path, METADATA).folder
        folder.mkdir(parents=True)
        content = save({}, METADATA | {"recomputed_heads": "{}", "checksum": checksum([])})
        (folder / "00000.safetensors").write_bytes(content)
        assert not UnfinishedSpectra(self.path, METADATA).layers
        assert not list(folder.iterdir())

    @pytest.mark.parametrize(
        ("metadata", "tensors", "message"),
        [
            ({"models": '[{"family": 1}]'}, {}, "is damaged"),
            ({"models": model(family=[1])}, {}, "made of a model"),
            ({"models": model(formula={})}, {}, "made of a model|is damaged"),
            ({"models": model(formula="another")}, {}, "made of a model"),
            ({"models": "[" * 100_000}, {}, "is damaged"),
            ({"seed": "1e999"}, {}, "is damaged"),
            ({"seed": "9" * 5000}, {}, "is damaged"),
            ({"narrowest": "0"}, {}, "narrowest head"),
            ({"circuit": "x" * 100_000}, {}, "is none of"),
            ({"format": "x" * 100_000}, {}, "found format|found xxx"),
            ({}, {"edges": np.array([0.0, np.inf, 2.0])}, "not finite"),
            ({}, {"edges": np.array([0.0, 0.0, 2.0])}, "do not ascend"),
            ({}, {"centres": np.ones((2, 2))}, "not those of 2 classes"),
            ({}, {"centres": np.ones((1, 2), np.float32)}, "of dtype float64"),
        ],
    )
    def test_taxonomies(
        self, metadata: dict[str, str], tensors: dict[str, Any], message: str
    ) -> None:
        arrays = {
            "centres": np.ones((1, 2)),
            "edges": np.array([0.0, 1.0, 2.0]),
            "radii": np.ones(1),
            "n_heads": np.ones(1, np.int64),
        }
        said = {
            "format": "qk-taxonomy-taxonomy",
            "format_version": "1",
            "circuit": "qk",
            "convention": "raw",
            "distance": "euclidean",
            "seed": "0",
            "narrowest": "2",
            "models": model(),
            "formula": "exact",
            "tool_version": "0",
        }
        self.path.write_bytes(save(arrays, said))
        assert load_taxonomy(self.path).n_clusters == 1
        self.path.write_bytes(save(arrays | tensors, said | metadata))
        with pytest.raises(TaxonomyError, match=message) as caught:
            load_taxonomy(self.path)
        assert len(str(caught.value)) < 700


def test_a_key_that_counts_nothing(tmp_path: Path) -> None:
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps({1 << 70: 1}, 4))
    with pytest.raises(CheckpointError, match="a key that is no name or number"):
        read_arrays(path)


@pytest.mark.parametrize("digits", [20, 1000])
def test_numbers_that_no_array_needs(tmp_path: Path, digits: int) -> None:
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps({1: 10**digits}, 4))
    if digits == 20:
        assert read_arrays(path) == {1: 10**20}
    else:
        with pytest.raises(CheckpointError, match="longer than any that a model needs"):
            read_arrays(path)
