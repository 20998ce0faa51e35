"""Singular vectors of a surveyed head, for the sparse decomposition of its logits."""

from __future__ import annotations

from qk_taxonomy.circuits.factors import FactorPair
from qk_taxonomy.circuits.gram import dense
from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.decomposition import SingularVectors, singular_vectors


def head_singular_vectors(pair: FactorPair, head: int) -> SingularVectors:
    """Singular vectors of query head ``head`` of a layer, u and v (d_model, k), σ (k,).

    They are those of the circuit as its convention has it, with everything folded in and the scale
    applied: residual vectors to decompose a logit of are, for a folded circuit, the normalised
    ones before the gain (mean subtracted or not makes no difference to a centred one). Biases and
    positions are no part of a circuit, so neither are they of these logits. Raises ShapeError.
    """
    pair.check()
    if not 0 <= head < pair.left.n_heads:
        raise ShapeError(f"Wanted a head from 0 to {pair.left.n_heads - 1}, found {head}.")
    kv_head = head // pair.group
    left = dense(pair.left.part(slice(head, head + 1)))[0]
    right = dense(pair.right.part(slice(kv_head, kv_head + 1)))[0]
    return singular_vectors(left.numpy() * pair.scale, right.numpy())
