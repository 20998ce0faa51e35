"""Full circuits by their definition: those of random twins, and heads planted to scale words.

Independent of the package's compression: singular values are those of the factors' QR cores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from untrained import Shape

from qk_taxonomy.studies.circuits.series import WordSeries

Array = NDArray[np.float64]

SERIES = tuple(
    WordSeries((f"base{i}", f"more{i}", f"most{i}"), (f"opposite{i}",)) for i in range(12)
)
#: Places of the words among the tokens, of which they are the first.
BASES, _, STRONG, OPPOSITES = (4 * np.arange(12) + k for k in range(4))
N_WORDS, N_TOKENS = 48, 200


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


def planted_head(rng: np.random.Generator, scales: float, reverses: float, noise: float) -> Array:
    """A and B (2, e, tokens) of F = scales·Σ r rᵀ − reverses·Σ q qᵀ + noise, of rank 28 or so.

    r: base + strong word of a series, q: base − opposite. So F scales by positive eigenvalues, and
    reverses by negative ones.
    """
    tokens = np.eye(N_TOKENS)
    r, q = tokens[BASES] + tokens[STRONG], tokens[BASES] - tokens[OPPOSITES]
    random = noise * rng.standard_normal((2, 4, N_TOKENS))
    left = np.concatenate([scales * r, -reverses * q, random[0]])
    return np.stack([left, np.concatenate([r, q, random[1]])])
