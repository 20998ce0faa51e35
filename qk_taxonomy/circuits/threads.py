"""Threads over heads, each with BLAS and torch to itself.

Many small products scale better over heads than one threaded product after another, and sums that
one thread forms alone have the same bits however many threads there are.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@functools.cache
def _blas() -> Any:
    # SciPy brings a BLAS of its own, which is found if it has been loaded by now.
    import scipy.linalg  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class _OneThreadedBlas:
    """BLAS keeps to one thread while anybody is inside: its number of threads is the process's.

    A thread of its own sets the limit and lifts it, since threadpoolctl (3.8 on) silently ignores
    a second thread while the first one holds a limit, and who comes first need not leave last.
    """

    def __init__(self) -> None:
        self.start_anew()

    def start_anew(self) -> None:
        """Nobody is inside: so it is in a forked child, which has none of its parent's threads."""
        self._lock = threading.Lock()
        self._inside = 0
        self._limits = contextlib.ExitStack()
        self._owner = ThreadPoolExecutor(1, "qk-blas")

    def _limit(self) -> None:
        self._limits.enter_context(_blas().limit(limits=1, user_api="blas"))

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._owner.submit(self._limit).result()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._owner.submit(self._limits.close).result()


_ONE_THREADED_BLAS = _OneThreadedBlas()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that work on heads; started once and kept."""
    everyone_started = threading.Barrier(threads)

    def start() -> None:
        torch.set_num_threads(1)
        everyone_started.wait()

    pool = ThreadPoolExecutor(threads, "qk-heads")
    list(pool.map(lambda _: start(), range(threads)))
    # What the threads have set is also torch's default for threads that are yet to come.
    torch.set_num_threads(threads)
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
    os.register_at_fork(after_in_child=_ONE_THREADED_BLAS.start_anew)


def start_threads() -> None:
    """Start the threads now, before other threads begin to ask torch how many there are."""
    if torch.get_num_threads() > 1:
        _pool(torch.get_num_threads())


def in_threads(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """``[function(item) for item in items]``, by as many threads as torch has.

    BLAS keeps to one thread in each. Overflow and NaN pass without warnings: they are looked for.
    """

    def quietly(item: _Item) -> _Result:
        with np.errstate(all="ignore"):
            return function(item)

    threads = torch.get_num_threads()
    with _ONE_THREADED_BLAS:
        if threads == 1:
            return [quietly(item) for item in items]
        # Also a single one: a thread of its own keeps torch, as it is called there, to one thread.
        return list(_pool(threads).map(quietly, items))
