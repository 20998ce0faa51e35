"""Latent attention: the projections to latent vectors, folded once a layer instead of once a head.

Every head multiplies its weights by the same latent projections. Where queries and keys both have
one, ``[L_A; L_B] = T Q`` has orthonormal rows in ``Q``, so that ``Aᵀ B`` with ``A = W_A L_A`` and
``B = W_B L_B`` keeps its singular values and its non-zero eigenvalues when the rows of T replace
those of L: heads are then as wide as both ranks together and no longer as wide as d_model.
Householder factorisation is backward stable row by row of L, as the products it replaces are.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from qk_taxonomy.circuits import linalg
from qk_taxonomy.circuits.factors import Factor, FactorPair


def fold_latent(factor: Factor) -> Factor:
    """The factor with all that belongs to its columns multiplied into its latent projection."""
    latent = factor.latent
    if latent is None:
        return factor
    folded = factor.columns is not None or factor.latent_rows is not None or factor.centred
    if folded or latent.dtype != torch.float64:
        latent = _fold(factor, torch.empty_like(latent, dtype=torch.float64))
    return _with_latent(factor, latent)


def narrow_latents(pair: FactorPair) -> FactorPair:
    """The pair with latents folded, and as narrow as their ranks where both sides have one."""
    left, right = pair.left, pair.right
    if left.latent is None or right.latent is None:
        return FactorPair(fold_latent(left), fold_latent(right), pair.scale)
    ranks = [left.latent.shape[0], right.latent.shape[0]]
    device = left.latent.device
    stack = torch.empty(sum(ranks), left.d_model, dtype=torch.float64, device=device)
    latents = [_fold(*x) for x in zip((left, right), stack.split(ranks), strict=True)]
    if sum(ranks) < left.d_model:
        latents = list(linalg.lower_core(stack).split(ranks))
    return FactorPair(_with_latent(left, latents[0]), _with_latent(right, latents[1]), pair.scale)


def _fold(factor: Factor, out: torch.Tensor) -> torch.Tensor:
    """Write a latent projection, with all that belongs to its rows and columns, into ``out``."""
    assert factor.latent is not None
    out.copy_(factor.latent.detach())
    if factor.latent_rows is not None:
        out.mul_(factor.latent_rows[:, None])
    if factor.columns is not None:
        out.mul_(factor.columns)
    if factor.centred:
        ones = out.new_ones(out.shape[1], 1)
        out.sub_(linalg.times(out, ones) / len(ones))
    return out


def _with_latent(factor: Factor, latent: torch.Tensor) -> Factor:
    return replace(factor, latent=latent, latent_rows=None, columns=None, centred=False)
