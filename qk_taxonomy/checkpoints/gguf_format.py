"""GGUF checkpoints: llama.cpp's single files (and splits of them), most of them quantised.

The `gguf` package reads and dequantises them. Its config is that of config.json as far as GGUF has
its values, so that the architecture table reads both alike.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    GGMLQuantizationType,
    GGUFReader,
    LlamaFileType,
)
from gguf.quants import dequantize, quant_shape_to_byte_shape

from qk_taxonomy.checkpoints.base import (
    DTYPES,
    Checkpoint,
    TokenizerDefinition,
    local_revision,
    read_range,
)
from qk_taxonomy.checkpoints.fetched import ReadRange
from qk_taxonomy.checkpoints.gguf_reader import CutShortError, plain_value, readable
from qk_taxonomy.checkpoints.gguf_tokens import read_tokenizer
from qk_taxonomy.checkpoints.tensor_names import check_names
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.records import TensorInfo

SUFFIX = ".gguf"

# model-00001-of-00003.gguf
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

# Far above any real model's.
_MOST_LAYERS = 10_000

#: GGUF's names of what config.json names otherwise; other keys keep their names.
_CONFIG_NAMES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
}

# GGUF has no query_pre_attn_scalar. It is d_head in every published Gemma but those of 27B, where
# it is d_model / n_heads; llama.cpp tells them by their numbers of layers, and so does this.
_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}

_GENERAL = ("general.name", "general.file_type")


@functools.cache
def _dequantises(dtype: str) -> bool:
    """Whether the installed `gguf` dequantises a type: later releases know more of them."""
    quantisation = GGMLQuantizationType[dtype]
    block = np.zeros(GGML_QUANT_SIZES[quantisation][1], np.uint8)
    try:
        dequantize(block, quantisation)
    except NotImplementedError:
        return False
    return True


@dataclass(frozen=True)
class _GgufFile:
    """What the header of one file says, and what identifies the file."""

    values: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]


def _read_file(path: Path) -> _GgufFile:
    """The header of a GGUF file; no weights. Raises CheckpointError naming the file."""
    with readable(path) as reader:
        values = {name: plain_value(field, _MOST_LAYERS) for name, field in reader.fields.items()}
        return _GgufFile(values, _tensors(reader, path.name))


def _tensors(reader: GGUFReader, file: str) -> dict[str, TensorInfo]:
    """A file's tensors by name. Raises ValueError where their places contradict one another."""
    alignment = int(reader.alignment)
    if alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"its general.alignment is {alignment}, which is no power of two")
    tensors = {}
    check_names((tensor.name for tensor in reader.tensors), file)
    for tensor in reader.tensors:
        shape = tuple(reversed(tensor.shape.tolist()))
        block, n_bytes = GGML_QUANT_SIZES[tensor.tensor_type]
        if shape and shape[-1] % block:
            raise ValueError(f"the rows of {tensor.name} are no whole blocks of {block}")
        start = int(tensor.data_offset)
        end = start + math.prod(shape) // block * n_bytes
        if end > len(reader.data):
            raise CutShortError(f"wanted bytes up to {end}, found {len(reader.data)}")
        if (start - reader.data_offset) % alignment:
            raise ValueError(f"{tensor.name} begins at byte {start}, off the {alignment}-byte grid")
        dtype = tensor.tensor_type.name
        tensors[tensor.name] = TensorInfo(tensor.name, dtype, shape, file, start, end)
    by_place = sorted(tensors.values(), key=lambda info: (info.start, info.end))
    for before, after in pairwise(by_place):
        if after.start < before.end:
            raise ValueError(f"{before.name} and {after.name} share bytes")
    return tensors


def _one_for_all(key: str, value: Any, place: str) -> Any:
    """A value that GGUF may give once or by layer. Raises CheckpointError where layers differ."""
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise CheckpointError(
            f"{place} gives its layers different values of {key}: {value[:8]}"
            f"{', ...' if len(value) > 8 else ''}. Models whose layers differ in their heads "
            "cannot be surveyed from GGUF files yet."
        )
    return value[0]


def _config(values: Mapping[str, Any], names: Iterable[str], place: str) -> dict[str, Any]:
    """A file's metadata as a config.json would have it. Raises CheckpointError."""
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str):
        raise CheckpointError(
            f"{place} does not name its architecture (general.architecture), so it holds no model."
        )
    own = {
        key.removeprefix(f"{architecture}."): value
        for key, value in values.items()
        if key.startswith(f"{architecture}.")
    }
    config: dict[str, Any] = {"model_type": f"gguf-{architecture}"}
    config |= {key: values[key] for key in _GENERAL if key in values}
    config |= {key: value for key, value in own.items() if isinstance(value, str | int | float)}
    for key, name in _CONFIG_NAMES.items():
        config.pop(key, None)
        config[name] = _one_for_all(key, own.get(key), place)
    n_layers = config["num_hidden_layers"]
    if isinstance(n_layers, int) and n_layers > _MOST_LAYERS:
        raise CheckpointError(
            f"{place} claims {n_layers} layers; no model has more than {_MOST_LAYERS}. The file is "
            "damaged: fetch it again."
        )
    value_length = _one_for_all("value_length", own.get("attention.value_length"), place)
    if value_length != config["head_dim"] and None not in (value_length, config["head_dim"]):
        raise CheckpointError(
            f"{place} has keys of length {config['head_dim']} and values of length {value_length}; "
            "only heads in which both are alike can be surveyed yet."
        )
    if architecture in _GEMMA_27B_LAYERS:
        config["query_pre_attn_scalar"] = _gemma_scalar(config, _GEMMA_27B_LAYERS[architecture])
    return config


