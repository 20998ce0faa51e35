"""What the study of full circuits hands to tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.circuits.full import Vectors
from qk_taxonomy.records import Circuit, Convention

#: Of a full circuit F.
Side = Literal["rows", "columns"]

#: What the tokens on a side of a full circuit do.
SIDES: dict[tuple[Circuit, Side], str] = {
    ("qk", "rows"): "that attend",
    ("qk", "columns"): "attended to",
    ("ov", "rows"): "written",
    ("ov", "columns"): "read",
}


@dataclass(frozen=True, eq=False)
class LayerCircuits:
    """Spectra of one full circuit F (n_tokens × n_tokens) of every head of a layer, in float64.

    singular_values: (n_heads, e), descending. eigenvalues: (n_heads, e), complex, those of F that
    are not zero by its rank, by descending modulus. symmetric: (n_heads, 2e), eigenvalues of
    ½(F + Fᵀ), signed, descending. antisymmetric: (n_heads, e), θ ≥ 0 of the eigenvalues ±iθ of
    ½(F − Fᵀ), descending. centred_singular_values: (n_heads, e), descending, and centred_symmetry:
    (n_heads,), of F less its mean over columns, which of QK is all that a softmax over keys sees.
    n_kv_heads: that the heads share, in equal, consecutive groups.
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
    centred_singular_values: NDArray[np.float64]
    centred_symmetry: NDArray[np.float64]


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

    kind and number: which vector (:class:`~qk_taxonomy.circuits.full.Leading`), 1 being the leading
    one; value: its eigenvalue μ, or its singular value σ. side: of F. top: texts and scores of the
    highest scores, descending; bottom: of the lowest, ascending. Tokens high on one side score high
    with those that are high on the other, whatever the sign of μ.
    """

    layer: int
    stack: str
    head: int
    circuit: Circuit
    convention: Convention
    kind: Vectors
    number: int
    value: complex
    side: Side
    top: tuple[tuple[str, float], ...]
    bottom: tuple[tuple[str, float], ...]
