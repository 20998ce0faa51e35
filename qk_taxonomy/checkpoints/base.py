"""What a checkpoint is, whatever it is read from."""

from __future__ import annotations

import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from qk_taxonomy.checkpoints.fetched import Fetched, ReadRange
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.records import TensorInfo

#: safetensors dtypes that hold weights to compute with.
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}

#: Bytes of JSON that are read: an index of 200,000 tensors has 22 MB.
LONGEST_JSON = 32 << 20

# Objects and lists in it, of which a header has three a tensor, and commas: what they become in
# memory may be thirty times as large as they are in the file.
_MOST_PARTS = 1 << 18
_MOST_COMMAS = 1 << 20
_DEEPEST_JSON = 32

# Bytes of each tensor that tell weights from others: training changes all of them.
_SAMPLE = 4096

# The largest attention projections of real models have 2 GiB.
_LARGEST = 32 << 30

#: safetensors dtypes whose numbers are weights only after multiplication by a scale.
SCALED_DTYPES: dict[str, torch.dtype] = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class TokenizerDefinition:
    """A tokenizer as a tokenizer.json would have it, from whatever it was read.

    ``parts``: its "model", "added_tokens", "normalizer", "pre_tokenizer" and "decoder", unchecked.
    ``place``: the file, for errors.
    """

    parts: Mapping[str, Any]
    place: str


