"""Samples of the query norm study that were planted, not captured: what they hold is known."""

from __future__ import annotations

import numpy as np

from qk_taxonomy.studies.query_norm.records import FEWEST_KEYS, LayerMeasures, Sample


def planted_samples(
    n_layers: int,
    n_heads: int,
    *,
    n_tokens: int = 200,
    n_samples: int = 3,
    stack: str = "",
    first_layer: int = 0,
    seed: int = 0,
) -> tuple[Sample, ...]:
    """Causal samples whose heads differ in one thing each, the same in every sample.

    Entropy is a share of log(keys), less ``slope`` times what noise is in the query's norm: from
    head 0, slope 0, to the last head, slope 1. Norms grow with position in later layers. Heads of
    odd layers attend to the token before.
    """
    rng = np.random.default_rng(seed)
    n_keys = np.arange(1, n_tokens + 1)
    position = np.log(n_keys)
    share = rng.uniform(0.3, 0.8, (n_layers, n_heads, 1))
    slope = np.linspace(0.0, 1.0, n_heads)[:, None]
    samples = []
    for number in range(n_samples):
        layers = []
        for layer in range(n_layers):
            noise, other = rng.standard_normal((2, n_heads, n_tokens))
            depth = layer / max(n_layers - 1, 1)
            norm = 8.0 + 2.0 * depth * position + noise
            entropy = share[layer] * position * (1.0 - 0.25 * slope * noise) + 0.1 * other
            entropy = np.clip(entropy, 0.0, position)
            before = (0.7 if layer % 2 else 0.05) * rng.uniform(0.8, 1.2, (n_heads, n_tokens))
            values = {
                "query_norm": norm,
                "entropy": entropy,
                "normalised_entropy": entropy / np.maximum(position, 1e-9),
                "max_attention": np.exp(-entropy),
                "k_eff": np.ceil(0.9 * np.exp(entropy)),
                "gain": 0.4 * entropy,
                "distance": 0.2 * n_keys * (1.0 + 0.1 * other),
                "previous_token": before,
                "first_token": 0.2 * rng.uniform(0.0, 1.0, (n_heads, n_tokens)),
            }
            for name, of in values.items():
                if name != "query_norm":
                    of[:, n_keys < FEWEST_KEYS] = np.nan
            layers.append(
                LayerMeasures(
                    first_layer + layer,
                    stack,
                    n_keys,
                    {name: of.astype(np.float32) for name, of in values.items()},
                )
            )
        tokens = rng.integers(0, 1000, n_tokens)
        samples.append(Sample(f"text {number}", tokens, True, tuple(layers)))
    return tuple(samples)
