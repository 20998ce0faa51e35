"""The table of full circuits: one row a head and convention, with a control beside it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Circuit
from qk_taxonomy.statistics.moments import effective_rank_sigma, near_zero_ratio
from qk_taxonomy.statistics.vocabulary import (
    copying_score,
    near_zero_eigenvalues,
    positive_share,
    symmetry,
)
from qk_taxonomy.studies.circuits.records import LayerCircuits, ModelCircuits

#: Statistics of which the table also has the mean over the control's heads.
COMPARED = ("copying", "near_zero", "symmetry", "effective_rank")

_PLACE = ["stack", "layer", "head", "convention"]


def _statistics(layer: LayerCircuits) -> dict[str, NDArray[np.float64]]:
    lam = np.square(layer.singular_values)
    mu = layer.eigenvalues
    return {
        "largest": layer.singular_values[:, 0],
        "copying": copying_score(mu),
        "positive_share": positive_share(mu),
        "near_zero": near_zero_ratio(lam),
        "near_zero_eigenvalues": near_zero_eigenvalues(mu),
        "symmetry": symmetry(mu, layer.singular_values),
        "effective_rank": effective_rank_sigma(lam),
        "rank_bound": np.full(len(lam), float(lam.shape[-1])),
    }


def _of_circuit(layers: Iterable[LayerCircuits], circuit: Circuit) -> pd.DataFrame:
    frames = [
        pd.DataFrame(
            {
                "stack": layer.stack,
                "layer": layer.layer,
                "head": np.arange(len(layer.singular_values)),
                "convention": layer.convention,
                **{f"{circuit}_{name}": x for name, x in _statistics(layer).items()},
            }
        )
        for layer in layers
        if layer.circuit == circuit
    ]
    return pd.concat(frames) if frames else pd.DataFrame(columns=_PLACE)


def circuit_table(model: ModelCircuits, control: ModelCircuits | None = None) -> pd.DataFrame:
    """One row a head and convention; columns of a circuit begin with ``qk_`` or ``ov_``.

    ``*_copying``: Σμ / Σ|μ|; ``*_symmetry``: (‖sym‖² − ‖anti‖²) / ‖F‖²; ``*_near_zero``: share of
    λ = σ² below 1e-3·λ₁, ``*_near_zero_eigenvalues`` likewise of |μ|²; ``*_effective_rank`` of at
    most ``*_rank_bound`` = d_head. ``*_control``: means over the heads of the control's same stack.
    How unusual a head is comes with :func:`~qk_taxonomy.studies.circuits.unusual.unusual_heads`.
    """
    table = pd.DataFrame(columns=_PLACE)
    for number, circuit in enumerate(CIRCUITS):
        found = _of_circuit(model.layers, circuit)
        table = found if not number else table.merge(found, on=_PLACE, how="outer")
    if control is not None:
        beside = circuit_table(control)
        means = beside.groupby(["stack", "convention"], as_index=False)[
            [f"{c}_{name}" for c in CIRCUITS for name in COMPARED if f"{c}_{name}" in beside]
        ].mean()
        table = table.merge(
            means, on=["stack", "convention"], how="left", suffixes=("", "_control")
        )
    order = {convention: number for number, convention in enumerate(CONVENTIONS)}
    stacks = {layer.stack: number for number, layer in enumerate(model.layers)}
    table = table.sort_values(
        _PLACE,
        key=lambda x: (
            x.map(order if x.name == "convention" else stacks)
            if x.name in ("convention", "stack")
            else x
        ),
    ).reset_index(drop=True)
    for number, key in enumerate(("family", "name", "revision", "control")):
        column = "model" if key == "name" else key
        table.insert(number, column, model.metadata[key])
    return table