def _gemma_scalar(config: Mapping[str, Any], layers_of_27b: int) -> Any:
    """What config.json would call query_pre_attn_scalar; None where the file does not say."""
    if config["num_hidden_layers"] != layers_of_27b:
        return config["head_dim"]
    d_model, n_heads = config["hidden_size"], config["num_attention_heads"]
    sound = isinstance(d_model, int) and isinstance(n_heads, int) and n_heads > 0
    return d_model // n_heads if sound else None


def _file_type(number: Any) -> str:
    """What a file says of its quantisation, in words (", mostly Q4_K_M"), if anything."""
    try:
        how_much, _, kind = LlamaFileType(number).name.partition("_")
    except ValueError:
        return ""
    return f", {how_much.lower()} {kind}"


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one (or first part) of a folder."""
    if path.is_file():
        return path if path.suffix.lower() == SUFFIX else None
    try:
        names = sorted(name for name in os.listdir(path) if name.endswith(SUFFIX))
    except OSError:
        return None
    return path / names[0] if names and set(names) <= set(_parts(names[0])) else None


def _parts(name: str) -> list[str]:
    """The files that a GGUF file's name says it is one of, in order; itself if it says nothing."""
    part = _PART.fullmatch(name)
    if part is None:
        return [name]
    count = int(part["count"])
    return [f"{part['stem']}-{i + 1:05}-of-{count:05}{SUFFIX}" for i in range(count)] or [name]


def _check_part(file: _GgufFile, name: str, number: int, count: int) -> None:
    """Raise CheckpointError where a file is not the part (from 0) that its name makes it."""
    said = file.values.get("split.count") or 1, file.values.get("split.no") or 0
    if said != (count, number):
        raise CheckpointError(
            f"{name} says split.count = {said[0]}, split.no = {said[1]}; its name makes it "
            f"{count} and {number}. The first of three parts is called <model>-00001-of-00003.gguf."
        )


class GgufCheckpoint(Checkpoint):
    """A GGUF file, or all parts of a split one whichever is named. Raises CheckpointError.

    ``config``: values of the file's architecture under config.json's names where those differ,
    else under their own without the architecture's prefix ("attention.scale"); ``model_type`` is
    ``gguf-`` and the architecture. A tensor's ``dtype`` is ggml's name of its type ("Q4_K", "F16"),
    its shape in torch's order. ``model_id`` defaults to the file's stem, ``revision`` to ``local-``
    and a hash of the config and of the beginnings of all tensors.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        model_id: str | None = None,
        revision: str | None = None,
        source: str | None = None,
    ) -> None:
        path = Path(path)
        part = _PART.fullmatch(path.name)
        self.folder = path.parent
        self.model_id = model_id or (part["stem"] if part else path.stem)
        names = _parts(path.name)
        absent = [name for name in names if not (self.folder / name).exists()]
        if absent:
            raise CheckpointError(
                f"{self.folder} lacks {absent[0]}, one of the {len(names)} parts of "
                f"{self.model_id}. Fetch the missing parts into the same folder."
                if part
                else f"There is no file {path}."
            )
        files = [_read_file(self.folder / name) for name in names]
        tensors: dict[str, TensorInfo] = {}
        for number, (name, file) in enumerate(zip(names, files, strict=True)):
            _check_part(file, name, number, len(names))
            twice = sorted(tensors.keys() & file.tensors.keys())
            if twice:
                raise CheckpointError(f"{name} repeats {twice[0]}, which an earlier part holds.")
            tensors |= file.tensors
        self._first = names[0]
        self.tensors = tensors
        self.config = _config(files[0].values, tensors, str(self.folder / names[0]))
        quantisation = _file_type(self.config.get("general.file_type"))
        self.source = source or f"file {path.name}{quantisation}"
        values = json.dumps(self.config, sort_keys=True, default=str)
        self.revision = revision or local_revision(values, self.folder, tensors.values())

    def __getstate__(self) -> dict[str, Any]:
        # Another process may have another working directory.
        return super().__getstate__() | {"folder": self.folder.absolute()}

    def check_readable(self, infos: Iterable[TensorInfo]) -> None:
        """Raise CheckpointError where the installed `gguf` cannot dequantise a tensor's type."""
        for info in infos:
            if info.dtype not in DTYPES and not _dequantises(info.dtype):
                raise CheckpointError(
                    f"{info.name} is stored as {info.dtype}, which the installed gguf package does "
                    "not dequantise. Try pip install --upgrade gguf, or another quantisation of "
                    "this model."
                )

    def decode(self, info: TensorInfo, read_bytes: ReadRange) -> torch.Tensor:
        """A tensor's weights in its shape: quantised ones in float32, others in their own dtype."""
        if info.dtype in DTYPES:
            return super().decode(info, read_bytes)
        self.check_readable([info])
        quantisation = GGMLQuantizationType[info.dtype]
        data = np.frombuffer(read_bytes(info.file, info.start, info.end), np.uint8)
        blocks = data.reshape(quant_shape_to_byte_shape(info.shape, quantisation))
        return torch.from_numpy(dequantize(blocks, quantisation))

    def read_bytes(self, file: str, start: int, end: int) -> bytearray:
        return read_range(self.folder / file, start, end)

    def tokenizer(self) -> TokenizerDefinition | None:
        return read_tokenizer(self.folder / self._first)
