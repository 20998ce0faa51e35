"""What a comparison of two models found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qk_taxonomy.hypotheses.heads import HeadSet
from qk_taxonomy.statistics.findings import Finding
from qk_taxonomy.studies.differences.matching import Matching

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StackDifference:
    """One stack of two models, ``first`` and ``second``, heads matched as ``matching`` says.

    ``heads``: a row a matched pair, what moved farthest first: ``layer`` and ``head`` in the first
    model, ``layer_b`` and ``head_b`` in the second; ``shape``, ``scale`` and ``rank``, the moves of
    :class:`~qk_taxonomy.statistics.moves.HeadMoves`, each with its size in ``_units`` of what is
    usual between heads of the first model; ``jensen_shannon``, the divergence of both histograms in
    nats; ``p_untrained`` of ``shape``, and ``q_untrained`` over the heads; and ``moved``, which of
    the three moved most in those units, "" where nothing did. ``usual``: those units by the moves'
    names. ``shifts``: whether all heads together moved, a row a statistic, in the columns of
    ``hypotheses.table``, q over the statistics; refused for heads matched by spectra.
    ``histograms`` (2, n, bins): densities of λ over its mean of the rows' heads, on ``edges``
    (bins + 1,). ``depth``: for heads matched by spectra, whether they sit at like depths; else
    None. ``notes``: what limits the comparison.
    """

    first: HeadSet
    second: HeadSet
    matching: Matching
    heads: pd.DataFrame
    shifts: pd.DataFrame
    usual: dict[str, float]
    histograms: Array
    edges: Array
    depth: Finding | None = None
    notes: tuple[str, ...] = ()

    @property
    def unmatched(self) -> tuple[int, int]:
        """How many heads of either model have no match."""
        n = len(self.heads)
        return len(self.first.table) - n, len(self.second.table) - n


@dataclass(frozen=True, eq=False)
class ModelDifference:
    """Two models compared, stack by stack. ``notes``: what was left out, and why."""

    stacks: tuple[StackDifference, ...]
    notes: tuple[str, ...] = ()

    @property
    def table(self) -> pd.DataFrame:
        """The heads of all stacks, a row a matched pair."""
        parts = [one.heads.assign(stack=one.first.stack) for one in self.stacks]
        table = pd.concat(parts, ignore_index=True)
        return table[["stack", *(name for name in table if name != "stack")]]

    @property
    def shifts(self) -> pd.DataFrame:
        """The shifts of all stacks, a row a statistic."""
        return pd.concat([one.shifts for one in self.stacks], ignore_index=True)
