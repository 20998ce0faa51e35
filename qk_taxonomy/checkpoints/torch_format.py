"""Files that ``torch.save`` wrote, zip or legacy, read by byte ranges and without running them.

Zip (torch ≥ 1.6): ``data.pkl`` describes the tensors, and each storage is a stored (uncompressed)
record ``data/<key>``. Legacy: four pickles (magic number, protocol, system, tensors), then the list
of storage keys, then every storage as a count of elements (int64) and its data. See
``torch/serialization.py``; ``pickle`` is read by :mod:`inert_pickle`, which runs nothing.
"""

from __future__ import annotations

import io
import itertools
import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qk_taxonomy.checkpoints.inert_pickle import Call, Name, Persistent, PickleKind, read_pickle
from qk_taxonomy.checkpoints.range_file import RangeFile, ReadBytes
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.records import TensorInfo

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001

# 35,000 tensors; the largest files of real models describe some thousands.
_LONGEST_PICKLE = 16 << 20
_LONGEST_DESCRIPTION = 32 << 20

# What of a zip is fetched at first: the directory of some hundred records is at its end. A record
# takes some 100 bytes of it, and in memory ten times as many.
_ZIP_TAIL = 1 << 15
_LONGEST_DIRECTORY = 4 << 20

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ALIGNMENT = 64

# dtype names are those of safetensors where it has the dtype, else torch's; with bytes an element.
_DTYPES = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "float8_e8m0fnu": ("F8_E8M0", 1),
    "float8_e4m3fnuz": ("float8_e4m3fnuz", 1),
    "float8_e5m2fnuz": ("float8_e5m2fnuz", 1),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint64": ("U64", 8),
    "uint32": ("U32", 4),
    "uint16": ("U16", 2),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
    "complex64": ("C64", 8),
    "complex128": ("C128", 16),
}

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}

_STORAGE_DTYPES = {
    f"{module} {storage}": _DTYPES[dtype]
    for storage, dtype in _STORAGES.items()
    for module in ("torch", "torch.cuda")
} | {f"torch.storage {name}": _DTYPES["uint8"] for name in ("UntypedStorage", "TypedStorage")}
_TORCH_DTYPES = {f"torch {name}": dtype for name, dtype in _DTYPES.items()}

_TENSORS = frozenset(f"torch._utils _rebuild_tensor{version}" for version in ("", "_v2", "_v3"))
_PARAMETERS = frozenset(f"torch._utils _rebuild_parameter{kind}" for kind in ("", "_with_state"))
_SIZE = "torch Size"

# What a pickle of plain values may name, and one of tensors.
_PLAIN = PickleKind("weights", "Look for a revision or repository with safetensors files")
_WEIGHTS = replace(
    _PLAIN,
    names=frozenset({*_STORAGE_DTYPES, *_TORCH_DTYPES, *_TENSORS, *_PARAMETERS, _SIZE}),
)

_BIG_ENDIAN = (
    "{} was written on a big-endian machine, which is not read. Load it with "
    "torch.load(weights_only=True) and save it again on another."
)

# Keys under which training scripts keep the weights beside other things.
_NESTED = ("state_dict", "model", "module", "model_state_dict")


@dataclass(frozen=True)
class _Storage:
    """A storage as a tensor's pickle names it; a view begins ``offset`` elements into it."""

    key: str
    dtype: str
    itemsize: int
    n_elements: int
    offset: int = 0

    @property
    def n_bytes(self) -> int:
        return self.n_elements * self.itemsize


@dataclass(frozen=True)
class _Tensor:
    """A tensor as a pickle describes it; ``offset`` and ``stride`` count elements."""

    storage: _Storage
    dtype: str
    itemsize: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


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
        tensors, offsets = _read_zip(stream, directory, where)
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


def _info(name: str, tensor: _Tensor, offsets: Mapping[str, int], file: str) -> TensorInfo:
    begin = tensor.storage.offset * tensor.storage.itemsize + tensor.offset * tensor.itemsize
    start = offsets[tensor.storage.key] + begin
    end = start + _span(tensor) * tensor.itemsize
    contiguous = tensor.stride == _contiguous(tensor.shape) or 0 in tensor.shape
    stride = None if contiguous else tensor.stride
    return TensorInfo(name, tensor.dtype, tensor.shape, file, start, end, stride=stride)


