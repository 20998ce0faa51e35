"""Conventions: the tensors as stored (``raw``), or what the layer computes with them (``folded``).

``folded`` reads the residual stream as the input norm leaves it before its gain: the gain goes
into the columns of W_Q, W_K and W_V, and for a LayerNorm, which subtracts the mean over d_model,
each row of them is centred (gain first, so that W·diag(γ)·(I − 11ᵀ/d) is what remains). The gains
of query and key norms go into the rows of W_Q and W_K (and a LayerNorm of a head centres them over
the head), the gains of latent norms into what reads the latent vector, and the attention scale
multiplies the QK circuit. W_O and any norm after it stay as stored. A layer without an input norm
(post-norm models) has nothing to fold but the rest. Cross-attention reads queries from one stream
and keys and values from another, each with its own norm.

What depends on more than two tokens' content is in neither convention. Positions: a rotary
embedding is left out (the circuit is the score of two tokens at one position, without what YaRN or
LongRoPE multiply it by), as are relative position terms and, in latent attention, the part of
queries and keys that only tells positions. Biases: they add to a score terms that are linear in one
token alone. Saturation: clipped queries, keys and values, or scores that are capped. Gates that
multiply a head's output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange, repeat

from qk_taxonomy.circuits.factors import Factor, FactorPair
from qk_taxonomy.circuits.heads import split_heads
from qk_taxonomy.errors import ShapeError
from qk_taxonomy.records import Circuit, Convention, LayerPlan


def _rows(gain: torch.Tensor | None, heads: int, d_head: int) -> torch.Tensor | None:
    """Gain of a query or key norm as (heads, d_head), whether stored for one head or for all."""
    if gain is None:
        return None
    if gain.numel() == d_head:
        return repeat(gain.flatten(), "d_head -> head d_head", head=heads)
    return rearrange(gain.flatten(), "(head d_head) -> head d_head", d_head=d_head)


@dataclass(frozen=True)
class _Layer:
    """A layer's stored tensors and what a convention folds into them."""

    plan: LayerPlan
    tensors: Mapping[str, torch.Tensor]
    folded: bool

    def gain(self, role: str) -> torch.Tensor | None:
        """The gain of a norm, offset included, in float64; None where nothing is folded."""
        norm = self.plan.norms.get(role)
        stored = [t for name, t in self.tensors.items() if name.partition(".")[0] == role]
        if not self.folded or norm is None or not stored:
            return None
        return torch.stack(stored).squeeze(0).double() + norm.offset

    def centres(self, role: str) -> bool:
        """Whether a norm subtracts the mean."""
        norm = self.plan.norms.get(role)
        return self.folded and norm is not None and norm.kind == "layer"

    @property
    def memory(self) -> str:
        """The norm that keys and values are read through."""
        return "memory_norm" if self.plan.cross else "input_norm"

    def latent(self, role: str) -> torch.Tensor | None:
        """The projection to a latent vector as stored, (rank, d_input), without position rows."""
        if role not in self.tensors:
            return None
        latent = self.tensors[role]
        if role == "kv_latent":
            latent = latent[: latent.shape[0] - self.plan.geometry.d_rotary]
        return latent

    def reader(
        self, weights: torch.Tensor, *, norm: str, head_norm: str = "", latent: str = ""
    ) -> Factor:
        """A projection that reads the residual stream."""
        heads, d_head = weights.shape[:2]
        return Factor(
            weights,
            columns=self.gain(norm),
            rows=_rows(self.gain(head_norm), heads, d_head),
            centred=self.centres(norm),
            rows_centred=self.centres(head_norm),
            latent=self.latent(latent),
            latent_rows=self.gain(f"{latent}_norm"),
        )


def circuit_factors(
    plan: LayerPlan,
    tensors: Mapping[str, torch.Tensor],
    circuit: Circuit,
    conventions: Sequence[Convention],
) -> list[FactorPair]:
    """A layer's circuits under each convention, all made of the same stored weights.

    QK: left W_Q (n_heads, d_head, d_input), right W_K (n_kv_heads, ...). OV: left W_Oᵀ (n_heads,
    d_value, d_model), right W_V; of an input that is wider than the residual stream, OV reads the
    residual stream, which comes first.
    """
    heads = split_heads(plan, tensors)
    layers = [_Layer(plan, tensors, convention == "folded") for convention in conventions]
    return [(_ov if circuit == "ov" else _qk)(layer, heads) for layer in layers]


def _qk(layer: _Layer, heads: Mapping[str, torch.Tensor]) -> FactorPair:
    return FactorPair(
        layer.reader(heads["q"], norm="input_norm", head_norm="q_norm", latent="q_latent"),
        layer.reader(heads["k"], norm=layer.memory, head_norm="k_norm", latent="kv_latent"),
        layer.plan.scale if layer.folded else 1.0,
    )


def _ov(layer: _Layer, heads: Mapping[str, torch.Tensor]) -> FactorPair:
    right = layer.reader(heads["v"], norm=layer.memory, latent="kv_latent")
    return FactorPair(Factor(heads["o"]), _first_columns(right, layer.plan.geometry.d_model), 1.0)


def _first_columns(factor: Factor, d_model: int) -> Factor:
    """A factor that reads the first ``d_model`` of its inputs alone."""
    if factor.d_model == d_model:
        return factor
    if factor.latent is not None or factor.centred:
        raise ShapeError("The residual stream cannot be told apart behind a latent or a LayerNorm.")
    columns = None if factor.columns is None else factor.columns[:d_model]
    return replace(factor, weights=factor.weights[..., :d_model], columns=columns)
