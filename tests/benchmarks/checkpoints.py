"""Checkpoints of the shapes of well-known models, to survey in benchmarks.

Attention projections are random, everything else is holes in a sparse file: it has its full size
for whoever downloads it and takes no disk. Layers are fewer than the real models', and the
vocabulary is cut in proportion, so that the share of attention is that of the whole model.
Files are laid out as ``save_pretrained`` lays them out: modules go to shards in their order, and
within a shard tensors lie in the order of their names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

Kind = Literal["llama", "neox", "bert", "gpt2"]


@dataclass(frozen=True)
class Shape:
    """A model's shape; ``layers`` of the ``of`` layers that the real one has."""

    kind: Kind
    layers: int
    of: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    inner: int
    vocabulary: int
    dtype: str
    tied: bool = False
    shards: int = 2

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def rows(self) -> int:
        """Rows of the embeddings: the vocabulary, in proportion to the layers."""
        return self.vocabulary * self.layers // self.of


SHAPES = {
    # About 1 GB and 4 GB of one shape, and what a layer of a 70B model asks for.
    "llama-8b-2": Shape("llama", 2, 32, 4096, 32, 8, 14336, 128256, "BF16"),
    "llama-8b-4": Shape("llama", 4, 32, 4096, 32, 8, 14336, 128256, "BF16"),
    "llama-8b-8": Shape("llama", 8, 32, 4096, 32, 8, 14336, 128256, "BF16", shards=4),
    "llama-70b-2": Shape("llama", 2, 80, 8192, 64, 8, 28672, 128256, "BF16", shards=4),
    "llama-1b": Shape("llama", 16, 16, 2048, 32, 8, 8192, 128256, "BF16", tied=True),
    "pythia-1.4b": Shape("neox", 8, 24, 2048, 16, 16, 8192, 50304, "F16"),
    "bert-base": Shape("bert", 12, 12, 768, 12, 12, 3072, 30522, "F32"),
    "gpt2": Shape("gpt2", 12, 12, 768, 12, 12, 3072, 50257, "F32", tied=True),
}

#: What of each kind's tensors the spectra of QK circuits are made from.
_NAMED: dict[Kind, tuple[str, ...]] = {
    "llama": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "input_layernorm.weight"),
    "neox": ("attention.query_key_value.weight", ".input_layernorm.weight"),
    "bert": ("attention.self.query.weight", "attention.self.key.weight"),
    "gpt2": ("attn.c_attn.weight", "ln_1.weight"),
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: dtype of safetensors, shape, bytes ``[start, end)``."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def config(shape: Shape) -> dict[str, Any]:
    """The config.json of a shape."""
    layers, heads, d = shape.layers, shape.n_heads, shape.d_model
    if shape.kind == "gpt2":
        sizes = {"n_layer": layers, "n_head": heads, "n_embd": d}
        return {"model_type": "gpt2", "vocab_size": shape.rows, **sizes}
    model_type = {"llama": "llama", "neox": "gpt_neox", "bert": "bert"}[shape.kind]
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": d,
        "intermediate_size": shape.inner,
        "vocab_size": shape.rows,
        **({"num_key_value_heads": shape.n_kv_heads} if shape.kind == "llama" else {}),
    }


def _layer(shape: Shape) -> tuple[str, dict[str, tuple[int, ...]]]:
    """The prefix of a layer's names, to be formatted with its number, and its tensors."""
    d, inner, kv = shape.d_model, shape.inner, shape.n_kv_heads * shape.d_head
    match shape.kind:
        case "llama":
            return "model.layers.{}.", {
                "self_attn.q_proj.weight": (d, d),
                "self_attn.k_proj.weight": (kv, d),
                "self_attn.v_proj.weight": (kv, d),
                "self_attn.o_proj.weight": (d, d),
                "mlp.gate_proj.weight": (inner, d),
                "mlp.up_proj.weight": (inner, d),
                "mlp.down_proj.weight": (d, inner),
                "input_layernorm.weight": (d,),
                "post_attention_layernorm.weight": (d,),
            }
        case "neox":
            return "gpt_neox.layers.{}.", {
                **_norm("input_layernorm", d),
                **_norm("post_attention_layernorm", d),
                **_linear("attention.query_key_value", 3 * d, d),
                **_linear("attention.dense", d, d),
                **_linear("mlp.dense_h_to_4h", inner, d),
                **_linear("mlp.dense_4h_to_h", d, inner),
            }
        case "bert":
            return "encoder.layer.{}.", {
                **_linear("attention.self.query", d, d),
                **_linear("attention.self.key", d, d),
                **_linear("attention.self.value", d, d),
                **_linear("attention.output.dense", d, d),
                **_norm("attention.output.LayerNorm", d),
                **_linear("intermediate.dense", inner, d),
                **_linear("output.dense", d, inner),
                **_norm("output.LayerNorm", d),
            }
        case "gpt2":
            return "h.{}.", {
                **_norm("ln_1", d),
                "attn.c_attn.weight": (d, 3 * d),
                "attn.c_attn.bias": (3 * d,),
                "attn.c_proj.weight": (d, d),
                "attn.c_proj.bias": (d,),
                **_norm("ln_2", d),
                "mlp.c_fc.weight": (d, inner),
                "mlp.c_fc.bias": (inner,),
                "mlp.c_proj.weight": (inner, d),
                "mlp.c_proj.bias": (d,),
            }


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, d_model: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (d_model,), f"{name}.bias": (d_model,)}


