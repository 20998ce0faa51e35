"""Byte ranges fetched ahead: neighbours in one request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from qk_taxonomy.records import TensorInfo

#: A buffer that tensors can be made of without a copy.
Buffer: TypeAlias = bytearray | memoryview

#: Reads bytes [start, end) of a file.
ReadRange: TypeAlias = Callable[[str, int, int], Buffer]

# Bytes between two ranges that cost less than a request of their own: about what its headers take,
# or a 64th of what the request moves.
_SMALL_GAP = 1 << 12
_GAP_SHARE = 64

# The same between rows of one tensor, which is one that is needed: what a connection of 100 MB/s
# moves while a request is answered.
_GAP_IN_A_TENSOR = 1 << 21


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


def spans(infos: Iterable[TensorInfo]) -> list[tuple[str, int, int]]:
    """Ranges (file, start, end) that hold the bytes of all tensors and of their companions."""
    wanted = sorted(
        {
            (part.file, part.start, part.end, part.name)
            for info in infos
            for part in (info, *info.companions)
            if part.end > part.start
        }
    )
    joined: list[tuple[str, int, int]] = []
    before = ""
    for file, start, end, name in wanted:
        if joined and joined[-1][0] == file:
            _, first, last = joined[-1]
            small = max(_SMALL_GAP, (last - first + end - start) // _GAP_SHARE)
            if start - last <= (_GAP_IN_A_TENSOR if name == before else small):
                joined[-1] = (file, first, max(last, end))
                before = name
                continue
        joined.append((file, start, end))
        before = name
    return joined
