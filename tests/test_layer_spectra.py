"""Several conventions in one pass, factors in blocks of columns, bits, memory, devices."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from dense import contract_error, dense_circuit, dense_singular_values, eigenvalue_error
from safetensors.torch import load_file
from threadpoolctl import ThreadpoolController

from qk_taxonomy.circuits import lapack, linalg
from qk_taxonomy.circuits.factors import Factor, FactorPair
from qk_taxonomy.circuits.gram import layer_tasks, with_mean
from qk_taxonomy.circuits.spectra import (
    CircuitSpectra,
    circuit_spectra,
    layer_spectra,
    streamed_spectra,
)
from qk_taxonomy.circuits.threads import in_threads
from qk_taxonomy.errors import ShapeError, SpectrumError

HERE = Path(__file__).parent


def heads(n: int, d_head: int, d_model: int, seed: int) -> torch.Tensor:
    """Weights of steep spectra, and means that are not small."""
    rng = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -2, d_head, dtype=torch.float64)[:, None]
    mix = torch.linalg.qr(torch.randn(d_head, d_head, generator=rng, dtype=torch.float64)).Q
    weights = torch.randn(n, d_head, d_model, generator=rng, dtype=torch.float64) + 0.5
    return (mix @ (scale * weights)).float()


def conventions(q: torch.Tensor, k: torch.Tensor, *, kind: str) -> list[FactorPair]:
    """Raw and folded pairs of the same weights, as of a circuit and norm of some ``kind``."""
    rng = torch.Generator().manual_seed(5)
    gain = torch.rand(q.shape[-1], generator=rng, dtype=torch.float64) + 0.5
    rows = torch.rand(k.shape[:2], generator=rng, dtype=torch.float64) + 0.5
    raw = FactorPair(Factor(q), Factor(k))
    if kind == "post-norm":
        return [raw, FactorPair(Factor(q), Factor(k), 0.3)]
    centred = kind == "layer"
    right = Factor(k, gain, rows, centred, centred)
    if kind == "ov":
        return [raw, FactorPair(Factor(q), right)]
    return [raw, FactorPair(Factor(q, gain, centred=centred), right, 0.3)]


def dense(factor: Factor) -> np.ndarray:
    """A factor multiplied out by NumPy: (heads, d_head, d_model)."""
    x = factor.weights.double().numpy()
    if factor.columns is not None:
        x = x * factor.columns.numpy()
    if factor.centred:
        x = x - x.mean(-1, keepdims=True)
    if factor.rows_centred:
        x = x - x.mean(-2, keepdims=True)
    return x if factor.rows is None else x * factor.rows.numpy()[..., None]


def check(found: CircuitSpectra, pair: FactorPair) -> None:
    """Within the contract of the dense matrices' spectra."""
    left, right = dense(pair.left) * pair.scale, dense(pair.right)
    sigma = found.singular_values.numpy()
    assert contract_error(sigma, dense_singular_values(left, right)) < 1e-5
    assert found.eigenvalues is not None
    for head, mu in enumerate(found.eigenvalues.numpy()):
        assert eigenvalue_error(mu, dense_circuit(left, right, head)) < 1e-4


SHAPES = [(4, 4, 16, 90), (6, 2, 8, 70), (9, 1, 12, 50), (2, 2, 80, 110), (1, 1, 8, 5)]


@pytest.mark.parametrize("kind", ["rms", "layer", "ov", "post-norm"])
@pytest.mark.parametrize(("n_heads", "n_kv_heads", "d_head", "d_model"), SHAPES)
def test_conventions_in_one_pass(
    n_heads: int, n_kv_heads: int, d_head: int, d_model: int, kind: str
) -> None:
    q, k = heads(n_heads, d_head, d_model, 1), heads(n_kv_heads, d_head, d_model, 2)
    pairs = conventions(q, k, kind=kind)
    for found, pair in zip(layer_spectra(pairs), pairs, strict=True):
        check(found, pair)


