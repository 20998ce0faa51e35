"""How many classes, and how far they depend on seed, bins and distance."""

from __future__ import annotations

import numpy as np
import pytest
from planted import layer_of, model_of, planted_layers
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_samples
from threadpoolctl import threadpool_limits

from qk_taxonomy import choose_n_clusters, class_agreement, classify_heads
from qk_taxonomy.errors import TaxonomyError
from qk_taxonomy.records import DISTANCES, Distance
from qk_taxonomy.taxonomy import cluster_quality, space_of
from qk_taxonomy.taxonomy.choice import STABLE, evaluate_clusters


def naive_rand_index(a: np.ndarray, b: np.ndarray) -> float:
    """The adjusted Rand index by counting pairs of heads."""
    pairs = np.triu_indices(len(a), 1)
    in_a, in_b = ((x[:, None] == x)[pairs] for x in (a, b))
    expected = in_a.sum() * in_b.sum() / len(in_a)
    most = (in_a.sum() + in_b.sum()) / 2
    return float(((in_a & in_b).sum() - expected) / (most - expected))


class TestQuality:
    def test_stability_by_its_definition(self) -> None:
        layers = planted_layers(shapes=(0.6, 1.0, 1.6))
        space = classify_heads(layers, n_clusters=3).space
        x = space.histograms
        labels = KMeans(3, n_init=25, random_state=0).fit_predict(x)
        rng = np.random.default_rng(99)
        indices = []
        with threadpool_limits(1):  # its threads wait for each other on a busy machine
            for _ in range(60):
                rows = rng.integers(len(x), size=len(x))
                fitted = KMeans(3, n_init=5, random_state=1).fit(x[rows])
                indices.append(naive_rand_index(labels, fitted.predict(x)))
        error = np.std(indices) / np.sqrt(60)
        found = cluster_quality(space, labels)
        assert 0.2 < found.stability < 0.9
        assert abs(found.stability - np.mean(indices)) < 4 * np.hypot(error, found.standard_error)
        assert found.standard_error == pytest.approx(np.std(indices) / np.sqrt(40), rel=0.5)

    @pytest.mark.parametrize("distance", DISTANCES)
    def test_silhouette_uses_the_same_distance(self, distance: Distance) -> None:
        taxonomy = classify_heads(planted_layers(2), n_clusters=3, distance=distance)
        x = taxonomy.space.histograms
        matrix = np.array([space_of(x, distance).to(row[None])[:, 0] for row in x])
        expected = silhouette_samples(matrix, taxonomy.labels, metric="precomputed").mean()
        found = cluster_quality(taxonomy.space, taxonomy.labels).silhouette
        assert found == pytest.approx(expected)

    def test_one_class_and_one_head_a_class_have_no_silhouette(self) -> None:
        histograms = np.random.default_rng(0).random((5, 24))
        space = space_of(histograms, "euclidean")
        one = cluster_quality(space, np.zeros(5, dtype=np.int64))
        assert (one.n_clusters, one.stability, one.standard_error) == (1, 1.0, 0.0)
        assert np.isnan(one.silhouette)
        assert np.isnan(cluster_quality(space, np.arange(5)).silhouette)

    def test_the_silhouette_of_many_heads_is_that_of_a_sample(self) -> None:
        rng = np.random.default_rng(0)
        histograms = np.abs(np.concatenate([rng.normal(m, 0.3, (3000, 2)) for m in (1, 3)]))
        labels = np.repeat([0, 1], 3000)
        space = space_of(histograms, "euclidean")
        exact = silhouette_samples(histograms, labels).mean()
        sampled = space.silhouette(labels, seed=0)
        assert sampled == pytest.approx(exact, abs=0.01)
        assert sampled != exact


class TestChoice:
    @pytest.mark.parametrize("distance", DISTANCES)
    def test_three_planted_kinds(self, distance: Distance) -> None:
        model = model_of(planted_layers(d_head=256))
        choice = choose_n_clusters([model], distance=distance)
        assert choice.chosen.n_clusters == 3
        assert choice.chosen.stability > 0.9
        assert [quality.n_clusters for quality in choice.table] == list(range(2, 11))
        assert choice.chosen in choice.table

    @pytest.mark.parametrize("distance", DISTANCES)
    def test_heads_of_one_kind(self, distance: Distance) -> None:
        model = model_of(planted_layers(6, shapes=(1.0,)))
        choice = choose_n_clusters([model], distance=distance)
        assert choice.chosen.n_clusters <= 3
        assert max(quality.stability for quality in choice.table) < STABLE

    def test_few_heads(self) -> None:
        def histograms(n: int) -> np.ndarray:
            return np.random.default_rng(0).random((n, 24))

        table = evaluate_clusters(space_of(histograms(7), "euclidean")).table
        assert [quality.n_clusters for quality in table] == [2, 3]
        with pytest.raises(TaxonomyError, match=r"3 heads .* too few.* takes 4"):
            evaluate_clusters(space_of(histograms(3), "euclidean"))
        alike = space_of(np.repeat(histograms(3), 4, axis=0), "euclidean")
        with pytest.raises(TaxonomyError, match="12 heads with 3 different"):
            evaluate_clusters(alike)

    @pytest.mark.parametrize("distance", DISTANCES)
    def test_twins_do_not_break_it(self, distance: Distance) -> None:
        layers = planted_layers(1, 5)
        twins = [layer_of(np.repeat(x.singular_values.astype(float) ** 2, 3, 0)) for x in layers]
        choice = choose_n_clusters([model_of(twins)], distance=distance)
        assert [quality.n_clusters for quality in choice.table] == [2]
        assert np.isfinite(choice.chosen.stability)


class TestAgreement:
    @pytest.mark.parametrize("distance", DISTANCES)
    def test_planted_kinds_agree_with_all_other_runs(self, distance: Distance) -> None:
        layers = planted_layers(d_head=256)
        taxonomy = classify_heads(layers, n_clusters=3, distance=distance)
        runs = class_agreement(taxonomy)
        other = next(name for name in DISTANCES if name != distance)
        assert [(run.varied, run.value) for run in runs] == [
            *(("seed", seed) for seed in "1234"),
            *(("bins", bins) for bins in ("16", "32", "48")),
            ("distance", other),
        ]
        assert [run.ari for run in runs] == [1.0] * 8

    def test_heads_of_one_kind_do_not(self) -> None:
        layers = planted_layers(shapes=(1.0,))
        taxonomy = classify_heads(layers, n_clusters=4)
        runs = {(run.varied, run.value): run.ari for run in class_agreement(taxonomy)}
        assert min(runs.values()) < 0.5
        again = classify_heads(layers, n_clusters=4, n_bins=16)
        expected = naive_rand_index(taxonomy.labels, again.labels)
        assert runs["bins", "16"] == pytest.approx(expected)
        other = classify_heads(layers, n_clusters=4, distance="jensen-shannon")
        expected = naive_rand_index(taxonomy.labels, other.labels)
        assert runs["distance", "jensen-shannon"] == pytest.approx(expected)

    def test_the_last_seed_has_seeds_after_it(self) -> None:
        taxonomy = classify_heads(planted_layers(1), n_clusters=2, seed=2**32 - 1)
        assert [run.value for run in class_agreement(taxonomy)[:4]] == ["0", "1", "2", "3"]

    def test_runs_that_cannot_be_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        taxonomy = classify_heads(planted_layers(1), n_clusters=3)
        monkeypatch.setattr("qk_taxonomy.taxonomy.spaces.MOST_MEDOID_HEADS", 11)
        assert np.isnan(class_agreement(taxonomy)[-1].ari)
