"""Surveys on a real Dask cluster, started as a user would start one: bit for bit the local ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import LLAMA_CONFIG, MakeFolder, llama_tensors
from dask_cluster import DaskCluster, dask_cluster
from huggingface_hub import HfApi
from loopback_hub import LoopbackHub, Stall

from qk_taxonomy.catalog import model_ref
from qk_taxonomy.errors import QKTaxonomyError
from qk_taxonomy.survey import Silent, survey_model
from qk_taxonomy.survey.cluster import dask_executor

pytest.importorskip("distributed")

N_LAYERS = 12


def download(hub: LoopbackHub, root: str, *options: str) -> subprocess.Popen[str]:
    env = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(Path("hf").absolute())}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "qk_taxonomy", "download", "--model", "me/tiny"),
            *("--circuit", "qk", "--circuit", "ov", "--output-root", root, *options),
        ],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return out


def layers_fetched(hub: LoopbackHub) -> int:
    """Requests for tensors, beyond those for the header."""
    return len([r for r in hub.requests if "model.safetensors" in r.path and r.range]) - 2


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
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(Path("hf").absolute())}
    with dask_cluster(logs, environment=env) as cluster:
        before = layers_fetched(hub)
        # Later layers stall a little, so that both workers are at work when one is killed.
        hub.inject("model.safetensors", *[Stall(0)] * 5, *[Stall(1)] * 6)
        process = download(hub, "there", "--dask", cluster.address)
        deadline = time.monotonic() + 120
        while layers_fetched(hub) < before + 7 and time.monotonic() < deadline:
            time.sleep(0.01)
        cluster.kill_worker(0)
        assert "computed" in finished(process)
    here, there = (Path(root, "data/unlisted/tiny.safetensors") for root in ("here", "there"))
    assert here.read_bytes() == there.read_bytes()
    assert not list(there.parent.glob(".*"))


def test_addresses_without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qk_taxonomy.survey.cluster._PATIENCE", 1)
    with pytest.raises(QKTaxonomyError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        dask_executor("tcp://127.0.0.1:9").__enter__()
    with pytest.raises(QKTaxonomyError, match=r"answers at nonsense .*mend --dask"):
        dask_executor("nonsense").__enter__()


def test_a_scheduler_without_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qk_taxonomy.survey.cluster._PATIENCE", 2)
    with (
        dask_cluster(tmp_path, workers=0) as cluster,
        pytest.raises(QKTaxonomyError, match=f"dask worker {cluster.address}"),
    ):
        dask_executor(cluster.address).__enter__()


def test_a_cluster_whose_workers_are_gone(
    hub: LoopbackHub, make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("me/tiny", make_folder())
    monkeypatch.setattr("qk_taxonomy.survey.streaming._LOOK_UP", 0.5)
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(Path("hf").absolute())}

    class KillTheWorker(Silent):
        def start(self, ref: object, layers: int, n_bytes: int) -> None:
            hub.inject("model.safetensors", *[Stall(20)] * 4)
            monkeypatch.setattr("qk_taxonomy.survey.cluster._PATIENCE", 2)
            cluster.kill_worker(0)

    ref, api = model_ref("me/tiny"), HfApi(endpoint=hub.endpoint)
    with (
        dask_cluster(tmp_path, workers=1, environment=env) as cluster,
        dask_executor(cluster.address) as executor,
        pytest.raises(QKTaxonomyError, match="No worker of the Dask cluster is left"),
    ):
        survey_model(ref, api=api, executor=executor, progress=KillTheWorker())


def test_a_scheduler_that_dies_leaves_a_clear_error(
    hub: LoopbackHub, make_folder: MakeFolder, tmp_path: Path
) -> None:
    hub.add("me/tiny", make_folder())
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(Path("hf").absolute())}
    cluster: DaskCluster
    with dask_cluster(tmp_path, workers=1, environment=env) as cluster:
        hub.inject("model.safetensors", *[Stall(0)] * 2, Stall(20))
        process = download(hub, ".", "--dask", cluster.address)
        deadline = time.monotonic() + 120
        while hub.faults and time.monotonic() < deadline:
            time.sleep(0.01)
        cluster.kill_scheduler()
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "is the scheduler gone?" in errors
    assert "Traceback" not in errors
    assert not Path("data/unlisted/tiny.safetensors").exists()
