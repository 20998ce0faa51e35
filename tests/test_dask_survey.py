"""Surveys on a real Dask cluster, started as a user would start one: bit for bit the local ones."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import LLAMA_CONFIG, MakeFolder, llama_tensors
from dask_cluster import DaskCluster, dask_cluster
from loopback_hub import Hold, LoopbackHub, Stall

from qk_taxonomy.errors import QKTaxonomyError
from qk_taxonomy.survey.cluster import ClusterExecutor, dask_executor

pytest.importorskip("distributed")

N_LAYERS = 12

#: A range that begins beyond is of tensors: headers are read from here on at the latest.
HEADER = 9


def environment(hub: LoopbackHub) -> dict[str, str]:
    """Of a process that reads from the hub, and waits long for answers that are held."""
    home = str(Path("hf").absolute())
    return {"HF_ENDPOINT": hub.endpoint, "HF_HOME": home, "HF_HUB_DOWNLOAD_TIMEOUT": "120"}


def download(hub: LoopbackHub, root: str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "qk_taxonomy", "download", "--model", "me/tiny"),
            *("--circuit", "qk", "--circuit", "ov", "--output-root", root, *options),
        ],
        env={**os.environ, **environment(hub)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return out


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_worker_killed_in_mid_run_changes_no_bit(
    hub: LoopbackHub, make_folder: MakeFolder, tmp_path: Path
) -> None:
    tensors = llama_tensors(N_LAYERS, n_heads=8, n_kv_heads=2, d_head=16, d_model=64)
    config = LLAMA_CONFIG | {
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 8,
        "head_dim": 16,
        "hidden_size": 64,
    }
    hub.add("me/tiny", make_folder(tensors=tensors, config=config))
    finished(download(hub, "here"))
    logs = tmp_path / "cluster"
    logs.mkdir()
    with dask_cluster(logs, environment=environment(hub)) as cluster:
        asked = len(hub.requests)
        # Each worker has one thread: two answers that are held are one of each.
        first, second = held = Hold(), Hold()
        hub.inject("model.safetensors", *held, beyond=HEADER)
        process = download(hub, "there", "--dask", cluster.address)
        wait_until(lambda: not hub.faults)
        cluster.kill_worker(0)
        first.release()
        second.release()
        assert "computed" in finished(process)
    ranges = [r.range for r in hub.requests[asked:] if "model.safetensors" in r.path and r.range]
    assert len(ranges) - len(set(ranges)) == 1  # what the killed worker had under way
    here, there = (Path(root, "data/unlisted/tiny.safetensors") for root in ("here", "there"))
    assert here.read_bytes() == there.read_bytes()
    assert not list(there.parent.glob(".*"))


def said_by(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that runs Python code, which finds ``arguments`` in sys.argv, and says what is
    wrong. Clients of its own, that fail, may leave threads: it ends without waiting for them.
    """
    head = (
        "import importlib.metadata, os, sys\n"
        "from qk_taxonomy.errors import QKTaxonomyError\n"
        "from qk_taxonomy.survey import cluster, streaming\n"
    )
    tail = "\nsys.stdout.flush()\nos._exit(0)\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(code) + tail, *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )


ENTER = """
    cluster._PATIENCE = 2
    for address in sys.argv[1:]:
        try:
            cluster.dask_executor(address).__enter__()
        except QKTaxonomyError as err:
            print(err)
"""


def test_addresses_without_a_cluster() -> None:
    out, _ = said_by(ENTER, "tcp://127.0.0.1:9", "nonsense").communicate(timeout=120)
    nobody, nonsense = out.splitlines()
    assert "No Dask scheduler answers at tcp://127.0.0.1:9" in nobody
    assert "No Dask scheduler answers at nonsense" in nonsense
    assert nonsense.endswith("or mend --dask.")


