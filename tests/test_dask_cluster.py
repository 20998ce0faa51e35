"""The cluster that tests of distributed surveys run on, and what its executor promises."""

from __future__ import annotations

import os
import subprocess
import time
from concurrent.futures import Future, as_completed
from pathlib import Path

import pytest
from dask_cluster import dask_cluster

from qk_taxonomy.errors import SpectrumError

distributed = pytest.importorskip("distributed")


def worker_id(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def not_finite() -> None:
    raise SpectrumError("layer 3: not finite", "q")


def alive(groups: set[int]) -> list[str]:
    """Group, state and command of what still runs of the groups, not of what awaits its burial."""
    listed = subprocess.run(
        ["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True, timeout=30
    )
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [row[2] for row in rows if int(row[0]) in groups and "Z" not in row[1]]


def test_tasks_outlive_a_killed_worker_and_errors_come_back_whole(tmp_path: Path) -> None:
    with dask_cluster(tmp_path) as cluster:
        with distributed.Client(cluster.address, timeout=20, set_as_default=False) as client:
            # Pure tasks of equal arguments would be one task.
            executor = client.get_executor(pure=False)
            tasks = [executor.submit(worker_id, 0.3) for _ in range(6)]
            assert all(isinstance(task, Future) for task in tasks)
            workers = {task.result(60) for task in tasks}
            assert len(workers) == 2
            assert os.getpid() not in workers

            with pytest.raises(SpectrumError, match="layer 3") as caught:
                executor.submit(not_finite).result(60)
            assert caught.value.role == "q"

            tasks = [executor.submit(worker_id, 1) for _ in range(4)]
            time.sleep(0.5)
            cluster.kill_worker(0)
            ids = [task.result(60) for task in as_completed(tasks, 60)]
            assert len(ids) == 4
            executor.shutdown(wait=False)
        processes = [cluster.scheduler, *cluster.workers]
    assert all(process.poll() is not None for process in processes)
    groups = {process.pid for process in processes}
    # What was killed may take a moment to be gone.
    deadline = time.monotonic() + 20
    while alive(groups) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(groups)