@pytest.mark.parametrize("kind", ["rms", "layer", "ov"])
@pytest.mark.parametrize("sides", ["left", "right", "left right"])
@pytest.mark.parametrize(("n_heads", "n_kv_heads", "d_head", "d_model"), SHAPES[:3])
def test_weights_that_are_stored_transposed(
    n_heads: int, n_kv_heads: int, d_head: int, d_model: int, sides: str, kind: str
) -> None:
    q, k = heads(n_heads, d_head, d_model, 1), heads(n_kv_heads, d_head, d_model, 2)
    expected = layer_spectra(conventions(q, k, kind=kind))
    q, k = (
        x.movedim(-1, 0).contiguous().movedim(0, -1) if side in sides else x
        for x, side in ((q, "left"), (k, "right"))
    )
    for found, one in zip(layer_spectra(conventions(q, k, kind=kind)), expected, strict=True):
        wanted = one.singular_values.numpy()
        assert contract_error(found.singular_values.numpy(), wanted) < 1e-9


def test_conventions_of_a_real_layer(minilm: Path) -> None:
    weights = load_file(minilm / "model.safetensors")
    name = "encoder.layer.2.attention.self"
    q, k = (weights[f"{name}.{x}.weight"].reshape(12, 32, 384) for x in ("query", "key"))
    pairs = conventions(q, k, kind="layer")
    for found, pair in zip(layer_spectra(pairs), pairs, strict=True):
        check(found, pair)


def test_pairs_of_other_shapes_are_refused() -> None:
    q, k = heads(4, 4, 9, 1), heads(2, 4, 9, 2)
    with pytest.raises(ShapeError, match="one shape"):
        layer_spectra([FactorPair(Factor(q), Factor(k)), FactorPair(Factor(q), Factor(q))])


def hard_heads() -> tuple[torch.Tensor, torch.Tensor]:
    """Duplicated, rank-deficient, steep, dead and plain heads of the usual size."""
    q, k = heads(6, 128, 150, 1).double(), heads(6, 128, 150, 2).double()
    q[1], k[1] = q[0], q[0]
    q[2, 100:] = q[2, :28]
    q[3] *= torch.logspace(0, -9, 128, dtype=torch.float64)[:, None]
    k[4] = 0.0
    return q, k


def test_hard_heads_of_the_usual_size() -> None:
    q, k = hard_heads()
    (found,) = layer_spectra([FactorPair(Factor(q), Factor(k))])
    alive = [0, 1, 2, 3, 5]
    wanted = dense_singular_values(q.numpy(), k.numpy())
    assert contract_error(found.singular_values.numpy()[alive], wanted[alive]) < 1e-5
    assert (found.singular_values[4] == 0).all()
    assert found.eigenvalues is not None
    assert (found.eigenvalues[4] == 0).all()
    for head in alive:
        matrix = dense_circuit(q.numpy(), k.numpy(), head)
        assert eigenvalue_error(found.eigenvalues[head].numpy(), matrix) < 1e-4
    assert found.n_recomputed == 2


@pytest.mark.parametrize("e", [5, 76, 100, 192, 200])
def test_eigenvalues_where_some_stand_on_the_diagonal(e: int) -> None:
    rng = np.random.default_rng(0)
    stack = rng.standard_normal((3, e, e))
    stack[1, :, 3:] = 0.0
    stack[2] = np.triu(stack[2])
    for found, matrix in zip(lapack.eigvals(stack), stack, strict=True):
        assert eigenvalue_error(found, matrix) < 1e-9


def blocks(pairs: Sequence[FactorPair], step: int) -> Iterator[list[FactorPair]]:
    known = [FactorPair(with_mean(p.left), with_mean(p.right), p.scale) for p in pairs]
    for start in reversed(range(0, pairs[0].left.d_model, step)):
        cut = slice(start, start + step)
        yield [FactorPair(p.left.cut(cut), p.right.cut(cut), p.scale) for p in known]


def never(heads: Sequence[int]) -> Sequence[FactorPair]:
    raise AssertionError(f"heads {heads} were asked for")


