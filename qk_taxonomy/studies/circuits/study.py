"""The study of one model's full circuits: spectra beside a control's, the table, tokens, words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from qk_taxonomy.checkpoints.tokens import Tokens, open_tokens
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Circuit, Control, Convention, ModelRef
from qk_taxonomy.studies.circuits.compute import circuits_of
from qk_taxonomy.studies.circuits.ends import chosen_heads, token_ends
from qk_taxonomy.studies.circuits.records import ModelCircuits, TokenEnds
from qk_taxonomy.studies.circuits.source import Advance, CircuitSource
from qk_taxonomy.studies.circuits.table import circuit_table

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True, eq=False)
class CircuitStudy:
    """What a study of full circuits found of one model.

    ``table``: one row a head and convention (:func:`~...table.circuit_table`); ``ends``: the tokens
    at both ends of chosen heads' leading vectors; ``notes``: sentences that its reader must know.
    """

    ref: ModelRef
    model: ModelCircuits
    control: ModelCircuits | None
    table: pd.DataFrame
    ends: tuple[TokenEnds, ...]
    notes: tuple[str, ...]


def study_circuits(
    ref: ModelRef,
    *,
    control: Control | None = None,
    output_root: str | Path = ".",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    circuits: Sequence[Circuit] = CIRCUITS,
    conventions: Sequence[Convention] = CONVENTIONS,
    n_tokens: int = 10,
    force: bool = False,
    api: HfApi | None = None,
    advance: Advance | None = None,
) -> CircuitStudy:
    ...
