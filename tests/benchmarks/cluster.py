"""How many Dask workers help: a survey by one worker and by two, on one machine.

    python tests/benchmarks/cluster.py

Workers are started as a user starts them (``dask scheduler``, ``dask worker``) and share one link
to the hub. One of a single thread fetches and computes in turn; of four threads, one computes
while others fetch. Times are from the first task to the last, without starting the cluster.
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
LATENCY = 0.02
#: Workers, and threads of each.
CLUSTERS = ((1, 1), (2, 1), (1, 4), (2, 4))

LINKS = {"1 Gb/s": GIGABIT, "200 Mb/s": GIGABIT / 5}
ONE_CORE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def seconds(folder: Path, hub: HubProcess, workers: int, threads: int) -> list[float]:
    """Times of surveys by so many workers, on each link in turn."""
    times: dict[str, list[float]] = {name: [] for name in LINKS}
    with tempfile.TemporaryDirectory() as logs:
        environment = {**ONE_CORE, "HF_ENDPOINT": hub.endpoint, "HF_HOME": logs}
        with (
            dask_cluster(
                Path(logs), workers=workers, threads=threads, environment=environment
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
            times = {cluster: seconds(folder, hub, *cluster) for cluster in CLUSTERS}
        print(f"{os.cpu_count()} cores, torch {torch.__version__}; {MODEL}, {moved / 1e6:.0f} MB")
        print("| link |", " | ".join(f"{n} × {threads} threads" for n, threads in CLUSTERS), "|")
        print("|---" * (1 + len(CLUSTERS)) + "|")
        for i, (link, bytes_per_second) in enumerate(LINKS.items()):
            cells = [
                f"{found[i]:.1f} s, {moved / found[i] / bytes_per_second:.0%} of the link"
                for found in times.values()
            ]
            print(f"| {link} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
