"""Gram and cross products of a layer's factors: the only place that touches d_model.

Weights are converted to float64 in pieces that fit the processor's cache. On a CPU, threads run
over heads, each with single-threaded BLAS: many small products scale better that way than one
threaded product after another. Small layers are done in one batch.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from einops import rearrange

from qk_taxonomy.circuits.conventions import Factor

# Weights converted to float64 at a time: 4 MB of them, a core's share of the cache.
_PIECE = 1 << 19

# Weights of a left factor above which Gram matrices are worth threads: a GPT-2 layer stays below.
_WORTH_THREADS = 1 << 20

_ONE_LAYER_AT_A_TIME = threading.Lock()

# Each thread's memory for pieces, kept: the first touch of fresh memory costs more than the
# products of a small layer.
_SCRATCH = threading.local()

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class Grams:
    """Products of a layer's left factors A and right factors B, float64.

    ``left`` (n_heads, e, e) = A Aᵀ; ``right`` (n_kv_heads, e, e) = B Bᵀ; ``cross`` (n_heads, e, e)
    = B Aᵀ, or None.
    """

    left: torch.Tensor
    right: torch.Tensor
    cross: torch.Tensor | None


@functools.cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that work on heads, each with torch and BLAS to itself; started once and kept."""
    everyone_started = threading.Barrier(threads)

    def start() -> None:
        torch.set_num_threads(1)
        everyone_started.wait()

    pool = ThreadPoolExecutor(threads, "qk-heads")
    list(pool.map(lambda _: start(), range(threads)))
    # What the threads have set is also torch's default for threads that are yet to come.
    torch.set_num_threads(threads)
    return pool


# A forked child has none of its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def n_threads(device: torch.device) -> int:
    """Threads that may work side by side: torch's own number on a CPU, 1 on CUDA."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def start_threads() -> None:
    """Start the threads now, before other threads begin to ask torch how many there are."""
    if torch.get_num_threads() > 1:
        _pool(torch.get_num_threads())


def in_threads(
    function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int
) -> list[_Result]:
    """``[function(item) for item in items]``, by ``threads`` threads."""
    if threads == 1:
        return [function(item) for item in items]
    # Threads over heads need BLAS to keep to one thread each; one layer at a time may say so.
    with _ONE_LAYER_AT_A_TIME, _blas().limit(limits=1, user_api="blas"):
        return list(_pool(threads).map(function, items))


def _add_symmetric(total: torch.Tensor, x: torch.Tensor, *, alone: bool) -> None:
    """Add ``x xᵀ`` of (heads, rows, columns) to (heads, rows, rows); ``alone``: of one head."""
    if alone:
        # NumPy, unlike torch, hands x @ x.T to BLAS as a symmetric rank-k update: half the work.
        array = x[0].numpy()
        total[0] += torch.from_numpy(array @ array.T)
    else:
        total.baddbmm_(x, x.mT)


def _scratch(side: str, n: int, device: torch.device) -> torch.Tensor:
    """``n`` float64 numbers of this thread's memory for one side, holding anything."""
    held: torch.Tensor | None = getattr(_SCRATCH, side, None)
    if held is None or held.numel() < n or held.device != device:
        # A tensor made in a caller's inference mode could not be written to outside it.
        with torch.inference_mode(False):
            held = torch.empty(max(n, _PIECE), dtype=torch.float64, device=device)
        setattr(_SCRATCH, side, held)
    return held[:n]


class _Pieces:
    """Float64 pieces of some heads of a factor, columns folded in, rows left for the end.

    Every piece is overwritten by the next one of the same side.
    """

    def __init__(self, factor: Factor, heads: slice, side: str, width: int) -> None:
        # Detached, so that a Parameter leaves no graph behind in the scratch.
        self.weights = factor.weights[heads].detach()
        self.d_model = factor.d_model
        self.latent = factor.latent
        if self.latent is not None:
            self.weights = self.weights.double()
        self.columns = factor.columns
        self.side, self.width = side, width
        self.mean = self._mean() if factor.centred else None

    def _stored(self, start: int) -> torch.Tensor:
        if self.latent is None:
            stored = self.weights[..., start : start + self.width]
            piece = _scratch(self.side, stored.numel(), stored.device)
            return piece.view(stored.shape).copy_(stored)
        return self.weights @ self.latent[:, start : start + self.width]

    def _scaled(self, start: int) -> torch.Tensor:
        piece = self._stored(start)
        return (
            piece if self.columns is None else piece.mul_(self.columns[start : start + self.width])
        )

    def _mean(self) -> torch.Tensor:
        starts = range(0, self.d_model, self.width)
        totals = torch.stack([self._scaled(start).sum(-1, keepdim=True) for start in starts])
        return totals.sum(0) / self.d_model

    def at(self, start: int) -> torch.Tensor:
        """The piece that begins at column ``start``."""
        piece = self._scaled(start)
        return piece if self.mean is None else piece.sub_(self.mean)


