"""Untrained models by their definition: dense Gaussian projections, and heads with a planted rank.

Independent of the samplers under test, which never see a d_model-sized matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    layers: int = 6
    heads: int = 8
    kv_heads: int = 8
    d_head: int = 16
    d_model: int = 96

    @property
    def places(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Layer and key-value head of every head, layer by layer."""
        layer = np.repeat(np.arange(self.layers), self.heads)
        group = np.tile(np.arange(self.heads) // (self.heads // self.kv_heads), self.layers)
        return layer, group

    @property
    def n(self) -> int:
        return self.layers * self.heads


def untrained_model(
    rng: np.random.Generator, shape: Shape, planted: NDArray[Any] | None = None, decay: float = 0.1
) -> Array:
    """λ (heads, d_head), descending, of all heads of a random model.

    ``planted``: indices of heads whose queries are damped by exp(−decay·i) in their i-th direction,
    so that few directions matter.
    """
    w_q = rng.standard_normal((shape.layers, shape.heads, shape.d_head, shape.d_model))
    w_k = rng.standard_normal((shape.layers, shape.kv_heads, shape.d_head, shape.d_model))
    if planted is not None:
        damping = np.exp(-decay * np.arange(shape.d_head))
        layer, head = np.divmod(planted, shape.heads)
        w_q[layer, head] *= damping[:, None]
    w_k = np.repeat(w_k, shape.heads // shape.kv_heads, axis=1)
    # QR cores, not the Gram matrices that the package takes.
    r_q, r_k = (np.linalg.qr(w.mT, mode="r") for w in (w_q, w_k))
    sigma = np.linalg.svd(r_q @ r_k.mT, compute_uv=False)
    return np.asarray(np.square(sigma).reshape(shape.n, shape.d_head))
