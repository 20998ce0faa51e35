"""Byte ranges fetched ahead: neighbours in one request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from qk_taxonomy.records import TensorInfo, spans

#: A buffer that tensors can be made of without a copy.
Buffer: TypeAlias = bytearray | memoryview

#: Reads bytes [start, end) of a file.
ReadRange: TypeAlias = Callable[[str, int, int], Buffer]


class Fetched:
    """The bytes of some tensors, in as few requests as are worth it.

    ``read`` is called once for each range of neighbours, the first time that one of them is asked
    for; what all tensors of a range were made of is let go with them.
    """

    def __init__(self, read: ReadRange, infos: Iterable[TensorInfo]) -> None:
        self._read = read
        self._spans = spans(infos)
        self._held: dict[tuple[str, int, int], Buffer] = {}

    def read_bytes(self, file: str, start: int, end: int) -> Buffer:
        """Bytes [start, end) of a file, a view of what was fetched with them."""
        for span in self._spans:
            if span[0] == file and span[1] <= start and end <= span[2]:
                if span not in self._held:
                    self._held[span] = self._read(*span)
                piece = memoryview(self._held[span])[start - span[1] : end - span[1]]
                # A tensor's numbers must not begin between two of its machine words.
                aligned = (start - span[1]) % _ALIGNMENT == 0
                return piece if aligned else bytearray(piece)
        return self._read(file, start, end)


_ALIGNMENT = 8
