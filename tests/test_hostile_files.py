"""Files made to deceive: one clear error each, in bounded memory and time, and nothing written."""

import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LLAMA_CONFIG, MakeFolder, llama_tensors
from hostile import entry, safetensors
from huggingface_hub import HfApi
from loopback_hub import File, LoopbackHub

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


def sparse(path: Path, content: bytes, size: int) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.truncate(size)


def llama_header(scale: int, n_layers: int = 1, **changes: Any) -> tuple[dict[str, Any], int]:
    """Header of a Llama of d_model 32·scale, and where its data ends."""
    header: dict[str, Any] = {}
    end = 0
    d = 32 * scale
    for i in range(n_layers):
        shapes: dict[str, list[int]] = {"input_layernorm.weight": [d]}
        shapes |= {f"self_attn.{p}_proj.weight": [d, d] for p in "qkvo"}
        for name, shape in shapes.items():
            header[f"model.layers.{i}.{name}"] = entry(end, shape)
            end = header[f"model.layers.{i}.{name}"]["data_offsets"][1]
    return header, end


def write_llama(folder: Path, scale: int, n_layers: int = 1) -> None:
    header, end = llama_header(scale, n_layers)
    content = safetensors(header)
    sparse(folder / "model.safetensors", content, len(content) + end)
    config = {"model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": n_layers}
    (folder / "config.json").write_text(json.dumps(config))


def terabyte(folder: Path) -> None:
    write_llama(folder, 1 << 14)


def large_config(folder: Path) -> None:
    write_llama(folder, 1)
    sparse(folder / "config.json", b"{", 1 << 40)


def large_index(folder: Path) -> None:
    write_llama(folder, 1)
    (folder / "model.safetensors").unlink()
    sparse(folder / "model.safetensors.index.json", b"{", 1 << 36)


def large_header(folder: Path) -> None:
    write_llama(folder, 1)
    sparse(folder / "model.safetensors", struct.pack("<Q", 90_000_000) + b"{", 1 << 36)


def many_objects(folder: Path) -> None:
    write_llama(folder, 1)
    (folder / "config.json").write_text('{"a":[' + ",".join(["{}"] * 260_000) + "]}")


def many_tensors(folder: Path) -> None:
    write_llama(folder, 1)
    header = {f"{i:0100}.attn.{'q_norm.' * 10}x": entry(4 * i, [1]) for i in range(80_000)}
    (folder / "model.safetensors").write_bytes(safetensors(header, 320_000))


def untyped(folder: Path) -> None:
    """No model_type: every row of the table is tried."""
    many_tensors(folder)
    (folder / "config.json").write_text("{}")


def many_layers(folder: Path) -> None:
    write_llama(folder, 1, 12_000)
    (folder / "config.json").write_text('{"model_type": "qwen2", "num_attention_heads": 3}')


def hybrid(folder: Path) -> None:
    """Every other layer has something else instead of attention."""
    write_llama(folder, 1)
    header: dict[str, Any] = {}
    for i in range(35_000):
        name = "linear_attn.x" if i % 35_000 else "self_attn.o_proj.weight"
        header[f"model.layers.{i}.{name}"] = entry(4 * i, [1])
    (folder / "model.safetensors").write_bytes(safetensors(header, 140_000))
    config = {"model_type": "qwen3_next", "num_hidden_layers": 35_000, "num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps(config))


def in_zip(folder: Path, program: bytes, records: int = 0) -> None:
    (folder / "config.json").write_text("{}")
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("a/data.pkl", program)
        for i in range(records):
            archive.writestr(f"a/{i}", b"")


def many_records(folder: Path) -> None:
    in_zip(folder, b".", 100_000)


def many_lists(folder: Path) -> None:
    in_zip(folder, b"\x80\x02(" + b"]" * 1_000_000 + b"l.")


def long_keys(folder: Path) -> None:
    number = b"\x8b" + struct.pack("<i", 8 << 20) + b"\x7f" * (8 << 20)
    in_zip(folder, b"\x80\x02" + number + b"q\x000}" + b"h\x00K\x01s" * 200_000 + b".")


def keys_of_one_hash(folder: Path) -> None:
    keys = b"".join(
        b"\x8a\x0f" + (i * ((1 << 61) - 1)).to_bytes(15, "little") + b"K\x01"
        for i in range(1, 300_000)
    )
    in_zip(folder, b"\x80\x02}(" + keys + b"u.")


def adapter(folder: Path, config: dict[str, Any], modules: list[str]) -> None:
    base = folder.with_name(f"{folder.name}-base")
    base.mkdir()
    write_llama(base, 1, 12_000)
    header: dict[str, Any] = {}
    for i, module in enumerate(modules):
        header[f"{module}.lora_A.weight"] = entry(8 * i, [1, 1])
        header[f"{module}.lora_B.weight"] = entry(8 * i + 4, [1, 1])
    content = safetensors(header, 8 * len(modules))
    (folder / "adapter_model.safetensors").write_bytes(content)
    said = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 1, "lora_alpha": 1}
    (folder / "adapter_config.json").write_text(json.dumps(said | config))


