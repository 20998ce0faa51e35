"""Reading that ends early, where what it reads is no longer wanted.

A thread that waits for the hub or receives from it holds up the end of the process, and what it has
received stays in memory. Threads of :func:`stoppable_threads` look between chunks and in pauses
whether they are to stop.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from qk_taxonomy.errors import CheckpointError


class _Thread(threading.local):
    """What tells each thread to stop; a thread that nobody can stop has one that is never set."""

    def __init__(self) -> None:
        self.stop = threading.Event()


_this_thread = _Thread()


class StoppedError(CheckpointError):
    """A read that was told to stop, as nobody wants it any more."""


def stoppable_threads(number: int, name: str, stop: threading.Event) -> ThreadPoolExecutor:
    """So many threads, whose reading raises StoppedError once ``stop`` is set."""
    return ThreadPoolExecutor(number, thread_name_prefix=name, initializer=_heed, initargs=(stop,))


def _heed(stop: threading.Event) -> None:
    _this_thread.stop = stop


def stopped() -> bool:
    """Whether this thread is to stop reading."""
    return _this_thread.stop.is_set()


def go_on() -> None:
    """Raises StoppedError where this thread is to stop reading."""
    pause(0.0)


def pause(seconds: float) -> None:
    """Wait; raises StoppedError as soon as this thread is to stop reading."""
    if _this_thread.stop.wait(seconds):
        raise StoppedError("Stopped: another part of the model failed, or the survey was ended.")
