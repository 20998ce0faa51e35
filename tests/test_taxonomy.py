"""Classes of heads: planted ones are found, and numbers depend on the heads alone."""

from __future__ import annotations

import numpy as np
import pytest
from planted import layer_of, planted_layers
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from qk_taxonomy import classify_heads
from qk_taxonomy.errors import TaxonomyError
from qk_taxonomy.records import DISTANCES, Distance
from qk_taxonomy.statistics.densities import jensen_shannon_divergence
from qk_taxonomy.taxonomy import sort_into_classes, space_of
from qk_taxonomy.taxonomy.classes import map_heads


@pytest.mark.parametrize("distance", DISTANCES)
def test_planted_classes_are_found_in_canonical_order(distance: Distance) -> None:
    taxonomy = classify_heads(planted_layers(), n_clusters=3, distance=distance)
    # Class 0 has the spectra whose λ are most alike: those of the largest shape.
    np.testing.assert_array_equal(taxonomy.labels, 2 - taxonomy.heads % 3)
    alphas = [c.gamma.alpha for c in taxonomy.classes]
    assert alphas == sorted(alphas, reverse=True)
    assert [c.n_heads for c in taxonomy.classes] == [16, 16, 16]
    assert taxonomy.map.shape == (48, 2)


@pytest.mark.parametrize("distance", DISTANCES)
def test_order_of_layers_does_not_matter(distance: Distance) -> None:
    layers = planted_layers()
    forward, backward = (
        classify_heads(x, n_clusters=5, distance=distance) for x in (layers, layers[::-1])
    )
    np.testing.assert_array_equal(forward.labels, backward.labels)
    np.testing.assert_array_equal(forward.map, backward.map)


@pytest.mark.parametrize("distance", DISTANCES)
def test_class_numbers_do_not_depend_on_the_seed_or_the_order_of_heads(distance: Distance) -> None:
    rng = np.random.default_rng(1)
    histograms = np.concatenate([rng.normal(5 * np.eye(12)[i], 0.1, (20, 12)) for i in range(6)])
    histograms = np.abs(histograms)
    labels = sort_into_classes(space_of(histograms, distance), 6, seed=0).labels
    order = rng.permutation(len(histograms))
    for seed in (1, 2):
        again = sort_into_classes(space_of(histograms, distance), 6, seed=seed).labels
        np.testing.assert_array_equal(again, labels)
        shuffled = sort_into_classes(space_of(histograms[order], distance), 6, seed=seed).labels
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
@pytest.mark.parametrize("distance", DISTANCES)
def test_few_heads_have_a_map(n: int, distance: Distance) -> None:
    histograms = np.random.default_rng(2).random((n, 24))
    space = space_of(histograms, distance)
    coordinates = map_heads(space)
    assert coordinates.shape == (n, 2)
    assert np.isfinite(coordinates).all()
    np.testing.assert_array_equal(coordinates, map_heads(space))


def test_heads_of_one_constant_spectrum_are_one_class() -> None:
    layer = layer_of(np.full((6, 8), 3.0))
    with pytest.raises(TaxonomyError, match="1 different histograms cannot be sorted into 6"):
        classify_heads([layer])
    assert classify_heads([layer], n_clusters=1).classes[0].n_heads == 6


def test_spectra_that_are_nearly_all_zeros_have_no_histogram() -> None:
    lam = np.zeros((6, 64))
    lam[:, 0] = 1.0
    with pytest.raises(TaxonomyError, match="At least 96 % of the λ"):
        classify_heads([layer_of(lam)])


def test_one_circuit_and_convention_at_a_time() -> None:
    layers = planted_layers(n_layers=1)
    for other in (planted_layers(1, circuit="ov"), planted_layers(1, convention="folded")):
        with pytest.raises(TaxonomyError, match=r"found (ov raw, qk raw|qk folded, qk raw)"):
            classify_heads([*layers, *other])


def test_layers_of_other_widths_share_bins() -> None:
    layers = [*planted_layers(2), *planted_layers(4, d_head=128)[2:]]
    taxonomy = classify_heads(layers, n_clusters=3)
    np.testing.assert_array_equal(taxonomy.labels, 2 - taxonomy.heads % 3)
    lam = [x.singular_values.astype(float) ** 2 for x in layers]
    normalised = np.concatenate([(x / x.mean(1, keepdims=True)).ravel() for x in lam])
    assert taxonomy.edges[-1] == pytest.approx(np.quantile(normalised, 0.96))
    assert (taxonomy.space.histograms.sum(1) * taxonomy.edges[1]).round(12).tolist() == [1.0] * 48


class TestDistances:
    def test_k_means_are_those_of_the_library(self) -> None:
        taxonomy = classify_heads(planted_layers(), n_clusters=5, seed=3)
        plain = KMeans(5, n_init=25, random_state=3).fit(taxonomy.space.histograms)
        assert adjusted_rand_score(plain.labels_, taxonomy.labels) == 1.0

    def test_jensen_shannon_is_the_root_of_the_divergence(self) -> None:
        histograms = np.random.default_rng(0).gamma(0.5, size=(20, 24)) * 7.0
        matrix = space_of(histograms, "jensen-shannon").to(histograms[:5])
        for i, j in np.ndindex(matrix.shape):
            divergence = jensen_shannon_divergence(histograms[i], histograms[j])
            assert matrix[i, j] == pytest.approx(np.sqrt(divergence), abs=1e-7)

    def test_a_head_without_a_histogram_is_far_from_all_others(self) -> None:
        histograms = np.vstack([np.zeros((2, 4)), np.eye(4), np.ones((1, 4))])
        distances = space_of(histograms, "jensen-shannon").to(np.zeros((1, 4)))[:, 0]
        np.testing.assert_allclose(distances[:2], 0.0)
        np.testing.assert_allclose(distances[2:], np.sqrt(np.log(2)))

    def test_nearly_equal_histograms_have_a_distance(self) -> None:
        rng = np.random.default_rng(0)
        histograms = rng.random((500, 24))
        nearly = histograms * (1 + 1e-12 * rng.standard_normal(histograms.shape))
        space = space_of(histograms, "jensen-shannon")
        distances = np.diag(space.to(nearly))
        assert np.isfinite(distances).all()
        assert distances.max() < 1e-6

    def test_medoids_have_the_least_sum_of_distances(self) -> None:
        taxonomy = classify_heads(planted_layers(), n_clusters=3, distance="jensen-shannon")
        histograms, centres = taxonomy.space.histograms, taxonomy.saved.centres
        for number, centre in enumerate(centres):
            members = histograms[taxonomy.labels == number]
            sums = [sum(np.sqrt(jensen_shannon_divergence(a, b)) for b in members) for a in members]
            np.testing.assert_array_equal(centre, members[int(np.argmin(sums))])

    def test_too_many_heads_for_medoids(self) -> None:
        histograms = np.random.default_rng(0).random((6001, 4))
        with pytest.raises(TaxonomyError, match=r"at most 6000 heads.*found 6001.*euclidean"):
            sort_into_classes(space_of(histograms, "jensen-shannon"), 2)
