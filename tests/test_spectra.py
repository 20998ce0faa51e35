"""The kernel against naive float64 references."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dense import contract_error, dense_circuit, dense_singular_values, eigenvalue_error
from safetensors.torch import load_file

from qk_taxonomy import (
    circuit_eigenvalues,
    correlation_eigenvalues,
    robust_lowrank_singular_values,
    singular_values,
)
from qk_taxonomy.circuits import linalg
from qk_taxonomy.circuits.factors import Factor
from qk_taxonomy.circuits.gram import dense
from qk_taxonomy.circuits.spectra import circuit_spectra
from qk_taxonomy.errors import ShapeError, SpectrumError


def random_heads(
    n_heads: int, n_kv_heads: int, d_head: int, d_model: int, decades: float = 2.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Heads whose rows span ``decades`` of scale, so that spectra are as steep as trained ones."""
    rng = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -decades, d_head, dtype=torch.float64)[:, None]
    mix = torch.linalg.qr(torch.randn(d_head, d_head, generator=rng, dtype=torch.float64)).Q

    def weights(heads: int) -> torch.Tensor:
        return mix @ (
            torch.randn(heads, d_head, d_model, generator=rng, dtype=torch.float64) * scale
        )

    return weights(n_heads), weights(n_kv_heads)


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "d_head", "d_model"),
    [(4, 4, 16, 48), (6, 2, 16, 48), (4, 1, 32, 40), (1, 1, 8, 8), (2, 1, 1, 5), (3, 3, 64, 1500)],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_singular_values_meet_the_contract(
    n_heads: int, n_kv_heads: int, d_head: int, d_model: int, dtype: torch.dtype
) -> None:
    w_q, w_k = (w.to(dtype) for w in random_heads(n_heads, n_kv_heads, d_head, d_model))
    found = singular_values(w_q, w_k).numpy()
    dense = dense_singular_values(w_q.double().numpy(), w_k.double().numpy())
    assert found.shape == (n_heads, d_head)
    assert contract_error(found, dense) < 1e-5
    assert (np.diff(found) <= 0).all()
    np.testing.assert_allclose(correlation_eigenvalues(w_q, w_k), found**2)


@pytest.mark.parametrize("decades", [3.0, 5.0, 7.0, 12.0])
def test_steep_spectra_meet_the_contract(decades: float) -> None:
    w_q, w_k = random_heads(3, 1, 32, 128, decades=decades)
    dense = dense_singular_values(w_q.numpy(), w_k.numpy())
    assert contract_error(singular_values(w_q, w_k).numpy(), dense) < 1e-5


def test_all_heads_of_a_real_model_meet_the_contract(minilm: Path) -> None:
    weights = load_file(minilm / "model.safetensors")
    worst, worst_mu = 0.0, 0.0
    for layer in range(6):
        name = f"encoder.layer.{layer}.attention.self"
        w_q, w_k = (weights[f"{name}.{x}.weight"].reshape(12, 32, 384) for x in ("query", "key"))
        dense = dense_singular_values(w_q.numpy(), w_k.numpy())
        worst = max(worst, contract_error(singular_values(w_q, w_k).numpy(), dense))
        mu = circuit_eigenvalues(w_q, w_k).numpy()
        for head in range(12):
            matrix = dense_circuit(w_q.numpy(), w_k.numpy(), head)
            worst_mu = max(worst_mu, eigenvalue_error(mu[head], matrix))
    print(f"72 heads: σ within {worst:.1e} relative, μ within {worst_mu:.1e} of the largest")
    assert worst < 1e-5
    assert worst_mu < 1e-4


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(4, 4), (6, 2)])
def test_circuit_eigenvalues_are_those_of_the_dense_matrix(n_heads: int, n_kv_heads: int) -> None:
    w_q, w_k = random_heads(n_heads, n_kv_heads, 12, 40, decades=1.0)
    mu = circuit_eigenvalues(w_q, w_k).numpy()
    for head in range(n_heads):
        matrix = dense_circuit(w_q.numpy(), w_k.numpy(), head)
        assert eigenvalue_error(mu[head], matrix) < 1e-9
    assert (np.diff(np.abs(mu)) <= 1e-12).all()


