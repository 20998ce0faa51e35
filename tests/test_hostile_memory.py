"""Files that would take a process's memory, or all day: surveyed under a limit of both."""

import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import entry, safetensors

from qk_taxonomy.architectures import attention_layout
from qk_taxonomy.checkpoints.safetensors_format import read_header
from qk_taxonomy.errors import LayoutError


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
    many_lists: "holds no state_dict",
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
        assert re.search(message, result["message"]), (make.__name__, result)
        assert len(result["message"]) < 2000, make.__name__
        assert result["seconds"] < 15, make.__name__  # 3 where the machine has nothing else to do
        assert result["bytes"] < 150 << 20, make.__name__
    assert not [path for path in root.rglob("*") if path.is_file()]


def test_a_plan_of_many_missing_layers() -> None:
    """A count of layers that no checkpoint has ends at the first that is missing."""
    header, _ = llama_header(1)
    content = safetensors(header)
    tensors = read_header(lambda a, b: content[a:b], "x.safetensors", None, "here")
    config = {"model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 9_999_999}
    with pytest.raises(LayoutError, match="layer 1 is missing"):
        attention_layout(config, tensors)