@pytest.mark.parametrize("address", ["nonsense", "tcp://", "http://localhost:9"])
def test_what_is_no_address_makes_no_client(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is made in vain would hold up the end of the process, and say so."""
    monkeypatch.setattr("distributed.Client", lambda *_, **__: pytest.fail("a client was made"))
    with pytest.raises(QKTaxonomyError, match="or mend --dask"):
        dask_executor(address).__enter__()


def test_a_scheduler_without_workers(tmp_path: Path) -> None:
    with dask_cluster(tmp_path, workers=0) as cluster:
        out, _ = said_by(ENTER, cluster.address).communicate(timeout=120)
    assert f"dask worker {cluster.address}" in out


def test_a_cluster_whose_workers_are_gone(
    hub: LoopbackHub, make_folder: MakeFolder, tmp_path: Path
) -> None:
    hub.add("me/tiny", make_folder())
    code = """
        from huggingface_hub import HfApi
        from qk_taxonomy.catalog import model_ref
        from qk_taxonomy.survey import survey_model
        streaming._LOOK_UP = 0.5
        ref, api = model_ref("me/tiny"), HfApi(endpoint=sys.argv[2])
        with cluster.dask_executor(sys.argv[1]) as executor:
            cluster._PATIENCE = 2
            try:
                survey_model(ref, api=api, executor=executor)
            except QKTaxonomyError as err:
                print(err)
    """
    with dask_cluster(tmp_path, workers=1, environment=environment(hub)) as cluster:
        held = Hold()
        hub.inject("model.safetensors", held, beyond=HEADER)
        process = said_by(code, cluster.address, hub.endpoint)
        wait_until(lambda: not hub.faults)
        cluster.kill_worker(0)
        out, _ = process.communicate(timeout=120)
        held.release()
    assert "No worker of the Dask cluster is left" in out


class Sightings:
    """A client that sees the workers of a list, one entry an asking."""

    def __init__(self, *workers: Mapping[str, object]) -> None:
        self.workers = list(workers)

    def get_executor(self, **_: object) -> None: ...

    def scheduler_info(self) -> dict[str, Mapping[str, object]]:
        return {"workers": self.workers.pop(0)}


def test_a_cluster_is_given_up_only_where_its_workers_stay_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qk_taxonomy.survey.cluster._PATIENCE", -1)  # the second look is too late
    there: dict[str, object] = {"tcp://127.0.0.1:1": {}}
    client = Sightings({}, there, {}, {}, {})
    executor = ClusterExecutor(client)  # type: ignore[arg-type]
    for at_work in (False, False, False, True, False):  # asks at all but the fourth
        executor.check(at_work=at_work)
    with pytest.raises(QKTaxonomyError, match=r"No worker .* is left.*dask worker ADDRESS"):
        executor.check(at_work=False)
    assert not client.workers


def test_a_worker_with_another_release_is_named(tmp_path: Path) -> None:
    code = """
        with cluster.dask_executor(sys.argv[1]):
            print("alike")
        real = importlib.metadata.version
        importlib.metadata.version = lambda package: (
            "0.1.2rc1" if package == "scipy" else f"{real(package)}+local"
        )
        try:
            cluster.dask_executor(sys.argv[1]).__enter__()
        except QKTaxonomyError as err:
            print(err)
    """
    with dask_cluster(tmp_path, workers=1) as cluster:
        out, _ = said_by(code, cluster.address).communicate(timeout=120)
    alike, other = out.splitlines()
    assert alike == "alike"
    own = importlib.metadata.version("scipy")
    assert f" has scipy {own}, and this process has 0.1.2:" in other


def test_a_part_that_kills_its_workers_is_said_to_be_too_large(
    hub: LoopbackHub, make_folder: MakeFolder, tmp_path: Path
) -> None:
    hub.add("me/tiny", make_folder())
    none_may_fail = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with dask_cluster(tmp_path, environment=environment(hub) | none_may_fail) as cluster:
        first, second = held = Hold(), Hold()
        hub.inject("model.safetensors", *held, beyond=HEADER)
        process = download(hub, ".", "--dask", cluster.address)
        wait_until(lambda: not hub.faults)
        cluster.kill_worker(0)
        _, errors = process.communicate(timeout=120)
        first.release()
        second.release()
    assert process.returncode == 1, errors
    assert "Error: me/tiny: The Dask workers that were given a part of the work died" in errors
    assert "smaller --memory" in errors
    assert "Traceback" not in errors


def test_a_scheduler_that_dies_leaves_a_clear_error(
    hub: LoopbackHub, make_folder: MakeFolder, tmp_path: Path
) -> None:
    hub.add("me/tiny", make_folder())
    env = environment(hub)
    cluster: DaskCluster
    with dask_cluster(tmp_path, workers=1, environment=env) as cluster:
        hub.inject("model.safetensors", *[Stall(0)] * 2, Stall(20))
        process = download(hub, ".", "--dask", cluster.address)
        wait_until(lambda: not hub.faults)
        cluster.kill_scheduler()
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "is the scheduler gone?" in errors
    assert "Traceback" not in errors
    assert not Path("data/unlisted/tiny.safetensors").exists()
