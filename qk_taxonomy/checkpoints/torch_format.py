"""Files that ``torch.save`` wrote, zip or legacy, read by byte ranges and without running them.

Zip (torch ≥ 1.6): ``data.pkl`` describes the tensors, and each storage is a stored (uncompressed)
record ``data/<key>``. Legacy: four pickles (magic number, protocol, system, tensors), then the list
of storage keys, then every storage as a count of elements (int64) and its data. See
``torch/serialization.py``; ``pickle`` is read by :mod:`inert_pickle`, which runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qk_taxonomy.checkpoints.inert_pickle import read_pickle
from qk_taxonomy.checkpoints.range_file import RangeFile, ReadBytes
from qk_taxonomy.checkpoints.torch_tensors import (
    BIG_ENDIAN,
    PLAIN,
    WEIGHTS,
    TorchTensor,
    described_storage,
    described_tensors,
)
from qk_taxonomy.checkpoints.torch_zip import read_zip
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.records import TensorInfo

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_LONGEST_DESCRIPTION = 32 << 20

# Of a zip's directory, of which a record takes some 100 bytes, and in memory ten times as many.
_LONGEST_DIRECTORY = 4 << 20


def read_torch_file(
    read: ReadBytes, file: str, size: int | None, place: str
) -> dict[str, TensorInfo]:
    """Tensors of one file of ``torch.save`` by name: those of the state_dict that it holds.

    Raises CheckpointError where the file is of another kind, damaged or cut short, holds no
    tensors, or asks to run anything.
    """
    where = f"{file} of {place}"
    if size is None:
        raise CheckpointError(f"The hub gives no size for {where}, which is needed to read it.")
    stream = RangeFile(read, size, limit=_LONGEST_DESCRIPTION, where=where)
    beginning = stream.read(512)
    stream.seek(0)
    if beginning.startswith(b"PK\x03\x04"):
        directory = RangeFile(read, size, limit=_LONGEST_DIRECTORY, where=where)
        tensors, offsets = read_zip(stream, directory, where)
    elif beginning.startswith(b"\x80"):
        tensors, offsets = _read_legacy(stream, where)
    elif beginning[257:262] == b"ustar":
        raise CheckpointError(
            f"{where} is in the tar format of torch before 0.4, which is not read. Load it with "
            "torch.load in a sandbox and save it again with torch.save."
        )
    else:
        raise CheckpointError(
            f"{where} is not a file of torch.save, or is cut short: it begins with "
            f"{beginning[:8]!r} and has {size} bytes. Fetch the file again."
        )
    return {name: _info(name, tensor, offsets, file) for name, tensor in tensors.items()}


def _info(name: str, tensor: TorchTensor, offsets: Mapping[str, int], file: str) -> TensorInfo:
    begin = tensor.storage.offset * tensor.storage.itemsize + tensor.offset * tensor.itemsize
    start = offsets[tensor.storage.key] + begin
    end = start + tensor.span * tensor.itemsize
    stride = None if tensor.is_contiguous else tensor.stride
    return TensorInfo(name, tensor.dtype, tensor.shape, file, start, end, stride=stride)


def _read_legacy(stream: RangeFile, where: str) -> tuple[dict[str, TorchTensor], dict[str, int]]:
    """The tensors of a legacy file, and where all storages begin, by key."""
    if read_pickle(stream, PLAIN, where).value != _MAGIC_NUMBER:
        raise CheckpointError(f"{where} is a pickle that torch.save did not write; wanted weights.")
    if read_pickle(stream, PLAIN, where).value != _PROTOCOL_VERSION:
        raise CheckpointError(f"{where} has a version of torch's legacy format that is not known.")
    system = read_pickle(stream, PLAIN, where).value
    if type(system) is not dict or system.get("little_endian") is not True:
        raise CheckpointError(BIG_ENDIAN.format(where))
    pickled = read_pickle(stream, WEIGHTS, where)
    tensors = described_tensors(pickled.value, where)
    keys = read_pickle(stream, PLAIN, where).value
    try:
        sizes = {place[2]: _whole_bytes(place) for place in pickled.persistent_ids}
        offsets, end = {}, stream.tell()
        for key in keys:
            if type(key) is not str:
                raise TypeError("a key that is no text")
            if key in offsets:
                raise ValueError("a key twice")
            offsets[key] = end + 8  # after its count of elements
            end = offsets[key] + sizes[key]
    except (ValueError, LookupError, TypeError) as err:
        raise CheckpointError(
            f"{where} is damaged: its list of storages is not that of its tensors. Fetch the file "
            "again."
        ) from err
    if end != stream.size or set(offsets) != set(sizes):
        raise CheckpointError(
            f"{where} is cut short, or damaged: its tensors end at byte {end} and the file has "
            f"{stream.size}. Fetch the file again."
        )
    return tensors, offsets


def _whole_bytes(place: Any) -> int:
    """Bytes of the whole storage of a persistent id, whatever view of it is meant."""
    return described_storage(place[:5]).n_bytes