@pytest.mark.parametrize("kind", ["rms", "layer", "ov"])
@pytest.mark.parametrize(("n_heads", "n_kv_heads", "d_head", "d_model"), SHAPES[:3])
def test_blocks_of_columns_add_up(
    n_heads: int, n_kv_heads: int, d_head: int, d_model: int, kind: str
) -> None:
    q, k = heads(n_heads, d_head, d_model, 1), heads(n_kv_heads, d_head, d_model, 2)
    pairs = conventions(q, k, kind=kind)
    if kind == "layer":
        # Centring over the head takes one dimension of the right factor: Gram matrices lose it.
        found = streamed_spectra(blocks(pairs, 32), lambda h: [p.select(h) for p in pairs])
    else:
        found = streamed_spectra(blocks(pairs, 32), never)
    for one, pair in zip(found, pairs, strict=True):
        check(one, pair)


def test_heads_that_blocks_lose_are_asked_for_once() -> None:
    q, k = hard_heads()
    pairs = [FactorPair(Factor(q), Factor(k)), FactorPair(Factor(q), Factor(k), 2.0)]
    asked = []

    def whole(heads: Sequence[int]) -> list[FactorPair]:
        asked.append(list(heads))
        return [pair.select(heads) for pair in pairs]

    found = streamed_spectra(blocks(pairs, 40), whole)
    assert asked == [[2, 3]]
    for one, expected in zip(found, layer_spectra(pairs), strict=True):
        torch.testing.assert_close(one.singular_values, expected.singular_values)
        assert one.n_recomputed == expected.n_recomputed == 2


def test_latent_projections_come_in_blocks_too() -> None:
    rng = torch.Generator().manual_seed(0)
    o, latent = heads(4, 6, 60, 1), torch.randn(9, 60, generator=rng)
    v = Factor(
        torch.randn(4, 6, 9, generator=rng),
        torch.rand(60, generator=rng, dtype=torch.float64),
        centred=True,
        latent=latent,
        latent_rows=torch.rand(9, generator=rng, dtype=torch.float64),
    )
    pair = FactorPair(Factor(o), v)
    (found,) = streamed_spectra(blocks([pair], 16), never)
    (expected,) = layer_spectra([pair])
    torch.testing.assert_close(found.singular_values, expected.singular_values)


