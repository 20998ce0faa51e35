"""LAPACK routines that NumPy and SciPy have no function for, or none that leaves Python's lock.

``dgeev`` turns from ``dlahqr`` to multishift QR above 75 rows, which pays off from some 200 rows
on only: at the usual d_head of 128 the classical iteration takes a fifth less. Both are backward
stable. SciPy hands out the routines themselves, as pointers.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

_Array = np.ndarray[Any, np.dtype[Any]]

# Rows between which the classical iteration is worth calling by itself.
_FEWEST_ROWS, _MOST_ROWS = 76, 192


@functools.cache
def _routine(name: str) -> Callable[..., None]:
    """A routine of the LAPACK that SciPy was built with; all of its arguments are addresses."""
    from scipy import LowLevelCallable
    from scipy.linalg import cython_lapack

    signature = LowLevelCallable.from_cython(cython_lapack, name).signature
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    pointer = address(cython_lapack.__pyx_capi__[name], signature.encode())
    arguments = [ctypes.c_void_p] * (signature.count(",") + 1)
    return ctypes.CFUNCTYPE(None, *arguments)(pointer)


def _addresses(integers: _Array) -> list[int]:
    return [integers.ctypes.data + i * integers.itemsize for i in range(len(integers))]


def lower_core(x: _Array) -> _Array:
    """T of ``x = T Q`` for (rows, columns), contiguous, which is spoilt: it may be large.

    To LAPACK, whose matrices run by columns, it is the transpose of R of ``xᵀ = Qᵀ R``.
    """
    rows, columns = x.shape
    tau, work = np.empty(rows), np.empty(64 * rows)
    integers = np.array([columns, rows, len(work), 0], dtype=np.intc)
    m, n, size, info = _addresses(integers)
    _routine("dgeqrf")(m, n, x.ctypes.data, m, tau.ctypes.data, work.ctypes.data, size, info)
    return np.tril(x[:, :rows])


def eigvals(matrices: _Array) -> _Array:
    """Eigenvalues of (..., e, e) float64, complex128, in no order."""
    e = matrices.shape[-1]
    if not _FEWEST_ROWS <= e <= _MOST_ROWS:
        return np.linalg.eigvals(matrices).astype(np.complex128)
    flat = [_eigvals(matrix) for matrix in matrices.reshape(-1, e, e)]
    return np.stack(flat).reshape(matrices.shape[:-1])


def _eigvals(matrix: _Array) -> _Array:
    """Eigenvalues of one matrix: balanced, reduced to Hessenberg form, iterated."""
    n = len(matrix)
    h = np.array(matrix, order="F")
    scale, tau, work = np.empty(n), np.empty(n), np.empty(64 * n)
    real, imaginary = np.empty(n), np.empty(n)
    # no, n, ilo, ihi, one, info, size of the workspace
    integers = np.array([0, n, 1, n, 1, 0, len(work)], dtype=np.intc)
    no, rows, low, high, one, info, size = _addresses(integers)
    a, both = h.ctypes.data, ctypes.create_string_buffer(b"B")
    _routine("dgebal")(ctypes.addressof(both), rows, a, rows, low, high, scale.ctypes.data, info)
    _routine("dgehrd")(rows, low, high, a, rows, tau.ctypes.data, work.ctypes.data, size, info)
    # Balancing has set apart eigenvalues that stand on the diagonal already.
    real[:], imaginary[:] = h.diagonal(), 0.0
    _routine("dlahqr")(
        no, no, rows, low, high, a, rows, real.ctypes.data, imaginary.ctypes.data,
        one, rows, None, one, info,
    )  # fmt: skip
    if integers[5]:
        return np.linalg.eigvals(matrix).astype(np.complex128)
    return real + 1j * imaginary
