"""Stored tensors: what they are made with, and the ranges of files that hold them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Bytes between two ranges of a file that cost less than a request of their own: about what its
# headers take, or a 64th of what the request moves.
_SMALL_GAP = 1 << 12
_GAP_SHARE = 64


@dataclass(frozen=True)
class TensorInfo:
    """A stored tensor: safetensors dtype, shape, and its bytes ``[start, end)`` in a file.

    ``stride`` counts elements; None where they lie in order, without gaps. ``scale`` and ``update``
    are what the stored numbers are multiplied by, and what is then added to them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int
    stride: tuple[int, ...] | None = None
    scale: BlockScale | None = None
    update: LowRankUpdate | None = None

    @property
    def companions(self) -> tuple[TensorInfo, ...]:
        """Other stored tensors that this one is made with."""
        scale = (self.scale.tensor,) if self.scale else ()
        return (*scale, self.update.a, self.update.b) if self.update else scale

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor and its companions."""
        return self.end - self.start + sum(other.n_bytes for other in self.companions)


@dataclass(frozen=True)
class BlockScale:
    """Factors of a quantised tensor: entry i, j of ``tensor`` multiplies block i, j of it.

    ``block``: entries a block has along each axis; the last one of an axis may be cut.
    """

    tensor: TensorInfo
    block: tuple[int, ...]


@dataclass(frozen=True)
class LowRankUpdate:
    """A LoRA update ``factor · B · A``, with A (rank, in) and B (out, rank).

    ``transposed``: the tensor it is added to is stored (in, out).
    """

    a: TensorInfo
    b: TensorInfo
    factor: float
    transposed: bool


def spans(infos: Iterable[TensorInfo]) -> list[tuple[str, int, int]]:
    """Ranges (file, start, end) that hold the bytes of tensors and of their companions.

    Each is worth a request of its own: neighbours share one.
    """
    wanted = sorted(
        {
            (part.file, part.start, part.end)
            for info in infos
            for part in (info, *info.companions)
            if part.end > part.start
        }
    )
    joined: list[tuple[str, int, int]] = []
    for file, start, end in wanted:
        if joined and joined[-1][0] == file:
            _, first, last = joined[-1]
            if start - last <= max(_SMALL_GAP, (last - first + end - start) // _GAP_SHARE):
                joined[-1] = (file, first, max(last, end))
                continue
        joined.append((file, start, end))
    return joined
