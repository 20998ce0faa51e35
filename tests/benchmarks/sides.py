"""One side of a comparison, run in a process of its own: its time, and its peak memory.

    run("survey", endpoint=hub.endpoint, model="bench/gpt2")    # from another benchmark

A side's clock starts when everything it needs is imported. HF_HOME is an empty folder, so that
nothing comes from a user's cache.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Side by side, the plain reads of a client that computes nothing.
READERS = 4


@dataclass(frozen=True)
class Run:
    """What a side took.

    ``seconds``: from after its imports. ``command``: from the start of the process to its end,
    without the time to import torch. ``cpu``: processor time from after the imports. ``peak`` and
    ``idle``: bytes of memory at most, and with torch imported and nothing done. ``reported``: what
    the side says of itself.
    """

    seconds: float
    command: float
    cpu: float
    peak: float
    idle: float
    reported: dict[str, Any]


def run(side: str, *, endpoint: str = "http://127.0.0.1:9", **options: Any) -> Run:
    """Run a side with its options; ``endpoint``: of the hub it talks to."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": folder,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, __file__, side, json.dumps({"output": folder, **options})],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=600,
            check=True,
        )
        wall = time.perf_counter() - start
    said = json.loads(done.stdout.splitlines()[-1])
    said["command"] = wall - said.pop("torch_import")
    return Run(**said)


def memory() -> float:
    """Bytes that are resident now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * resource.getpagesize())


def peak_memory() -> float:
    """Bytes that were resident at most. ``ru_maxrss`` would count what the parent had."""
    status = Path("/proc/self/status").read_text()
    return 1024.0 * int(status.partition("VmHWM:")[2].split()[0])


def survey(model: str, output: str, **options: Any) -> Callable[[], dict[str, Any]]:
    """The survey itself, of a hub model or a folder."""
    from qk_taxonomy.catalog import model_ref
    from qk_taxonomy.survey import survey_model

    def work() -> dict[str, Any]:
        ref = model_ref(model, family_name="bench", families=())
        result = survey_model(ref, output_root=output, force=True, device="cpu", **options)
        assert result.status == "computed", result
        return {"bytes_read": result.bytes_read, "heads": result.heads}

    return work


def plain(folder: str, output: str, readers: int = READERS) -> Callable[[], dict[str, Any]]:
    """Ranged reads of the same tensors through huggingface_hub's client, and nothing else."""
    from checkpoints import Stored, named_tensors
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import get_session

    path = Path(folder)
    tensors = named_tensors(path)
    client = get_session()

    def read(tensor: Stored) -> int:
        url = hf_hub_url(f"bench/{path.name}", tensor.file.name)
        headers = {
            "Range": f"bytes={tensor.start}-{tensor.end - 1}",
            "Accept-Encoding": "identity",
        }
        data = bytearray()
        with client.stream("GET", url, headers=headers, follow_redirects=True) as response:
            for chunk in response.iter_raw():
                data += chunk
        assert len(data) == tensor.end - tensor.start
        return len(data)

    def work() -> dict[str, Any]:
        with ThreadPoolExecutor(readers) as pool:
            return {"bytes_read": sum(pool.map(read, tensors))}

    return work


def compute(folder: str, output: str) -> Callable[[], dict[str, Any]]:
    """The spectra of all layers, of weights that are in memory already."""
    import torch

    from qk_taxonomy.architectures import parts
    from qk_taxonomy.checkpoints import open_checkpoint
    from qk_taxonomy.circuits.threads import start_threads
    from qk_taxonomy.controls import surveyed
    from qk_taxonomy.records import CONVENTIONS, DEFAULT_JOBS, LayerPart, TensorInfo
    from qk_taxonomy.survey.layers import survey_part

    checkpoint, layout = surveyed(open_checkpoint(folder), None, None)
    work_to_do = [part for plan in layout.layers for part in parts(plan, ["qk"], float("inf"))]

    class InMemory:
        """What a part reads, read before."""

        def __init__(self, part: LayerPart) -> None:
            self.tensors = checkpoint.read_all(part.plan.tensors)

        def read_all(self, infos: dict[str, TensorInfo]) -> dict[str, torch.Tensor]:
            return self.tensors

    held = [(InMemory(part), part, CONVENTIONS, "cpu") for part in work_to_do]
    start_threads()

    def work() -> dict[str, Any]:
        with ThreadPoolExecutor(DEFAULT_JOBS) as pool:
            done = list(pool.map(lambda arguments: survey_part(*arguments), held))
        return {"bytes_read": sum(part.n_bytes for _, part, _, _ in held if done)}

    return work


