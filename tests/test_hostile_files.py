"""Files made to deceive: one clear error each, whatever they claim, and nothing written."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import LLAMA_CONFIG, MakeFolder, llama_tensors
from hostile import entry, safetensors
from huggingface_hub import HfApi
from loopback_hub import File, LoopbackHub
from safetensors.numpy import load_file, save_file

from qk_taxonomy.catalog import model_ref
from qk_taxonomy.checkpoints import open_checkpoint
from qk_taxonomy.checkpoints.base import parse_json
from qk_taxonomy.checkpoints.safetensors_format import read_header
from qk_taxonomy.errors import CheckpointError, LayoutError
from qk_taxonomy.survey import survey_model

HUGE = 1 << 62

A = entry(0, [4])


@pytest.fixture(autouse=True)
def _nothing_written() -> Any:
    yield
    assert not [path for path in Path().rglob("*") if path.is_file()]


def read(content: bytes, size: int | None = -1) -> Any:
    known = len(content) if size == -1 else size
    return read_header(lambda a, b: content[a:b], "x.safetensors", known, "here")


def deep(n: int) -> str:
    return '{"a":' + "[" * n + "]" * n + "}"


HEADERS: dict[str, tuple[bytes, str]] = {
    "a length of 2⁶⁴ − 1": (b"\xff" * 8 + bytes(64), "claims 18446744073709551615 bytes"),
    "a length beyond the file": (struct.pack("<Q", 100) + b"{}", "cut short"),
    "no length": (bytes(8), "claims 0 bytes"),
    "the same bytes twice": (safetensors({"a": A, "b": A}, 16), "'b' at byte .*they overlap"),
    "some bytes twice": (safetensors({"a": A, "b": entry(12, [4])}, 28), "they overlap"),
    "a tensor inside another": (
        safetensors({"a": entry(0, [8]), "b": entry(4, [2])}, 32),
        "they overlap",
    ),
    "a gap": (safetensors({"a": A, "b": entry(20, [4])}, 36), "they have a gap"),
    "a gap before the first": (safetensors({"a": entry(4, [4])}, 20), "they have a gap"),
    "bytes after the last": (safetensors({"a": A}, 20), "too long"),
    "bytes and no tensors": (safetensors({}, 4), "too long"),
    "an offset beyond the file": (safetensors({"a": entry(0, [1 << 38])}, 16), "cut short"),
    "an offset of 2⁶³": (
        safetensors({"a": entry(1 << 63, [4])}, 16),
        "describes 'a'",
    ),
    "offsets that descend": (safetensors({"a": entry(16, [4], end=0)}, 16), "describes 'a'"),
    "offsets that are fractions": (safetensors({"a": entry(0, [4], end=16.0)}, 16), "describes"),  # type: ignore[arg-type]
    "offsets that are text": (safetensors({"a": {**A, "data_offsets": ["0", "16"]}}), "describes"),
    "three offsets": (safetensors({"a": {**A, "data_offsets": [0, 8, 16]}}, 16), "describes"),
    "a size that is true": (safetensors({"a": entry(0, [True], end=4)}, 4), "describes 'a'"),
    "a size that is negative": (safetensors({"a": entry(0, [-4], end=16)}, 16), "describes 'a'"),
    "sizes that multiply to 2¹⁰⁰⁰⁰": (
        safetensors({"a": entry(0, [HUGE] * 60, end=16)}, 16),
        "do not agree",
    ),
    "65,536 axes": (safetensors({"a": entry(0, [1] * 65536)}, 4), "describes 'a'"),
    "sizes of 4,000 digits": (
        safetensors({"a": entry(0, [10**4000] * 60, end=16)}, 16),
        "describes 'a'",
    ),
    "a size of a million digits": (safetensors('{"a":' + "9" * 1_000_000 + "}"), "is not JSON"),
    "a dtype that is a number": (safetensors({"a": {**A, "dtype": 7}}, 16), "describes 'a'"),
    "a dtype that is a table": (safetensors({"a": {**A, "dtype": {}}}, 16), "describes 'a'"),
    "a dtype of a million letters": (
        safetensors({"a": {**A, "dtype": "F" * 1_000_000}}, 16),
        "describes 'a'",
    ),
    "integers of other sizes than told": (
        safetensors({"a": entry(0, [4], "I8")}, 16),
        "which do not agree",
    ),
    "a tensor that is null": (safetensors({"a": None}), "describes 'a' as None"),
    "a name twice": (
        safetensors(f'{{"a":{json.dumps(A)},"a":{json.dumps(entry(0, [2, 2]))}}}', 16),
        "gives 'a' two values",
    ),
    "a key of an entry twice": (
        safetensors('{"a":{"dtype":"F32","dtype":"F16","shape":[4],"data_offsets":[0,16]}}', 16),
        "gives 'dtype' two values",
    ),
    "lists 40 deep": (safetensors(deep(40)), "more than 32 deep"),
    "lists a million deep": (safetensors('{"a":' + "[" * 1_000_000), "larger than that of any"),
    "lists 100,000 deep": (safetensors(deep(100_000)), "is not JSON"),
    "a name that no text can hold": (safetensors('{"\\ud800":null}'), "is not JSON.*surrogates"),
    "bytes that are no text": (safetensors(b'{"\xff":null}'), "is not JSON"),
    "text of 16 bits a letter": (safetensors('{"a":1}'.encode("utf-16")), "is not JSON"),
    "a list": (safetensors("[]"), "an object is wanted"),
    "a million lists": (
        safetensors('{"a":[' + ",".join(["[]"] * 1_000_000) + "]}"),
        "larger than that of any model",
    ),
    "three million numbers": (
        safetensors('{"a":[' + ",".join(["1e9"] * 3_000_000) + "]}"),
        "larger than that of any model",
    ),
}


@pytest.mark.parametrize("what", HEADERS)
@pytest.mark.parametrize("told", [True, False])
def test_headers(what: str, told: bool) -> None:
    content, message = HEADERS[what]
    size = len(content) if told else None
    if not told and message in ("cut short", "too long"):
        pytest.skip("only the file's size shows it")
    with pytest.raises(CheckpointError, match=message) as caught:
        read(content, size)
    assert len(str(caught.value)) < 600


def test_sound_headers_are_read() -> None:
    header = {"__metadata__": {"format": "pt"}, "b": entry(16, [0, HUGE], end=16), "a": A}
    tensors = read(safetensors(header, 16))
    assert {name: (t.shape, t.end - t.start) for name, t in tensors.items()} == {
        "a": ((4,), 16),
        "b": ((0, HUGE), 0),
    }
    # As some configs have it, and no contradiction.
    assert parse_json(b'\xef\xbb\xbf{"a": 1, "a": 1, "b": Infinity}', "x")["a"] == 1


def test_each_limit_of_json() -> None:
    assert parse_json(b'{"a": "' + "ä".encode() * 1000 + b'"}', "x")
    with pytest.raises(CheckpointError, match="larger than that of any model"):
        parse_json(b'{"a": "' + "ä".encode() * (5 << 20) + b'"}', "x")
    with pytest.raises(CheckpointError, match="larger than that of any model"):
        parse_json(b'{"a": "' + b"a" * (33 << 20) + b'"}', "x")


class TestIndexes:
    @pytest.mark.parametrize(
        ("weight_map", "message"),
        [
            ({"a": "/etc/passwd"}, "outside it"),
            ({"a": "..\\x.safetensors"}, "outside it"),
            ({"a": ".."}, "outside it"),
            ({"a": 7}, "gives 'a' the file 7; a name is wanted"),
            ({"a": None}, "gives 'a' the file None"),
            ({"a": ""}, "gives 'a' the file ''"),
            ({"a": ["x.safetensors"]}, "a name is wanted"),
            ({"a": "x\0.safetensors"}, "lacks x"),
            ({"a": "config.json"}, "not a file of torch.save"),
            ({"a": "n" * 100_000}, "lacks nnn"),
            ({str(i): f"{i}.safetensors" for i in range(200_000)}, "names 200000 files"),
            ([1], "has no weight_map"),
            ("x", "has no weight_map"),
            (None, "has no weight_map"),
        ],
    )
    def test_weight_maps(
        self, make_folder: MakeFolder, tmp_path: Path, weight_map: Any, message: str
    ) -> None:
        folder = self.with_index(make_folder, json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=message) as caught:
            survey_model(model_ref(str(folder), family_name="hostile"))
        assert len(str(caught.value)) < 600 + len(str(tmp_path))

    def test_a_tensor_in_two_files(self, make_folder: MakeFolder) -> None:
        text = '{"weight_map": {"a": "model-1.safetensors", "a": "model-2.safetensors"}}'
        with pytest.raises(CheckpointError, match="gives 'a' two values"):
            open_checkpoint(str(self.with_index(make_folder, text)))

    def with_index(self, make_folder: MakeFolder, text: str) -> Path:
        folder = make_folder()
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(text)
        return folder


@pytest.mark.parametrize("name", ["a" * 300, "a\nb", "a\x1b[2J", "\u202ea"])
def test_names_that_cannot_be_shown(make_folder: MakeFolder, name: str) -> None:
    folder = make_folder()
    (folder / "model.safetensors").write_bytes(safetensors({name: A}, 16))
    with pytest.raises(CheckpointError, match="printable names of at most 256") as caught:
        open_checkpoint(str(folder))
    assert "\x1b" not in str(caught.value)
    torch.save({name: torch.ones(1)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="printable names of at most 256"):
        open_checkpoint(str(folder / "pytorch_model.bin"))


@pytest.mark.usefixtures("hub_cache")
class TestClaims:
    """Sizes that a file claims and nobody has; the hub says a file's size, or does not."""

    @pytest.mark.parametrize("told", [True, False])
    def test_terabytes(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
        if not told:
            listing = File.listing

            def untold(self: File, *keys: str) -> dict[str, Any]:
                return {k: v for k, v in listing(self, *keys).items() if k not in ("size", "lfs")}

            monkeypatch.setattr(File, "listing", untold)
        header, start = {}, 0
        for name, array in llama_tensors().items():
            shape = [size << 18 if array.ndim == 2 else size for size in array.shape]
            header[name] = entry(start, shape)
            start = header[name]["data_offsets"][1]
        config = LLAMA_CONFIG | {"head_dim": 8 << 18, "hidden_size": 24 << 18}
        content = safetensors(header, 64)
        files = {"config.json": json.dumps(config).encode(), "model.safetensors": content}
        hub.add("org/tera", files)
        ref = model_ref("org/tera", family_name="hostile")
        wanted = CheckpointError if told else (CheckpointError, LayoutError)
        with pytest.raises(wanted, match="cut short" if told else "claims|shape"):
            survey_model(ref, api=HfApi(endpoint=hub.endpoint))
        assert hub.bytes_served() < 100_000

    def test_a_header_of_a_terabyte(self, hub: LoopbackHub) -> None:
        content = struct.pack("<Q", 1 << 40) + bytes(64)
        hub.add("org/tera", {"config.json": b"{}", "model.safetensors": content})
        with pytest.raises(CheckpointError, match="claims 1099511627776 bytes"):
            open_checkpoint("org/tera", api=HfApi(endpoint=hub.endpoint))
        assert hub.bytes_served() < 10_000


def zipped(records: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return out.getvalue()


class TestTorchFiles:
    def test_storages_that_share_bytes(self, make_folder: MakeFolder) -> None:
        stream = io.BytesIO()
        torch.save({"a": torch.arange(4.0), "b": torch.arange(4.0)}, stream)
        with zipfile.ZipFile(io.BytesIO(stream.getvalue())) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        content = bytearray(zipped(records))
        with zipfile.ZipFile(io.BytesIO(bytes(content))) as archive:
            first, second = (i for i in archive.infolist() if "/data/" in i.filename)
        # The directory's entry of the second says that it is where the first is.
        places = [struct.pack("<I", info.header_offset) for info in (first, second)]
        at = content.rindex(places[1] + second.filename.encode())
        content[at : at + 4] = places[0]
        folder = make_folder()
        (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"shares bytes with another|not where it claims"):
            open_checkpoint(str(folder / "pytorch_model.bin"))

    def test_a_name_that_no_text_can_hold(self, make_folder: MakeFolder) -> None:
        stream = io.BytesIO()
        torch.save({"\ud800": torch.ones(1)}, stream)
        folder = make_folder()
        (folder / "pytorch_model.bin").write_bytes(stream.getvalue())
        with pytest.raises(CheckpointError, match="printable names"):
            open_checkpoint(str(folder / "pytorch_model.bin"))

    def test_a_storage_key_twice(self, make_folder: MakeFolder) -> None:
        stream = io.BytesIO()
        torch.save({"a": torch.ones(1)}, stream, _use_new_zipfile_serialization=False)
        content = stream.getvalue()
        start = content.rindex(b"\x80\x02]")
        (listed,) = pickle.loads(content[start:])
        twice = pickle.dumps([listed, listed], 2)
        folder = make_folder()
        end = content.index(b".", start) + 1
        (folder / "pytorch_model.bin").write_bytes(content[:start] + twice + 2 * content[end:])
        with pytest.raises(CheckpointError, match="list of storages is not that"):
            open_checkpoint(str(folder / "pytorch_model.bin"))


class TestScales:
    """Float8 weights whose scales do not fit them."""

    @pytest.mark.parametrize(
        ("shape", "block", "message"),
        [
            ([1, 1, 1, 1], None, "without a scale that fits"),
            ([1, 4], [10**12, 6], "layer"),
            ([3, 5], None, "without a scale that fits"),
            ([0, 0], None, "without a scale that fits"),
        ],
    )
    def test_scales(
        self, make_folder: MakeFolder, shape: list[int], block: Any, message: str
    ) -> None:
        header: dict[str, Any] = {}
        end = 0
        for name, array in llama_tensors(n_layers=1).items():
            dtype, width = ("F8_E4M3", 1) if "q_proj" in name else ("F32", 4)
            stop = end + width * array.size
            header[name] = entry(end, list(array.shape), dtype, stop)
            end = stop
        scale = "model.layers.0.self_attn.q_proj.weight_scale"
        header[scale] = entry(end, shape)
        end = header[scale]["data_offsets"][1]
        quantised = {"quant_method": "fp8", "weight_block_size": block}
        config = LLAMA_CONFIG | {"num_hidden_layers": 1, "quantization_config": quantised}
        folder = make_folder(config=config)
        (folder / "model.safetensors").write_bytes(safetensors(header, end))
        if block is None:
            with pytest.raises(CheckpointError, match=message):
                survey_model(model_ref(str(folder), family_name="hostile"), dry_run=True)
        else:  # the blocks are those that the tensor has room for
            checkpoint = open_checkpoint(str(folder))
            found = checkpoint.read(checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"])
            assert found.shape == (32, 24)


class TestAdapters:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"rank_pattern": {"q_proj{99999999999999999999}": 1}}, "is no pattern"),
            ({"rank_pattern": {"[[a]": 1}}, "is no pattern"),
            ({"rank_pattern": {"a" * 100_000: 1}}, "more than the name of modules"),
            ({"rank_pattern": [1]}, "a table of patterns is wanted"),
            ({"rank_pattern": {"q_proj": float("nan")}}, "says r = nan"),
            ({"alpha_pattern": {"q_proj": 10**400}}, "says lora_alpha = 1000"),
            ({"r": True}, "says r = True"),
            ({"lora_alpha": -1}, "says lora_alpha = -1"),
            ({"lora_alpha": float("inf")}, "says lora_alpha = inf"),
            ({"peft_type": ["LORA"] * 100_000}, "an adapter of the type"),
            ({"init_lora_weights": "pissa" * 100_000}, "an initialisation"),
            ({"base_model_name_or_path": "x" * 1_000_000}, "names no base_model_name_or_path"),
            ({"base_model_name_or_path": ["x"]}, "names no base_model_name_or_path"),
        ],
    )
    def test_configs(
        self, make_folder: MakeFolder, tmp_path: Path, config: dict[str, Any], message: str
    ) -> None:
        adapter = self.write(tmp_path, make_folder("base"), config)
        with pytest.raises(CheckpointError, match=message) as caught:
            open_checkpoint(str(adapter))
        assert len(str(caught.value)) < 600 + len(str(tmp_path))

    def test_a_base_with_files_of_an_adapters_name(
        self, make_folder: MakeFolder, tmp_path: Path
    ) -> None:
        base = make_folder("base")
        (base / "model.safetensors").rename(base / "adapter_model.safetensors")
        (base / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": dict.fromkeys(llama_tensors(), "adapter_model.safetensors")})
        )
        adapter = self.write(tmp_path, base, {})
        with pytest.raises(CheckpointError, match="which is the name of an adapter's"):
            open_checkpoint(str(adapter))

    @pytest.mark.parametrize(
        "name", ["lora_A", "lora_A.weight", "lora_embedding_A", "weight", "layers.0.lora_A.weight"]
    )
    def test_a_tensor_changed_twice(
        self, make_folder: MakeFolder, tmp_path: Path, name: str
    ) -> None:
        adapter = self.write(tmp_path, make_folder("base"), {})
        module = "model.layers.0.self_attn.q_proj"
        # The same tensor under a name without the usual prefix, or with fewer parts of it.
        shapes = {f"{module}.{name}": (32, 24) if name == "weight" else (1, 24)}
        if "layers" in name:
            module = "layers.0.self_attn.q_proj"
            shapes = {f"{module}.lora_A.weight": (1, 24), f"{module}.lora_B.weight": (32, 1)}
        path = adapter / "adapter_model.safetensors"
        tensors = load_file(path) | {n: np.ones(size, np.float32) for n, size in shapes.items()}
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match="twice, under two names"):
            open_checkpoint(str(adapter))

    def write(self, tmp_path: Path, base: Path, config: dict[str, Any]) -> Path:
        folder = tmp_path / "adapter"
        folder.mkdir()
        module = "base_model.model.model.layers.0.self_attn.q_proj"
        factors = {f"{module}.lora_A.weight": (1, 24), f"{module}.lora_B.weight": (32, 1)}
        save_file(
            {name: np.ones(shape, np.float32) for name, shape in factors.items()},
            folder / "adapter_model.safetensors",
        )
        said = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 1, "lora_alpha": 1}
        (folder / "adapter_config.json").write_text(json.dumps(said | config))
        return folder
