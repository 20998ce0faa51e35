"""How many parts of layers are under way at once: as jobs and memory allow, and always one."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import LLAMA_CONFIG, MakeFolder, llama_tensors

from qk_taxonomy import open_checkpoint
from qk_taxonomy.architectures import attention_layout
from qk_taxonomy.architectures.parts import memory_bytes
from qk_taxonomy.records import CONVENTIONS, LayerSpectra
from qk_taxonomy.survey.streaming import Stream, Workers


@pytest.mark.parametrize(
    ("at_once", "layers_in_memory", "most"), [(6, 2.5, 2), (6, 4.0, 4), (3, 100.0, 3), (6, 0.5, 1)]
)
def test_parts_under_way(
    make_folder: MakeFolder,
    monkeypatch: pytest.MonkeyPatch,
    at_once: int,
    layers_in_memory: float,
    most: int,
) -> None:
    config = LLAMA_CONFIG | {"num_hidden_layers": 12}
    checkpoint = open_checkpoint(str(make_folder(tensors=llama_tensors(12), config=config)))
    plans = attention_layout(checkpoint.config, checkpoint.tensors).layers
    stream = Stream.of(checkpoint, plans, ["qk"], CONVENTIONS, "cpu", float("inf"))
    memory = layers_in_memory * memory_bytes(stream.work[0].part)
    lock, under_way, seen = threading.Lock(), 0, []

    def part(*_: object) -> list[LayerSpectra]:
        nonlocal under_way
        with lock:
            under_way += 1
            seen.append(under_way)
        time.sleep(0.02)  # so that others begin beside it, if they may
        with lock:
            under_way -= 1
        return []

    monkeypatch.setattr("qk_taxonomy.survey.streaming.survey_part", part)
    kept: list[list[LayerSpectra]] = []
    moved: list[int] = []
    with ThreadPoolExecutor(12) as threads:
        workers = Workers(threads, at_once, memory, float("inf"), threading.Event())
        stream.run(workers, kept.append, moved.append, lambda: None)
    assert max(seen) == most
    assert len(kept) == len(seen) == 12
    assert sum(moved) == stream.n_bytes
