"""What a checkpoint is, whatever it is read from."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.records import TensorInfo

#: safetensors dtypes that hold weights to compute with.
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class Checkpoint(ABC):
    """A model's config and tensors. Opening reads names and shapes; weights come on demand.

    ``model_id``: hub id or folder name. ``revision``: resolved commit, packaged version, or
    "local". ``source``: where the bytes are, in words. ``config``: config.json. ``tensors``: every
    stored tensor by name.
    """

    model_id: str
    revision: str
    source: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @abstractmethod
    def read_bytes(self, file: str, start: int, end: int) -> bytearray:
        """Bytes [start, end) of a file. Raises CheckpointError where they cannot be had."""

    def read(self, info: TensorInfo) -> torch.Tensor:
        """A tensor's weights, in its stored dtype and shape. Raises CheckpointError."""
        dtype = DTYPES.get(info.dtype)
        if dtype is None:
            raise CheckpointError(
                f"{info.name} is stored as {info.dtype}; readable are {', '.join(DTYPES)}. "
                "Is there an unquantised repository of this model?"
            )
        if info.n_bytes == 0:
            return torch.empty(info.shape, dtype=dtype)
        data = self.read_bytes(info.file, info.start, info.end)
        return torch.frombuffer(data, dtype=dtype).reshape(info.shape)


def parse_json(text: bytes, place: str) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError naming ``place`` where it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"{place} is not JSON: {err}.") from err
    if not isinstance(value, dict):
        raise CheckpointError(f"{place} holds {type(value).__name__}; an object is wanted.")
    return value
