"""What the page shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.records import Circuit, Convention
from qk_taxonomy.taxonomy import HeadClass

#: The first columns of ``Atlas.heads``; its statistics follow.
HEAD = ("family", "model", "stack", "layer", "head", "class", "umap_x", "umap_y")


@dataclass(frozen=True, eq=False)
class Atlas:
    """All that the page shows, of heads of one circuit in one convention.

    ``heads``: one row a head, with columns :data:`HEAD` and then statistics of λ as float columns,
    on a RangeIndex. ``family`` and ``model`` are as in head tables: the model is its file's stem;
    ``stack`` "" in a model that has one; ``class`` the number of its class.
    ``histograms`` (n_heads, n_bins), float32, rows as in ``heads``: densities of λ over the head's
    mean, on ``edges`` (n_bins + 1,), of area 1 over these bins; ``beyond`` (n_heads,): the share of
    each head's λ, by number, that lies beyond them. ``classes``: those of the taxonomy, in order of
    number.
    ``models``: one row a model, all text: family, model, and what its spectra file tells (model_id,
    revision, architecture, n_layers, n_heads, n_kv_heads, d_head, d_model, weights_dtype, source,
    tool_version, ...), in the order of the page's table.
    ``tests``: rows of the table of tests, columns of ``hypotheses.table.COLUMNS``; ``contrasts``:
    those of them on shifts between matched heads, which a forest plot shows. Either may be empty.
    ``changed``: the heads of contrasts, most changed first: family, model, against and stack, as
    the contrast's rows in ``contrasts`` have them, layer, head, then the columns of
    ``ContrastResult.heads``; may be empty.
    ``provenance``: label to value, as the page lists them: command, date, versions, choices of the
    taxonomy. ``notes``: sentences on what was left out and why.

    Raises ShapeError where tables and arrays do not fit together.
    """

    title: str
    circuit: Circuit
    convention: Convention
    heads: pd.DataFrame = field(repr=False)
    histograms: NDArray[np.floating[Any]] = field(repr=False)
    edges: NDArray[np.float64] = field(repr=False)
    beyond: NDArray[np.floating[Any]] = field(repr=False)
    classes: tuple[HeadClass, ...] = field(repr=False)
    models: pd.DataFrame = field(repr=False)
    tests: pd.DataFrame = field(repr=False)
    contrasts: pd.DataFrame = field(repr=False)
    changed: pd.DataFrame = field(repr=False)
    provenance: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if tuple(self.heads.columns[: len(HEAD)]) != HEAD:
            raise ShapeError(
                f"The first columns of an atlas's heads are {', '.join(HEAD)}; found "
                f"{', '.join(map(str, self.heads.columns[: len(HEAD)]))}."
            )
        wanted = (len(self.heads), len(self.edges) - 1)
        if self.histograms.shape != wanted:
            raise ShapeError(
                f"Wanted histograms {wanted} (heads, bins), found {self.histograms.shape}."
            )
        if self.beyond.shape != wanted[:1]:
            raise ShapeError(
                f"Wanted shares beyond the bins {wanted[:1]} (heads), found {self.beyond.shape}."
            )
        numbers = self.heads["class"]
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self.classes):
            raise ShapeError(
                f"Classes of heads run from {numbers.min()} to {numbers.max()}, and there are "
                f"{len(self.classes)} classes."
            )

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics, in the order of columns."""
        return tuple(map(str, self.heads.columns[len(HEAD) :]))