def test_blocks_that_do_not_go_together_are_refused() -> None:
    q, k = heads(2, 4, 20, 1), heads(2, 4, 20, 2)
    raw, folded = conventions(q, k, kind="layer")
    with pytest.raises(ShapeError, match="mean over all columns"):
        folded.left.cut(slice(0, 10))
    with pytest.raises(ShapeError, match="found none"):
        streamed_spectra([], never)
    other = FactorPair(Factor(k[:1]), Factor(q[:1]))
    with pytest.raises(ShapeError, match="other heads"):
        streamed_spectra([[raw], [other]], never)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_block_that_is_not_finite_is_refused(side: str) -> None:
    q, k = heads(2, 4, 20, 1), heads(2, 4, 20, 2)
    (q if side == "left" else k)[1, 2, 15] = torch.inf
    pair = FactorPair(Factor(q), Factor(k))
    with pytest.raises(SpectrumError, match="not finite") as caught:
        streamed_spectra(blocks([pair], 8), never)
    assert caught.value.role == side


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "d_head", "d_model"),
    [(12, 12, 32, 384), (32, 8, 128, 4096), (71, 1, 64, 4544), (128, 8, 128, 16384)],
)  # fmt: skip
def test_tasks_cover_every_head_once(
    n_heads: int, n_kv_heads: int, d_head: int, d_model: int
) -> None:
    q, k = (torch.empty(n, 1, 1).expand(n, d_head, d_model) for n in (n_heads, n_kv_heads))
    tasks = layer_tasks(FactorPair(Factor(q), Factor(k)))
    covered = [h for task in tasks for h in range(task.heads.start, task.heads.stop)]
    assert covered == list(range(n_heads))
    group = n_heads // n_kv_heads
    for task in tasks:
        kv = {h // group for h in range(task.heads.start, task.heads.stop)}
        assert kv == set(range(task.kv_heads.start, task.kv_heads.stop))
        assert task.n_members <= 9


def digest(found: Sequence[CircuitSpectra]) -> str:
    sha = hashlib.sha256()
    for one in found:
        assert one.eigenvalues is not None
        sha.update(one.singular_values.numpy().tobytes())
        sha.update(one.eigenvalues.numpy().tobytes())
    return sha.hexdigest()


def all_digests() -> list[str]:
    """Hashes of the spectra of layers of many kinds."""
    digests = []
    for shape in [(12, 12, 32, 384), (8, 2, 96, 1100), (5, 1, 64, 800), (4, 4, 128, 1300)]:
        q, k = heads(shape[0], *shape[2:], 1), heads(shape[1], *shape[2:], 2)
        q[0, 3] = q[0, 1]
        digests += [
            digest(layer_spectra(conventions(q, k, kind=kind))) for kind in ("rms", "layer", "ov")
        ]
        turned = q.movedim(-1, 0).contiguous().movedim(0, -1)
        digests.append(digest(layer_spectra(conventions(turned, k, kind="layer"))))
    latent = [Factor(heads(4, 64, rank, 1), latent=heads(1, rank, 700, 2)[0]) for rank in (100, 90)]
    digests.append(digest([circuit_spectra(*latent)]))
    return digests


def test_threads_change_no_bit() -> None:
    """Not the library's, not torch's, not those of a pool from which the kernel is called."""
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1])\n"
        "torch.set_num_threads(int(sys.argv[2]))\n"
        "from test_layer_spectra import all_digests; print(*all_digests())"
    )
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    with ThreadPoolExecutor(2) as pool:
        here = list(pool.map(lambda _: all_digests(), range(2)))
    assert here[0] == here[1]
    for threads, of_torch in ((1, 1), (2, 4), (4, 2)):
        env = {**os.environ, **dict.fromkeys(names, str(threads))}
        done = subprocess.run(
            [sys.executable, "-c", code, str(HERE), str(of_torch)],
            capture_output=True, text=True, check=True, timeout=300, env=env,
        )  # fmt: skip
        assert done.stdout.split() == here[0], f"{threads} threads, {of_torch} of torch"


def test_blas_keeps_to_one_thread_whoever_comes_first() -> None:
    """Two callers whose visits overlap, each of them the first one in and the last one out."""
    blas = ThreadpoolController().select(user_api="blas")

    def threads_inside() -> set[int]:
        return {number for _ in range(3) for number in in_threads(_threads_of_blas, range(2))}

    def _threads_of_blas(_: int) -> int:
        time.sleep(0.01)
        return max(library.num_threads for library in blas.lib_controllers)

    before = _threads_of_blas(0)
    with ThreadPoolExecutor(2) as callers:
        for wait in (0.0, 0.005, 0.0, 0.015):
            found = [callers.submit(threads_inside)]
            time.sleep(wait)
            found.append(callers.submit(threads_inside))
            assert [visit.result() for visit in found] == [{1}, {1}]
    assert _threads_of_blas(0) == before


