"""What a survey moves and how fast, as ratios within one run.

    python tests/benchmarks/streaming.py [bytes|link|unthrottled|whole|local]... [--folder DIR]

bytes        body bytes that crossed the network / (named tensors + headers + JSON)
link         a link of 1 Gb/s: how much of it is used while tensors stream, computing included
unthrottled  speed of a survey / of plain ranged reads of the same tensors, and / of computing alone
whole        the same link, end to end: downloading whole shards and two thin SVDs a head / a survey
local        a folder on disk: a survey / reading the same bytes and the Gram products alone

About five minutes for all parts on two quiet cores; ``--rounds`` and ``--models`` make it less.
Every side runs in a process of its own against a hub in another; medians of runs taken in turn.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from checkpoints import header_bytes, make, read_header, tensor_bytes, whole_bytes
from hub_process import GIGABIT, HubProcess, Served
from sides import Run, run

#: What each part surveys, unless it is told otherwise.
PARTS = {
    "bytes": ("llama-8b-8", "llama-1b", "pythia-1.4b", "bert-base"),
    "link": ("llama-8b-8", "llama-1b", "pythia-1.4b", "bert-base"),
    "unthrottled": ("llama-8b-8", "llama-1b"),
    "whole": ("llama-8b-4", "llama-1b"),
    "local": ("llama-8b-8", "llama-1b"),
}
MB = 1e6


def machine() -> str:
    """The machine that the ratios are of, in words."""
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores ({platform.machine()}), Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def table(title: str, *columns: str) -> None:
    """Begin a table."""
    print(f"\n{title}\n")
    row(*columns)
    row(*["---"] * len(columns))


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def median(runs: list[Run]) -> float:
    return statistics.median(run.seconds for run in runs)


def used_of_link(path: Path, served: list[Served]) -> float:
    """Bytes of tensors a second from the first byte of one to the last, of a 1 Gb/s link."""
    data = {file.name: 8 + read_header(file)[0] for file in path.glob("*.safetensors")}
    of_tensors = []
    for answer in served:
        file = answer.path.partition("?")[0].rpartition("/")[2]
        if file not in data or answer.range is None:
            continue
        last = int(answer.range.removeprefix("bytes=").partition("-")[2])
        if last >= data[file]:
            of_tensors.append(answer)
    seconds = max(a.last for a in of_tensors) - min(a.first for a in of_tensors)
    return tensor_bytes(path) / seconds / GIGABIT


def bytes_moved(hub: HubProcess, paths: dict[str, Path], options: argparse.Namespace) -> None:
    table("Bytes moved", "checkpoint", "whole", "named tensors + headers + JSON", "moved", "ratio")
    for name, path in paths.items():
        hub.set(bytes_per_second=None)
        run("survey", endpoint=hub.endpoint, model=f"bench/{name}")
        moved = sum(answer.n_bytes for answer in hub.take_log())
        needed = tensor_bytes(path) + header_bytes(path)
        row(
            name,
            f"{whole_bytes(path) / MB:.0f} MB",
            f"{needed / MB:.2f} MB",
            f"{moved / MB:.2f} MB",
            f"{moved / needed:.4f}",
        )


def link(hub: HubProcess, paths: dict[str, Path], options: argparse.Namespace) -> None:
    table(
        f"A link of 1 Gb/s, {1e3 * options.latency:.0f} ms before each answer",
        *("checkpoint", "tensors", "link used by plain reads", "by a survey", "survey takes"),
        "tensors alone would take",
    )
    for name, path in paths.items():
        hub.set(bytes_per_second=GIGABIT, latency=options.latency)
        run("plain", endpoint=hub.endpoint, folder=str(path))
        plain = used_of_link(path, hub.take_log())
        surveys, used = [], []
        for _ in range(options.rounds):
            surveys.append(run("survey", endpoint=hub.endpoint, model=f"bench/{name}"))
            used.append(used_of_link(path, hub.take_log()))
        row(
            name,
            f"{tensor_bytes(path) / MB:.0f} MB",
            f"{plain:.0%}",
            f"{statistics.median(used):.0%}",
            f"{median(surveys):.2f} s",
            f"{tensor_bytes(path) / GIGABIT:.2f} s",
        )


def unthrottled(hub: HubProcess, paths: dict[str, Path], options: argparse.Namespace) -> None:
    table(
        "No throttle",
        *("checkpoint", "survey", "plain reads", "computing alone", "survey / plain reads"),
        *("survey / computing", "CPU seconds a GB: survey", "plain reads", "computing"),
    )
    hub.set(bytes_per_second=None)
    for name, path in paths.items():
        surveys, plain, computing = [], [], []
        for _ in range(options.rounds):
            plain.append(run("plain", endpoint=hub.endpoint, folder=str(path)))
            surveys.append(run("survey", endpoint=hub.endpoint, model=f"bench/{name}"))
            computing.append(run("compute", folder=str(path)))
        n_bytes = tensor_bytes(path)
        speeds = [n_bytes / median(runs) for runs in (surveys, plain, computing)]
        row(
            name,
            *(f"{speed / MB:.0f} MB/s" for speed in speeds),
            f"{speeds[0] / speeds[1]:.0%}",
            f"{speeds[0] / speeds[2]:.0%}",
            *(
                f"{statistics.median(r.cpu for r in runs) / n_bytes * 1e9:.1f}"
                for runs in (surveys, plain, computing)
            ),
        )


def whole(hub: HubProcess, paths: dict[str, Path], options: argparse.Namespace) -> None:
    table(
        "End to end on the link of 1 Gb/s, without the time to import torch",
        *("checkpoint", "bytes, whole / named", "whole shards", "of it downloading", "survey"),
        *("ratio after imports", "ratio, whole commands"),
    )
    hub.set(bytes_per_second=GIGABIT, latency=options.latency)
    for name, path in paths.items():
        slow = run("whole_shards", endpoint=hub.endpoint, folder=str(path))
        surveys = [
            run("survey", endpoint=hub.endpoint, model=f"bench/{name}")
            for _ in range(options.rounds)
        ]
        command = statistics.median(survey.command for survey in surveys)
        row(
            name,
            f"{whole_bytes(path) / tensor_bytes(path):.1f}",
            f"{slow.seconds:.1f} s",
            f"{slow.reported['downloaded']:.1f} s",
            f"{median(surveys):.2f} s",
            f"{slow.seconds / median(surveys):.1f}×",
            f"{slow.command / command:.1f}×",
        )


def local(hub: HubProcess, paths: dict[str, Path], options: argparse.Namespace) -> None:
    table(
        "A folder on disk: survey / reading and Gram products alone",
        *("checkpoint", "survey, raw and folded", "Gram products, twice", "ratio"),
        *("survey, raw", "Gram products, once", "ratio"),
    )
    for name, path in paths.items():
        cells = []
        for conventions in (("raw", "folded"), ("raw",)):
            surveys, products = [], []
            for _ in range(options.rounds):
                surveys.append(run("survey", model=str(path), conventions=conventions))
                products.append(run("grams", folder=str(path), times=len(conventions)))
            cells += [
                f"{median(surveys):.2f} s",
                f"{median(products):.2f} s",
                f"{median(surveys) / median(products):.2f}×",
            ]
        row(name, *cells)


@contextmanager
def made(folder: Path | None, names: tuple[str, ...]) -> Iterator[tuple[Path, dict[str, Path]]]:
    """Checkpoints in a folder of their own, which goes when they have been used."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        root = Path(temporary)
        yield root, {name: make(root, name) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", metavar="PART", default=list(PARTS))
    parser.add_argument("--folder", type=Path, help="where to make the checkpoints")
    parser.add_argument("--latency", type=float, default=0.02, metavar="SECONDS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="shapes to survey instead")
    options = parser.parse_args()
    chosen = {part: tuple(options.models or PARTS[part]) for part in options.parts}
    names = tuple(dict.fromkeys(name for models in chosen.values() for name in models))
    print(f"{machine()}; medians of {options.rounds}")
    with made(options.folder, names) as (root, paths), HubProcess(root) as hub:
        measures = (bytes_moved, link, unthrottled, whole, local)
        for part, measure in zip(PARTS, measures, strict=True):
            if part in chosen:
                measure(hub, {name: paths[name] for name in chosen[part]}, options)


if __name__ == "__main__":
    main()
