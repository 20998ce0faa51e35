"""The questions of the study, each answered for a model in a line."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pandas as pd

from qk_taxonomy.records import CIRCUITS
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.studies.circuits.chosen import Head
from qk_taxonomy.studies.circuits.study import CircuitStudy

_NAMED = 3


def summary(study: CircuitStudy) -> Iterator[str]:
    """Lines on copying, symmetry, the tail at zero, rank, unusual heads and words.

    Of the convention whose tokens the study shows; medians over heads, means over the control's.
    "centred": of scores less each query's mean over all keys, which is what a softmax sees.
    """
    table = study.table[study.table["convention"] == study.convention].reset_index(drop=True)
    layers = {(layer.stack, layer.layer) for layer in study.model.layers}
    all_layers = json.loads(study.model.metadata["layers"])
    control = f", beside the control {study.control.metadata['control']}" if study.control else ""
    yield f"{len(table)} heads, {len(layers)} of {len(all_layers)} layers{control}"
    for what, column in (
        ("copying, OV: Σμ / Σ|μ|", "ov_copying"),
        ("symmetry, QK: (‖sym‖² − ‖anti‖²) / ‖F‖²", "qk_symmetry"),
    ):
        yield f"{what} {_middle(table, column)}; most: {_most(table, column)}"
    yield f"symmetry, QK centred: {_middle(table, 'qk_symmetry_centred')}"
    for what, column in (
        ("QK", "qk_near_zero"),
        ("QK centred", "qk_near_zero_centred"),
        ("OV", "ov_near_zero"),
    ):
        mean = f"{table[column].mean():.1%}{_beside(table, column, '.1%')}"
        yield f"tail at zero, {what}: share of λ below λ₁ / 1000, mean {mean}"
    for circuit in CIRCUITS:
        bound = table[f"{circuit}_rank_bound"].max()
        yield (
            f"rank, {circuit.upper()}: effective rank {_middle(table, f'{circuit}_effective_rank')}"
            f", of at most {bound:.0f}"
        )
    for circuit in CIRCUITS:
        yield _unusual(table, circuit)
    if study.words is not None:
        yield from (f"words, {line}" for line in study.words.summary.splitlines())


def _middle(table: pd.DataFrame, column: str) -> str:
    return f"{_number(table[column].median(), '.2f')}{_beside(table, column, '.2f')}"


def _number(value: float, form: str) -> str:
    """A number without the sign of a zero that it is rounded to."""
    text = f"{value:{form}}"
    return text.removeprefix("-") if float(text.rstrip("%")) == 0 else text


def _beside(table: pd.DataFrame, column: str, form: str) -> str:
    """The control's mean over the model's stacks, where there is one."""
    name = f"{column}_control"
    return f", control {_number(table[name].mean(), form)}" if name in table else ""


def _most(table: pd.DataFrame, column: str) -> str:
    rows = table.nlargest(_NAMED, column)
    return ", ".join(
        f"{head} ({value:.2f})" for head, value in zip(_heads(rows), rows[column], strict=True)
    )


def _heads(rows: pd.DataFrame) -> list[Head]:
    return [
        Head(str(row.stack), int(row.layer), int(row.head))
        for row in rows[["stack", "layer", "head"]].itertuples(index=False)
    ]


def _unusual(table: pd.DataFrame, circuit: str) -> str:
    found = table[table[f"{circuit}_q"] <= LEVEL]
    rows = table.dropna(subset=f"{circuit}_peer_z").nsmallest(_NAMED, f"{circuit}_unusual")
    named = ", ".join(
        f"{head} (z {z:.1f})"
        for head, z in zip(_heads(rows), rows[f"{circuit}_peer_z"], strict=True)
    )
    against = (
        f"{len(found)} of {len(table)} heads unlike the control's (q ≤ {LEVEL}); "
        if table[f"{circuit}_q"].notna().any()
        else ""
    )
    return f"unusual, {circuit.upper()}: {against}least like their peers: {named or 'none'}"