def test_factors_fold_gains_means_and_scale_in() -> None:
    rng = torch.Generator().manual_seed(3)
    w_q, w_k = random_heads(4, 2, 6, 1100)
    columns = torch.rand(1100, generator=rng, dtype=torch.float64) + 0.5
    rows = torch.rand(4, 6, generator=rng, dtype=torch.float64) + 0.5
    left = Factor(w_q, columns=columns, rows=rows, centred=True)
    right = Factor(w_k, columns=columns, centred=True)
    centre = torch.eye(1100, dtype=torch.float64) - 1 / 1100
    dense_q = rows[..., None] * w_q * columns @ centre
    dense_k = w_k * columns @ centre
    torch.testing.assert_close(dense(left)[1], dense_q[1])
    spectra = circuit_spectra(left, right, scale=0.25)
    expected = 0.25 * dense_singular_values(dense_q.numpy(), dense_k.numpy())
    assert contract_error(spectra.singular_values.numpy(), expected) < 1e-9
    assert spectra.eigenvalues is not None
    matrix = 0.25 * dense_circuit(dense_q.numpy(), dense_k.numpy(), 3)
    assert eigenvalue_error(spectra.eigenvalues[3].numpy(), matrix) < 1e-9


def test_rank_deficient_and_dead_heads() -> None:
    w_q, w_k = random_heads(4, 2, 8, 30)
    w_q[1, 5:] = 0.0
    w_q[2] = 0.0
    spectra = circuit_spectra(Factor(w_q), Factor(w_k))
    dense = dense_singular_values(w_q.numpy(), w_k.numpy())
    found = spectra.singular_values.numpy()
    assert contract_error(found[[0, 1, 3]], dense[[0, 1, 3]]) < 1e-9
    assert found[1, 5:].max() < 1e-12 * found[1, 0]
    assert (found[2] == 0).all()
    assert spectra.n_recomputed == 2


def test_factors_that_are_steep_in_opposite_directions() -> None:
    rng = torch.Generator().manual_seed(0)
    shared, *ends = (
        torch.linalg.qr(torch.randn(n, 32, generator=rng, dtype=torch.float64)).Q
        for n in (32, 64, 64)
    )
    falling = torch.logspace(0, -3.5, 32, dtype=torch.float64)
    rising = torch.logspace(-7, 0, 32, dtype=torch.float64)
    w_q, w_k = shared * falling @ ends[0].T, shared * rising @ ends[1].T
    dense = dense_singular_values(w_q[None].numpy(), w_k[None].numpy())
    assert contract_error(singular_values(w_q[None], w_k[None]).numpy(), dense) < 1e-5


def test_a_driver_that_fails_silently_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    w_q, w_k = random_heads(2, 2, 16, 40, decades=5.0)
    true = singular_values(w_q, w_k)
    svdvals, eigvalsh = linalg.svdvals, linalg.eigvalsh
    monkeypatch.setattr(linalg, "svdvals", lambda m: 3 * svdvals(m))
    monkeypatch.setattr(linalg, "eigvalsh", lambda m: 3 * eigvalsh(m))
    spectra = circuit_spectra(Factor(w_q), Factor(w_k))
    assert spectra.n_recomputed == 2
    torch.testing.assert_close(spectra.singular_values, true)


@pytest.mark.parametrize("shape", [(1, 1, 8, 16), (16, 4, 64, 1100), (12, 1, 64, 1500)])
def test_parameters_and_inference_mode_leave_nothing_behind(shape: tuple[int, ...]) -> None:
    w_q, w_k = random_heads(*shape)
    plain = singular_values(w_q, w_k)
    found = singular_values(torch.nn.Parameter(w_q), torch.nn.Parameter(w_k))
    assert not found.requires_grad
    torch.testing.assert_close(found, plain, rtol=0, atol=0)
    with torch.inference_mode():
        singular_values(w_q.clone(), w_k.clone())
    torch.testing.assert_close(singular_values(w_q, w_k), plain, rtol=0, atol=0)
    torch.testing.assert_close(singular_values(w_q.numpy(), w_k.numpy()), plain)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(8, 8), (8, 2), (9, 1), (8, 1)])
