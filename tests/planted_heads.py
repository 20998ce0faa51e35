"""Spectra files and sets of heads with λ that a test chooses: no weights, and nothing surveyed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.cache import write_spectra
from qk_taxonomy.hypotheses.heads import HeadSet, load_heads
from qk_taxonomy.records import Circuit, Convention, LayerSpectra, ModelSpectra
from qk_taxonomy.statistics.moments import STATISTICS, describe

Array = NDArray[np.float64]


def write_heads(
    root: Path,
    name: str,
    lam: Array,
    *,
    circuit: Circuit = "qk",
    convention: Convention = "raw",
    stack: str = "",
    **metadata: str,
) -> Path:
    """A spectra file ``data/<name>.safetensors`` of λ (layers, heads, d_head), descending."""
    family, _, stem = name.partition("/")
    layers = tuple(
        LayerSpectra(
            layer=number,
            circuit=circuit,
            convention=convention,
            singular_values=np.sqrt(values),
            eigenvalues=np.zeros(values.shape, dtype=np.complex64),
            statistics=describe(values),
            stack=stack,
        )
        for number, values in enumerate(lam)
    )
    n_layers, n_heads, d_head = lam.shape
    sizes = {
        "n_layers": str(n_layers),
        "n_heads": str(n_heads),
        "n_kv_heads": str(n_heads),
        "d_head": str(d_head),
        "d_model": str(4 * d_head),
    }
    known = {
        "format": "qk-taxonomy-spectra",
        "format_version": "1",
        "model_id": f"made/{stem}",
        "family": family,
        "revision": "none",
        "architecture": "llama",
        **sizes,
        "weights_dtype": "F32",
        "source": "a test",
        "statistics": ",".join(STATISTICS),
        "tool_version": "test",
        "provenance": "{}",
    }
    if stack:
        numbers = ", ".join(f'"{key}": {value}' for key, value in sizes.items())
        known["stacks"] = f'{{"{stack}": {{{numbers}}}}}'
    path = root / "data" / family / f"{stem}.safetensors"
    write_spectra(path, ModelSpectra({**known, **metadata}, layers))
    return path


def heads_of(path: Path, circuit: Circuit = "qk", convention: Convention = "raw") -> HeadSet:
    """The one stack of a spectra file."""
    (found,) = load_heads([path], circuit, convention).sets
    return found
