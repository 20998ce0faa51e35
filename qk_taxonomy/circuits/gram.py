"""Gram and cross products of a layer's factors: the only place that touches d_model.

Weights are converted to float64 in pieces that fit the processor's cache. On a CPU, threads run
over key-value heads, each with single-threaded BLAS: many small products scale better that way
than one threaded product after another.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from qk_taxonomy.circuits.conventions import Factor

# Columns converted at a time: 128 rows of them are 1 MB in float64, a core's share of the cache.
_CHUNK = 1024

_ONE_LAYER_AT_A_TIME = threading.Lock()

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Grams:
    """Products of one key-value head's right factor B and its group of left factors A, float64.

    ``left`` (group, e, e) = A Aᵀ; ``right`` (e, e) = B Bᵀ; ``cross`` (group, e, e) = B Aᵀ, or None.
    """

    left: torch.Tensor
    right: torch.Tensor
    cross: torch.Tensor | None


@functools.cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def _single_threaded_blas() -> Iterator[None]:
    """Threads over heads need BLAS to keep to one thread each; one layer at a time may say so."""
    threads = torch.get_num_threads()
    with _ONE_LAYER_AT_A_TIME, _blas().limit(limits=1, user_api="blas"):
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def over_heads(function: Callable[[int], _T], n: int, device: torch.device) -> list[_T]:
    """``[function(i) for i in range(n)]``, on a CPU by as many threads as torch has been given."""
    if device.type != "cpu":
        return [function(i) for i in range(n)]
    threads = min(n, torch.get_num_threads())
    with (
        _single_threaded_blas(),
        ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        return list(pool.map(function, range(n)))


def _symmetric(x: torch.Tensor) -> torch.Tensor:
    """``x xᵀ`` of a (rows, columns) matrix."""
    if x.device.type != "cpu":
        return x @ x.mT
    # NumPy, unlike torch, hands x @ x.T to BLAS as a symmetric rank-k update: half the work.
    array = x.numpy()
    return torch.from_numpy(array @ array.T)


class _Pieces:
    """The float64 pieces of one head of a factor, columns folded in, rows left for the end."""

    def __init__(self, factor: Factor, head: int) -> None:
        self.weights = factor.weights[head]
        self.columns = factor.columns
        self.mean = self._mean() if factor.centred else None

    def _mean(self) -> torch.Tensor:
        columns = range(0, self.weights.shape[1], _CHUNK)
        total = sum(self._scaled(start).sum(1, keepdim=True) for start in columns)
        return torch.as_tensor(total) / self.weights.shape[1]

    def _scaled(self, start: int) -> torch.Tensor:
        piece = self.weights[:, start : start + _CHUNK].to(torch.float64)
        if self.columns is not None:
            piece = piece * self.columns[start : start + _CHUNK]
        return piece

    def __getitem__(self, start: int) -> torch.Tensor:
        piece = self._scaled(start)
        return piece if self.mean is None else piece - self.mean


def head_grams(left: Factor, right: Factor, kv_head: int, *, cross: bool) -> Grams:
    """Products of one key-value head and its group, in one pass over their columns."""
    group = left.weights.shape[0] // right.weights.shape[0]
    members = range(kv_head * group, (kv_head + 1) * group)
    b, a = _Pieces(right, kv_head), [_Pieces(left, head) for head in members]
    e, d_model = right.weights.shape[1:]
    zeros = functools.partial(torch.zeros, dtype=torch.float64, device=right.weights.device)
    gram_a, gram_b, product = zeros(group, e, e), zeros(e, e), zeros(group, e, e)
    for start in range(0, d_model, _CHUNK):
        b_piece = b[start]
        gram_b += _symmetric(b_piece)
        for member, pieces in enumerate(a):
            a_piece = pieces[start]
            gram_a[member] += _symmetric(a_piece)
            if cross:
                product[member].addmm_(b_piece, a_piece.mT)
    rows_a = None if left.rows is None else left.rows[members.start : members.stop]
    rows_b = None if right.rows is None else right.rows[kv_head]
    return Grams(
        left=_scale_rows(gram_a, rows_a, rows_a),
        right=_scale_rows(gram_b, rows_b, rows_b),
        cross=_scale_rows(product, rows_b, rows_a) if cross else None,
    )


def _scale_rows(
    product: torch.Tensor, rows: torch.Tensor | None, columns: torch.Tensor | None
) -> torch.Tensor:
    """``diag(rows) · product · diag(columns)``."""
    if rows is not None:
        product = product * rows[..., :, None]
    if columns is not None:
        product = product * columns[..., None, :]
    return product


def dense_head(factor: Factor, head: int) -> torch.Tensor:
    """One head of a factor, everything folded in: (d_head, d_model) float64."""
    pieces = _Pieces(factor, head)
    starts: Sequence[int] = range(0, factor.weights.shape[2], _CHUNK)
    dense = torch.cat([pieces[start] for start in starts], dim=1)
    return dense if factor.rows is None else dense * factor.rows[head][:, None]
