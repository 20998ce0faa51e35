"""Untrained heads by shape, drawn once and kept in the user's cache."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from qk_taxonomy.statistics.nulls import untrained_spectra

#: Untrained heads that a test compares with: p-values down to 1 / (1 + DRAWS).
DRAWS = 4000

# Changes whenever the same shape would give other draws.
_VERSION = 1


def _cache_file(d_head: int, d_model: int, draws: int) -> Path:
    folder = platformdirs.user_cache_path("qk-taxonomy") / f"untrained-{_VERSION}"
    return folder / f"{d_head}x{d_model}-{draws}.npy"


@functools.lru_cache(maxsize=8)
def untrained_heads(d_head: int, d_model: int, draws: int = DRAWS) -> NDArray[np.float64]:
    """λ of ``draws`` independent untrained heads: (draws, d_head), descending, of mean about 1.

    The same ones at every call (``statistics.nulls.untrained_spectra``, seed 0). Raises ShapeError.
    """
    file = _cache_file(d_head, d_model, draws)
    try:
        kept = np.load(file, allow_pickle=False)
        if kept.shape == (draws, d_head) and np.isfinite(kept).all():
            return np.asarray(kept, dtype=np.float64)
    except (OSError, ValueError, EOFError):
        pass  # not kept yet, or damaged: drawn again
    lam = untrained_spectra(d_head, d_model, draws)[:, 0].astype(np.float32)
    _keep(file, lam)
    return lam.astype(np.float64)


def _keep(file: Path, lam: NDArray[np.float32]) -> None:
    """Write a cache file whole; a cache that cannot be written costs time and nothing else."""
    beside = file.with_name(f"{file.stem}.{os.getpid()}.npy")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(beside, lam, allow_pickle=False)
        beside.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
