"""Checkpoints that travel to another process: small, without a token, and able to read there."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LLAMA_CONFIG, MakeFolder, llama_tensors
from huggingface_hub import HfApi
from loopback_hub import LoopbackHub
from safetensors.numpy import save_file
from test_adapters import make_adapter

from qk_taxonomy import open_checkpoint
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.controls import make_control, surveyed
from qk_taxonomy.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("hub_cache")

Q0 = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessPoolExecutor]:
    """A process that knows nothing of this one, in another working directory."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=os.chdir, initargs=("/",)) as pool:
        yield pool


def on_hub(hub: LoopbackHub, folder: Path) -> Checkpoint:
    """A model whose names and config would be much to send."""
    layers = 40
    (folder / "config.json").write_text(json.dumps(LLAMA_CONFIG | {"num_hidden_layers": layers}))
    save_file(llama_tensors(layers), folder / "model.safetensors")
    hub.add("org/deep", folder)
    return open_checkpoint("org/deep", api=HfApi(endpoint=hub.endpoint))


def local(hub: LoopbackHub, folder: Path) -> Checkpoint:
    return open_checkpoint(os.path.relpath(folder))


def adapter(hub: LoopbackHub, folder: Path) -> Checkpoint:
    hub.add("org/adapter", make_adapter(folder.parent / "adapter", "org/tiny"))
    hub.add("org/tiny", folder)
    return open_checkpoint("org/adapter", api=HfApi(endpoint=hub.endpoint))


def random_twin(hub: LoopbackHub, folder: Path) -> Checkpoint:
    return surveyed(open_checkpoint(str(folder)), None, make_control("random", 3))[0]


@pytest.mark.parametrize("make", [on_hub, local, adapter, random_twin])
def test_another_process_reads_the_same(
    hub: LoopbackHub,
    make_folder: MakeFolder,
    worker: ProcessPoolExecutor,
    make: Callable[[LoopbackHub, Path], Checkpoint],
) -> None:
    checkpoint = make(hub, make_folder())
    assert len(pickle.dumps(checkpoint)) < 2000
    for name in (Q0, Q0.replace("q_proj", "k_proj")):
        info = checkpoint.tensors[name]
        # A scheduler on the way unpickles what it passes on, and pickles it again.
        sent = pickle.loads(pickle.dumps(checkpoint))
        found = worker.submit(sent.read, info).result(timeout=60)
        torch.testing.assert_close(found, checkpoint.read(info), rtol=0, atol=0)


def test_another_process_reads_a_gguf_file(tmp_path: Path, worker: ProcessPoolExecutor) -> None:
    import gguf

    path = tmp_path / "tiny.gguf"
    weights = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_head_count(2)
    quantised = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("blk.0.attn_q.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(os.path.relpath(path))
    assert len(pickle.dumps(checkpoint)) < 2000
    info = checkpoint.tensors["blk.0.attn_q.weight"]
    found = worker.submit(checkpoint.read, info).result(timeout=60)
    torch.testing.assert_close(found, checkpoint.read(info), rtol=0, atol=0)


def test_a_token_that_is_in_the_environment_stays_there(
    hub: LoopbackHub, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that reads has its own, or none."""
    hub.cdn = True
    hub.add("org/tiny", make_folder(), private=True)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    checkpoint = open_checkpoint("org/tiny", api=HfApi(endpoint=hub.endpoint))
    info = checkpoint.tensors[Q0]
    whole = checkpoint.read(info)
    sent = pickle.dumps(checkpoint)
    assert hub.token.encode() not in sent
    assert hub.signature.encode() not in sent
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError, match="HF_TOKEN"):
        pickle.loads(sent).read(info)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    torch.testing.assert_close(pickle.loads(sent).read(info), whole, rtol=0, atol=0)


def test_copies_that_come_to_a_process_ask_the_hub_once_a_file(
    hub: LoopbackHub, make_folder: MakeFolder
) -> None:
    """A cluster's worker gets a copy with every part of a layer."""
    hub.cdn = True
    hub.add("org/tiny", make_folder())
    checkpoint = open_checkpoint("org/tiny", api=HfApi(endpoint=hub.endpoint))
    sent = pickle.dumps(checkpoint)
    asked = len(hub.requests)
    for _ in range(2):
        pickle.loads(sent).read(checkpoint.tensors[Q0])
    assert [request.status for request in hub.requests[asked:]] == [302, 206, 206]


def test_a_token_that_was_given_travels(hub: LoopbackHub, make_folder: MakeFolder) -> None:
    hub.add("org/tiny", make_folder(), private=True)
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    checkpoint = open_checkpoint("org/tiny", api=api)
    again = pickle.loads(pickle.dumps(checkpoint))
    assert again.read(checkpoint.tensors[Q0]).shape == checkpoint.tensors[Q0].shape