_PEAK = r"""
import re, sys, torch
from pathlib import Path
from qk_taxonomy.circuits.factors import Factor, FactorPair
from qk_taxonomy.circuits.spectra import layer_spectra
# Not ru_maxrss, in which a process keeps what its parent had.
peak = lambda: int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
torch.set_num_threads(2)
small = torch.randn(2, 8, 16)
layer_spectra([FactorPair(Factor(small), Factor(small))])
# Made in place: the highest that memory has been is what it is when the kernel is called.
q, k = (torch.empty(n, 128, 2048, dtype=torch.bfloat16) for n in (128, int(sys.argv[1])))
for weights in (q, k):
    for head in weights:
        head.normal_()
gain = torch.rand(2048, dtype=torch.float64)
pairs = [FactorPair(Factor(q), Factor(k)), FactorPair(Factor(q, gain), Factor(k, gain))]
before = peak()
layer_spectra(pairs)
print((peak() - before) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
@pytest.mark.parametrize("n_kv_heads", [128, 8])
def test_memory_does_not_grow_with_the_number_of_heads(n_kv_heads: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(n_kv_heads)],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    print(f"peak of {float(done.stdout):.0f} MB for 128 heads on {n_kv_heads}")
    assert 4 < float(done.stdout) < 64


@pytest.mark.parametrize("kind", ["rms", "layer", "ov"])
def test_the_way_of_other_devices(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does, by torch alone, on a CPU."""
    monkeypatch.setattr(linalg, "on_cpu", lambda device: False)
    pairs = conventions(heads(4, 20, 90, 1), heads(2, 20, 90, 2), kind=kind)
    for found, pair in zip(layer_spectra(pairs), pairs, strict=True):
        check(found, pair)
    q, k = hard_heads()
    (found,) = layer_spectra([FactorPair(Factor(q), Factor(k))])
    alive = [0, 1, 2, 3, 5]
    wanted = dense_singular_values(q.numpy(), k.numpy())
    assert contract_error(found.singular_values.numpy()[alive], wanted[alive]) < 1e-5


def test_latents_by_the_way_of_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    latent = [
        Factor(heads(2, 12, rank, 1), latent=heads(1, rank, 70, 2)[0], centred=True)
        for rank in (20, 30)
    ]
    expected = circuit_spectra(*latent)
    monkeypatch.setattr(linalg, "on_cpu", lambda device: False)
    found = circuit_spectra(*latent)
    torch.testing.assert_close(found.singular_values, expected.singular_values)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("kind", ["rms", "layer", "ov"])
def test_cuda_agrees_with_the_cpu(kind: str) -> None:
    pairs = conventions(heads(6, 64, 700, 1), heads(2, 64, 700, 2), kind=kind)
    _check_alike(layer_spectra([_to_cuda(pair) for pair in pairs]), layer_spectra(pairs))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_cuda_recomputes_hard_heads() -> None:
    pair = FactorPair(*(Factor(side) for side in hard_heads()))
    expected, found = layer_spectra([pair]), layer_spectra([_to_cuda(pair)])
    assert found[0].n_recomputed == expected[0].n_recomputed > 0
    largest = expected[0].singular_values.amax(-1, keepdim=True)
    far = (found[0].singular_values - expected[0].singular_values).abs() / largest
    assert far.nan_to_num().max() < 1e-9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_cuda_with_latents_and_several_threads() -> None:
    pairs = [
        FactorPair(
            Factor(heads(6, 12, 20, 1), latent=heads(1, 20, 170, 2)[0], centred=centred),
            Factor(heads(6, 12, 30, 3), latent=heads(1, 30, 170, 4)[0], centred=centred),
        )
        for centred in (False, True)
    ]
    expected = layer_spectra(pairs)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: layer_spectra([_to_cuda(x) for x in pairs]), range(4)):
            _check_alike(found, expected)


def _check_alike(found: Sequence[CircuitSpectra], expected: Sequence[CircuitSpectra]) -> None:
    for one, other in zip(found, expected, strict=True):
        sigma = one.singular_values.numpy()
        assert contract_error(sigma, other.singular_values.numpy()) < 1e-5
        assert one.eigenvalues is not None
        assert other.eigenvalues is not None
        largest = other.eigenvalues.abs().amax(-1)
        difference = one.eigenvalues.abs() - other.eigenvalues.abs()
        assert (difference.abs().amax(-1) < 1e-4 * largest).all()


def _to_cuda(pair: FactorPair) -> FactorPair:
    sides = [
        Factor(**{k: v.cuda() if torch.is_tensor(v) else v for k, v in vars(side).items()})
        for side in (pair.left, pair.right)
    ]
    return FactorPair(*sides, pair.scale)