@dataclass(frozen=True)
class _Task:
    """Key-value heads, the members of their groups to multiply, and whether one after the other."""

    kv_heads: slice
    members: slice
    alone: bool


def _products(left: Factor, right: Factor, task: _Task, cross: bool) -> Grams:
    """Products of a task's heads, in one pass over the columns."""
    group = left.n_heads // right.n_heads
    n_kv, e, d_model = task.kv_heads.stop - task.kv_heads.start, right.d_head, right.d_model
    first = task.kv_heads.start * group + task.members.start
    last = (task.kv_heads.stop - 1) * group + task.members.stop
    n_left = last - first
    blocks = [slice(i, i + 1) for i in range(n_left)] if task.alone else [slice(0, n_left)]
    width = min(d_model, max(1, _PIECE // (e * (1 if task.alone else n_left))))
    b_pieces = _Pieces(right, task.kv_heads, "right", width)
    a_pieces = [
        _Pieces(left, slice(first + block.start, first + block.stop), "left", width)
        for block in blocks
    ]
    zeros = functools.partial(torch.zeros, dtype=torch.float64, device=right.weights.device)
    gram_a, gram_b = zeros(n_left, e, e), zeros(n_kv, e, e)
    product = zeros(n_left, e, e) if cross else None
    for start in range(0, d_model, width):
        b = b_pieces.at(start)
        _add_symmetric(gram_b, b, alone=task.alone)
        for block, pieces in zip(blocks, a_pieces, strict=True):
            a = pieces.at(start)
            _add_symmetric(gram_a[block], a, alone=task.alone)
            if product is not None:
                by_group = rearrange(a, "(kv_head member) e c -> kv_head member e c", kv_head=n_kv)
                product[block] += (b[:, None] @ by_group.mT).flatten(0, 1)
    fold_a = functools.partial(_fold_rows, left, slice(first, last))
    fold_b = functools.partial(_fold_rows, right, task.kv_heads)
    if product is not None:
        by_member = functools.partial(fold_b, members=n_left // n_kv)
        product = by_member(fold_a(product.mT).mT)
    return Grams(left=fold_a(fold_a(gram_a).mT), right=fold_b(fold_b(gram_b).mT), cross=product)


def _fold_rows(
    factor: Factor, heads: slice, product: torch.Tensor, members: int = 1
) -> torch.Tensor:
    """``diag(rows) · C_e · product`` of some heads, each repeated for its group's ``members``."""
    if factor.rows_centred:
        product = product - product.mean(-2, keepdim=True)
    if factor.rows is not None:
        product = product * factor.rows[heads].repeat_interleave(members, dim=0)[..., None]
    return product


def _tasks(n_heads: int, n_kv_heads: int, threads: int) -> list[_Task]:
    """One batch for one thread; else a key-value head each, its group split where heads are few."""
    group = n_heads // n_kv_heads
    if threads == 1:
        return [_Task(slice(0, n_kv_heads), slice(0, group), alone=False)]
    step = math.ceil(group / math.ceil(threads / n_kv_heads))
    return [
        _Task(slice(kv, kv + 1), slice(start, min(start + step, group)), alone=True)
        for kv in range(n_kv_heads)
        for start in range(0, group, step)
    ]


def layer_grams(left: Factor, right: Factor, *, cross: bool) -> Grams:
    """Gram matrices of every head of a layer, and with ``cross`` the products B Aᵀ."""
    small = left.n_heads * left.d_head * left.d_model <= _WORTH_THREADS
    threads = 1 if small else n_threads(left.weights.device)
    tasks = _tasks(left.n_heads, right.n_heads, threads)
    parts = in_threads(lambda task: _products(left, right, task, cross), tasks, threads)
    products = [part.cross for part in parts if part.cross is not None]
    whole_groups = [p.right for p, task in zip(parts, tasks, strict=True) if not task.members.start]
    return Grams(
        left=torch.cat([part.left for part in parts]),
        right=torch.cat(whole_groups),
        cross=torch.cat(products) if products else None,
    )


def dense_head(factor: Factor, head: int) -> torch.Tensor:
    """One head of a factor, everything folded in: (d_head, d_model) float64."""
    heads = slice(head, head + 1)
    dense = _Pieces(factor, heads, "dense", factor.d_model).at(0)
    return _fold_rows(factor, heads, dense)[0].clone()
