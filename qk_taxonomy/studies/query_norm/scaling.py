"""What a head's entropy does when its query is made longer or shorter, all else left as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qk_taxonomy.errors import StudyError
from qk_taxonomy.studies.query_norm.attention import observed
from qk_taxonomy.studies.query_norm.capture import check_text
from qk_taxonomy.studies.query_norm.models import OpenModel, run
from qk_taxonomy.studies.query_norm.records import FEWEST_KEYS
from qk_taxonomy.studies.query_norm.scores import AttentionBlock, ScoreBlock, attend
from qk_taxonomy.studies.query_norm.watch import AttentionLayer

#: Factors of the query.
ALPHAS = tuple(round(0.1 * i, 1) for i in range(5, 16))

# Half the width of the central differences in log α; their error is of its square, in float64.
_STEP = 1e-3


@dataclass(frozen=True, eq=False)
class ScalingResult:
    """Entropies of some heads by the factor α of their query, and the identity
    dH/d log α = −Cov_p(s, ∂s/∂log α), which is −α² Var_p(s) of the unscaled scores where these are
    linear in the query.

    heads: (layer, head), in the order of rows. alphas: (n_alphas,), ascending. entropy: (n_heads,
    n_alphas), mean over tokens, nats. slope: mean dH/d log α, measured by central differences.
    predicted: mean of what the identity says. deviation: mean |slope − predicted| over tokens,
    relative to mean |predicted|, nan where that is 0 (attention that is saturated). n_tokens: with
    as many keys as it takes.
    """

    heads: tuple[tuple[int, int], ...]
    alphas: NDArray[np.float64]
    entropy: NDArray[np.float64]
    slope: NDArray[np.float64]
    predicted: NDArray[np.float64]
    deviation: NDArray[np.float64]
    n_tokens: int


def scale_queries(
    model: OpenModel,
    tokens: Sequence[int] | NDArray[np.int64],
    heads: Sequence[tuple[int, int]],
    *,
    alphas: Sequence[float] = ALPHAS,
) -> ScalingResult:
    """Entropies of (layer, head) with the query times each α, in one forward pass.

    What the layer gives to the next stays that of α = 1, so that every head is changed alone; let
    ``capture(scale=...)`` show what becomes of it. Entropies are computed in float64 from the
    model's scores. Raises StudyError as :func:`capture` does, and for heads that are not there.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    check_text(model, ids)
    observer = _Scaling(list(heads), np.sort(np.asarray(alphas, dtype=np.float64)))
    with observed(model.model, observer):
        run(model, ids)
    return observer.result(model.name)


class _Scaling:
    """An observer that attends again with scaled queries, and sums over tokens."""

    def __init__(self, heads: list[tuple[int, int]], alphas: NDArray[np.float64]) -> None:
        self._heads = heads
        self._alphas = alphas
        self._n_tokens: dict[int, int] = {}
        # Sums over tokens of entropy, slope, prediction and |slope − prediction|.
        self._sums = np.zeros((4, len(heads), len(alphas)))

    def begin(self, layer: AttentionLayer) -> None:
        found = [head for number, head in self._heads if number == layer.place.number]
        if any(not 0 <= head < layer.n_heads for head in found):
            raise StudyError(
                f"Layer {layer.place.number} has {layer.n_heads} heads, from 0; to be scaled were "
                f"{found}."
            )
        self._n_tokens[layer.place.number] = 0

    def see(self, layer: AttentionLayer, scores: ScoreBlock, attention: AttentionBlock) -> None:
        rows = [row for row, (number, _) in enumerate(self._heads) if number == layer.place.number]
        enough = scores.allowed.sum(-1) >= FEWEST_KEYS
        self._n_tokens[layer.place.number] += int(enough.sum())
        if not rows:
            return
        block = scores.of_heads([self._heads[row][1] for row in rows])
        for column, alpha in enumerate(self._alphas):
            here, above, below = (
                attend(block, float(alpha * np.exp(step))) for step in (0, _STEP, -_STEP)
            )
            slope = (above.entropy - below.entropy) / (2 * _STEP)
            parts = (here.entropy, slope, -here.gain, (slope + here.gain).abs())
            sums = torch.stack(parts)[..., enough].sum(-1)
            self._sums[:, rows, column] += sums.cpu().numpy()

    def result(self, name: str) -> ScalingResult:
        missing = sorted({layer for layer, _ in self._heads} - self._n_tokens.keys())
        if missing:
            raise StudyError(
                f"{name} has no attention in layer {missing[0]}, of which a head was to be scaled; "
                f"it has in {', '.join(map(str, self._n_tokens))}."
            )
        counts = np.array([self._n_tokens[layer] for layer, _ in self._heads])
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
