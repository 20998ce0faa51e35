"""Speed of the spectra kernel against two thin SVDs a head, as ratios within one run.

    python tests/benchmarks/kernel.py

All ways run in this process on the same tensors with all threads torch has, in turn; medians, and
by how much the turns of the slower half exceed them, which tells how much else the machine had to
do. Then a profile of the first shape, in processor time of the threads, which other load disturbs
less than it does the clock.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from qk_taxonomy.circuits import gram, linalg, spectra
from qk_taxonomy.circuits.factors import Factor, FactorPair
from qk_taxonomy.circuits.spectra import circuit_spectra, layer_spectra, singular_values

ROUNDS = 7
TURN = 0.1

# name: (n_heads, n_kv_heads, d_head, d_model, dtype)
SHAPES = {
    "Llama-3-8B": (32, 8, 128, 4096, torch.bfloat16),
    "Llama-2-7B": (32, 32, 128, 4096, torch.bfloat16),
    "SmolLM2-135M": (9, 3, 64, 576, torch.bfloat16),
    "all-MiniLM-L6": (12, 12, 32, 384, torch.float32),
    "gpt2": (12, 12, 64, 768, torch.float32),
}

# Where the time of a layer goes: what each of these takes, less what is counted within it.
STAGES: dict[str, list[tuple[Any, str]]] = {
    "conversion to float64, gains": [(gram, "_fill")],
    "Gram products": [(linalg, "gram")],
    "cross products": [(gram.Products, "_add_pieces")],
    "Cholesky, symmetric eigenvalues": [(spectra, "_cholesky"), (spectra, "_singular_values")],
    "nonsymmetric eigenvalues": [(linalg, "eigvals")],
}


def layer(name: str) -> tuple[torch.Tensor, torch.Tensor, list[FactorPair]]:
    """Weights of a shape, and the pairs of both conventions, folded with gains and a scale."""
    n_heads, n_kv_heads, d_head, d_model, dtype = SHAPES[name]
    rng = torch.Generator().manual_seed(0)
    w_q, w_k = (
        (0.02 * torch.randn(heads, d_head, d_model, generator=rng)).to(dtype)
        for heads in (n_heads, n_kv_heads)
    )
    gain = torch.rand(d_model, generator=rng, dtype=torch.float64) + 0.5
    raw = FactorPair(Factor(w_q), Factor(w_k))
    return w_q, w_k, [raw, FactorPair(Factor(w_q, gain), Factor(w_k, gain), d_head**-0.5)]


def two_thin_svds(w_q: torch.Tensor, w_k: torch.Tensor) -> torch.Tensor:
    """Singular values from thin SVDs of both projections, as the predecessor took them."""
    w_q, w_k = w_q.float(), w_k.float().repeat_interleave(len(w_q) // len(w_k), dim=0)
    _, s_q, vh_q = torch.linalg.svd(w_q.mT, full_matrices=False)
    _, s_k, vh_k = torch.linalg.svd(w_k.mT, full_matrices=False)
    return torch.linalg.svdvals((s_q[..., None] * (vh_q @ vh_k.mT)) * s_k[..., None, :])


def in_turn(*ways: Callable[[], object]) -> list[list[float]]:
    """Seconds of each way, taking turns of ``TURN`` seconds at least; the first is not kept.

    A turn is many calls of a small layer, so that caches hold what the way itself has touched.
    """
    times: list[list[float]] = [[] for _ in ways]
    for turn in range(ROUNDS + 1):
        for way, seconds in zip(ways, times, strict=True):
            start, calls = time.perf_counter(), 0
            while calls == 0 or time.perf_counter() - start < TURN:
                way()
                calls += 1
            if turn:
                seconds.append((time.perf_counter() - start) / calls)
    return times


@contextmanager
def timed_stages(seconds: dict[str, float]) -> Iterator[None]:
    """Add the processor time of every stage to ``seconds``, whichever thread it runs in."""
    within = threading.local()

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            outer, within.inner = getattr(within, "inner", 0.0), 0.0
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.thread_time() - start
                seconds[stage] += spent - within.inner
                within.inner = outer + spent

        return call

    patches = [
        mock.patch.object(owner, name, timed(stage, getattr(owner, name)))
        for stage, functions in STAGES.items()
        for owner, name in functions
    ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def profile(name: str) -> None:
    """Print a table of the processor time of one layer under both conventions."""
    *_, pairs = layer(name)
    rounds = []
    for _ in range(ROUNDS):
        seconds: dict[str, float] = defaultdict(float)
        start = time.process_time()
        with timed_stages(seconds):
            layer_spectra(pairs)
        whole = time.process_time() - start
        rounds.append({**seconds, "rest": whole - sum(seconds.values()), "all": whole})
    print(f"\n| {name}, raw and folded, σ and μ | processor time | share |\n|---|---|---|")
    median = {stage: statistics.median(r[stage] for r in rounds) for stage in rounds[0]}
    for stage in (*STAGES, "rest", "all"):
        share = median[stage] / median["all"]
        print(f"| {stage} | {1e3 * median[stage]:.0f} ms | {share:.0%} |")


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {ROUNDS}")
    print("| layer of | thin SVDs | σ | ratio | σ and μ | both conventions | noise | σ error |")
    print("|---|---|---|---|---|---|---|---|")
    for name in SHAPES:
        w_q, w_k, pairs = layer(name)
        times = in_turn(
            lambda q=w_q, k=w_k: two_thin_svds(q, k),
            lambda q=w_q, k=w_k: singular_values(q, k),
            lambda q=w_q, k=w_k: circuit_spectra(Factor(q), Factor(k)),
            lambda p=pairs: layer_spectra(p),
        )
        thin, sigma, both, two = (statistics.median(way) for way in times)
        noise = max(statistics.quantiles(way, n=4)[2] / statistics.median(way) for way in times)
        d_head = w_q.shape[1]
        dense = torch.linalg.svdvals(w_q[0].double().mT @ w_k[0].double())[:d_head]
        error = ((singular_values(w_q, w_k)[0] - dense).abs() / dense).max().item()
        print(
            f"| {name} | {1e3 * thin:.1f} ms | {1e3 * sigma:.1f} ms | {thin / sigma:.1f}× "
            f"| {1e3 * both:.1f} ms | {1e3 * two:.1f} ms | {noise - 1:.0%} | {error:.1e} |"
        )
    profile("Llama-3-8B")


if __name__ == "__main__":
    main()
