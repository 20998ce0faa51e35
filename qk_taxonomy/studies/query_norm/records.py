"""What is measured of each head at each token, and travels between capture, tests and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

#: What is measured of a head (its attention p and scores s over the keys a query may attend to):
#:
#: - query_norm: ‖q‖₂ over d_head of the query that enters the score;
#: - entropy: H = −Σ p log p, nats; an attention sink counts as one outcome more;
#: - normalised_entropy: H / log(number of outcomes), in [0, 1];
#: - max_attention: the largest p of a key;
#: - k_eff: the least number of keys that hold 90 % of the keys' attention;
#: - gain: −dH/d log α for the query times α, at α = 1: Cov_p(s, ∂s/∂log α), which is Var_p(s) where
#:   scores are linear in the query;
#: - distance: mean |i − j| of query and key, weighted by p, in tokens;
#: - previous_token, first_token: p of the key before the query, and of the first key.
MEASURES = (
    *("query_norm", "entropy", "normalised_entropy", "max_attention", "k_eff", "gain"),
    *("distance", "previous_token", "first_token"),
)

#: A query with fewer allowed keys has no measures but its norm.
FEWEST_KEYS = 3


@dataclass(frozen=True, eq=False)
class LayerMeasures:
    """One layer's attention in one text.

    layer: the model's own number. stack: "" in a model that has one. n_keys: (T,), how many keys
    each query may attend to. values: by name of :data:`MEASURES`, (n_heads, T), float32, nan where
    not defined; entropy is always there.
    """

    layer: int
    stack: str
    n_keys: NDArray[np.int64]
    values: Mapping[str, NDArray[np.float32]]

    @property
    def n_heads(self) -> int:
        return len(self.values["entropy"])


@dataclass(frozen=True, eq=False)
class Sample:
    """One text, a window of tokens, and what every layer did with it.

    name: tells samples of one run apart. tokens: (T,), ids. causal: whether queries see no later
    keys.
    """

    name: str
    tokens: NDArray[np.int64]
    causal: bool
    layers: tuple[LayerMeasures, ...]

    def only(self, *measures: str) -> Sample:
        """The same text with some of its measures, in memory of their own."""
        layers = (
            replace(layer, values={name: layer.values[name].copy() for name in measures})
            for layer in self.layers
        )
        return replace(self, layers=tuple(layers))
