"""Untrained heads: the sampler against dense Gaussian heads, and the limit law against both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp
from untrained import Shape, untrained_model

from qk_taxonomy import untrained
from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.nulls import untrained_density, untrained_edges, untrained_spectra


@pytest.mark.parametrize(("d_head", "d_model"), [(16, 96), (32, 40), (8, 8), (12, 6)])
def test_the_law_is_that_of_dense_heads(d_head: int, d_model: int) -> None:
    shape = Shape(layers=100, heads=4, kv_heads=4, d_head=d_head, d_model=d_model)
    if d_head > d_model:
        rng = np.random.default_rng(0)
        w = rng.standard_normal((2, 400, d_head, d_model))
        sigma = np.linalg.svd(w[0].mT @ w[1], compute_uv=False)
        dense = np.pad(np.square(sigma), ((0, 0), (0, d_head - d_model)))
    else:
        dense = untrained_model(np.random.default_rng(0), shape)
    drawn = untrained_spectra(d_head, d_model, 400, seed=1)[:, 0]
    assert drawn.shape == (400, d_head)
    assert (np.diff(drawn, axis=-1) <= 0).all()
    # λ of one head repel each other: compare order statistics, one a head.
    for k in range(0, min(d_head, d_model), 5):
        assert ks_2samp(drawn[:, k], dense[:, k] / d_model**2).pvalue > 1e-3, k
    assert drawn.mean() == pytest.approx(1.0, rel=0.05)


def test_heads_of_a_group_share_their_key() -> None:
    lam = untrained_spectra(24, 30, 300, group=3, seed=2)
    assert lam.shape == (300, 3, 24)
    means = lam.mean(-1)
    shared = np.corrcoef(means[:, 0], means[:, 1])[0, 1]
    assert shared > 0.2
    assert abs(np.corrcoef(means[:-1, 0], means[1:, 1])[0, 1]) < 0.2
    alone = untrained_spectra(24, 30, 300, seed=3)[:, 0]
    for k in (0, 12, 23):
        assert ks_2samp(lam[:, 1, k], alone[:, k]).pvalue > 1e-3


def test_draws_do_not_depend_on_threads_and_differ_by_seed() -> None:
    first = untrained_spectra(8, 32, 200, seed=5)
    np.testing.assert_array_equal(first, untrained_spectra(8, 32, 200, seed=5))
    assert not np.array_equal(first, untrained_spectra(8, 32, 200, seed=6))
    assert len(np.unique(first[:, 0, 0])) == 200


@pytest.mark.parametrize(("d_head", "d_model"), [(64, 768), (64, 96), (64, 64), (1, 1000)])
def test_the_limit_law_is_a_density_of_mean_one(d_head: int, d_model: int) -> None:
    low, high = untrained_edges(d_head, d_model)
    # Fine towards the lower edge, where the density of a square head has a pole.
    x = low + (high - low) * np.linspace(0, 1, 20_001) ** 3
    density = untrained_density(x, d_head, d_model)
    c = d_head / d_model
    assert np.trapezoid(density, x) == pytest.approx(1.0, abs=0.02)
    assert np.trapezoid(density * x, x) == pytest.approx(1.0, abs=0.005)
    # Freeness: the second moment of a product is m₂·1 + 1·m₂ − 1·1, with m₂ = 1 + c of either.
    assert np.trapezoid(density * x * x, x) == pytest.approx(1 + 2 * c, rel=0.005)
    assert (untrained_density([low - 0.1, high + 0.1], d_head, d_model) == 0).all()


def test_heads_fill_the_limit_laws_support_and_no_more() -> None:
    low, high = untrained_edges(128, 512)
    lam = untrained_spectra(128, 512, 50)[:, 0]
    assert lam.max(-1).mean() == pytest.approx(high, rel=0.03)
    assert lam.min(-1).mean() == pytest.approx(low, rel=0.08)
    assert ((lam > 1.1 * high) | (lam < 0.8 * low)).mean() < 1e-3
    counts, edges = np.histogram(lam, 30, (low, high), density=True)
    limit = untrained_density((edges[:-1] + edges[1:]) / 2, 128, 512)
    np.testing.assert_allclose(counts[2:-2], limit[2:-2], rtol=0.15)


def test_sizes_without_a_law_are_refused() -> None:
    for sizes in ((0, 4, 1), (4, 0, 1), (4, 4, 0)):
        with pytest.raises(ShapeError, match="positive"):
            untrained_spectra(*sizes)
    with pytest.raises(ShapeError, match="d_head"):
        untrained_edges(8, 4)


class TestCache:
    @pytest.fixture(autouse=True)
    def _own_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        untrained.untrained_heads.cache_clear()

    def test_drawn_once(self, tmp_path: Path) -> None:
        first = untrained.untrained_heads(8, 32, 50)
        (file,) = (tmp_path / "cache").rglob("*.npy")
        written = file.stat().st_mtime_ns
        untrained.untrained_heads.cache_clear()
        np.testing.assert_array_equal(untrained.untrained_heads(8, 32, 50), first)
        assert file.stat().st_mtime_ns == written
        drawn = untrained_spectra(8, 32, 50)[:, 0].astype(np.float32)
        np.testing.assert_array_equal(first, drawn)

    @pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"not an array"])
    def test_a_damaged_file_is_drawn_again(self, tmp_path: Path, damage: bytes) -> None:
        first = untrained.untrained_heads(8, 32, 50)
        (file,) = (tmp_path / "cache").rglob("*.npy")
        file.write_bytes(damage)
        untrained.untrained_heads.cache_clear()
        np.testing.assert_array_equal(untrained.untrained_heads(8, 32, 50), first)
        assert np.load(file).shape == (50, 8)

    def test_without_a_place_to_keep_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
        assert untrained.untrained_heads(8, 32, 20).shape == (20, 8)
