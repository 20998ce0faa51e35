"""Classes of heads: planted ones are found, and numbers depend on the heads alone."""

from __future__ import annotations

import numpy as np
import pytest

from qk_taxonomy import classify_heads
from qk_taxonomy.errors import TaxonomyError
from qk_taxonomy.records import LayerSpectra
from qk_taxonomy.taxonomy import map_heads, sort_into_classes

SHAPES = (0.3, 1.0, 8.0)


def planted_layers(n_layers: int = 4, n_heads: int = 12, d_head: int = 64) -> list[LayerSpectra]:
    """Heads of three kinds, in turn: gamma spectra of shape 0.3, 1 and 8, of any size."""
    rng = np.random.default_rng(0)
    layers = []
    for layer in range(n_layers):
        lam = np.stack(
            [rng.gamma(SHAPES[h % 3], 10 ** rng.uniform(-3, 3), d_head) for h in range(n_heads)]
        )
        sigma = np.sort(np.sqrt(lam), axis=-1)[:, ::-1].astype(np.float32)
        no_mu, no_statistics = np.zeros(sigma.shape, dtype=np.complex64), np.zeros((n_heads, 0))
        layers.append(LayerSpectra(layer, "qk", "raw", sigma, no_mu, no_statistics))
    return layers


def test_planted_classes_are_found_in_canonical_order() -> None:
    taxonomy = classify_heads(planted_layers(), n_clusters=3)
    # Class 0 has the spectra whose λ are most alike: those of the largest shape.
    np.testing.assert_array_equal(taxonomy.labels, 2 - taxonomy.heads % 3)
    alphas = [c.gamma.alpha for c in taxonomy.classes]
    assert alphas == sorted(alphas, reverse=True)
    assert [c.n_heads for c in taxonomy.classes] == [16, 16, 16]
    assert taxonomy.map.shape == (48, 2)


def test_order_of_layers_does_not_matter() -> None:
    layers = planted_layers()
    forward, backward = (classify_heads(x, n_clusters=5) for x in (layers, layers[::-1]))
    np.testing.assert_array_equal(forward.labels, backward.labels)
    np.testing.assert_array_equal(forward.map, backward.map)


def test_class_numbers_do_not_depend_on_the_seed_or_the_order_of_heads() -> None:
    rng = np.random.default_rng(1)
    histograms = np.concatenate([rng.normal(5 * np.eye(12)[i], 0.1, (20, 12)) for i in range(6)])
    histograms = np.abs(histograms)
    labels = sort_into_classes(histograms, 6, seed=0)
    order = rng.permutation(len(histograms))
    for seed in (1, 2):
        np.testing.assert_array_equal(sort_into_classes(histograms, 6, seed=seed), labels)
        shuffled = sort_into_classes(histograms[order], 6, seed=seed)
        np.testing.assert_array_equal(shuffled, labels[order])
    np.testing.assert_array_equal(labels, np.repeat(np.arange(6), 20)[::-1])


def test_fewer_heads_than_classes() -> None:
    layers = planted_layers(n_layers=1, n_heads=4)
    with pytest.raises(TaxonomyError, match=r"4 heads .* 6 classes.*between 1 and 4"):
        classify_heads(layers)
    assert len(classify_heads(layers, n_clusters=4).classes) == 4


def test_nothing_to_classify() -> None:
    with pytest.raises(TaxonomyError, match="no spectra"):
        classify_heads([])
    dead = planted_layers(n_layers=1)[0]
    dead.singular_values[:] = 0
    with pytest.raises(TaxonomyError, match="zero weights"):
        classify_heads([dead])


def test_one_dead_head_has_a_class_of_its_own() -> None:
    layers = planted_layers()
    layers[2].singular_values[5] = 0
    taxonomy = classify_heads(layers, n_clusters=4)
    dead = taxonomy.labels[(taxonomy.layers == 2) & (taxonomy.heads == 5)]
    assert taxonomy.classes[int(dead[0])].n_heads == 1


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 15])
def test_few_heads_have_a_map(n: int) -> None:
    histograms = np.random.default_rng(2).random((n, 24))
    coordinates = map_heads(histograms)
    assert coordinates.shape == (n, 2)
    assert np.isfinite(coordinates).all()
    np.testing.assert_array_equal(coordinates, map_heads(histograms))
