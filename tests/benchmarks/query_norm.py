"""Seconds and peak memory of a capture, beside a forward pass that nobody looks at.

    python tests/benchmarks/query_norm.py [--tokens N...] [--threads N]

A model of SmolLM2-135M's shape with random weights, in float32; each row is a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time

import numpy as np
from streaming import machine, row, table


def measured(n_tokens: int, n_threads: int) -> tuple[float, float, float, float]:
    """Seconds of a plain pass and of a capture, and peak GB after each."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    from qk_taxonomy.studies.query_norm.capture import capture
    from qk_taxonomy.studies.query_norm.models import opened, run

    torch.set_num_threads(n_threads)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
    )
    model = opened(LlamaModel(config), None, name="SmolLM2's shape")
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=n_tokens)
    found = []
    for work in (lambda: run(model, tokens), lambda: capture(model, tokens, name="text")):
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        found += [seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9]
    return found[0], found[2], found[1], found[3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 4096], metavar="N")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print(machine())
    table(
        "Capture of all measures of 30 layers of 9 heads",
        *("tokens", "plain pass", "capture", "peak of the pass", "peak of the capture"),
    )
    for n_tokens in options.tokens:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            plain, captured, before, after = pool.apply(measured, (n_tokens, options.threads))
        row(
            str(n_tokens),
            *(f"{seconds:.1f} s" for seconds in (plain, captured)),
            *(f"{peak:.2f} GB" for peak in (before, after)),
        )


if __name__ == "__main__":
    main()
