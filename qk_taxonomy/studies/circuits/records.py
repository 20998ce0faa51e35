"""What the study of full circuits hands to tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.records import Circuit, Convention

DirectionKind = Literal["eigenvector", "singular vector"]
Side = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class LayerCircuits:
    """Spectra of one full circuit F (n_tokens × n_tokens) of every head of a layer, in float64.

    singular_values: (n_heads, e), descending. eigenvalues: (n_heads, e), complex, those of F that
    are not zero by its rank, by descending modulus. symmetric: (n_heads, 2e), eigenvalues of
    ½(F + Fᵀ), signed, descending. antisymmetric: (n_heads, e), θ ≥ 0 of the eigenvalues ±iθ of
    ½(F − Fᵀ), descending. n_kv_heads: that the heads share, in equal, consecutive groups.
    """

    layer: int
    stack: str
    n_kv_heads: int
    circuit: Circuit
    convention: Convention
    singular_values: NDArray[np.float64]
    eigenvalues: NDArray[np.complex128]
    symmetric: NDArray[np.float64]
    antisymmetric: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ModelCircuits:
    """The full circuits of a model, or of its control; ``metadata``: what a file says of them."""

    metadata: Mapping[str, str]
    layers: tuple[LayerCircuits, ...]

    def select(self, circuit: Circuit, convention: Convention) -> tuple[LayerCircuits, ...]:
        """The layers' spectra of one circuit and convention, in the order they have here."""
        return tuple(
            layer
            for layer in self.layers
            if (layer.circuit, layer.convention) == (circuit, convention)
        )


@dataclass(frozen=True)
class TokenEnds:
    """The tokens at both ends of a leading direction of one head's full circuit F.

    number: 1 is the leading one. value: its eigenvalue μ, or its singular value σ. side: "left",
    the rows of F (QK: tokens that attend; OV: tokens that are written), or "right", its columns
    (QK: tokens that are attended to; OV: tokens that are read). top: texts and scores of the
    highest scores, descending. bottom: of the lowest, ascending.
    """

    layer: int
    stack: str
    head: int
    circuit: Circuit
    convention: Convention
    kind: DirectionKind
    number: int
    value: complex
    side: Side
    top: tuple[tuple[str, float], ...]
    bottom: tuple[tuple[str, float], ...]
