"""Attention of a block of queries, from its scores: pure functions on tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, eq=False)
class ScoreBlock:
    """Scores of some queries over the keys that any of them may attend to, before the softmax.

    linear: (H, Q, K), the scaled products of queries and keys, in float32 at least. bias: what is
    added after the cap, (1 or H, Q, K), or None. allowed: (Q, K), True where a query may attend.
    softcap: scores are softcap · tanh(linear / softcap), or None. sink: (H,), the logit of one
    outcome more that belongs to no key, or None. queries: (Q,) and keys: (K,), their positions.
    """

    linear: torch.Tensor
    bias: torch.Tensor | None
    allowed: torch.Tensor
    softcap: float | None
    sink: torch.Tensor | None
    queries: torch.Tensor
    keys: torch.Tensor

    def of_heads_in_float64(self, heads: list[int]) -> ScoreBlock:
        """The same block of some heads."""
        bias = self.bias
        if bias is not None:
            bias = (bias[heads] if len(bias) > 1 else bias).double()
        sink = None if self.sink is None else self.sink[heads].double()
        return replace(self, linear=self.linear[heads].double(), bias=bias, sink=sink)


@dataclass(frozen=True, eq=False)
class AttentionBlock:
    """What a :class:`ScoreBlock` becomes.

    probabilities: (H, Q, K), of keys; they and the sink's sum to 1. entropy: (H, Q), nats, the sink
    counting as an outcome. gain: (H, Q), Cov_p(s, ∂s/∂log α) for the linear part times α.
    """

    probabilities: torch.Tensor
    entropy: torch.Tensor
    gain: torch.Tensor


def attend(block: ScoreBlock, alpha: float = 1.0) -> AttentionBlock:
    """The attention that a block's scores make, with their linear part times ``alpha``.

    H = log Z − Σ p s, so dH/d log α = −Σ (∂p/∂log α) s = −Cov_p(s, ∂s/∂log α): minus the gain.
    """
    linear = block.linear if alpha == 1.0 else block.linear * alpha
    scores, slopes = linear, linear
    if block.softcap is not None:
        bounded = torch.tanh(linear / block.softcap)
        scores = bounded * block.softcap
        slopes = linear * (1 - bounded.square())
    if block.bias is not None:
        scores = scores + block.bias
    scores = scores.masked_fill(~block.allowed, -torch.inf)
    highest = scores.amax(-1, keepdim=True)
    sink = None
    if block.sink is not None:
        sink = block.sink[:, None, None]
        highest = torch.maximum(highest, sink)
        sink = sink - highest
    scores -= highest
    p = torch.exp(scores)
    total = p.sum(-1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(sink)
    p /= total
    scores.masked_fill_(~block.allowed, 0)  # 0 · −∞ is no number
    mean = (p * scores).sum(-1, keepdim=True)
    if sink is not None:
        p_sink = torch.exp(sink) / total
        mean = mean + p_sink * sink
    entropy = (total.log() - mean)[..., 0].clamp_min(0)
    # Centred before the product: scores far from 0 that differ little would cancel.
    deviations = scores.sub_(mean)
    if slopes is linear and block.bias is None and sink is None:
        gain = (p * deviations.square_()).sum(-1)
    else:
        mean_slope = (p * slopes).sum(-1, keepdim=True)
        gain = (p * deviations * (slopes - mean_slope)).sum(-1)
        if sink is not None:  # its logit does not depend on the query
            gain = gain - (p_sink * (sink - mean) * mean_slope)[..., 0]
    return AttentionBlock(p, entropy, gain)
