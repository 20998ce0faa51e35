"""What is fuzzed: each of the package's own parsers, its seeds, and what must hold of any input.

A parser either raises a QKTaxonomyError, or what it returns is sound: every tensor lies within its
file and has the bytes that its shape and dtype make. Used by run.py and by test_mutations.py.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.numpy import save

from qk_taxonomy.architectures import attention_layout
from qk_taxonomy.cache import load_spectra, stack_table
from qk_taxonomy.checkpoints.adapters import AdapterCheckpoint, base_reference
from qk_taxonomy.checkpoints.gguf_format import GgufCheckpoint
from qk_taxonomy.checkpoints.inert_pickle import read_pickle
from qk_taxonomy.checkpoints.numpy_pickle import _ARRAYS, read_arrays
from qk_taxonomy.checkpoints.safetensors_format import read_header
from qk_taxonomy.checkpoints.torch_format import read_torch_file
from qk_taxonomy.checkpoints.torch_tensors import PLAIN, WEIGHTS
from qk_taxonomy.checkpoints.weight_files import FolderCheckpoint
from qk_taxonomy.errors import CheckpointError, QKTaxonomyError
from qk_taxonomy.records import LayerPlan, TensorInfo
from qk_taxonomy.taxonomy.saved import SavedTaxonomy, Source, load_taxonomy, taxonomy_bytes

#: Stands between the files of one input.
BETWEEN = b"\x00\xff\x00"

# Written out here, independently of the parsers: bytes of an element.
ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    "C128": 16,
}


# Bytes of zeros behind a header.
_MOST_DATA = 1 << 16


@dataclass(frozen=True)
class Harness:
    """A parser: inputs to begin with, and ``attempt``, which says whether it accepted an input."""

    seeds: Callable[[], Iterable[bytes]]
    attempt: Callable[[bytes], bool]
    words: tuple[str, ...] = ()


def check_tensors(tensors: Mapping[str, TensorInfo], size: int | None) -> None:
    """Every tensor lies in the ``size`` bytes of its file and is what its shape and dtype say."""
    for name, info in tensors.items():
        assert name == info.name
        assert all(type(n) is int and n >= 0 for n in info.shape)
        assert 0 <= info.start <= info.end
        assert size is None or info.end <= size, (info, size)
        if info.dtype not in ITEM_BYTES:
            continue
        n_elements = math.prod(info.shape)
        if info.stride is None:
            assert n_elements * ITEM_BYTES[info.dtype] == info.end - info.start, info
        else:
            steps = zip(info.shape, info.stride, strict=True)
            span = 1 + sum((n - 1) * step for n, step in steps)
            assert span * ITEM_BYTES[info.dtype] == info.end - info.start, info


def check_apart(tensors: Mapping[str, TensorInfo]) -> None:
    """No byte belongs to two tensors of a file, whose format has each of them once."""
    for a, b in pairwise(sorted(tensors.values(), key=lambda info: (info.start, info.end))):
        assert a.end <= b.start, (a, b)


def check_layout(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> tuple[LayerPlan, ...]:
    """Plan the layers both ways; plans have finite scales, and shapes that their heads fit."""
    plans = attention_layout(config, tensors).layers
    for plan in plans:
        geometry = plan.geometry
        assert 0 < plan.scale < math.inf
        assert geometry.n_heads % geometry.n_kv_heads == 0
        assert (
            math.prod(plan.tensors["o"].shape)
            == geometry.d_model * geometry.n_heads * geometry.d_value
        )
    for plan in attention_layout(config, tensors, untrained=True).layers:
        assert all(0 <= std < math.inf for std in plan.init_std.values())
    return plans


class Files(FolderCheckpoint):
    """A folder whose files are bytes at hand; of weights, headers are there, and some zeros."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files
        self.names = sorted(files)
        self.place = self.model_id = self.source = self.revision = "here"
        self._open()

    def read_file(self, file: str, longest: int) -> bytes:
        return self.files[file]

    def file_size(self, file: str) -> int | None:
        return None if file.endswith(".safetensors") else len(self.files[file])

    def read_bytes(self, file: str, start: int, end: int) -> bytearray:
        whole = self.files[file]
        length = 8 + int.from_bytes(whole[:8], "little")
        if end > max(len(whole), length + _MOST_DATA):
            raise CheckpointError("beyond the end")
        return bytearray(whole[start:end].ljust(end - start, b"\0"))