def _modules(shape: Shape) -> Iterator[dict[str, tuple[int, ...]]]:
    """The tensors of each module that goes into one shard, in the order of a state dict."""
    embedding = {
        "llama": "model.embed_tokens.weight",
        "neox": "gpt_neox.embed_in.weight",
        "bert": "embeddings.word_embeddings.weight",
        "gpt2": "wte.weight",
    }[shape.kind]
    yield {embedding: (shape.rows, shape.d_model)}
    prefix, tensors = _layer(shape)
    for i in range(shape.layers):
        yield {prefix.format(i) + name: size for name, size in tensors.items()}
    if not shape.tied and shape.kind != "bert":
        head = "lm_head.weight" if shape.kind == "llama" else "embed_out.weight"
        yield {head: (shape.rows, shape.d_model)}


def make(folder: Path, name: str) -> Path:
    """Write ``folder/name``, a checkpoint of ``SHAPES[name]``; returns its path."""
    shape, path = SHAPES[name], folder / name
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config(shape), indent=2))
    itemsize = DTYPES[shape.dtype].itemsize
    modules = list(_modules(shape))
    total = sum(math.prod(size) for tensors in modules for size in tensors.values()) * itemsize
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    written = 0
    for tensors in modules:
        if written >= total * len(shards) / shape.shards:
            shards.append({})
        shards[-1] |= tensors
        written += sum(math.prod(size) for size in tensors.values()) * itemsize
    weight_map = {}
    rng = torch.Generator().manual_seed(0)
    for number, tensors in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(path / file, tensors, shape, rng)
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return path


def _write(
    path: Path, tensors: dict[str, tuple[int, ...]], shape: Shape, rng: torch.Generator
) -> None:
    """One shard: a header, random numbers in what is named, holes for the rest."""
    dtype = DTYPES[shape.dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + math.prod(tensors[name]) * dtype.itemsize
        header[name] = {
            "dtype": shape.dtype,
            "shape": tensors[name],
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
        for name, size in tensors.items():
            if name.endswith(_NAMED[shape.kind]):
                numbers = torch.randn(size, generator=rng).mul_(0.02 if len(size) > 1 else 0.2)
                numbers += 0.0 if len(size) > 1 else 1.0
                stream.seek(8 + len(text) + header[name]["data_offsets"][0])
                stream.write(numbers.to(dtype).view(torch.uint8).numpy().tobytes())


def named_tensors(path: Path) -> list[Stored]:
    """The tensors that a survey of QK circuits needs, by the files themselves."""
    suffixes = _NAMED[SHAPES[path.name].kind]
    found = []
    for file in sorted(path.glob("*.safetensors")):
        length, header = read_header(file)
        found += [
            Stored(
                file,
                name,
                entry["dtype"],
                tuple(entry["shape"]),
                8 + length + entry["data_offsets"][0],
                8 + length + entry["data_offsets"][1],
            )
            for name, entry in header.items()
            if name.endswith(suffixes)
        ]
    return found


def tensor_bytes(path: Path) -> int:
    """Bytes of :func:`named_tensors`."""
    return sum(tensor.end - tensor.start for tensor in named_tensors(path))


def read_header(file: Path) -> tuple[int, dict[str, Any]]:
    """Length and entries of a safetensors file's header."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return length, header


def header_bytes(path: Path) -> int:
    """Bytes of the headers of all shards and of the JSON files beside them."""
    shards = sum(8 + read_header(file)[0] for file in path.glob("*.safetensors"))
    return shards + sum(file.stat().st_size for file in path.glob("*.json"))


def whole_bytes(path: Path) -> int:
    """Bytes of all files of a checkpoint."""
    return sum(file.stat().st_size for file in path.iterdir())


def heads(shape: Shape, name: str, weights: torch.Tensor) -> list[torch.Tensor]:
    """The (heads, d_head, d_model) query and key projections that a stored projection holds."""
    e, d = shape.d_head, shape.d_model
    if shape.kind == "neox":
        return list(weights.view(shape.n_heads, 3, e, d).unbind(1)[:2])
    if shape.kind == "gpt2":
        return [part.T.reshape(-1, e, d) for part in weights.split(d, dim=1)[:2]]
    return [weights.view(-1, e, d)]
