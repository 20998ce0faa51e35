"""Peak memory of a survey above that of an idle process with torch imported.

    python tests/benchmarks/memory.py [--jobs N...] [--folder DIR] [--imports]

Surveys stream from a hub in another process, without throttle. ``--imports``: what each package
that a survey loads takes by itself, torch being there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from checkpoints import SHAPES, tensor_bytes, whole_bytes
from hub_process import HubProcess
from sides import run
from streaming import MB, machine, made, row, table

MODELS = ("llama-8b-2", "llama-8b-8", "llama-1b", "llama-70b-2")

#: What the survey's own module loads, by itself and all together.
IMPORTS = (
    "numpy",
    "einops",
    "scipy.linalg",
    "safetensors",
    "threadpoolctl",
    "huggingface_hub huggingface_hub.hf_api huggingface_hub.utils",
    "qk_taxonomy.checkpoints",
    "qk_taxonomy.cache",
    "qk_taxonomy.circuits.spectra",
    "qk_taxonomy.architectures",
    "qk_taxonomy.statistics.moments",
    "qk_taxonomy.survey",
    "qk_taxonomy.cli.download",
)


def peaks(hub: HubProcess, paths: dict[str, Path], jobs: list[int | None]) -> None:
    """The peak above an idle process, by model and number of layers under way."""
    table(
        "Peak memory of a survey above that of an idle process with torch imported",
        *("checkpoint", "whole", "named tensors", "a layer's"),
        *("as it comes" if n is None else f"{n} jobs" for n in jobs),
    )
    hub.set(bytes_per_second=None)
    for name, path in paths.items():
        above = []
        for n in jobs:
            option = {} if n is None else {"jobs": n}
            survey = run("survey", endpoint=hub.endpoint, model=f"bench/{name}", **option)
            above.append(survey.peak - survey.idle)
        row(
            name,
            f"{whole_bytes(path) / MB:.0f} MB",
            f"{tensor_bytes(path) / MB:.0f} MB",
            f"{tensor_bytes(path) / SHAPES[name].layers / MB:.0f} MB",
            *(f"{n_bytes / MB:.0f} MB" for n_bytes in above),
        )


def imports() -> None:
    """What each package takes by itself, above torch."""
    table("Memory that imports take above torch", "imported", "resident")
    for modules in IMPORTS:
        idle = run("idle", modules=modules)
        row(modules, f"{(idle.reported['resident'] - idle.idle) / MB:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, nargs="+", default=[None, 1], metavar="N")
    parser.add_argument("--folder", type=Path, help="where to make the checkpoints")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--imports", action="store_true")
    options = parser.parse_args()
    print(machine())
    if options.imports:
        imports()
        return
    with made(options.folder, tuple(options.models)) as (root, paths), HubProcess(root) as hub:
        peaks(hub, paths, options.jobs)


if __name__ == "__main__":
    main()
