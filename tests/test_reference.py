"""The predecessor's published figures, reproduced from its published spectra to the printed digits.

Its spectra are not those of W_QK (README), but everything from there on is the same recipe. The
data is not part of this repository; these tests skip where it is absent.
"""

from __future__ import annotations

import numpy as np
import pytest
from conftest import REFERENCE

from qk_taxonomy import Stats, get_stats, import_predecessor, load_spectra
from qk_taxonomy.checkpoints.numpy_pickle import read_arrays
from qk_taxonomy.statistics.densities import histogram_densities, mean_normalised, pool_edges
from qk_taxonomy.statistics.trends import depth_trend
from qk_taxonomy.taxonomy import sort_into_classes, space_of
from qk_taxonomy.taxonomy.classes import describe_classes

pytestmark = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the predecessor's published spectra are not here"
)

# q0.96 and each class's (α, θ, JSD, heads), as published.
CLASSES = {
    "Qwen3-0.6B": (
        "4.744",
        [
            ("1.40", "0.51", "0.005", 72), ("0.57", "0.41", "0.042", 91),
            ("2.19", "0.37", "0.004", 47), ("0.65", "0.66", "0.011", 117),
            ("0.80", "0.12", "0.080", 18), ("0.88", "0.70", "0.004", 103),
        ],
    ),
    "Llama-3.1-8B-Instruct": (
        "3.518",
        [
            ("1.13", "0.82", "0.000", 270), ("0.65", "1.39", "0.002", 323),
            ("0.55", "0.17", "0.100", 49), ("0.43", "0.98", "0.019", 188),
            ("1.80", "0.56", "0.003", 165), ("1.19", "0.05", "0.055", 29),
        ],
    ),
    "gemma-2-2b-it": (
        "4.196",
        [
            ("1.22", "0.76", "0.000", 35), ("0.70", "0.14", "0.079", 24),
            ("0.58", "0.97", "0.006", 58), ("0.52", "0.50", "0.040", 38),
            ("1.98", "0.55", "0.011", 16), ("0.85", "0.95", "0.001", 37),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", CLASSES)
def test_published_classes(model: str) -> None:
    spectra = read_arrays(REFERENCE / f"{model}.pkl")["eigen_values"]
    # Rows in the pickle's own order and a single start, as published: both decide membership.
    x = mean_normalised(np.concatenate(list(spectra.values())))
    edges = pool_edges(x, 24)
    histograms = histogram_densities(x, edges)
    space = space_of(histograms, "euclidean")
    labels = sort_into_classes(space, 6, seed=0, starts=1).labels
    beyond = np.zeros(len(x))  # not published
    found = [
        (f"{c.gamma.alpha:.2f}", f"{c.gamma.theta:.2f}", f"{c.gamma.divergence:.3f}", c.n_heads)
        for c in describe_classes(histograms, beyond, labels, edges)
    ]
    quantile, classes = CLASSES[model]
    assert f"{edges[-1]:.3f}" == quantile
    assert sorted(found) == sorted(classes)


@pytest.mark.parametrize(
    ("model", "stat", "bds", "p_value"),
    [
        ("Mistral-7B-Instruct-v0.1", Stats.STD, "14.17", "1.45e-45"),
        ("Llama-3.1-8B-Instruct", Stats.STD, "17.88", "1.78e-71"),
        ("Qwen3-0.6B", Stats.SKEW, "-2.22", "2.67e-02"),
    ],
)
def test_published_bds(model: str, stat: Stats, bds: str, p_value: str) -> None:
    table = read_arrays(REFERENCE / f"{model}.pkl")["eigen_values_stats"]
    trend = depth_trend([table[i][stat].squeeze() for i in sorted(table) if i >= 2])
    assert (f"{trend.bds:.2f}", f"{trend.bds_p_value:.2e}") == (bds, p_value)


@pytest.mark.parametrize(
    ("model", "stat", "spearman"),
    [
        ("Mistral-7B-Instruct-v0.1", Stats.MAX, -0.98),
        ("Mistral-7B-Instruct-v0.1", Stats.MEAN, -0.99),
        ("Mistral-7B-Instruct-v0.1", Stats.STD, -0.99),
        ("Llama-3.1-8B-Instruct", Stats.MAX, -0.66),
        ("Llama-3.1-8B-Instruct", Stats.MEAN, -0.91),
        ("Llama-3.1-8B-Instruct", Stats.STD, -0.75),
        ("Llama-3.1-8B-Instruct", Stats.MIN, 0.80),
    ],
)
def test_published_trends_with_depth(model: str, stat: Stats, spearman: float) -> None:
    table = read_arrays(REFERENCE / f"{model}.pkl")["eigen_values_stats"]
    trend = depth_trend([table[i][stat].squeeze() for i in sorted(table) if i >= 2])
    assert round(trend.spearman, 2) == pytest.approx(spearman, abs=0.011)


@pytest.mark.parametrize("model", CLASSES)
def test_published_statistics(model: str) -> None:
    data = read_arrays(REFERENCE / f"{model}.pkl")
    for layer, lam in data["eigen_values"].items():
        ours = get_stats(lam.astype(np.float64))
        for stat in Stats:
            theirs = data["eigen_values_stats"][layer][stat]
            np.testing.assert_allclose(
                ours[stat], theirs, rtol=2e-4, atol=2e-5 * np.abs(theirs).max()
            )


@pytest.mark.parametrize(
    ("model", "model_id", "shape"),
    [
        ("Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct", (32, 32, 128)),
        ("Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B-Instruct", (16, 32, 64)),
        ("Mistral-7B-Instruct-v0.1", "mistralai/Mistral-7B-Instruct-v0.1", (32, 32, 128)),
        ("Qwen3-0.6B", "Qwen/Qwen3-0.6B", (28, 16, 128)),
        ("gemma-2-2b-it", "google/gemma-2-2b-it", (26, 8, 256)),
    ],
)
def test_published_spectra_are_imported(
    model: str, model_id: str, shape: tuple[int, int, int]
) -> None:
    spectra = load_spectra(import_predecessor(REFERENCE / f"{model}.pkl"))
    assert spectra.model_id == model_id
    assert spectra.is_imported
    sigma = np.stack([layer.singular_values for layer in spectra.layers])
    assert sigma.shape == shape
    published = read_arrays(REFERENCE / f"{model}.pkl")
    for layer in spectra.layers:
        np.testing.assert_array_equal(
            layer.singular_values, published["singular_values"][layer.layer]
        )
        for stat in Stats:
            theirs = published["eigen_values_stats"][layer.layer][stat][:, 0]
            ours = layer.statistics[:, stat]
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5 * np.abs(theirs).max())
