"""The safetensors format: headers, read by byte ranges.

https://huggingface.co/docs/safetensors: eight bytes of little-endian header length, a JSON header
that gives each tensor's dtype, shape and offsets into the data that follows.
"""

from __future__ import annotations

import math
from typing import Any

from qk_taxonomy.checkpoints.base import LONGEST_JSON, parse_json
from qk_taxonomy.checkpoints.range_file import ReadBytes
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.records import TensorInfo

# Bits of an element of each dtype of the format.
_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}

# Of a name that is not among these: a later release of the format may know it.
_LONGEST_DTYPE = 20

_MOST_AXES = 64


def read_header(read: ReadBytes, file: str, size: int | None, place: str) -> dict[str, TensorInfo]:
    """Tensors of one safetensors file by name; ``size`` is the file's, None where unknown.

    Raises CheckpointError where the header is damaged, or the file is not what its header says:
    tensors one after the other to the end, each of the bytes that its shape and dtype make.
    """
    where = f"{file} of {place}"
    if size is not None and size < 8:
        raise CheckpointError(
            f"{where} is cut short: {size} bytes hold no header. Fetch the file again."
        )
    length = int.from_bytes(read(0, 8), "little")
    if not 2 <= length <= min(LONGEST_JSON, size - 8 if size is not None else LONGEST_JSON):
        raise CheckpointError(
            f"{where} is not a safetensors file or is cut short: its header claims {length} bytes"
            + (f" and the file has {size}" if size is not None else "")
            + ". Fetch the file again."
        )
    header = parse_json(bytes(read(8, 8 + length)), f"The header of {where}")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(name, e, file, 8 + length, where) for name, e in header.items()}
    last = 8 + length
    for info in sorted(tensors.values(), key=lambda info: (info.start, info.end)):
        if info.start != last:
            raise CheckpointError(
                f"The header of {where} puts {info.name!r} at byte {info.start}, where the tensors "
                f"before it end at {last}: they {'overlap' if info.start < last else 'have a gap'}"
                ", and no sound file's do. Fetch the file again."
            )
        last = info.end
    if size is not None and last != size:
        raise CheckpointError(
            f"{where} is {'cut short' if last > size else 'too long'}: its tensors end at byte "
            f"{last} and the file has {size}. Fetch the file again."
        )
    return tensors


def _tensor(name: str, entry: Any, file: str, data: int, where: str) -> TensorInfo:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        counts = (*shape, start, end)
        sound = len(shape) <= _MOST_AXES and all(
            type(n) is int and 0 <= n < 1 << 63 for n in counts
        )
        sound = sound and start <= end and isinstance(dtype, str) and len(dtype) <= _LONGEST_DTYPE
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(
            f"The header of {where} describes {name[:120]!r} as {entry!r:.120}; wanted are a "
            "dtype, a shape and data_offsets. Fetch the file again."
        )
    bits = _BITS.get(dtype)
    if bits is not None and math.prod(shape) * bits != 8 * (end - start):
        raise CheckpointError(
            f"The header of {where} gives {name[:120]!r} the shape {list(shape)!s:.120} of {dtype} "
            f"and {end - start} bytes, which do not agree. Fetch the file again."
        )
    return TensorInfo(name, dtype, shape, file, data + start, data + end)