def grams(folder: str, output: str, times: int = 1) -> Callable[[], dict[str, Any]]:
    """Read the projections from disk, and compute Q Qᵀ and K Kᵀ of every head in float64.

    ``times``: how often the products are computed, once for every convention.
    """
    import torch
    from checkpoints import DTYPES, SHAPES, heads, named_tensors
    from threadpoolctl import threadpool_limits

    path = Path(folder)
    tensors = named_tensors(path)
    cores = len(os.sched_getaffinity(0))
    # Threads over heads, each with one-threaded BLAS: the fastest that is simple.
    torch.set_num_threads(1)

    def product(head: torch.Tensor) -> None:
        for _ in range(times):
            # NumPy, unlike torch, takes the symmetric product at half the work.
            rows = head.double().numpy()
            rows @ rows.T

    def work() -> dict[str, Any]:
        with threadpool_limits(1), ThreadPoolExecutor(cores) as pool:
            for tensor in tensors:
                data = bytearray(tensor.end - tensor.start)
                with tensor.file.open("rb", buffering=0) as stream:
                    stream.seek(tensor.start)
                    stream.readinto(data)
                if len(tensor.shape) == 1:
                    continue
                weights = torch.frombuffer(data, dtype=DTYPES[tensor.dtype]).view(tensor.shape)
                for projection in heads(SHAPES[path.name], tensor.name, weights):
                    list(pool.map(product, projection))
        return {"bytes_read": sum(tensor.end - tensor.start for tensor in tensors)}

    return work


def whole_shards(folder: str, output: str) -> Callable[[], dict[str, Any]]:
    """Download all files, load each layer's projections and take two thin SVDs a head."""
    import torch
    from checkpoints import SHAPES, heads, named_tensors
    from huggingface_hub import snapshot_download
    from kernel import two_thin_svds
    from safetensors import safe_open

    path = Path(folder)
    named = [tensor for tensor in named_tensors(path) if len(tensor.shape) == 2]

    def work() -> dict[str, Any]:
        start = time.perf_counter()
        local = Path(snapshot_download(f"bench/{path.name}"))
        downloaded = time.perf_counter() - start
        layers: dict[str, list[torch.Tensor]] = {}
        for tensor in sorted(named, key=lambda t: "k_proj" in t.name or ".key." in t.name):
            with safe_open(local / tensor.file.name, "pt") as file:
                stored = file.get_tensor(tensor.name)
            layer = next(part for part in tensor.name.split(".") if part.isdigit())
            layers.setdefault(layer, []).extend(heads(SHAPES[path.name], tensor.name, stored))
        for w_q, w_k in layers.values():
            two_thin_svds(w_q, w_k)
        return {"downloaded": downloaded}

    return work


def full_circuits(folder: str, output: str, **options: Any) -> Callable[[], dict[str, Any]]:
    """Full circuits of every head of a checkpoint folder, without control."""
    from qk_taxonomy.catalog import model_ref
    from qk_taxonomy.studies.circuits import compute

    def work() -> dict[str, Any]:
        ref = model_ref(folder, family_name="bench", families=())
        found = compute.full_circuits(ref, output_root=output, **options)
        return {"spectra": sum(len(layer.singular_values) for layer in found.layers)}

    return work


def factored(
    folder: str, output: str, of: str, dtype: str, times: int
) -> Callable[[], dict[str, Any]]:
    """Eigenvalues and singular values of a GPT-Neo's first head, both circuits, as stored.

    of: "lens" for TransformerLens' FactoredMatrix, "torch" for the same steps without it: an e×e
    eigenvalue problem, and thin SVDs of both V×e factors and of what is between them. What is
    computed is timed alone, ``times`` times.
    """
    import torch
    from safetensors import safe_open

    if of == "lens":
        from transformer_lens import FactoredMatrix
    with safe_open(Path(folder) / "model.safetensors", "pt") as file:
        layer = "transformer.h.0.attn.attention."
        tokens = file.get_tensor("transformer.wte.weight").to(getattr(torch, dtype))
        q, k, v = (
            file.get_slice(f"{layer}{role}_proj.weight")[:48, :].to(tokens.dtype) for role in "qkv"
        )
        o = file.get_slice(f"{layer}out_proj.weight")[:, :48].to(tokens.dtype)

    def spectra(left: torch.Tensor, right: torch.Tensor) -> None:
        """Of ``tokens @ left @ right @ tokens.T``."""
        if of == "lens":
            matrix = tokens @ FactoredMatrix(left, right) @ tokens.T
            assert len(matrix.eigenvalues) == len(matrix.S)
            return
        a, b = tokens @ left, right @ tokens.T
        torch.linalg.eig(b @ a)
        _, s_a, vh_a = torch.linalg.svd(a, full_matrices=False)
        u_b, s_b, _ = torch.linalg.svd(b, full_matrices=False)
        torch.linalg.svd(s_a[:, None] * (vh_a @ u_b) * s_b)

    def work() -> dict[str, Any]:
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            spectra(q.mT, k)
            spectra(v.mT, o.mT)
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}

    return work


def idle(output: str, modules: str = "torch") -> Callable[[], dict[str, Any]]:
    """Import modules, named with spaces between, and say what is resident then."""
    import importlib

    for module in modules.split():
        importlib.import_module(module)
    return lambda: {"resident": memory()}


SIDES = {
    side.__name__: side
    for side in (survey, plain, compute, grams, whole_shards, full_circuits, factored, idle)
}


def main() -> None:
    before = time.perf_counter()
    import torch

    torch.zeros(1)
    torch_import = time.perf_counter() - before
    torch_alone = memory()
    work = SIDES[sys.argv[1]](**json.loads(sys.argv[2]))
    start, cpu = time.perf_counter(), time.process_time()
    reported = work()
    said = {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "peak": peak_memory(),
        "idle": torch_alone,
        "torch_import": torch_import,
        "reported": reported,
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
