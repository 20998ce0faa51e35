"""The heads that hypotheses are about: one stack of one surveyed model, in one convention."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qk_taxonomy.architectures import architecture_table
from qk_taxonomy.cache import filed_as, lacking, load_spectra, stack_table
from qk_taxonomy.errors import HypothesisError, NoSuchSpectraError, SpectraFileError
from qk_taxonomy.records import Circuit, Convention, FileStem, LayerSpectra, ModelSpectra
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.tables import spectra_rows
from qk_taxonomy.untrained import draws_for, untrained_heads

Array = NDArray[np.float64]
Places = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class HeadSet:
    """All heads of one stack of one model, of one circuit in one convention.

    ``path``: the file they come from, ``spectra`` its content, ``layers`` theirs, in order.
    """

    path: Path
    stack: str
    circuit: Circuit
    convention: Convention
    spectra: ModelSpectra
    layers: tuple[LayerSpectra, ...]

    @property
    def family(self) -> str:
        """The name of the file's folder."""
        return self.path.parent.name

    @property
    def model(self) -> str:
        """The file's stem."""
        return self.path.stem

    @property
    def stem(self) -> FileStem:
        """What the file's stem tells: the model's name, revision and control."""
        return FileStem.parse(self.model)

    @property
    def file(self) -> str:
        """Family and model, which no two surveyed models share."""
        return filed_as(self.path)

    @property
    def name(self) -> str:
        """Family, model and stack, as a reader tells it from others."""
        return f"{self.file}/{self.stack}".rstrip("/")

    @cached_property
    def table(self) -> pd.DataFrame:
        """The rows of ``head_table`` for these heads, layer by layer."""
        return spectra_rows(self.spectra, self.layers, self.model)

    @cached_property
    def lam(self) -> Array:
        """λ = σ² of every head, in the table's order: (heads, d_head), descending.

        Raises HypothesisError where layers differ in d_head.
        """
        if len(self.widths) > 1:
            raise HypothesisError(f"{self.name}: {self.differing_widths}.")
        sigma = np.concatenate([layer.singular_values for layer in self.layers])
        return np.square(sigma.astype(np.float64))

    @cached_property
    def statistics(self) -> pd.DataFrame:
        """Every statistic of every head, float64, in the file's order."""
        return self.table[self.spectra.statistic_names].astype(np.float64)

    @property
    def layer(self) -> Places:
        return self.table["layer"].to_numpy(np.int64)

    @property
    def depth(self) -> Array:
        return self.table["depth"].to_numpy(np.float64)

    @property
    def groups(self) -> Places:
        """Key-value head of each head; the head itself where the grouping is not known."""
        return self.table["kv_head"].fillna(self.table["head"]).to_numpy(np.int64)

    @property
    def groups_known(self) -> bool:
        return not self.table["kv_head"].isna().any()

    @property
    def geometry(self) -> dict[str, int]:
        return stack_table(self.spectra.metadata)[self.stack]

    @property
    def shape(self) -> tuple[tuple[int, ...], ...]:
        """What matched models share: each layer's number, heads and d_head."""
        return tuple((layer.layer, *layer.singular_values.shape) for layer in self.layers)

    @property
    def widths(self) -> list[int]:
        """Every d_head that a layer has, the smallest first."""
        return sorted({layer.singular_values.shape[1] for layer in self.layers})

    @property
    def differing_widths(self) -> str:
        widths = ", ".join(map(str, self.widths))
        return f"its layers differ in d_head ({widths}), so its heads have no one shape"

    @property
    def described_shape(self) -> str:
        n_heads = len(self.table) // len(self.layers)
        widths = " or ".join(map(str, self.widths))
        return f"{len(self.layers)} layers × {n_heads} heads of d_head {widths}"


def common_statistics(sides: Sequence[HeadSet]) -> list[str]:
    """The statistics that all of them have, in the first one's order."""
    return [name for name in sides[0].statistics if all(name in s.statistics for s in sides)]


@dataclass(frozen=True, eq=False)
class Surveyed:
    """The heads of spectra files: a set a stack; and, by file, what tells that it has none of this
    circuit and convention, or why it cannot be read.
    """

    sets: tuple[HeadSet, ...]
    without: dict[str, NoSuchSpectraError]
    failures: dict[str, Exception]


