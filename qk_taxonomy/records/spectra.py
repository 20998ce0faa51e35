"""Spectra of a layer, and of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.records.words import Circuit, Convention, Formula

#: How the provenance of imported spectra names their formula, which is not that of W_QK.
PREDECESSOR_FORMULA = "qk-spectral-analysis"


@dataclass(frozen=True, eq=False)
class LayerSpectra:
    """Spectra of one circuit in one convention, for every head of one layer of a stack.

    ``singular_values`` (n_heads, d_head), descending; ``eigenvalues`` (n_heads, d_head), complex;
    ``statistics`` (n_heads, n_statistics). ``n_recomputed`` counts the heads whose factors needed
    the slower, more stable way.
    """

    layer: int
    circuit: Circuit
    convention: Convention
    singular_values: NDArray[np.floating] = field(repr=False)
    eigenvalues: NDArray[np.complexfloating] = field(repr=False)
    statistics: NDArray[np.floating] = field(repr=False)
    n_recomputed: int = 0
    stack: str = ""

    @property
    def place(self) -> tuple[str, int]:
        """Stack and number, which no two layers of a model share."""
        return self.stack, self.layer


@dataclass(frozen=True, eq=False)
class ModelSpectra:
    """The content of one spectra file: layers in order, and the file's metadata."""

    metadata: Mapping[str, str]
    layers: tuple[LayerSpectra, ...] = field(repr=False)

    @property
    def family(self) -> str:
        """The family that the model is filed under."""
        return self.metadata["family"]

    @property
    def model_id(self) -> str:
        """The model's id on the hub, or the path that it was read from."""
        return self.metadata["model_id"]

    @property
    def control(self) -> str:
        """The label of the :class:`Control` whose spectra these are; "" for the model's own."""
        return self.metadata.get("control", "")

    @property
    def is_random_twin(self) -> bool:
        """Whether these are spectra of untrained weights, drawn anew."""
        return self.control.startswith("random")

    @property
    def formula(self) -> Formula:
        """Whose formula the numbers are by: the exact one, or the predecessor's."""
        provenance = json.loads(self.metadata.get("provenance", "{}"))
        imported = str(provenance.get("formula", "")) == PREDECESSOR_FORMULA
        return "predecessor" if imported else "exact"

    @property
    def is_imported(self) -> bool:
        """Whether these are the predecessor's numbers, by its formula."""
        return self.formula == "predecessor"

    @property
    def statistic_names(self) -> list[str]:
        """What the columns of each layer's ``statistics`` are, in order."""
        return self.metadata["statistics"].split(",")

    @property
    def stacks(self) -> tuple[str, ...]:
        """Names of the model's stacks, in order; "" where it has one."""
        return tuple(dict.fromkeys(layer.stack for layer in self.layers))

    def select(
        self, circuit: Circuit, convention: Convention, stack: str | None = None
    ) -> tuple[LayerSpectra, ...]:
        """The layers of one circuit in one convention, in order; of one stack, or None: of all."""
        return tuple(
            layer
            for layer in self.layers
            if layer.circuit == circuit
            and layer.convention == convention
            and stack in (None, layer.stack)
        )
