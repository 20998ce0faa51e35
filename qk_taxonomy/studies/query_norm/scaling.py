"""What a head's entropy does when its queries or keys are made longer or shorter, all else left as
it is.

A score is a product of a query and a key, so that a factor α of one is the same as of the other;
but the keys of one head may be those of several heads' queries (grouped attention), and change all
of these. A cap, a bias or a sink comes after the product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from qk_taxonomy.errors import StudyError
from qk_taxonomy.studies.query_norm.attention import observed
from qk_taxonomy.studies.query_norm.capture import check_text
from qk_taxonomy.studies.query_norm.models import OpenModel, run
from qk_taxonomy.studies.query_norm.records import FEWEST_KEYS
from qk_taxonomy.studies.query_norm.scores import AttentionBlock, ScoreBlock, attend
from qk_taxonomy.studies.query_norm.watch import AttentionLayer, check_one_stack

#: Factors of queries and keys.
ALPHAS = tuple(round(0.1 * i, 1) for i in range(5, 16))

# Half the width of the central differences in log α; their error is of its square, in float64.
_STEP = 1e-3


class ScaledHead(NamedTuple):
    """What is scaled: a head's queries, or its keys, and head then counts heads of keys."""

    layer: int
    head: int
    of: Literal["queries", "keys"] = "queries"

    def __str__(self) -> str:
        place = f"{self.layer}.{self.head}"
        return place if self.of == "queries" else f"keys of {place}"


@dataclass(frozen=True, eq=False)
class ScalingResult:
    """Entropies of some heads by the factor α of their queries or keys, and the identity
    dH/d log α = −Cov_p(s, ∂s/∂log α), which is −α² Var_p(s) of the unscaled scores where these are
    linear in the query.

    heads: in the order of rows. alphas: (n_alphas,), ascending. entropy: (n_heads, n_alphas), mean
    over tokens and, of keys, over the heads whose queries they meet, nats. slope: mean dH/d log α,
    measured by central differences. predicted: mean of what the identity says. deviation: mean
    |slope − predicted| over tokens, relative to mean |predicted|, nan where that is 0 (attention
    that is saturated). n_tokens: with as many keys as it takes.
    """

    heads: tuple[ScaledHead, ...]
    alphas: NDArray[np.float64]
    entropy: NDArray[np.float64]
    slope: NDArray[np.float64]
    predicted: NDArray[np.float64]
    deviation: NDArray[np.float64]
    n_tokens: int


def scale_heads(
    model: OpenModel,
    tokens: Sequence[int] | NDArray[np.int64],
    heads: Sequence[ScaledHead],
    *,
    alphas: Sequence[float] = ALPHAS,
) -> ScalingResult:
    """Entropies of heads with their queries, or keys, times each α, in one forward pass.

    What the layer gives to the next stays that of α = 1, so that every head is changed alone; let
    ``capture(scale=...)`` show what becomes of it. Entropies are computed in float64 from the
    model's scores. Raises StudyError as :func:`capture` does, for heads that are not there, and
    for a model of several stacks.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    check_text(model, ids)
    observer = _Scaling(list(heads), np.sort(np.asarray(alphas, dtype=np.float64)))
    with observed(model.model, observer):
        run(model, ids)
    return observer.result(model.name)


class _Scaling:
    """An observer that attends again with scaled scores, and sums over tokens."""

    def __init__(self, heads: list[ScaledHead], alphas: NDArray[np.float64]) -> None:
        self._heads = heads
        self._alphas = alphas
        self._stacks: set[str] = set()
        self._n_tokens: dict[int, int] = {}
        # Sums over tokens of entropy, slope, prediction and |slope − prediction|.
        self._sums = np.zeros((4, len(heads), len(alphas)))

    def begin(self, layer: AttentionLayer) -> None:
        self._stacks.add(layer.place.stack)
        check_one_stack(self._stacks)
        number = layer.place.number
        for of, n in (("queries", layer.n_heads), ("keys", layer.n_key_heads)):
            found = [one.head for one in self._heads if (one.layer, one.of) == (number, of)]
            if any(not 0 <= head < n for head in found):
                raise StudyError(
                    f"Layer {number} has {n} heads of {of}, from 0; to be scaled were {found}."
                )
        self._n_tokens[number] = 0

    def see(self, layer: AttentionLayer, scores: ScoreBlock, attention: AttentionBlock) -> None:
        enough = scores.allowed.sum(-1) >= FEWEST_KEYS
        self._n_tokens[layer.place.number] += int(enough.sum())
        for row, head in enumerate(self._heads):
            if head.layer == layer.place.number:
                block = scores.of_heads_in_float64(_met(head, layer))
                for column, alpha in enumerate(self._alphas):
                    self._sums[:, row, column] += _sums(block, float(alpha), enough)

    def result(self, name: str) -> ScalingResult:
        missing = sorted({head.layer for head in self._heads} - self._n_tokens.keys())
        if missing:
            raise StudyError(
                f"{name} has no attention in layer {missing[0]}, of which a head was to be scaled; "
                f"it has in {', '.join(map(str, self._n_tokens))}."
            )
        counts = np.array([self._n_tokens[head.layer] for head in self._heads])
        entropy, slope, predicted, apart = self._sums / counts[:, None]
        return ScalingResult(
            tuple(self._heads),
            self._alphas,
            entropy,
            slope,
            predicted,
            np.divide(
                apart, np.abs(predicted), out=np.full_like(apart, np.nan), where=predicted != 0
            ),
            int(counts.max()),
        )


def _met(head: ScaledHead, layer: AttentionLayer) -> list[int]:
    """The heads of queries whose scores change."""
    if head.of == "queries":
        return [head.head]
    size = layer.n_heads // layer.n_key_heads
    return list(range(head.head * size, (head.head + 1) * size))


def _sums(block: ScoreBlock, alpha: float, enough: torch.Tensor) -> NDArray[np.float64]:
    """Sums over tokens of entropy, slope, prediction and |slope − prediction|, (4,); means over
    heads.
    """
    here, above, below = (attend(block, alpha * float(np.exp(d))) for d in (0, _STEP, -_STEP))
    slope = (above.entropy - below.entropy) / (2 * _STEP)
    parts = (here.entropy, slope, -here.gain, (slope + here.gain).abs())
    sums = torch.stack(parts)[..., enough].sum(-1).mean(-1)
    return sums.cpu().numpy()