def load_heads(paths: Iterable[Path], circuit: Circuit, convention: Convention) -> Surveyed:
    """The heads of one circuit and convention in spectra files, in the files' order."""
    found: list[HeadSet] = []
    without: dict[str, NoSuchSpectraError] = {}
    failures: dict[str, Exception] = {}
    for path in paths:
        try:
            spectra = load_spectra(path)
        except SpectraFileError as err:
            failures[filed_as(path)] = err
            continue
        error = lacking(path, spectra, [circuit], [convention])
        if error is not None:
            without[filed_as(path)] = error
        found += [
            HeadSet(
                path=path,
                stack=stack,
                circuit=circuit,
                convention=convention,
                spectra=spectra,
                layers=layers,
            )
            for stack in spectra.stacks
            if (layers := spectra.select(circuit, convention, stack))
        ]
    return Surveyed(tuple(found), without, failures)


@dataclass(frozen=True, eq=False)
class Untrained:
    """λ of untrained heads of one shape (N, d_head), or None and the ``reason`` there are none."""

    lam: Array | None
    reason: str = ""

    def limit(self, n_heads: int) -> str:
        """What so many draws cannot show after correction over ``n_heads``; "" where nothing."""
        if self.lam is None:
            return self.reason
        fewest = math.ceil(n_heads / (LEVEL * (1 + len(self.lam))))
        if fewest <= 1:
            return ""
        return f"of {len(self.lam)} untrained heads: fewer than {fewest} heads cannot be rejected"


def untrained_like(
    heads: HeadSet, twins: Iterable[HeadSet] = (), *, include_imported: bool = False
) -> Untrained:
    """Untrained heads of a model's shape: by Monte Carlo, or those of its random twin.

    The twin is taken where untrained heads are no product of two Gaussian matrices: in latent
    attention, whose keys are products themselves, and where a norm centres queries or keys.
    ``twins``: heads of controls, of any models. Imported spectra have none unless asked for: by the
    predecessor's formula untrained heads have another law, which hangs on the signs that LAPACK
    gives singular vectors.
    """
    if heads.spectra.is_imported and not include_imported:
        return Untrained(
            None,
            "imported: by the predecessor's formula untrained heads have another law "
            "(--include-imported takes the true one)",
        )
    d_model = heads.geometry["d_model"]
    if len(heads.widths) > 1:
        return Untrained(None, heads.differing_widths)
    if not d_model:
        return Untrained(None, "d_model is not known; import the file with --d-model")
    if not _needs_twin(heads):
        n_heads, d_head = heads.lam.shape
        return Untrained(untrained_heads(d_head, d_model, draws_for(n_heads, d_head)))
    # A twin is not compared with itself, but with others of other seeds.
    own = [twin.lam for twin in twins if is_twin_of(twin, heads) and twin.path != heads.path]
    if own:
        return Untrained(np.concatenate(own))
    return Untrained(
        None,
        "untrained heads of this architecture have no law of their shape alone; "
        "`qk-taxonomy download --control random` surveys some",
    )


def _needs_twin(heads: HeadSet) -> bool:
    """Whether untrained heads may be other than products of two Gaussian matrices."""
    row = architecture_table().rows.get(heads.spectra.metadata["architecture"])
    stacks = [stack.table for stack in row.stacks] if row else []
    # A row's variants count as well: which of them a model is, its config alone tells.
    tables = [table for stack in stacks for table in (stack, *stack.get("variants", ()))]
    latent = any(table.get("packing") == "latent" for table in tables)
    norms = [table.get(norm, {}) for table in tables for norm in ("q_norm", "k_norm")]
    centred = any(norm.get("kind") == "layer" for norm in norms)
    return latent or (centred and heads.circuit == "qk" and heads.convention == "folded")


def is_twin_of(twin: HeadSet, heads: HeadSet) -> bool:
    """Whether these are heads of a random twin of the model, or of the model of another twin."""
    return (
        twin.spectra.is_random_twin
        and twin.spectra.model_id == heads.spectra.model_id
        and twin.stack == heads.stack
        and twin.shape == heads.shape
    )
