"""A loopback hub in a process of its own, with a link of given speed, for the benchmarks.

    with HubProcess(Path("checkpoints")) as hub:            # serves checkpoints/NAME as bench/NAME
        hub.set(bytes_per_second=125e6, latency=0.02)
        ...                                                 # HF_ENDPOINT=hub.endpoint
        hub.take_log()                                      # requests since the last call

    python tests/benchmarks/hub_process.py                  # how exact and how cheap the link is

The routes are those of ``tests/loopback_hub.py``, LFS files on a second origin as on the real hub.
Bodies go from the page cache to the socket by sendfile, so that serving takes next to nothing from
a client on the same cores. All connections share one link.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loopback_hub import Answer, CdnHandler, Handler, HubHandler, LoopbackHub, Request

#: Body bytes a second of a link of 1 Gb/s.
GIGABIT = 125e6

# Bytes that cross the link at a time: 2 ms of a gigabit, so that connections share it evenly.
_CHUNK = 1 << 18

# Seconds that a link makes up for: a thread wakes late by less, and an idle link saves up no more.
_LATE = 0.005


@dataclass(frozen=True)
class Served:
    """An answer whose body was sent: when its first byte left and its last (monotonic seconds)."""

    path: str
    range: str | None
    n_bytes: int
    first: float
    last: float


class Link:
    """Lets ``bytes_per_second`` pass over all connections together; None: as fast as it goes."""

    def __init__(self) -> None:
        self.bytes_per_second: float | None = None
        self._free = 0.0
        self._lock = threading.Lock()

    def carry(self, n_bytes: int) -> None:
        """Wait until the link has carried so many bytes more."""
        if self.bytes_per_second is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now - _LATE) + n_bytes / self.bytes_per_second
            wait = self._free - now
        if wait > 0:
            time.sleep(wait)


class FastHub(LoopbackHub):
    """A loopback hub behind a link; ``latency``: seconds before each answer."""

    def __init__(self) -> None:
        super().__init__(cdn=True)
        self.link = Link()
        self.latency = 0.0
        self.served: list[Served] = []


class _Linked(Handler):
    """Answers late by the latency, and sends bodies over the link."""

    def send_head(self, answer: Answer) -> Request:
        hub = self.server.hub
        assert isinstance(hub, FastHub)
        if hub.latency:
            time.sleep(hub.latency)
        return super().send_head(answer)

    def send_body(self, request: Request, source: bytes | Path, span: range) -> None:
        hub = self.server.hub
        assert isinstance(hub, FastHub)
        first = time.monotonic()
        if isinstance(source, bytes):
            hub.link.carry(len(span))
            self.wfile.write(source[span.start : span.stop])
        else:
            with source.open("rb") as stream:
                for start in range(span.start, span.stop, _CHUNK):
                    end = min(start + _CHUNK, span.stop)
                    hub.link.carry(end - start)
                    while start < end:
                        start += os.sendfile(
                            self.connection.fileno(), stream.fileno(), start, end - start
                        )
        request.body_bytes += len(span)
        hub.served.append(Served(request.path, request.range, len(span), first, time.monotonic()))


class _LinkedHub(_Linked, HubHandler):
    pass


class _LinkedCdn(_Linked, CdnHandler):
    pass


FastHub.handlers = (_LinkedHub, _LinkedCdn)


def _serve(folder: Path) -> None:
    """Serve until stdin ends; each line of it is a JSON object of settings, answered by a line."""
    with FastHub() as hub:
        for path in sorted(folder.iterdir()):
            hub.add(f"bench/{path.name}", path)
        print(json.dumps({"endpoint": hub.endpoint}), flush=True)
        for line in sys.stdin:
            wanted = json.loads(line)
            if "latency" in wanted:
                hub.latency = wanted["latency"]
                hub.link.bytes_per_second = wanted["bytes_per_second"]
            served, hub.served = hub.served, []
            reply = {"served": [asdict(s) for s in served], "cpu": time.process_time()}
            print(json.dumps(reply), flush=True)


class HubProcess:
    """Starts the hub over the folders in ``folder``, and stops it."""

    endpoint: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.endpoint = self._line()["endpoint"]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def _ask(self, settings: dict[str, float | None]) -> Any:
        assert self._process.stdin is not None
        print(json.dumps(settings), file=self._process.stdin, flush=True)
        return self._line()

    def set(self, *, bytes_per_second: float | None, latency: float = 0.0) -> None:
        """Change the link, and begin a new log."""
        self._ask({"bytes_per_second": bytes_per_second, "latency": latency})

    def take_log(self) -> list[Served]:
        """The answers since the last call, in order of their ends."""
        return [Served(**served) for served in self._ask({})["served"]]

    def cpu_seconds(self) -> float:
        """Processor time of the hub so far; begins a new log."""
        seconds: float = self._ask({})["cpu"]
        return seconds


def _drain(url: str) -> None:
    """Read a file as cheaply as Python can."""
    buffer = bytearray(1 << 20)
    with urllib.request.urlopen(url) as response:
        while response.readinto(buffer):
            pass


def check(folder: Path, n_bytes: int = 1 << 29) -> None:
    """Say how exact and how cheap the link is."""
    print("| link | connections | carried | of it | hub's CPU a GB |")
    print("|---|---|---|---|---|")
    for connections in (1, 4, 16):
        (folder / f"files-{connections}").mkdir()
        for i in range(connections):
            (folder / f"files-{connections}" / f"{i}.bin").write_bytes(
                bytes(n_bytes // connections)
            )
    with HubProcess(folder) as hub:
        for rate in (GIGABIT, None):
            for connections in (1, 4, 16):
                hub.set(bytes_per_second=rate)
                place = f"{hub.endpoint}/bench/files-{connections}/resolve/main"
                before = hub.cpu_seconds()
                start = time.perf_counter()
                with ThreadPoolExecutor(connections) as pool:
                    list(pool.map(_drain, [f"{place}/{i}.bin" for i in range(connections)]))
                speed = n_bytes / (time.perf_counter() - start)
                per_gb = (hub.cpu_seconds() - before) / (n_bytes / 1e9)
                link = "none" if rate is None else f"{rate / 1e6:.0f} MB/s"
                of_it = "" if rate is None else f"{speed / rate:.2%}"
                print(
                    f"| {link} | {connections} | {speed / 1e6:.1f} MB/s | {of_it} "
                    f"| {per_gb:.2f} s |",
                    flush=True,
                )


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        _serve(Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        check(Path(folder))


if __name__ == "__main__":
    main()
