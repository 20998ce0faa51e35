"""NumPy arrays in a pickle, read as data: dicts, lists, arrays and numbers, and nothing else.

The pickle is followed by :mod:`inert_pickle`, which runs nothing; arrays are made here from the
bytes that it holds. See ``array_reduce_ex`` in numpy's ``methods.c`` for the two ways in which
NumPy writes an array: as a state (protocols up to 4) or as a buffer (protocol 5).
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from qk_taxonomy.checkpoints.inert_pickle import Call, Name, PickleKind, read_pickle
from qk_taxonomy.errors import CheckpointError

# The largest of real models, Llama 3.1 405B, has 17 MB of spectra.
_LONGEST_FILE = 64 << 20

# Dicts of dicts of lists of arrays are four deep.
_DEEPEST = 8

_DTYPES = {
    code: np.dtype(code)
    for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
}

Place = tuple[str | int, ...]

_NDARRAY = "numpy ndarray"
_DTYPE = "numpy dtype"
_ENCODE = "_codecs encode"  # protocols up to 2 have no bytes but as encoded text
_EMPTY = frozenset({"builtins bytes", "__builtin__ bytes"})
_DICT = frozenset({"builtins dict", "__builtin__ dict"})


def _core(name: str) -> frozenset[str]:
    """A function of NumPy's core by its name in NumPy 1 and in NumPy 2."""
    return frozenset({f"numpy.core.{name}", f"numpy._core.{name}"})


_RECONSTRUCT = _core("multiarray _reconstruct")
_SCALAR = _core("multiarray scalar")
_FROM_BUFFER = _core("numeric _frombuffer")

_ARRAYS = PickleKind(
    content="spectra",
    advice="Survey the model itself with `qk-taxonomy download --model`",
    names=frozenset({"collections defaultdict", _NDARRAY, _DTYPE, _ENCODE})
    | (_DICT | _EMPTY | _RECONSTRUCT | _SCALAR | _FROM_BUFFER),
    stateful=_RECONSTRUCT | {_DTYPE},
    bytearrays=True,
)


def read_arrays(path: str | Path) -> Any:
    """What a pickle of NumPy arrays holds: dicts, lists (for tuples too), arrays and numbers.

    Arrays are float16, float32, float64 or integers of up to 64 bits, little- or big-endian in the
    file and native here. Raises CheckpointError where the file is missing, damaged, larger than
    64 MiB, asks to run anything, or holds anything else.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(_LONGEST_FILE + 1)
    except OSError as err:
        raise CheckpointError(
            f"{path} cannot be read: {err.strerror}. Is it the right path?"
        ) from err
    if len(content) > _LONGEST_FILE:
        raise CheckpointError(
            f"{path} has more than {_LONGEST_FILE >> 20} MiB; wanted a pickle of spectra, which "
            "are a few MB even of the largest models."
        )
    pickled = read_pickle(io.BytesIO(content), _ARRAYS, str(path))
    return _Reader(str(path), len(content)).value(pickled.value)


class _Reader:
    """Makes the values of one pickle. ``left``: what may still be made, in bytes of the file.

    A pickle can name one value in many places, and so stand for far more than it holds.
    """

    def __init__(self, where: str, n_bytes: int) -> None:
        self.where = where
        self.left = n_bytes

    def value(self, item: Any, *place: str | int) -> Any:
        """The value at a place: the keys and positions that lead to it."""
        self.spend(1)
        if len(place) > _DEEPEST:
            raise CheckpointError(f"{self.where} nests dicts or lists more than {_DEEPEST} deep.")
        match item:
            case int() | float():
                return item
            case dict():
                return {
                    self.key(key, place): self.value(entry, *place, key)
                    for key, entry in item.items()
                }
            case list() | tuple():
                return [self.value(entry, *place, i) for i, entry in enumerate(item)]
            case Call():
                return self.array(item, place)
        what = item.name.replace(" ", ".") if type(item) is Name else f"a {type(item).__name__}"
        raise self.error(f"holds {what}", place)

    def key(self, key: Any, place: Place) -> str | int:
        if type(key) in (str, int):
            return key
        raise self.error("has a dict with a key that is no name or number", place)

    def array(self, call: Call, place: Place) -> Any:
        """The array, or the number, that a call would make."""
        try:
            return self.rebuilt(call)
        except (ValueError, LookupError, TypeError, OverflowError) as err:
            raise self.error(f"has an array that is not read ({err})", place) from err

    def rebuilt(self, call: Call) -> Any:
        match call:
            case Call(
                function, (Name(kind), *_), (1, tuple(shape), dtype, bool(fortran), data)
            ) if function in _RECONSTRUCT and kind == _NDARRAY:
                return self.filled(data, dtype, shape).reshape(shape, order="F" if fortran else "C")
            case Call(function, (data, dtype, tuple(shape), "C" | "F" as order, *_)) if (
                function in _FROM_BUFFER
            ):
                return self.filled(data, dtype, shape).reshape(shape, order=order)
            case Call(function, (data, dtype, tuple(shape), "K", tuple(axes))) if (
                function in _FROM_BUFFER
            ):
                return self.filled(data, dtype, shape).reshape(shape).transpose(axes)
            case Call(function, (dtype, data)) if function in _SCALAR:
                return self.filled(data, dtype, ())[0]
        raise ValueError(f"it is what {call.function.replace(' ', '.')} would make")

    def filled(self, data: Any, dtype: Any, shape: tuple[Any, ...]) -> np.ndarray[Any, Any]:
        """The values of an array in the order of its bytes, counted before any is made."""
        stored = _dtype(dtype)
        if len(shape) > 64 or not all(type(n) is int and 0 <= n < 1 << 63 for n in shape):
            raise ValueError("its shape is none")
        content = _bytes(data)
        if math.prod(shape) * stored.itemsize != len(content):
            raise ValueError(f"its {len(content)} bytes are not those of its shape")
        self.spend(len(content))
        return np.frombuffer(content, stored).astype(stored.newbyteorder("="))

    def spend(self, n_bytes: int) -> None:
        self.left -= n_bytes
        if self.left < 0:
            raise CheckpointError(
                f"{self.where} stands for more than its own size: it has the same values in many "
                "places, which spectra have not."
            )

    def error(self, found: str, place: Place) -> CheckpointError:
        at = f" at {''.join(f'[{key!r:.40}]' for key in place)}" if place else ""
        return CheckpointError(
            f"{self.where} {found}{at}. Wanted dicts, lists, NumPy arrays and numbers; nothing of "
            f"the file was taken. {_ARRAYS.advice}."
        )


def _dtype(call: Any) -> np.dtype[Any]:
    """The dtype that a call would make, from those on the list."""
    match call:
        case Call(
            function, (str(code), *_), (3, "<" | ">" | "|" as order, None, None, None, *_)
        ) if function == _DTYPE and code in _DTYPES:
            return _DTYPES[code].newbyteorder(order)
        case Call(function, (str(code), *_)) if function == _DTYPE:
            raise ValueError(f"its dtype is {code[:20]!r}")
    raise ValueError("its dtype is none")


def _bytes(data: Any) -> bytes | bytearray:
    match data:
        case bytes() | bytearray():
            return data
        case Call(function, (str(text), "latin1")) if function == _ENCODE:
            return text.encode("latin1")
        case Call(function, ()) if function in _EMPTY:
            return b""
    raise ValueError("its values are no bytes")
