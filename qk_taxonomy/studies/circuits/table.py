"""The table of full circuits: one row a head and convention, with a control beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Circuit, Convention
from qk_taxonomy.statistics.moments import effective_rank_sigma, near_zero_ratio
from qk_taxonomy.statistics.vocabulary import (
    copying_score,
    near_zero_eigenvalues,
    positive_share,
    symmetry,
)
from qk_taxonomy.studies.circuits.records import LayerCircuits, ModelCircuits
from qk_taxonomy.studies.circuits.unusual import Cohort, unusual_heads

#: Statistics of which the table also has the mean over the control's heads.
COMPARED = (
    *("copying", "near_zero", "symmetry", "effective_rank"),
    *("symmetry_centred", "near_zero_centred", "effective_rank_centred"),
)

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
    } | (_centred(layer) if layer.circuit == "qk" else {})


def _centred(layer: LayerCircuits) -> dict[str, NDArray[np.float64]]:
    lam = np.square(layer.centred_singular_values)
    return {
        "symmetry_centred": layer.centred_symmetry,
        "near_zero_centred": near_zero_ratio(lam),
        "effective_rank_centred": effective_rank_sigma(lam),
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

    ``*_largest``: σ₁. ``*_copying``: Σμ / Σ|μ|, ``*_positive_share``: share of Re μ > 0.
    ``*_near_zero``: share of λ = σ² below 1e-3·λ₁, ``*_near_zero_eigenvalues`` likewise of |μ|².
    ``*_symmetry``: (‖sym‖² − ‖anti‖²) / ‖F‖². ``*_effective_rank`` of at most ``*_rank_bound``,
    which is d_head. ``qk_*_centred``: of scores less each query's mean over all keys, which is what
    a softmax sees. ``compared_with``: the label of the control, ``*_control``: means over its heads
    of the same stack.
    ``*_distance``, ``*_p``, ``*_q``, ``*_peer_z``, ``*_unusual``: how unlike the control's and its
    peers' a head's spectrum is (:class:`~qk_taxonomy.studies.circuits.unusual.UnusualHeads`).
    """
    beside = None if control is None else _statistics_of(control)
    table = _statistics_of(model)
    if beside is not None:
        compared = [c for c in beside if c.partition("_")[2] in COMPARED]
        means = beside.groupby(["stack", "convention"], as_index=False)[compared].mean()
        table = table.merge(
            means, on=["stack", "convention"], how="left", suffixes=("", "_control")
        )
    for circuit in CIRCUITS:
        found = [_unusual(model, control, circuit, convention) for convention in CONVENTIONS]
        table = table.merge(pd.concat(found), on=_PLACE, how="left")
    for number, key in enumerate(("family", "name", "revision", "control")):
        table.insert(number, "model" if key == "name" else key, model.metadata[key])
    table.insert(4, "compared_with", "" if control is None else control.metadata["control"])
    return table


def _statistics_of(model: ModelCircuits) -> pd.DataFrame:
    """Rows in the order of the model's layers, convention by convention."""
    qk, ov = (_of_circuit(model.layers, circuit) for circuit in CIRCUITS)
    table = qk.merge(ov, on=_PLACE, how="outer")
    stacks = list(dict.fromkeys(layer.stack for layer in model.layers))
    ranks = {"stack": stacks.index, "convention": CONVENTIONS.index}

    def rank(column: pd.Series) -> pd.Series:
        return column.map(ranks[column.name]) if column.name in ranks else column

    order = ["convention", "stack", "layer", "head"]
    return table.sort_values(order, key=rank).reset_index(drop=True)


def control_limits(
    model: ModelCircuits, control: ModelCircuits, convention: Convention
) -> list[str]:
    """What the size of a control keeps from being found, of every circuit that is limited so."""
    compared = (_cohorts(model, control, circuit, convention)[1] for circuit in CIRCUITS)
    notes = [unusual_heads(cohorts).note for cohorts in compared if cohorts]
    return [note for note in notes if note]


def _unusual(
    model: ModelCircuits, control: ModelCircuits | None, circuit: Circuit, convention: Convention
) -> pd.DataFrame:
    """How unusual the heads are in one circuit and convention; no rows where there are none."""
    frames, cohorts = _cohorts(model, control, circuit, convention)
    if not cohorts:
        return pd.DataFrame(columns=_PLACE)
    found = unusual_heads(cohorts)
    return pd.concat(frames, ignore_index=True).assign(
        **{
            f"{circuit}_distance": found.distance,
            f"{circuit}_p": found.p_values,
            f"{circuit}_q": found.q_values,
            f"{circuit}_peer_z": found.peer_z,
            f"{circuit}_unusual": found.rank,
        }
    )


def _cohorts(
    model: ModelCircuits, control: ModelCircuits | None, circuit: Circuit, convention: Convention
) -> tuple[list[pd.DataFrame], list[Cohort]]:
    """Heads that are each other's peers, with the control's; and where they are, layer by layer."""
    layers = model.select(circuit, convention)
    frames, cohorts = [], []
    for stack in dict.fromkeys(layer.stack for layer in layers):
        own = [layer for layer in layers if layer.stack == stack]
        # Heads of another width have no spectrum of the same length to be compared with.
        for width in dict.fromkeys(layer.singular_values.shape[1] for layer in own):
            peers = [layer for layer in own if layer.singular_values.shape[1] == width]
            beside = [
                layer
                for layer in (control.select(circuit, convention) if control else ())
                if layer.stack == stack and layer.singular_values.shape[1] == width
            ]
            cohorts.append(_cohort(peers, beside))
            frames += [
                pd.DataFrame(
                    {
                        "stack": stack,
                        "layer": layer.layer,
                        "head": np.arange(len(layer.singular_values)),
                        "convention": convention,
                    }
                )
                for layer in peers
            ]
    return frames, cohorts


def _cohort(peers: Sequence[LayerCircuits], beside: Sequence[LayerCircuits]) -> Cohort:
    own = np.concatenate([layer.singular_values for layer in peers])
    if not beside:
        return Cohort(own)
    starts = np.cumsum([0, *(layer.n_kv_heads for layer in beside[:-1])])
    groups = [
        start
        + np.arange(len(layer.singular_values)) * layer.n_kv_heads // len(layer.singular_values)
        for start, layer in zip(starts, beside, strict=True)
    ]
    control = np.concatenate([layer.singular_values for layer in beside])
    return Cohort(own, control, np.concatenate(groups))
