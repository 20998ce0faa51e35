"""Untrained heads by shape, drawn once and kept in the user's cache.

Heads that share a key have each the law of a head of its own, so one set of independent draws
serves any grouping; ``statistics.nulls`` draws groups where they are to be taken together.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from qk_taxonomy.statistics.nulls import untrained_spectra

# Untrained heads to compare with, by the number of heads that are tested (at most): p-values reach
# 1 / (1 + draws), and after correction over n heads a few extreme ones must still be found.
_DRAWS = ((100, 4000), (400, 16_000), (math.inf, 40_000))

# Wide heads cost the cube of their width: more of them than this would take minutes.
_WIDE, _MOST_WIDE = 128, 16_000

# Changes whenever the same shape would give other draws.
_VERSION = 1


def _cache_file(d_head: int, d_model: int, draws: int) -> Path:
    folder = platformdirs.user_cache_path("qk-taxonomy") / f"untrained-{_VERSION}"
    return folder / f"{d_head}x{d_model}-{draws}.npy"


def draws_for(n_heads: int, d_head: int) -> int:
    """How many untrained heads to compare ``n_heads`` heads of a model with."""
    draws = next(draws for most, draws in _DRAWS if n_heads <= most)
    return min(draws, _MOST_WIDE) if d_head > _WIDE else draws


@functools.lru_cache(maxsize=8)
def untrained_heads(d_head: int, d_model: int, draws: int) -> NDArray[np.float64]:
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
