"""A file made of byte ranges, for code that wants to seek and read."""

from __future__ import annotations

import io
from collections.abc import Callable

from qk_taxonomy.errors import CheckpointError

#: Reads bytes [start, end) of a file.
ReadBytes = Callable[[int, int], bytes | bytearray]

# Bytes asked for at first, and at most, beyond what is read: few requests, little in vain.
_FIRST_AHEAD = 1 << 14
_MOST_AHEAD = 1 << 20

_LONGEST_LINE = 1 << 12


class RangeFile(io.BufferedIOBase):
    """A file of ``size`` bytes over a reader of ranges; what was fetched once is kept.

    The further it is read, the more is asked for at a time. Raises CheckpointError beyond ``limit``
    bytes in all: what describes tensors is small, whatever a damaged file claims.
    """

    def __init__(self, read: ReadBytes, size: int, *, limit: int, where: str) -> None:
        self.size = size
        self._read = read
        self._limit = limit
        self._where = where
        self._position = 0
        self._ahead = _FIRST_AHEAD
        self._fetched: list[tuple[int, bytes]] = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("a position before the beginning")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        end = self.size if size is None or size < 0 else min(self._position + size, self.size)
        if end <= self._position:
            return b""
        data = self._piece(self._position, end)
        self._position = end
        return data

    def readline(self, size: int | None = -1, /) -> bytes:
        """A line, or as much of it as no line in a pickle exceeds."""
        start = self._position
        piece = self.read(_LONGEST_LINE)
        line = piece[: piece.find(b"\n") + 1] or piece
        self._position = start + len(line)
        return line

    def fetch(self, start: int, end: int) -> bytes:
        """Bytes [start, end) in one request, kept for reading. Raises CheckpointError."""
        self._limit -= end - start
        if self._limit < 0:
            raise CheckpointError(
                f"{self._where} is damaged, or no file of weights: it claims to describe its "
                "tensors in more bytes than any model needs. Fetch the file again."
            )
        data = bytes(self._read(start, end))
        self._fetched.append((start, data))
        return data

    def _piece(self, start: int, end: int) -> bytes:
        """Bytes [start, end): what is at hand of them, and the rest with more ahead."""
        known = b""
        for begin, data in reversed(self._fetched):
            if begin <= start < begin + len(data):
                known = data[start - begin : end - begin]
                break
        rest = start + len(known)
        if rest < end:
            fetched = self.fetch(rest, min(max(end, rest + self._ahead), self.size))
            self._ahead = min(2 * self._ahead, _MOST_AHEAD)
            known += fetched[: end - rest]
        return known
