"""What figures of a survey show, for models of any depth: made-up spectra, and nothing on disk."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from planted_heads import heads_of, write_heads

from qk_taxonomy.hypotheses.contrast import ContrastResult, matched_contrast
from qk_taxonomy.hypotheses.family import FamilyResult, compare_families
from qk_taxonomy.hypotheses.heads import HeadSet
from qk_taxonomy.hypotheses.rank import RankResult, rank_hypothesis
from qk_taxonomy.taxonomy import Taxonomy, classes, joint_taxonomy

_D_HEAD = 8

# Heads of a layer that are compared: the figure is no other with more, and takes far longer.
_MOST_COMPARED = 8

#: Layers and heads: as small and as deep as there are.
SHAPES = {"6x16": (6, 16), "32x16": (32, 16), "80x16": (80, 16), "126x128": (126, 128)}


def spectra(n_layers: int, n_heads: int, *, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """λ (layers, heads, d_head), descending, more unequal in deeper layers."""
    rng = np.random.default_rng(seed)
    spread = np.linspace(0.4, 1.6, n_layers)[:, None, None] * scale
    drawn = np.exp(spread * rng.normal(size=(n_layers, n_heads, _D_HEAD)))
    return -np.sort(-drawn, axis=-1)


def heads(root: Path, name: str, n_layers: int, n_heads: int, **how: float) -> HeadSet:
    """A made-up model's heads; its file is below ``root``."""
    seed, scale = int(how.get("seed", 0)), how.get("scale", 1.0)
    return heads_of(write_heads(root, name, spectra(n_layers, n_heads, seed=seed, scale=scale)))


def taxonomy(models: list[HeadSet], n_clusters: int = 6) -> Taxonomy:
    """Classes of the heads of models; their places on the map are drawn at random."""

    def scattered(space: object, *, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=(len(space), 2))  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classes, "map_heads", scattered)
        return joint_taxonomy([one.spectra for one in models], n_clusters=n_clusters)


def rank(model: HeadSet) -> RankResult:
    return rank_hypothesis(model)


def contrast(root: Path, n_layers: int, n_heads: int) -> ContrastResult:
    n_heads = min(n_heads, _MOST_COMPARED)
    sides = [
        heads(root, f"fam/a-model-of-a-long-name-{side}", n_layers, n_heads, seed=0, scale=scale)
        for side, scale in (("tuned", 1.1), ("base", 1.0))
    ]
    return matched_contrast("tuned-against-base", "instruct", *sides, permutations=99)


def families(root: Path, n_families: int, n_models: int) -> FamilyResult:
    models = [
        heads(root, f"family-{f}/model-{f}-of-size-{m}b-instruct", 4, 4, seed=10 * f + m)
        for f in range(n_families)
        for m in range(n_models)
    ]
    return compare_families(models)


@functools.cache
def layers_of(n_layers: int, n_heads: int) -> tuple[np.ndarray, ...]:
    """Values of a statistic over heads, an array a layer."""
    rng = np.random.default_rng(0)
    return tuple(rng.lognormal(0.02 * layer, 0.4, n_heads) for layer in range(n_layers))
