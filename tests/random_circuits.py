"""Full circuits of random twins by their definition: dense products over a whole vocabulary.

Independent of the package's compression: singular values are those of the factors' QR cores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from untrained import Shape

Array = NDArray[np.float64]


def random_twin(
    rng: np.random.Generator, shape: Shape, n_tokens: int, decay: Array | None = None
) -> tuple[Array, NDArray[Any]]:
    """σ of QK_full (heads, d_head) of an untrained model, and each head's key-value group.

    All heads share one embedding (n_tokens, d_model). ``decay`` (heads,): queries are damped by
    exp(−decay·i) in their i-th direction, 0 for an untrained head.
    """
    embed = rng.standard_normal((n_tokens, shape.d_model))
    factor = np.linalg.qr(embed, mode="r").T
    w_q = rng.standard_normal((shape.n, shape.d_head, shape.d_model))
    if decay is not None:
        w_q *= np.exp(-decay[:, None] * np.arange(shape.d_head))[..., None]
    layers, groups = shape.places
    number = layers * shape.kv_heads + groups
    w_k = rng.standard_normal((shape.layers * shape.kv_heads, shape.d_head, shape.d_model))
    r_q, r_k = (np.linalg.qr((w @ factor).mT, mode="r") for w in (w_q, w_k[number]))
    return np.linalg.svd(r_q @ r_k.mT, compute_uv=False), number
