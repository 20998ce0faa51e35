"""A Dask cluster on loopback, started as a user starts one: ``dask scheduler``, ``dask worker``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

#: Seconds within which a cluster must be up, and a process must have ended.
START_SECONDS = 60
END_SECONDS = 15


@dataclass(frozen=True)
class DaskCluster:
    """``address`` is the scheduler's; each process leads a group of its own, with its children.

    ``logs``: what each process wrote, in the order scheduler, workers.
    """

    address: str
    scheduler: subprocess.Popen[bytes]
    workers: tuple[subprocess.Popen[bytes], ...]
    logs: tuple[Path, ...]

    def kill_worker(self, index: int) -> None:
        """End a worker with no chance to say goodbye, its nanny with it: nobody restarts it."""
        _kill_group(self.workers[index])

    def kill_scheduler(self) -> None:
        _kill_group(self.scheduler)


@contextmanager
def dask_cluster(
    folder: Path,
    *,
    workers: int = 2,
    threads: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Iterator[DaskCluster]:
    """A scheduler and workers of one process each, with so many threads; logs go to ``folder``.

    All have joined when the block begins, and have ended, with their children, when it is left.
    """
    command = Path(sys.executable).with_name("dask")
    logs = tuple(folder / f"{name}.log" for name in ("scheduler", *map(str, range(workers))))
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    variables |= environment or {}
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        with logs[len(started)].open("wb") as log:
            process = subprocess.Popen(
                [command, *arguments, "--host", "127.0.0.1", "--no-dashboard"],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=variables,
                start_new_session=True,
            )
        started.append(process)
        return process

    try:
        contact = folder / "scheduler.json"
        scheduler = start("scheduler", "--port", "0", "--scheduler-file", str(contact))
        _wait(lambda: _address(contact) is not None, started, logs)
        address = _address(contact)
        assert address is not None
        one = ("--nworkers", "1", "--nthreads", str(threads), "--local-directory", str(folder))
        joined = tuple(start("worker", address, *one) for _ in range(workers))
        registered = "Registered to:"
        _wait(lambda: all(registered in log.read_text() for log in logs[1:]), started, logs)
        yield DaskCluster(address, scheduler, joined, logs)
    finally:
        _end(started)


def _address(contact: Path) -> str | None:
    """The scheduler's address, once all of its contact file is written."""
    try:
        address = json.loads(contact.read_text())["address"]
    except (OSError, ValueError):
        return None
    assert isinstance(address, str)
    return address


def _wait(
    ready: Callable[[], bool], started: list[subprocess.Popen[bytes]], logs: tuple[Path, ...]
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        gone = [p for p in started if p.poll() is not None]
        if gone or time.monotonic() > deadline:
            said = "\n".join(log.read_text() for log in logs if log.exists())
            raise RuntimeError(f"The cluster did not start within {START_SECONDS} s:\n{said}")
        time.sleep(0.05)


def _end(started: list[subprocess.Popen[bytes]]) -> None:
    """Ask the workers to end, then the scheduler; what is left of their groups is ended.

    In that order, as a worker whose scheduler goes first waits for it.
    """
    for group in (started[1:], started[:1]):
        for process in group:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + END_SECONDS
        for process in group:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0.1))
            _kill_group(process)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
