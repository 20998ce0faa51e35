"""Products and factorisations of float64 matrices.

Products of d_model columns run where the weights are, by torch on a GPU. Factorisations of e×e
matrices run on the CPU alone: an H100 takes four times as long for the nonsymmetric eigenvalues of
a layer as the 16 cores beside it.

On a CPU it is NumPy's OpenBLAS, the faster one for a head's shapes: it hands ``x @ x.T`` on as a
symmetric rank-k update, and, kept to one thread (:mod:`qk_taxonomy.circuits.threads`), gives the
same bits whatever the number of threads around it; MKL, which torch has, promises that for aligned
memory alone.
"""

from __future__ import annotations

import threading

import numpy as np
import torch

from qk_taxonomy.circuits import lapack

_LOADING = threading.Lock()


def on_cpu(device: torch.device) -> bool:
    """Whether NumPy can work on a device's tensors."""
    return device.type == "cpu"


def times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a @ b``."""
    if on_cpu(a.device):
        return torch.from_numpy(np.matmul(a.numpy(), b.numpy()))
    return a @ b


def gram(x: torch.Tensor) -> torch.Tensor:
    """``x xᵀ`` of (..., rows, columns)."""
    return times(x, x.mT)


def inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum of the products of the entries of two (..., rows, columns) alike."""
    return torch.from_numpy(np.asarray(np.einsum("...ij,...ij->...", a.numpy(), b.numpy())))


def eigvalsh(x: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of symmetric (..., e, e), ascending."""
    return torch.from_numpy(np.linalg.eigvalsh(x.numpy()))


def eigvals(x: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of (..., e, e), complex128, in no order."""
    return torch.from_numpy(lapack.eigvals(x.numpy()))


def svdvals(x: torch.Tensor) -> torch.Tensor:
    """Singular values of (..., rows, columns), descending."""
    return torch.from_numpy(np.linalg.svd(x.numpy(), compute_uv=False))


def qr_core(x: torch.Tensor) -> torch.Tensor:
    """R of the QR factorisation of (rows, columns)."""
    return torch.from_numpy(np.linalg.qr(x.numpy(), mode="r"))


def lower_core(x: torch.Tensor) -> torch.Tensor:
    """T (rows, rows), lower triangular, of ``x = T Q``, rows of Q orthonormal; spoils ``x``.

    x: (rows, columns), contiguous, with no more rows than columns.
    """
    if on_cpu(x.device):
        return torch.from_numpy(lapack.lower_core(x.numpy()))
    # torch loads its CUDA solvers at their first call, which two threads must not make at once.
    with _LOADING:
        return torch.linalg.qr(x.mT, mode="r").R.mT


def cholesky(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower Cholesky factors of (n, e, e), and whether each exists; what does not is zeros."""
    try:
        return torch.from_numpy(np.linalg.cholesky(x.numpy())), torch.ones(len(x), dtype=torch.bool)
    except np.linalg.LinAlgError:
        if len(x) == 1:
            return torch.zeros_like(x), torch.zeros(1, dtype=torch.bool)
        # NumPy does not say which of them it was.
        lowers, exist = zip(*(cholesky(one) for one in x.split(1)), strict=True)
        return torch.cat(lowers), torch.cat(exist)
