"""The safetensors format: headers, read by byte ranges.

https://huggingface.co/docs/safetensors: eight bytes of little-endian header length, a JSON header
that gives each tensor's dtype, shape and offsets into the data that follows.
"""

from __future__ import annotations

import math
from typing import Any

from qk_taxonomy.checkpoints.base import DTYPES, SCALED_DTYPES, parse_json
from qk_taxonomy.checkpoints.range_file import ReadBytes
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.records import TensorInfo

# The reference implementation's own limit on a header.
_LONGEST_HEADER = 100_000_000


def read_header(read: ReadBytes, file: str, size: int | None, place: str) -> dict[str, TensorInfo]:
    """Tensors of one safetensors file by name; ``size`` is the file's, None where unknown.

    Raises CheckpointError where the header is damaged or the file too short for its tensors.
    """
    where = f"{file} of {place}"
    if size is not None and size < 8:
        raise CheckpointError(
            f"{where} is cut short: {size} bytes hold no header. Fetch the file again."
        )
    length = int.from_bytes(read(0, 8), "little")
    if not 2 <= length <= min(_LONGEST_HEADER, size - 8 if size is not None else _LONGEST_HEADER):
        raise CheckpointError(
            f"{where} is not a safetensors file or is cut short: its header claims {length} bytes"
            + (f" and the file has {size}." if size is not None else ".")
        )
    header = parse_json(bytes(read(8, 8 + length)), f"The header of {where}")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(name, e, file, 8 + length, where) for name, e in header.items()}
    last = max((info.end for info in tensors.values()), default=0)
    if size is not None and last > size:
        raise CheckpointError(
            f"{where} is cut short: its tensors end at byte {last} and the file has {size}. "
            "Fetch the file again."
        )
    return tensors


def _tensor(name: str, entry: Any, file: str, data: int, where: str) -> TensorInfo:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        counts = (*shape, start, end)
        sound = all(isinstance(n, int) and n >= 0 for n in counts) and start <= end
        sound = sound and isinstance(dtype, str)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(f"The header of {where} describes {name!r} as {entry!r:.120}.")
    known = (DTYPES | SCALED_DTYPES).get(dtype)
    if known is not None and math.prod(shape) * known.itemsize != end - start:
        raise CheckpointError(
            f"The header of {where} gives {name!r} the shape {list(shape)} of {dtype} and "
            f"{end - start} bytes, which do not agree."
        )
    return TensorInfo(name, dtype, shape, file, data + start, data + end)