def _span(tensor: _Tensor) -> int:
    """Elements from a tensor's first to its last."""
    if 0 in tensor.shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True))


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _state_dict(pickled: Any, where: str) -> dict[str, _Tensor]:
    """The tensors that an unpickled state_dict describes, by name."""
    table = pickled
    if type(table) is dict and not any(type(value) is Call for value in table.values()):
        nested = (table[key] for key in _NESTED if type(table.get(key)) is dict)
        table = next(nested, table)
    if type(table) is not dict:
        raise CheckpointError(f"{where} holds no state_dict: a dict of tensors is wanted.")
    tensors = {
        name: _tensor(value, name, where)
        for name, value in table.items()
        if type(name) is str and type(value) is Call
    }
    if not tensors:
        names = [key[:40] for key in table if type(key) is str]
        keys = ", ".join(names[:8]) or "nothing"
        raise CheckpointError(f"{where} holds no tensors. Found: {keys}.")
    return tensors


def _tensor(value: Any, name: str, where: str) -> _Tensor:
    """The tensor that a call would rebuild. Raises CheckpointError where it is not sound."""
    while type(value) is Call and value.function in _PARAMETERS and value.arguments:
        value = value.arguments[0]
    try:
        match value:
            case Call(function, (Persistent(place), offset, shape, stride, *rest)) if (
                function in _TENSORS
            ):
                tensor = _rebuilt(place, offset, shape, stride, rest[2:])
            case _:
                raise ValueError("not a plain tensor")
    except (ValueError, LookupError) as err:
        raise CheckpointError(
            f"{where} describes the tensor {name[:120]!r} in a way that is not read: {err}. Look "
            "for a revision or repository with safetensors files."
        ) from err
    return tensor


def _rebuilt(place: Any, offset: Any, shape: Any, stride: Any, options: list[Any]) -> _Tensor:
    """A tensor in a storage. ``options``: its dtype (version 3), then its metadata."""
    storage = _storage(place)
    dtype, itemsize = storage.dtype, storage.itemsize
    if options and type(options[0]) is Name:
        dtype, itemsize = _TORCH_DTYPES[options[0].name]
        options = options[1:]
    if any(options):
        raise ValueError("a conjugate or negative view")
    tensor = _Tensor(storage, dtype, itemsize, _count(offset), _counts(shape), _counts(stride))
    if len(tensor.shape) != len(tensor.stride):
        raise ValueError("its strides are not those of its shape")
    # More elements than the storage has: an expanded view, which may be of any size.
    n_elements = max(tensor.offset + _span(tensor), math.prod(tensor.shape))
    if n_elements * itemsize > storage.n_bytes:
        raise ValueError("larger than its storage")
    return tensor


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("a number that is none")
    return value


def _counts(value: Any) -> tuple[int, ...]:
    """Sizes or strides: a tuple, or a torch.Size of one."""
    match value:
        case Call(function, (inner,)) if function == _SIZE:
            value = inner
    if type(value) is not tuple or len(value) > 64:
        raise ValueError("sizes that are none")
    return tuple(map(_count, value))


def _storage(place: Any) -> _Storage:
    """The storage of a persistent id."""
    match place:
        case ("storage", Name(kind), str(key), _, count) if kind in _STORAGE_DTYPES:
            return _Storage(key, *_STORAGE_DTYPES[kind], _count(count))
        case ("storage", Name(kind), str(key), _, count, view) if kind in _STORAGE_DTYPES:
            whole = _Storage(key, *_STORAGE_DTYPES[kind], _count(count))
            match view:
                case None:
                    return whole
                case (_, offset, length) if _count(offset) + _count(length) <= count:
                    return replace(whole, n_elements=length, offset=offset)
    raise ValueError("a storage of a kind that is not known")


