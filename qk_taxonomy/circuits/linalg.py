"""Products and factorisations of float64 matrices: NumPy's BLAS on a CPU, torch elsewhere.

NumPy's OpenBLAS is the faster one for a head's shapes, hands ``x @ x.T`` on as a symmetric rank-k
update, and, kept to one thread (:mod:`qk_taxonomy.circuits.threads`), gives the same bits whatever
the number of threads around it; MKL, which torch has, promises that for aligned memory alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from qk_taxonomy.circuits import lapack

_Array = np.ndarray[Any, np.dtype[Any]]


def on_cpu(device: torch.device) -> bool:
    """Whether NumPy can work on a device's tensors."""
    return device.type == "cpu"


def _by(
    with_numpy: Callable[..., _Array], elsewhere: Callable[..., torch.Tensor], *x: torch.Tensor
) -> torch.Tensor:
    if on_cpu(x[0].device):
        return torch.from_numpy(np.asarray(with_numpy(*(tensor.numpy() for tensor in x))))
    return elsewhere(*x)


def times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a @ b``."""
    return _by(np.matmul, torch.matmul, a, b)


def gram(x: torch.Tensor) -> torch.Tensor:
    """``x xᵀ`` of (..., rows, columns)."""
    return times(x, x.mT)


def inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum of the products of the entries of two (..., rows, columns) alike."""
    formula = "...ij,...ij->..."
    return _by(lambda *x: np.einsum(formula, *x), lambda *x: torch.einsum(formula, *x), a, b)


def eigvalsh(x: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of symmetric (..., e, e), ascending."""
    return _by(np.linalg.eigvalsh, torch.linalg.eigvalsh, x)


def eigvals(x: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of (..., e, e), complex128, in no order."""
    return _by(lapack.eigvals, torch.linalg.eigvals, x)


def svdvals(x: torch.Tensor) -> torch.Tensor:
    """Singular values of (..., rows, columns), descending."""
    return _by(lambda m: np.linalg.svd(m, compute_uv=False), torch.linalg.svdvals, x)


def _r_of_qr(x: _Array) -> _Array:
    r: Any = np.linalg.qr(x, mode="r")
    return r


def qr_core(x: torch.Tensor) -> torch.Tensor:
    """R of the QR factorisation of (rows, columns)."""
    return _by(_r_of_qr, lambda m: torch.linalg.qr(m, mode="r").R, x)


def lower_core(x: torch.Tensor) -> torch.Tensor:
    """T (rows, rows), lower triangular, of ``x = T Q``, rows of Q orthonormal; spoils ``x``.

    x: (rows, columns), contiguous, with no more rows than columns.
    """
    return _by(lapack.lower_core, lambda m: torch.linalg.qr(m.mT, mode="r").R.mT, x)


def cholesky(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower Cholesky factors of (n, e, e), and whether each exists; what does not is zeros."""
    if not on_cpu(x.device):
        lower, info = torch.linalg.cholesky_ex(x)
        return lower.where((info == 0)[:, None, None], 0.0), info == 0
    try:
        return torch.from_numpy(np.linalg.cholesky(x.numpy())), torch.ones(len(x), dtype=torch.bool)
    except np.linalg.LinAlgError:
        if len(x) == 1:
            return torch.zeros_like(x), torch.zeros(1, dtype=torch.bool)
        # NumPy does not say which of them it was.
        lowers, exist = zip(*(cholesky(one) for one in x.split(1)), strict=True)
        return torch.cat(lowers), torch.cat(exist)
