"""Files that no honest program writes, and what a pickle must not make its reader do."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

TOUCH = "touch canary"


class Runs:
    """Pickled, it asks whoever reads it to call a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def entry(start: int, shape: list[Any], dtype: str = "F32", end: int | None = None) -> Any:
    """A tensor of float32 in a header of safetensors, unless told otherwise."""
    n = 4
    for size in shape:
        n *= size if isinstance(size, int) else 1
    return {
        "dtype": dtype,
        "shape": shape,
        "data_offsets": [start, start + n if end is None else end],
    }


def safetensors(header: Mapping[str, Any] | str | bytes, n_bytes: int = 0) -> bytes:
    """A safetensors file of zeros whose header says whatever it is told to."""
    text = header if isinstance(header, str | bytes) else json.dumps(header)
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text)) + text + bytes(n_bytes)
