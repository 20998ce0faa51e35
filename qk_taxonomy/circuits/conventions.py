"""Conventions: the tensors as stored (``raw``), or what the layer computes with them (``folded``).

``folded`` reads the residual stream as the input norm leaves it before its gain: the gain goes
into the columns of W_Q, W_K and W_V, and for a LayerNorm, which subtracts the mean over d_model,
each row of them is centred (gain first, so that W·diag(γ)·(I − 11ᵀ/d) is what remains). The gains
of query and key norms go into the rows of W_Q and W_K, and the attention scale multiplies the
QK circuit. W_O and any norm after it stay as stored. A layer without an input norm (post-norm
models) has nothing to fold but the rest.

Rotary embeddings are left out: the circuit is the score of two tokens at one position, and what an
extension of them (YaRN) multiplies scores by is not in the scale. Biases belong to neither
convention: they add to a score terms that are linear in one token alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange, repeat

from qk_taxonomy.circuits.heads import split_heads
from qk_taxonomy.records import Circuit, Convention, LayerPlan, Norm


@dataclass(frozen=True, eq=False)
class Factor:
    """One side of a circuit, ``diag(rows) · weights · diag(columns) · (I − 11ᵀ/d if centred)``.

    ``weights`` (heads, d_head, d_model) in any floating dtype; ``columns`` (d_model,) and ``rows``
    (heads, d_head) in float64 or None. Kept apart so that a layer's weights are converted to
    float64 in pieces and never as a whole.
    """

    weights: torch.Tensor
    columns: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    centred: bool = False


def _gain(norm: Norm | None, stored: torch.Tensor | None) -> torch.Tensor | None:
    return None if norm is None or stored is None else stored.double() + norm.offset


def _rows(gain: torch.Tensor | None, heads: int, d_head: int) -> torch.Tensor | None:
    """Gain of a query or key norm as (heads, d_head), whether stored for one head or for all."""
    if gain is None:
        return None
    if gain.numel() == d_head:
        return repeat(gain, "d_head -> head d_head", head=heads)
    return rearrange(gain, "(head d_head) -> head d_head", d_head=d_head)


def circuit_factors(
    plan: LayerPlan,
    tensors: Mapping[str, torch.Tensor],
    circuit: Circuit,
    convention: Convention,
) -> tuple[Factor, Factor, float]:
    """Left and right factor and scale of a layer's circuits: ``circuit = leftᵀ · right · scale``.

    QK: left W_Q (n_heads, d_head, d_model), right W_K (n_kv_heads, ...). OV: left W_Oᵀ, right W_V.
    """
    heads = split_heads(plan, tensors)
    left, right = (heads["q"], heads["k"]) if circuit == "qk" else (heads["o"], heads["v"])
    if convention == "raw":
        return Factor(left), Factor(right), 1.0
    g = plan.geometry
    columns = _gain(plan.input_norm, tensors.get("input_norm"))
    centred = plan.input_norm is not None and plan.input_norm.kind == "layer"
    if circuit == "ov":
        return Factor(left), Factor(right, columns=columns, centred=centred), 1.0
    q_gain = _rows(_gain(plan.q_norm, tensors.get("q_norm")), g.n_heads, g.d_head)
    k_gain = _rows(_gain(plan.k_norm, tensors.get("k_norm")), g.n_kv_heads, g.d_head)
    return (
        Factor(left, columns=columns, rows=q_gain, centred=centred),
        Factor(right, columns=columns, rows=k_gain, centred=centred),
        plan.scale,
    )