def test_large_layers_are_split_over_threads_alike(n_heads: int, n_kv_heads: int) -> None:
    w_q, w_k = random_heads(n_heads, n_kv_heads, 64, 2500)
    assert w_q.numel() > 1 << 20
    columns = torch.rand(2500, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    large = circuit_spectra(Factor(w_q, columns, centred=True), Factor(w_k, columns, centred=True))
    group = n_heads // n_kv_heads
    for head in range(n_heads):
        one = circuit_spectra(
            Factor(w_q[head : head + 1], columns, centred=True),
            Factor(w_k[head // group : head // group + 1], columns, centred=True),
        )
        torch.testing.assert_close(large.singular_values[head], one.singular_values[0])
        assert large.eigenvalues is not None
        assert one.eigenvalues is not None
        torch.testing.assert_close(large.eigenvalues[head].abs(), one.eigenvalues[0].abs())


def test_more_head_dimensions_than_model_dimensions() -> None:
    w_q, w_k = random_heads(2, 2, 16, 6, decades=1.0)
    found = singular_values(w_q, w_k).numpy()
    dense = dense_singular_values(w_q.numpy(), w_k.numpy())
    assert contract_error(found, dense) < 1e-9
    assert found[:, 6:].max() < 1e-9 * found.max()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["left", "right"])
def test_weights_that_are_not_finite_are_refused(value: float, side: str) -> None:
    w_q, w_k = random_heads(2, 2, 4, 9)
    (w_q if side == "left" else w_k)[1, 2, 3] = value
    with pytest.raises(SpectrumError, match="not finite") as caught:
        singular_values(w_q, w_k)
    assert caught.value.role == side


@pytest.mark.parametrize(
    ("q", "k"),
    [
        ((4, 8, 16), (3, 8, 16)),
        ((4, 8, 16), (4, 8, 12)),
        ((8, 16), (8, 16)),
        ((0, 4, 4), (0, 4, 4)),
    ],
)
def test_shapes_are_checked(q: tuple[int, ...], k: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        singular_values(torch.zeros(q), torch.zeros(k))


def test_threads_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    singular_values(*random_heads(4, 4, 8, 16))
    assert torch.get_num_threads() == before


class TestPredecessorsFunction:
    """``robust_lowrank_singular_values``: same name and arguments, correct values."""

    @staticmethod
    def predecessors_formula(a: torch.Tensor, b: torch.Tensor, sign: float) -> torch.Tensor:
        """The published formula, whose V̄ is Vᵀ; ``sign`` flips one singular pair, as is allowed."""
        u_a, s_a, v_a = torch.linalg.svd(a.mT, full_matrices=False)
        _, s_b, v_b = torch.linalg.svd(b.mT, full_matrices=False)
        flip = torch.ones(len(s_a), dtype=a.dtype)
        flip[0] = sign
        torch.testing.assert_close((u_a * flip * s_a) @ (flip[:, None] * v_a), a.mT)
        return torch.linalg.svdvals((s_a[:, None] * ((flip[:, None] * v_a).mT @ v_b)) * s_b)

    def test_the_published_formula_is_far_off_on_a_real_model(self, minilm: Path) -> None:
        weights = load_file(minilm / "model.safetensors")
        errors = []
        for layer in range(6):
            name = f"encoder.layer.{layer}.attention.self"
            q, k = (weights[f"{name}.{x}.weight"].reshape(12, 32, 384) for x in ("query", "key"))
            true = robust_lowrank_singular_values(q, k) ** 2
            published = torch.stack(
                [self.predecessors_formula(a, b, 1.0) for a, b in zip(q, k, strict=True)]
            )
            errors.append(((published**2 - true) / true).abs())
        error = torch.cat(errors)
        print(f"λ off by {error.median():.1%} in the median, {error.max():.0%} at most")
        assert error.median() > 0.03
        assert error.max() > 0.5

    def test_values_are_those_of_the_dense_product(self) -> None:
        a, b = random_heads(5, 5, 12, 40)
        found = robust_lowrank_singular_values(a.float(), b.float())
        assert found.shape == (5, 12)
        assert found.dtype == torch.float32
        dense = dense_singular_values(a.float().numpy(), b.float().numpy())
        assert contract_error(found.double().numpy(), dense) < 1e-5

    def test_batches_of_any_shape(self) -> None:
        a, b = random_heads(6, 6, 4, 10)
        found = robust_lowrank_singular_values(a.reshape(2, 3, 4, 10), b.reshape(2, 3, 4, 10))
        torch.testing.assert_close(found, singular_values(a, b).reshape(2, 3, 4))
        torch.testing.assert_close(robust_lowrank_singular_values(a[0], b[0]), found[0, 0])

    def test_the_published_formula_depends_on_an_arbitrary_sign_and_is_wrong(self) -> None:
        a, b = (w[0] for w in random_heads(1, 1, 12, 40))
        as_is = self.predecessors_formula(a, b, 1.0)
        flipped = self.predecessors_formula(a, b, -1.0)
        true = singular_values(a[None], b[None])[0]
        assert ((as_is - flipped).abs() / as_is).max() > 0.01
        assert ((as_is - true).abs() / true).max() > 0.01

    def test_shapes_must_match(self) -> None:
        with pytest.raises(ShapeError):
            robust_lowrank_singular_values(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5))