def _read_zip(
    stream: RangeFile, directory: RangeFile, where: str
) -> tuple[dict[str, _Tensor], dict[str, int]]:
    """The tensors of a zip file, and where the storages they need begin, by key."""
    directory.fetch(max(0, stream.size - _ZIP_TAIL), stream.size)
    try:
        archive = zipfile.ZipFile(directory)
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError) as err:
        raise CheckpointError(
            f"{where} is damaged or cut short: the directory at its end cannot be read ({err}). "
            "Fetch the file again."
        ) from err
    records = {info.filename: info for info in archive.infolist()}
    if len(records) != len(archive.infolist()):
        raise CheckpointError(f"{where} is damaged: it has two records of one name.")
    pickles = [name for name in records if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{where} is a zip file that torch.save did not write: it has {len(pickles)} records "
            f"data.pkl. Found: {', '.join(name[:40] for name in list(records)[:8]) or 'nothing'}."
        )
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in records:
        raise CheckpointError(
            f"{where} is a TorchScript program, which is not run; wanted weights alone. Look for "
            "a revision or repository with safetensors files."
        )
    starts = sorted([*(info.header_offset for info in records.values()), archive.start_dir])
    following = dict(itertools.pairwise(starts))

    def begin(name: str, n_bytes: int) -> int:
        if name not in records:
            raise CheckpointError(f"{where} is damaged: it lacks the record {name[:120]}.")
        info = records[name]
        stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        if not stored or info.flag_bits & 1:
            raise CheckpointError(
                f"{where} is a compressed zip, of which no part can be read; torch.save writes "
                "none such. Load it with torch.load(weights_only=True) and save it again."
            )
        start = _record_data(info, following.get(info.header_offset, 0), stream, where)
        if n_bytes > info.file_size or not 0 <= start <= stream.size - n_bytes:
            raise CheckpointError(
                f"{where} is cut short: the record {name[:120]} holds less than its tensors. "
                "Fetch the file again."
            )
        return start

    def content(name: str) -> bytes:
        size = records[name].file_size
        if size > _LONGEST_PICKLE:
            raise CheckpointError(f"{where} is damaged: {name} has {size} bytes.")
        stream.seek(begin(name, size))
        return stream.read(size)

    pickled = read_pickle(io.BytesIO(content(pickles[0])), _WEIGHTS, where)
    if f"{folder}byteorder" in records and content(f"{folder}byteorder") != b"little":
        raise CheckpointError(_BIG_ENDIAN.format(where))
    tensors = _state_dict(pickled.value, where)
    needed: dict[str, int] = {}
    for tensor in tensors.values():
        storage = tensor.storage
        whole = (storage.offset + storage.n_elements) * storage.itemsize
        needed[storage.key] = max(needed.get(storage.key, 0), whole)
    offsets = {key: begin(f"{folder}data/{key}", n_bytes) for key, n_bytes in needed.items()}
    end = 0
    for start, n_bytes, key in sorted((offsets[key], n, key) for key, n in needed.items()):
        if start < end and n_bytes:
            raise CheckpointError(
                f"{where} is damaged: the storage {key[:120]} shares bytes with another. Fetch the "
                "file again."
            )
        end = max(end, start + n_bytes)
    return tensors, offsets


def _record_data(info: zipfile.ZipInfo, following: int, stream: RangeFile, where: str) -> int:
    """Where a stored record's data begins.

    The local header, which alone says it, stands before the data: on the hub a request for every
    storage. But torch aligns data to 64 bytes by the shortest padding, and the data ends, but for
    a descriptor of known sizes, where the next record begins. Where both give the same place, it
    is that; elsewhere (files that another program has packed again) the local header is read.
    """
    named = info.header_offset + 30 + len(info.orig_filename.encode())
    for descriptor in (12, 16, 20, 24) if info.flag_bits & 8 else (0,):
        start = following - descriptor - info.file_size
        # The padding has a head of 4 bytes, beside at most 28 of the sizes of large files.
        if start % _ALIGNMENT == 0 and 4 <= start - named < 4 + 28 + _ALIGNMENT:
            return start
    end = info.header_offset + _LOCAL_HEADER.size
    header = b""
    if info.header_offset >= 0 and end <= stream.size:
        header = stream.fetch(info.header_offset, end)
    if not header.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{where} is damaged: {info.filename[:120]} is not where it claims.")
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    return int(end + name_length + extra_length)


def _read_legacy(stream: RangeFile, where: str) -> tuple[dict[str, _Tensor], dict[str, int]]:
    """The tensors of a legacy file, and where all storages begin, by key."""
    if read_pickle(stream, _PLAIN, where).value != _MAGIC_NUMBER:
        raise CheckpointError(f"{where} is a pickle that torch.save did not write; wanted weights.")
    if read_pickle(stream, _PLAIN, where).value != _PROTOCOL_VERSION:
        raise CheckpointError(f"{where} has a version of torch's legacy format that is not known.")
    system = read_pickle(stream, _PLAIN, where).value
    if type(system) is not dict or system.get("little_endian") is not True:
        raise CheckpointError(_BIG_ENDIAN.format(where))
    pickled = read_pickle(stream, _WEIGHTS, where)
    tensors = _state_dict(pickled.value, where)
    keys = read_pickle(stream, _PLAIN, where).value
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
    return _storage(place[:5]).n_bytes