def with_length(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def refused(function: Callable[[], object]) -> bool:
    """Whether a parser refuses; any other error is a finding."""
    try:
        function()
    except QKTaxonomyError as err:
        message = str(err)
    else:
        return False
    assert len(message) < 10_000
    return True


def on_disk(parse: Callable[[Path], object], suffix: str) -> Callable[[bytes], bool]:
    """A parser of files, given each input as a file."""
    folder = tempfile.TemporaryDirectory(prefix="qk-fuzz-")
    path = Path(folder.name) / f"input{suffix}"

    def attempt(data: bytes) -> bool:
        assert folder  # lives as long as this
        path.write_bytes(data)
        return not refused(lambda: parse(path))

    return attempt


def header_of(
    shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str] | None = None
) -> bytes:
    """A header of float32 tensors, or those of ``dtypes``, as JSON."""
    header, end = {}, 0
    for name, shape in shapes.items():
        dtype = (dtypes or {}).get(name, "F32")
        start, end = end, end + ITEM_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    return json.dumps(header).encode()


LLAMA = {
    "model.layers.0.input_layernorm.weight": (4,),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.layers.0.self_attn.k_proj.weight": (2, 4),
    "model.layers.0.self_attn.v_proj.weight": (2, 4),
    "model.layers.0.self_attn.o_proj.weight": (4, 4),
}
LATENT = {
    "model.layers.0.input_layernorm.weight": (4,),
    "model.layers.0.self_attn.q_proj.weight": (8, 4),
    "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": (5, 4),
    "model.layers.0.self_attn.kv_a_layernorm.weight": (3,),
    "model.layers.0.self_attn.kv_b_proj.weight": (10, 3),
    "model.layers.0.self_attn.o_proj.weight": (4, 4),
}
GPT2 = {
    "h.0.ln_1.weight": (4,),
    "h.0.attn.c_attn.weight": (4, 12),
    "h.0.attn.c_proj.weight": (4, 4),
}
CONFIGS: tuple[tuple[dict[str, Any], Mapping[str, tuple[int, ...]]], ...] = (
    ({"model_type": "llama", "num_attention_heads": 2, "num_hidden_layers": 1}, LLAMA),
    ({"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2}, LLAMA),
    ({"model_type": "granite", "num_attention_heads": 2, "attention_multiplier": 0.5}, LLAMA),
    ({"model_type": "gemma2", "num_attention_heads": 2, "query_pre_attn_scalar": 2}, LLAMA),
    (
        {
            "model_type": "deepseek_v3",
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "num_nextn_predict_layers": 1,
            "rope_parameters": {"rope_type": "yarn", "factor": 2, "mscale_all_dim": 1.0},
        },
        LATENT,
    ),
    ({"model_type": "gpt2", "n_head": 2, "n_layer": 1, "scale_attn_weights": True}, GPT2),
    ({"model_type": "gemma3", "text_config": {"model_type": "llama", "n_heads": 2}}, LLAMA),
    (
        {
            "model_type": "llama",
            "num_attention_heads": 2,
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 2]},
        },
        LLAMA,
    ),
)


def planning(data: bytes) -> bool:
    """``data``: a config, an index (or nothing) and the header of a shard."""
    config, index, header = [*data.split(BETWEEN), b"", b""][:3]
    files = {"config.json": config, "a.safetensors": with_length(header)}
    if index:
        files["model.safetensors.index.json"] = index

    def plan() -> None:
        checkpoint = Files(files)
        check_tensors(checkpoint.tensors, None)
        check_apart(checkpoint.tensors)
        for plan in check_layout(checkpoint.config, checkpoint.tensors):
            checkpoint.check_readable(plan.tensors.values())
            for info in plan.tensors.values():
                assert checkpoint.read(info).shape == info.shape

    return not refused(plan)


def planning_seeds() -> Iterable[bytes]:
    for config, shapes in CONFIGS:
        index = json.dumps({"weight_map": dict.fromkeys(shapes, "a.safetensors")}).encode()
        text = json.dumps(config).encode()
        yield BETWEEN.join((text, index, header_of(shapes)))
        yield BETWEEN.join((text, b"", header_of(shapes)))
    q = "model.layers.0.self_attn.q_proj.weight"
    scaled = header_of(LLAMA | {f"{q}_scale_inv": (2, 2)}, {q: "F8_E4M3"})
    yield BETWEEN.join((json.dumps(CONFIGS[-1][0]).encode(), b"", scaled))


def safetensors(data: bytes) -> bool:
    """``data``: a header, to which the length is added, and the file's data behind it."""
    text, _, rest = data.partition(BETWEEN)
    content = with_length(text) + rest

    def parse() -> None:
        for size in (None, len(content)):
            read = lambda a, b: content[a:b]  # noqa: E731
            tensors = read_header(read, "a.safetensors", size, "here")
            check_tensors(tensors, size)
            check_apart(tensors)

    return not refused(parse)


