"""The models of a family that count, and all trends of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from qk_taxonomy.cache import filed_as, find_spectra, lacking, load_spectra, nothing_left
from qk_taxonomy.catalog import load_contrasts, load_families
from qk_taxonomy.errors import HypothesisError, SpectraFileError
from qk_taxonomy.hypotheses.heads import HeadSet, load_heads
from qk_taxonomy.hypotheses.pairs import newest_of_each, one_per_training
from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Circuit, Contrast, Convention
from qk_taxonomy.statistics.slopes import (
    FEWEST_MODELS,
)
from qk_taxonomy.studies.sizes.trends import SizeTrends, size_trends
from qk_taxonomy.wording import some

# Models that a note names.
_MOST_NAMED = 6


@dataclass(frozen=True, eq=False)
class FamilySizes:
    """All trends of a family; ``notes``: what was left out, and why; ``failures``: by file;
    ``revision``: what all models are at, None for their newest.
    """

    family: str
    trends: tuple[SizeTrends, ...]
    notes: tuple[str, ...]
    failures: dict[str, Exception]
    revision: str | None = None

    @property
    def rows(self) -> pd.DataFrame:
        """The rows of all trends, one below the other."""
        return pd.concat([one.rows for one in self.trends], ignore_index=True)


def family_sizes(
    family: str,
    data_root: str | Path = ".",
    *,
    circuits: Sequence[Circuit] | None = None,
    conventions: Sequence[Convention] | None = None,
    revision: str | None = None,
    catalog: str | Path | None = None,
) -> FamilySizes:
    """The trends of a surveyed family, in each circuit and convention that its files have, or in
    those given: files that lack these are among the ``failures``.

    Each model counts once, by its newest weights: of a model that only revisions are surveyed of,
    the last step; all at ``revision``, where one is given. So do models that were trained from one
    another; imported ones count only where there are no exact spectra, and controls not at all.
    Parameters are the catalogue's. Raises SpectraFileError where nothing is surveyed,
    HypothesisError where nothing has three models, PartialFailureError where no file can be read.
    """
    paths = find_spectra(data_root, family, catalog=catalog)
    contrasts, parameters = load_contrasts(catalog), _parameters(catalog)
    trends: list[SizeTrends] = []
    notes: list[str] = []
    failures: dict[str, Exception] = {}
    found: list[str] = []
    if circuits or conventions:
        failures |= _lacking(paths, circuits, conventions)
    for circuit in circuits or CIRCUITS:
        for convention in conventions or CONVENTIONS:
            surveyed = load_heads(paths, circuit, convention)
            failures |= surveyed.failures
            chosen, said = _chosen(surveyed.sets, revision, contrasts)
            notes += said
            for stack in dict.fromkeys(heads.stack for heads in chosen):
                of_stack = [heads for heads in chosen if heads.stack == stack]
                if len(of_stack) >= FEWEST_MODELS:
                    trends.append(size_trends(of_stack, parameters, surveyed.sets))
                else:
                    what = f"{circuit} {convention} {stack}".rstrip()
                    found.append(f"{len(of_stack)} with {what} spectra")
    if not trends:
        if failures and not found:
            raise nothing_left(failures)
        at = f" at {revision}" if revision else ""
        left_out = f" ({'; '.join(dict.fromkeys(notes))})" if notes else ""
        raise HypothesisError(
            f"Trends over the sizes of {family} want {FEWEST_MODELS} models or more that were "
            f"trained apart{at}, found {', '.join(found) or 'none'}{left_out}. `qk-taxonomy "
            f"download --family {family}` surveys those of a family of the catalogue."
        )
    notes += [f"wanted {FEWEST_MODELS} models, found {what}" for what in found]
    notes += [note for one in trends if (note := _unknown_parameters(one))]
    name, once = paths[0].parent.name, tuple(dict.fromkeys(notes))
    return FamilySizes(name, tuple(trends), once, failures, revision)


def _chosen(
    sets: Sequence[HeadSet], revision: str | None, contrasts: Iterable[Contrast]
) -> tuple[list[HeadSet], list[str]]:
    """One set of heads a model and stack, of models that were trained apart; sentences on it."""
    notes = []
    if revision is None:
        newest = newest_of_each(sets)
        named = dict.fromkeys(heads.model for heads in newest if heads.stem.revision is not None)
        if named:
            notes.append(f"of models with revisions alone, the last: {some(named, _MOST_NAMED)}")
    else:
        newest = [heads for heads in sets if heads.stem.revision == revision]
    models, others = one_per_training(contrasts, newest, revisions=True)
    if others:
        names = dict.fromkeys(heads.model for heads in others)
        notes.append(f"of the same training as others, and left out: {some(names, _MOST_NAMED)}")
    exact = [heads for heads in models if not heads.spectra.is_imported] or models
    if len(exact) < len(models):
        notes.append(
            f"{len(models) - len(exact)} imported models are left out, being the predecessor's "
            "numbers"
        )
    return exact, notes


def _lacking(
    paths: Iterable[Path],
    circuits: Sequence[Circuit] | None,
    conventions: Sequence[Convention] | None,
) -> dict[str, Exception]:
    """By file, what tells that it lacks some of what is asked for."""
    failures: dict[str, Exception] = {}
    for path in paths:
        try:
            error: SpectraFileError | None = lacking(
                path, load_spectra(path), circuits, conventions
            )
        except SpectraFileError as err:
            error = err
        if error is not None:
            failures[filed_as(path)] = error
    return failures


def _unknown_parameters(trends: SizeTrends) -> str:
    """Which models' parameters no catalogue tells; "" where all are known."""
    unknown = [
        heads.model
        for heads, n in zip(trends.models, trends.parameters, strict=True)
        if np.isnan(n)
    ]
    if not unknown:
        return ""
    without = (
        "left out of slopes with parameters" if trends.by_size else "no slopes with parameters"
    )
    return (
        f"{without}: the catalogue has no number for {some(unknown, _MOST_NAMED)} (a family file "
        "of your own can tell: --catalog DIR)"
    )


def _parameters(catalog: str | Path | None) -> dict[str, int]:
    return {
        entry.id: entry.parameters for family in load_families(catalog) for entry in family.models
    }
