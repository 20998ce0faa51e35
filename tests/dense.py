"""Naive float64 references: dense d×d matrices of one head, from NumPy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

Array = np.ndarray[Any, np.dtype[Any]]


def dense_circuit(left: Array, right: Array, head: int) -> Array:
    """leftᵀ right of one query head: (d_model, d_model) float64."""
    group = left.shape[0] // right.shape[0]
    return left[head].astype(np.float64).T @ right[head // group].astype(np.float64)


def dense_singular_values(left: Array, right: Array) -> Array:
    """(n_heads, d_head) from the SVD of every d×d matrix."""
    e = left.shape[1]
    matrices = [dense_circuit(left, right, head) for head in range(left.shape[0])]
    values = np.stack([np.linalg.svd(m, compute_uv=False) for m in matrices])
    return np.pad(values, ((0, 0), (0, max(0, e - values.shape[1]))))[:, :e]


def contract_error(found: Array, dense: Array) -> float:
    """Largest relative error over the σ ≥ 1e-6·σ₁ of every head, as the contract counts."""
    counted = dense >= 1e-6 * dense[:, :1]
    return float((np.abs(found - dense)[counted] / dense[counted]).max())


def eigenvalue_error(found: Array, matrix: Array) -> float:
    """Largest distance of matched eigenvalues, relative to the d×d matrix's largest modulus."""
    mu = np.linalg.eigvals(matrix)
    distance = np.abs(found[:, None] - mu[None, :])
    rows, columns = linear_sum_assignment(distance)
    return float(distance[rows, columns].max() / np.abs(mu).max())