def safetensors_seeds() -> Iterable[bytes]:
    for dtype in (np.float32, np.float16, np.int8):
        content = save({"a": np.ones((2, 3), dtype), "b": np.ones(2, dtype)}, {"format": "pt"})
        end = 8 + int.from_bytes(content[:8], "little")
        yield content[8:end] + BETWEEN + content[end:]


def torch_file(data: bytes) -> bool:
    def parse() -> None:
        read = lambda a, b: data[a:b]  # noqa: E731
        check_tensors(read_torch_file(read, "a.bin", len(data), "here"), len(data))

    return not refused(parse)


def torch_seeds() -> Iterable[bytes]:
    weight = torch.arange(6.0).reshape(2, 3)
    states: tuple[dict[str, Any], ...] = (
        {"a": weight},
        {"state_dict": {"a": weight.T, "b": weight[1:].half()}, "epoch": 3},
        {"a": torch.nn.Parameter(weight), "b": weight.to(torch.bfloat16)},
    )
    for state in states:
        for zipped in (True, False):
            stream = io.BytesIO()
            torch.save(state, stream, _use_new_zipfile_serialization=zipped)
            yield stream.getvalue()


def pickles(data: bytes) -> bool:
    accepted = 0
    for kind in (PLAIN, WEIGHTS, _ARRAYS):
        accepted += not refused(lambda k=kind: read_pickle(io.BytesIO(data), k, "here"))
    return accepted > 0


def pickle_seeds() -> Iterable[bytes]:
    for protocol in (0, 2, 4, 5):
        yield pickle.dumps({"a": [1, 2.5, "x", b"y", None, (True, 1 << 70)]}, protocol)
        yield pickle.dumps({"a": np.arange(3.0)}, protocol)


def arrays(path: Path) -> None:
    stack = [read_arrays(path)]
    while stack:
        value = stack.pop()
        if isinstance(value, dict | list):
            stack += value.values() if isinstance(value, dict) else value
        else:
            assert isinstance(value, int | float | np.ndarray | np.generic)


def gguf_file(path: Path) -> None:
    checkpoint = GgufCheckpoint(path)
    check_tensors(checkpoint.tensors, path.stat().st_size)
    check_apart(checkpoint.tensors)
    check_layout(checkpoint.config, checkpoint.tensors)


