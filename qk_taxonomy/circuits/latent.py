"""Latent attention: the projections to latent vectors, folded once a layer instead of once a head.

Every head multiplies its weights by the same latent projections. Where queries and keys both have
one, ``[L_A; L_B]ᵀ = Q R`` has orthonormal ``Q``, so that ``Aᵀ B = W_Aᵀ L_A L_Bᵀ W_B`` keeps its
singular values and its non-zero eigenvalues when the columns of R replace the rows of L: heads are
then as wide as both ranks together and no longer as wide as d_model. Householder QR is backward
stable row by row of L, as the products it replaces are.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from qk_taxonomy.circuits import linalg
from qk_taxonomy.circuits.factors import Factor, FactorPair


def fold_latent(factor: Factor) -> Factor:
    """The factor with all that belongs to its columns multiplied into its latent projection."""
    if factor.latent is None:
        return factor
    if (factor.columns, factor.latent_rows) == (None, None) and not factor.centred:
        return replace(factor, latent=factor.latent.detach().double())
    latent = factor.latent.detach().to(torch.float64, copy=True)
    if factor.latent_rows is not None:
        latent.mul_(factor.latent_rows[:, None])
    if factor.columns is not None:
        latent.mul_(factor.columns)
    if factor.centred:
        ones = latent.new_ones(latent.shape[1], 1)
        latent.sub_(linalg.times(latent, ones) / len(ones))
    return replace(factor, latent=latent, latent_rows=None, columns=None, centred=False)


def narrow_latents(pair: FactorPair) -> FactorPair:
    """The pair with latents folded, and as narrow as their ranks where both sides have one."""
    left, right = fold_latent(pair.left), fold_latent(pair.right)
    if left.latent is not None and right.latent is not None:
        latents = torch.cat([left.latent, right.latent])
        if latents.shape[0] < latents.shape[1]:
            of_left, of_right = linalg.qr_core(latents.mT).mT.split(
                [left.latent.shape[0], right.latent.shape[0]]
            )
            left, right = replace(left, latent=of_left), replace(right, latent=of_right)
    return FactorPair(left, right, pair.scale)
