"""Reading the header of a GGUF file with the `gguf` package, in bounded time and memory.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, ReaderField

from qk_taxonomy.errors import CheckpointError

_VERSIONS = (2, 3)

# Far above any real file's (the largest vocabularies make 10 MB of header, the largest models a
# few thousand tensors), and low enough that a hostile file costs seconds.
_LONGEST_HEADER = 100_000_000
_MOST_ENTRIES = 1 << 14
_MOST_STRINGS = 1 << 21
_LONGEST_TEXT = 1 << 20
_MOST_AXES = 4

# Whatever the reader raises on a damaged file.
_DAMAGE = (ValueError, LookupError, TypeError, ArithmeticError, RecursionError)


class CutShortError(Exception):
    """A file ends before something that its header announces."""


class BoundedReader(GGUFReader):
    """The package's reader, which ends where the file does and makes an array one view.

    Left alone it takes the bytes that a file lacks for empty, and makes a view of every token of
    a vocabulary: 13 s and 700 MB for Gemma's. A list of strings is one view of all of its bytes,
    which :func:`strings` takes apart.
    """

    def _get(
        self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None
    ) -> np.ndarray[Any, Any]:
        little = np.dtype(dtype).newbyteorder("<")
        end = int(offset) + little.itemsize * int(count)
        self._check(end)
        return self.data[int(offset) : end].view(little)

    def _get_field_parts(self, orig_offs: int, raw_type: Any) -> tuple[int, Any, Any, Any]:
        if orig_offs > _LONGEST_HEADER:
            raise ValueError(f"its header is longer than {_LONGEST_HEADER} bytes")
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        item = GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
        length = int(self._get(orig_offs + 4, np.uint64)[0])
        begin = orig_offs + 12
        types = [GGUFValueType.ARRAY, item]
        if item == GGUFValueType.STRING:
            values = self.data[begin : self._end_of_strings(begin, length)]
        elif item in self.gguf_scalar_to_np:
            values = self._get(begin, self.gguf_scalar_to_np[item], length)
        else:
            raise ValueError(f"it has an array of {item.name.lower()} values")
        return begin + values.nbytes - orig_offs, [values], [0], types

    def _get_tensor_info_field(self, orig_offs: int) -> ReaderField:
        field = super()._get_tensor_info_field(orig_offs)
        n_axes = len(field.parts[3])
        if n_axes > _MOST_AXES:
            raise ValueError(
                f"{field.name[:60]!r} has {n_axes} axes; at most {_MOST_AXES} are wanted"
            )
        return field

    def _end_of_strings(self, offset: int, length: int) -> int:
        data: memoryview = memoryview(self.data)  # type: ignore[arg-type]
        for number in range(length):
            if number == _MOST_STRINGS:
                raise ValueError(f"a list in it has {length} strings")
            self._check(offset + 8)
            offset += 8 + int.from_bytes(data[offset : offset + 8], "little")
            if offset > _LONGEST_HEADER:
                raise ValueError(f"a list of strings in it ends at byte {offset}")
        self._check(offset)
        return offset

    def _check(self, end: int) -> None:
        if end > len(self.data):
            raise CutShortError(f"wanted bytes up to {end}, found {len(self.data)}")


def plain_value(field: ReaderField, longest_list: int) -> Any:
    """A metadata value as Python has it; None for lists of strings, for lists longer than
    ``longest_list``, and for texts longer than any of a model's."""
    if field.types[0] == GGUFValueType.STRING:
        text = field.parts[-1]
        return bytes(text).decode() if len(text) <= _LONGEST_TEXT else None
    if field.types[0] != GGUFValueType.ARRAY:
        return field.parts[-1][0].item()
    short = field.types[-1] != GGUFValueType.STRING and len(field.parts[-1]) <= longest_list
    return field.parts[-1].tolist() if short else None


def strings(field: ReaderField) -> list[str]:
    """A list of strings, at most 2^21 of 100 MB. Raises ValueError where it is none."""
    if field.types != [GGUFValueType.ARRAY, GGUFValueType.STRING]:
        raise ValueError(f"{field.name} is no list of strings")
    data, offset, found = field.parts[-1].tobytes(), 0, []
    while offset < len(data):
        begin = offset + 8
        offset = begin + int.from_bytes(data[offset:begin], "little")
        found.append(data[begin:offset].decode())
    return found


@contextmanager
def readable(path: Path) -> Iterator[BoundedReader]:
    """A reader of a file's header. What it, or the use of it, finds damaged raises CheckpointError
    naming the file."""
    try:
        with path.open("rb") as stream:
            _check_start(stream.read(24), str(path))
        yield BoundedReader(path)
    except OSError as err:
        raise CheckpointError(f"{path} cannot be read: {err.strerror or err}.") from err
    except CutShortError as err:
        raise CheckpointError(
            f"{path} is cut short, or a count in its header is damaged: {err}. Fetch the file "
            "again."
        ) from err
    except _DAMAGE as err:
        raise CheckpointError(
            f"{path} is damaged, or of a kind that the installed gguf package does not know: "
            f"{err}. Fetch the file again, or try pip install --upgrade gguf."
        ) from err


def _check_start(start: bytes, place: str) -> None:
    """Refuse what the reader would take on trust: another format, byte order or hostile counts."""
    if len(start) < 24:
        raise CheckpointError(
            f"{place} is cut short: {len(start)} bytes hold no header. Fetch the file again."
        )
    magic, version, n_tensors, n_values = struct.unpack("<4sIQQ", start)
    if magic != b"GGUF":
        raise CheckpointError(f"{place} is no GGUF file: it begins with {magic!r}.")
    if version & 0xFFFF == 0:
        raise CheckpointError(
            f"{place} is a big-endian GGUF file; wanted a little-endian one, which is what models "
            "are published as."
        )
    if version not in _VERSIONS:
        raise CheckpointError(
            f"{place} is of GGUF version {version}; readable are {_VERSIONS[0]} and "
            f"{_VERSIONS[1]}. Convert the model anew with a current llama.cpp."
        )
    for count, what in ((n_tensors, "tensors"), (n_values, "values")):
        if count > _MOST_ENTRIES:
            raise CheckpointError(
                f"The header of {place} claims {count} {what}; no model has more than "
                f"{_MOST_ENTRIES}. The file is damaged: fetch it again."
            )
