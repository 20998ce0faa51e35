"""Tensors as a pickle of ``torch.save`` describes them: views of storages, by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from qk_taxonomy.checkpoints.inert_pickle import Call, Name, Persistent, PickleKind
from qk_taxonomy.errors import CheckpointError

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

#: What a pickle of plain values may name.
PLAIN = PickleKind("weights", "Look for a revision or repository with safetensors files")

#: What a pickle of tensors may name.
WEIGHTS = replace(
    PLAIN,
    names=frozenset({*_STORAGE_DTYPES, *_TORCH_DTYPES, *_TENSORS, *_PARAMETERS, _SIZE}),
)

#: What is said of a file whose numbers are in the other order; {}: the file.
BIG_ENDIAN = (
    "{} was written on a big-endian machine, which is not read. Load it with "
    "torch.load(weights_only=True) and save it again on another."
)

# Keys under which training scripts keep the weights beside other things.
_NESTED = ("state_dict", "model", "module", "model_state_dict")


@dataclass(frozen=True)
class TorchStorage:
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
class TorchTensor:
    """A tensor as a pickle describes it; ``offset`` and ``stride`` count elements."""

    storage: TorchStorage
    dtype: str
    itemsize: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def span(self) -> int:
        """Elements from the tensor's first to its last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in order, without gaps."""
        axes = range(len(self.shape))
        dense = tuple(math.prod(self.shape[axis + 1 :]) for axis in axes)
        return self.stride == dense or 0 in self.shape


def described_tensors(pickled: Any, where: str) -> dict[str, TorchTensor]:
    """The tensors that an unpickled state_dict describes, by name.

    Raises CheckpointError where it describes none, or one in a way that is not sound.
    """
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


def _tensor(value: Any, name: str, where: str) -> TorchTensor:
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


def _rebuilt(place: Any, offset: Any, shape: Any, stride: Any, options: list[Any]) -> TorchTensor:
    """A tensor in a storage. ``options``: its dtype (version 3), then its metadata."""
    storage = described_storage(place)
    dtype, itemsize = storage.dtype, storage.itemsize
    if options and type(options[0]) is Name:
        dtype, itemsize = _TORCH_DTYPES[options[0].name]
        options = options[1:]
    if any(options):
        raise ValueError("a conjugate or negative view")
    tensor = TorchTensor(storage, dtype, itemsize, _count(offset), _counts(shape), _counts(stride))
    if len(tensor.shape) != len(tensor.stride):
        raise ValueError("its strides are not those of its shape")
    # More elements than the storage has: an expanded view, which may be of any size.
    n_elements = max(tensor.offset + tensor.span, math.prod(tensor.shape))
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


def described_storage(place: Any) -> TorchStorage:
    """The storage of a persistent id. Raises ValueError where it is none that is known."""
    match place:
        case ("storage", Name(kind), str(key), _, count) if kind in _STORAGE_DTYPES:
            return TorchStorage(key, *_STORAGE_DTYPES[kind], _count(count))
        case ("storage", Name(kind), str(key), _, count, view) if kind in _STORAGE_DTYPES:
            whole = TorchStorage(key, *_STORAGE_DTYPES[kind], _count(count))
            match view:
                case None:
                    return whole
                case (_, offset, length) if _count(offset) + _count(length) <= count:
                    return replace(whole, n_elements=length, offset=offset)
    raise ValueError("a storage of a kind that is not known")
