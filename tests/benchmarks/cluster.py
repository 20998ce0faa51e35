"""How many Dask workers help: a survey by one worker and by two, each kept to one core.

    python tests/benchmarks/cluster.py

Workers are started as a user starts them (``dask scheduler``, ``dask worker``), share one link to
the hub, and have four threads each, of which one computes while others fetch. Times are from the first task to the last, without starting the
cluster.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from checkpoints import make, tensor_bytes
from hub_process import GIGABIT, HubProcess

sys.path.insert(0, str(Path(__file__).parents[1]))

from dask_cluster import dask_cluster
from huggingface_hub import HfApi

from qk_taxonomy.catalog import model_ref
from qk_taxonomy.survey import survey_model
from qk_taxonomy.survey.cluster import dask_executor

MODEL = "llama-1b"
ROUNDS = 3
THREADS = 4
LATENCY = 0.02
LINKS = {"1 Gb/s": GIGABIT, "200 Mb/s": GIGABIT / 5}
ONE_CORE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def seconds(folder: Path, hub: HubProcess, workers: int) -> list[float]:
    """Times of surveys by so many workers, on each link in turn."""
    times: dict[str, list[float]] = {name: [] for name in LINKS}
    with tempfile.TemporaryDirectory() as logs:
        environment = {**ONE_CORE, "HF_ENDPOINT": hub.endpoint, "HF_HOME": logs}
        with (
            dask_cluster(
                Path(logs), workers=workers, threads=THREADS, environment=environment
            ) as cluster,
            dask_executor(cluster.address) as executor,
        ):
            # The first survey imports everything in the workers, and is not kept.
            for turn in range(ROUNDS + 1):
                for name, bytes_per_second in LINKS.items():
                    hub.set(bytes_per_second=bytes_per_second, latency=LATENCY)
                    begin = time.perf_counter()
                    survey_model(
                        model_ref(f"bench/{MODEL}", family_name="bench", families=()),
                        output_root=folder / "out",
                        api=HfApi(endpoint=hub.endpoint),
                        executor=executor,
                        force=True,
                    )
                    if turn:
                        times[name].append(time.perf_counter() - begin)
    return [statistics.median(found) for found in times.values()]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = make(folder / "hub", MODEL)
        moved = tensor_bytes(path)
        os.environ["HF_HOME"] = str(folder / "home")
        with HubProcess(folder / "hub") as hub:
            one, two = (seconds(folder, hub, workers) for workers in (1, 2))
        print(f"{os.cpu_count()} cores, torch {torch.__version__}; {MODEL}, {moved / 1e6:.0f} MB")
        print("| link | 1 worker | 2 workers | ratio | link used by two |")
        print("|---|---|---|---|---|")
        for (link, bytes_per_second), a, b in zip(LINKS.items(), one, two, strict=True):
            used = moved / b / bytes_per_second
            print(f"| {link} | {a:.2f} s | {b:.2f} s | {a / b:.2f}× | {used:.0%} |")


if __name__ == "__main__":
    main()