class Checkpoint(ABC):
    """A model's config and tensors. Opening reads names and shapes; weights come on demand.

    ``model_id``: hub id or folder name. ``revision``: resolved commit, packaged version, or
    "local". ``source``: where the bytes are, in words. ``config``: config.json. ``tensors``: every
    tensor by name; the scales of quantised ones are part of them.
    """

    model_id: str
    revision: str
    source: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    #: What only opening and planning need: it stays behind when a checkpoint goes to a worker.
    left_behind: ClassVar[frozenset[str]] = frozenset({"config", "tensors"})

    def __getstate__(self) -> dict[str, Any]:
        """What reading needs, which is small; a plan names the tensors to read."""
        return {name: value for name, value in vars(self).items() if name not in self.left_behind}

    @abstractmethod
    def read_bytes(self, file: str, start: int, end: int) -> bytearray:
        """Bytes [start, end) of a file. Raises CheckpointError where they cannot be had."""

    def content_id(self, file: str) -> str | None:
        """What a file shares with those of the same bytes, of whatever revision, and no other; None
        where nothing tells without reading it. Not for a checkpoint that travelled."""
        return None

    def tokenizer(self) -> TokenizerDefinition | None:
        """The definition of its tokenizer; None where it has none. Raises CheckpointError where
        that is damaged or of a kind that is not read. Not for a checkpoint that travelled."""
        return None

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors, those stored once under several names counted once."""
        stored = {
            (part.file, part.start, part.end)
            for info in self.tensors.values()
            for part in (info, *info.companions)
        }
        return sum(end - start for _, start, end in stored)

    def check_readable(self, infos: Iterable[TensorInfo]) -> None:
        """Raises CheckpointError for the first tensor that :meth:`read` would refuse."""
        for info in infos:
            if info.end - info.start > _LARGEST:
                raise CheckpointError(
                    f"{info.name} of shape {list(info.shape)} claims {info.end - info.start} bytes "
                    f"of {info.file}; no attention tensor has more than {_LARGEST}. Fetch the file "
                    "again."
                )
            if info.dtype in SCALED_DTYPES and info.scale is None:
                raise CheckpointError(
                    f"{info.name} is stored as {info.dtype} without a scale that fits it (wanted "
                    f"{info.name}_scale_inv or {info.name}_scale). Is there an unquantised "
                    "repository of this model?"
                )
            if info.dtype not in DTYPES and info.dtype not in SCALED_DTYPES:
                raise CheckpointError(
                    f"{info.name} is stored as {info.dtype}; readable are "
                    f"{', '.join([*DTYPES, *SCALED_DTYPES])}. Is there an unquantised repository "
                    "of this model?"
                )
            if info.scale is not None:
                self.check_readable([info.scale.tensor])

    def read(self, info: TensorInfo) -> torch.Tensor:
        """A tensor's weights, in its shape and stored dtype; scaled ones in float32.

        Raises CheckpointError.
        """
        return self.decode(info, self.read_bytes)

    def read_all(self, infos: Mapping[str, TensorInfo]) -> dict[str, torch.Tensor]:
        """The weights of several tensors, as :meth:`read` gives them, under the same names.

        Tensors that lie near each other in a file are fetched in one request. Raises
        CheckpointError.
        """
        fetched = Fetched(self.read_bytes, infos.values())
        return {name: self.decode(info, fetched.read_bytes) for name, info in infos.items()}

    def decode(self, info: TensorInfo, read_bytes: ReadRange) -> torch.Tensor:
        """A tensor's weights made of what ``read_bytes`` gives of its file.

        Raises CheckpointError.
        """
        self.check_readable([info])
        weights = _stored(info, read_bytes)
        if info.scale is None:
            return weights
        factors = _stored(info.scale.tensor, read_bytes).float()
        factors = factors.reshape(*factors.shape, *[1] * (weights.dim() - factors.dim()))
        for axis, (size, block) in enumerate(zip(info.shape, info.scale.block, strict=True)):
            factors = factors.repeat_interleave(block, axis).narrow(axis, 0, size)
        return factors.mul_(weights.float())


def _stored(info: TensorInfo, read_bytes: ReadRange) -> torch.Tensor:
    """The numbers of a tensor as its file has them."""
    dtype = (DTYPES | SCALED_DTYPES)[info.dtype]
    if info.start == info.end:
        return torch.empty(info.shape, dtype=dtype)
    numbers = torch.frombuffer(read_bytes(info.file, info.start, info.end), dtype=dtype)
    if info.stride is None:
        return numbers.reshape(info.shape)
    return numbers.as_strided(info.shape, info.stride)


def read_range(path: Path, start: int, end: int) -> bytearray:
    """Bytes [start, end) of a file on disk. Raises CheckpointError where they cannot be had."""
    data = bytearray(end - start)
    try:
        with path.open("rb") as stream:
            stream.seek(start)
            got = stream.readinto(data)
    except OSError as err:
        raise CheckpointError(f"{path} cannot be read: {err.strerror}.") from err
    if got != end - start:
        raise CheckpointError(
            f"{path} is cut short: wanted bytes {start} to {end}, found {got} of them. Fetch the "
            "file again."
        )
    return data


def local_revision(description: str, folder: Path, tensors: Iterable[TensorInfo]) -> str:
    """``local-`` and a hash of a description and of the beginning of every tensor's data.

    Enough to tell weights from others of the same shapes, wherever and whenever they were copied.
    Raises CheckpointError.
    """
    identity = hashlib.sha256(description.encode())
    files = itertools.groupby(sorted(tensors, key=lambda t: (t.file, t.start)), lambda t: t.file)
    for file, infos in files:
        try:
            with (folder / file).open("rb") as stream:
                for info in infos:
                    identity.update(f"{info.name} {info.dtype} {info.shape}".encode())
                    stream.seek(info.start)
                    identity.update(stream.read(min(info.end - info.start, _SAMPLE)))
        except OSError as err:
            raise CheckpointError(f"{folder / file} cannot be read: {err.strerror}.") from err
    return f"local-{identity.hexdigest()[:16]}"


def parse_json(
    text: bytes,
    place: str,
    *,
    longest: int = LONGEST_JSON,
    most_parts: int = _MOST_PARTS,
    most_commas: int = _MOST_COMMAS,
) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError naming ``place`` where it is none, is larger or deeper
    than any model's, or gives one name two values."""
    # One letter beyond ASCII can make a text four times as large as its bytes.
    longest = longest if text.isascii() else longest // 4
    n_parts = text.count(b"{") + text.count(b"[")
    if len(text) > longest or n_parts > most_parts or text.count(b",") > most_commas:
        raise CheckpointError(
            f"{place} is larger than that of any model: {len(text)} bytes, {n_parts} objects and "
            f"lists. Wanted at most {longest} and {most_parts}; fetch the file again."
        )
    try:
        value = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_once_each)
        # What no UTF-8 can hold (half of a surrogate pair) could not be written or hashed later.
        if b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"{place} is not JSON: {err}. Fetch the file again.") from err
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{place} holds {type(value).__name__}; an object is wanted. Fetch the file again."
        )
    level: list[Any] = [value]
    for _ in range(_DEEPEST_JSON):
        inner = (part.values() if isinstance(part, dict) else part for part in level)
        level = [part for parts in inner for part in parts if isinstance(part, dict | list)]
    if level:
        raise CheckpointError(
            f"{place} nests objects or lists more than {_DEEPEST_JSON} deep, as no model's does. "
            "Fetch the file again."
        )
    return value


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError where it gives one name two values."""
    table = dict(pairs)
    if len(table) < len(pairs):
        for name, value in pairs:
            if value != table[name]:
                raise ValueError(f"it gives {name[:80]!r} two values")
    return table