def gguf_seeds() -> Iterable[bytes]:
    shapes = {"attn_norm": (4,), "attn_q": (4, 4), "attn_k": (2, 4), "attn_v": (2, 4)}
    for architecture in ("llama", "gemma2"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "seed.gguf"
            writer = gguf.GGUFWriter(path, architecture)
            writer.add_block_count(1)
            writer.add_embedding_length(4)
            writer.add_head_count(2)
            writer.add_head_count_kv([1])
            writer.add_key_length(2)
            writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
            for name, shape in (shapes | {"attn_output": (4, 4)}).items():
                writer.add_tensor(f"blk.0.{name}.weight", np.ones(shape, np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            yield path.read_bytes()


def adapter(data: bytes) -> bool:
    """``data``: an adapter's config and the header of its weights."""
    config, _, header = data.partition(BETWEEN)
    files = {"adapter_config.json": config, "adapter_model.safetensors": with_length(header)}

    def parse() -> None:
        opened = Files(files)
        assert opened.is_adapter
        base_reference(opened)
        base_config, shapes = CONFIGS[0]
        base = Files(
            {
                "config.json": json.dumps(base_config).encode(),
                "model.safetensors": with_length(header_of(shapes)),
            }
        )
        merged = AdapterCheckpoint(opened, base)
        check_tensors(merged.tensors, None)
        for plan in check_layout(merged.config, merged.tensors):
            merged.check_readable(plan.tensors.values())
            for info in plan.tensors.values():
                assert merged.read(info).shape == info.shape
        for info in merged.tensors.values():
            if info.update is not None:
                assert 0 < info.update.factor < math.inf

    return not refused(parse)


def adapter_seeds() -> Iterable[bytes]:
    names = [name.removesuffix(".weight") for name in LLAMA if "proj" in name]
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        shapes[f"base_model.model.{name}.lora_A.weight"] = (1, 4)
        shapes[f"base_model.model.{name}.lora_B.weight"] = (LLAMA[f"{name}.weight"][0], 1)
    config = {"peft_type": "LORA", "base_model_name_or_path": "x/y", "r": 1, "lora_alpha": 2}
    patterns = {"rank_pattern": {".*q_proj": 1}, "alpha_pattern": {"layers.0.self_attn.k_proj": 3}}
    for said in (config, config | patterns, config | {"use_rslora": True, "fan_in_fan_out": True}):
        yield json.dumps(said).encode() + BETWEEN + header_of(shapes)
    whole = header_of({f"base_model.model.{names[0]}.weight": (4, 4)})
    yield json.dumps(config).encode() + BETWEEN + whole


def own_file(load: Callable[[Path], object]) -> Callable[[bytes], bool]:
    """A parser of safetensors files of the package's own; the length is added to the header."""

    def parse(path: Path) -> None:
        text, _, rest = path.read_bytes().partition(BETWEEN)
        path.write_bytes(with_length(text) + rest)
        load(path)

    return on_disk(parse, ".safetensors")


def spectra(path: Path) -> None:
    found = load_spectra(path)
    stacks = stack_table(found.metadata)
    for layer in found.layers:
        n_heads, d_head = layer.singular_values.shape
        assert layer.singular_values.dtype == np.float32
        assert layer.eigenvalues.shape == (n_heads, d_head)
        assert layer.eigenvalues.dtype == np.complex64
        assert len(layer.statistics) == n_heads == stacks[layer.stack]["n_heads"]
        assert np.isfinite(layer.singular_values).all()
    assert found.formula in ("exact", "predecessor")


def split(content: bytes) -> bytes:
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end] + BETWEEN + content[end:]


def spectra_seeds() -> Iterable[bytes]:
    keys = [
        "model_id",
        "family",
        "revision",
        "architecture",
        "weights_dtype",
        "source",
        "tool_version",
    ]
    metadata = dict.fromkeys(keys, "x") | dict.fromkeys(("n_layers", "n_kv_heads", "d_model"), "1")
    metadata |= {"format": "qk-taxonomy-spectra", "format_version": "1"}
    metadata |= {"n_heads": "1", "d_head": "2", "statistics": "MIN,MAX", "provenance": "{}"}
    stacks = {"encoder": {"n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "d_head": 2, "d_model": 4}}
    for prefix, more in (("", {}), ("encoder.", {"stacks": json.dumps(stacks)})):
        key = f"{prefix}layers.0.qk.raw."
        arrays = {
            "singular_values": [[2, 1]],
            "statistics": [[1, 2]],
            "eigenvalues": [[[1, 0]] * 2],
        }
        tensors = {key + part: np.array(value, np.float32) for part, value in arrays.items()}
        yield split(save(tensors, metadata | more))


def taxonomy_seeds() -> Iterable[bytes]:
    taxonomy = SavedTaxonomy(
        centres=np.array([[0.5, 0.5]]),
        edges=np.array([0.0, 1.0, 2.0]),
        radii=np.array([0.1]),
        n_heads=np.array([3]),
        circuit="qk",
        convention="raw",
        distance="euclidean",
        seed=0,
        narrowest=2,
        models=(Source("a", "b", "c", "exact"),),
    )
    yield split(taxonomy_bytes(taxonomy))


_JSON_WORDS = ("null", "true", "NaN", "Infinity", "1e308", "-1", "[]", "{}", "\\ud800", "1" * 30)
_HEADER_WORDS = ("dtype", "shape", "data_offsets", "F32", "F16", "F8_E4M3", "I8", "__metadata__")
_CONFIG_WORDS = (
    *("model_type", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("text_config", "rope_scaling", "rope_parameters", "quantization_config", "quant_method"),
    *("weight_block_size", "weight_scale_inv", "weight_map", "attention_multiplier", "n_layer"),
    *("llama", "gpt2", "bert", "deberta-v2", "mpt", "falcon", "qwen3", "gemma3", "clip", "t5"),
)
_ADAPTER_WORDS = ("rank_pattern", "alpha_pattern", "lora_alpha", "r", "lora_A", ".*", "{9}", "[[")

HARNESSES: dict[str, Harness] = {
    "safetensors": Harness(safetensors_seeds, safetensors, _JSON_WORDS + _HEADER_WORDS),
    "planning": Harness(planning_seeds, planning, _JSON_WORDS + _HEADER_WORDS + _CONFIG_WORDS),
    "torch": Harness(torch_seeds, torch_file),
    "pickle": Harness(pickle_seeds, pickles),
    "arrays": Harness(pickle_seeds, on_disk(arrays, ".pkl")),
    "gguf": Harness(gguf_seeds, on_disk(gguf_file, ".gguf")),
    "adapter": Harness(adapter_seeds, adapter, _JSON_WORDS + _HEADER_WORDS + _ADAPTER_WORDS),
    "spectra": Harness(spectra_seeds, own_file(spectra), _JSON_WORDS + _HEADER_WORDS),
    "taxonomy": Harness(taxonomy_seeds, own_file(load_taxonomy), _JSON_WORDS + _HEADER_WORDS),
}
