"""From stored projections to heads: every packing ends in the same axes.

``q``, ``k``: (heads, d_head, d_input), ``v``: (heads, d_value, d_input), and ``o``, transposed so
that it has the same axes, (n_heads, d_value, d_model): row ``i`` of head ``h`` is what the head's
``i``-th value writes. Projections of latent attention read a latent vector instead of the input.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange

from qk_taxonomy.records import HeadGeometry, LayerPlan

_ROWS = "(head d_head) d_model -> head d_head d_model"
_COLUMNS = "d_model (head d_head) -> head d_head d_model"


def _split_fused(qkv: torch.Tensor, plan: LayerPlan) -> dict[str, torch.Tensor]:
    """Split a fused (rows, d_model) projection into the heads of q, k and v."""
    g = plan.geometry
    if plan.packing == "concatenated":
        sizes = [heads * g.d_head for heads in (g.n_heads, g.n_kv_heads, g.n_kv_heads)]
        return {
            role: rearrange(part, _ROWS, d_head=g.d_head)
            for role, part in zip("qkv", qkv.split(sizes), strict=True)
        }
    if plan.packing == "blocks":
        parts = rearrange(
            qkv, "(block part head d_head) d_model -> part (block head) d_head d_model",
            block=plan.n_blocks, part=3, d_head=g.d_head,
        )  # fmt: skip
        return {"q": parts[0], "v": parts[1], "k": parts[2]}
    grouped = rearrange(
        qkv, "(kv_head slot d_head) d_model -> kv_head slot d_head d_model",
        kv_head=g.n_kv_heads, d_head=g.d_head,
    )  # fmt: skip
    return {
        "q": rearrange(
            grouped[:, :-2], "kv_head group d_head d_model -> (kv_head group) d_head d_model"
        ),
        "k": grouped[:, -2],
        "v": grouped[:, -1],
    }


def _split_latent(tensors: Mapping[str, torch.Tensor], g: HeadGeometry) -> dict[str, torch.Tensor]:
    """Keys and values of every head from the latent vector, and queries without positions."""
    heads = {}
    if "q" in tensors:
        rows = rearrange(tensors["q"], "(head row) d_in -> head row d_in", head=g.n_heads)
        heads["q"] = rows[:, : g.d_head]
    rows = rearrange(tensors["kv"], "(head row) d_in -> head row d_in", head=g.n_heads)
    heads["k"], heads["v"] = rows.split([g.d_head, g.d_value], dim=1)
    return heads


def split_heads(plan: LayerPlan, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The projections of one layer by head: q, k, v, o as far as ``tensors`` has them.

    ``tensors`` maps the plan's roles to stored tensors, whose shapes the plan has checked; of ``o``
    any rows do. Views where possible; nothing is converted.
    """
    g: HeadGeometry = plan.geometry
    heads: dict[str, torch.Tensor] = {}
    if plan.packing == "latent":
        heads |= _split_latent(tensors, g)
    elif plan.packing == "separate":
        for role, size in (("q", g.d_head), ("k", g.d_head), ("v", g.d_value)):
            if role in tensors:
                stored = tensors[role].mT if plan.transposed else tensors[role]
                rows = 2 * size if plan.gated and role == "q" else size
                heads[role] = rearrange(stored, _ROWS, d_head=rows)[:, :size]
    elif "qkv" in tensors:
        heads |= _split_fused(tensors["qkv"].mT if plan.transposed else tensors["qkv"], plan)
    if "o" in tensors:
        stored = tensors["o"].mT if plan.transposed else tensors["o"]
        heads["o"] = rearrange(stored, _COLUMNS, d_head=g.d_value)
    return heads
