"""Speed of the spectra kernel against two thin SVDs a head, as ratios within one run.

    python tests/benchmarks/kernel.py

Both ways run in this process on the same tensors with all threads torch has, in turn; medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from qk_taxonomy.circuits.factors import Factor
from qk_taxonomy.circuits.spectra import circuit_spectra, singular_values

ROUNDS = 7
TURN = 0.1

# name: (n_heads, n_kv_heads, d_head, d_model, dtype)
SHAPES = {
    "Llama-3-8B": (32, 8, 128, 4096, torch.bfloat16),
    "SmolLM2-135M": (9, 3, 64, 576, torch.bfloat16),
    "all-MiniLM-L6": (12, 12, 32, 384, torch.float32),
    "gpt2": (12, 12, 64, 768, torch.float32),
}


def two_thin_svds(w_q: torch.Tensor, w_k: torch.Tensor) -> torch.Tensor:
    """Singular values from thin SVDs of both projections, as the predecessor took them."""
    w_q, w_k = w_q.float(), w_k.float().repeat_interleave(len(w_q) // len(w_k), dim=0)
    _, s_q, vh_q = torch.linalg.svd(w_q.mT, full_matrices=False)
    _, s_k, vh_k = torch.linalg.svd(w_k.mT, full_matrices=False)
    return torch.linalg.svdvals((s_q[..., None] * (vh_q @ vh_k.mT)) * s_k[..., None, :])


def medians(*ways: Callable[[], object]) -> list[float]:
    """Median seconds of each way, taking turns of ``TURN`` seconds at least; the first is not kept.

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
    return [statistics.median(seconds) for seconds in times]


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {ROUNDS}")
    print(f"{'layer of':14} {'thin SVDs':>10} {'σ':>9} {'ratio':>6} {'σ and μ':>9} {'σ error':>9}")
    for name, (n_heads, n_kv_heads, d_head, d_model, dtype) in SHAPES.items():
        rng = torch.Generator().manual_seed(0)
        w_q, w_k = (
            (0.02 * torch.randn(heads, d_head, d_model, generator=rng)).to(dtype)
            for heads in (n_heads, n_kv_heads)
        )
        thin, sigma, both = medians(
            lambda q=w_q, k=w_k: two_thin_svds(q, k),
            lambda q=w_q, k=w_k: singular_values(q, k),
            lambda q=w_q, k=w_k: circuit_spectra(Factor(q), Factor(k)),
        )
        dense = torch.linalg.svdvals(w_q[0].double().mT @ w_k[0].double())[:d_head]
        error = ((singular_values(w_q, w_k)[0] - dense).abs() / dense).max().item()
        print(
            f"{name:14} {1e3 * thin:7.1f} ms {1e3 * sigma:6.1f} ms {thin / sigma:5.1f}× "
            f"{1e3 * both:6.1f} ms {error:9.1e}"
        )


if __name__ == "__main__":
    main()