def adapter_of_many(folder: Path) -> None:
    adapter(folder, {}, [f"layers.{i}.self_attn.no_proj" for i in range(30_000)])


def adapter_of_patterns(folder: Path) -> None:
    patterns = {f"x{i}.*y.*z": 1 for i in range(3_000)}
    modules = [f"layers.{i}.self_attn.q_proj" for i in range(12_000)]
    adapter(folder, {"rank_pattern": patterns}, modules)


def gguf(folder: Path, values: bytes, n_values: int, size: int, n_tensors: int = 0) -> None:
    name = b"general.architecture"
    first = struct.pack("<Q", len(name)) + name + struct.pack("<IQ", 8, 5) + b"llama"
    head = struct.pack("<4sIQQ", b"GGUF", 3, n_tensors, n_values + 1)
    sparse(folder / "model.gguf", head + first + values, size)


def gguf_strings(folder: Path) -> None:
    gguf(folder, struct.pack("<Q1sIIQ", 1, b"a", 9, 8, 12_000_000), 1, 1 << 30)


def gguf_text(folder: Path) -> None:
    gguf(folder, struct.pack("<Q7sIQ", 7, b"llama.x", 8, 95_000_000), 1, 1 << 30)


def gguf_axes(folder: Path) -> None:
    gguf(folder, struct.pack("<Q1sI", 1, b"t", 12_000_000), 0, 1 << 30, 1)


def gguf_values(folder: Path) -> None:
    values = b"".join(struct.pack("<Q6sIB", 6, b"%06d" % i, 0, 0) for i in range(16_000))
    gguf(folder, values, 16_000, 1 << 20)


#: What is written into a folder, and what the error says of it.
LARGE: dict[Callable[[Path], None], str] = {
    terabyte: "claims .* bytes of model.safetensors; no attention tensor has more",
    large_config: "config.json of .* has 1099511627776 bytes; no model's has more",
    large_index: "index.json of .* bytes; no model's has more",
    large_header: "its header claims 90000000 bytes",
    many_objects: "no model_type|larger than that of any model",
    many_tensors: "No layer of a llama model",
    untyped: "fit no architecture",
    many_layers: "do not divide by the 3 query heads",
    hybrid: "is missing from the checkpoint|a matrix is wanted",
    many_records: "more bytes than any model needs",
    many_lists: "cannot be followed",
    long_keys: "longer than any that a model needs",
    keys_of_one_hash: "a key that is no name or number",
    adapter_of_many: "another base",
    adapter_of_patterns: "3000 patterns for 12000 modules, which would take too long",
    gguf_strings: "a list in it has 12000000 strings",
    gguf_text: "No layer of a|not in the table",
    gguf_axes: "'t' has 12000000 axes",
    gguf_values: "No layer of a",
}


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
def test_memory_and_time_are_bounded(tmp_path: Path) -> None:
    folders = [tmp_path / "large" / make.__name__ for make in LARGE]
    for make, folder in zip(LARGE, folders, strict=True):
        folder.mkdir(parents=True)
        make(folder)
    root = tmp_path / "out"
    root.mkdir()
    program = [sys.executable, str(Path(__file__).with_name("bounded.py")), str(root)]
    done = subprocess.run(
        [*program, *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    results = dict(zip(LARGE, map(json.loads, done.stdout.splitlines()), strict=True))
    for make, result in results.items():
        print(
            f"{make.__name__:20} {result['seconds']:5.1f} s {result['bytes'] >> 20:4} MiB", end=" "
        )
        print(result["message"][:100])
    for make, message in LARGE.items():
        result = results[make]
        assert result["own"], (make.__name__, result)
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(result["message"])
        assert len(result["message"]) < 2000, make.__name__
        assert result["seconds"] < 15, make.__name__  # 3 where the machine has nothing else to do
        assert result["bytes"] < 250 << 20, make.__name__
    assert not [path for path in root.rglob("*") if path.is_file()]
