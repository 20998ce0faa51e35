"""All hypotheses on what is surveyed: which tests there are, and one table of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from qk_taxonomy.cache import find_spectra
from qk_taxonomy.catalog import load_contrasts
from qk_taxonomy.errors import (
    CatalogError,
    HypothesisError,
    PartialFailureError,
    QKTaxonomyError,
    SpectraFileError,
)
from qk_taxonomy.hypotheses.contrast import (
    PERMUTATIONS,
    ContrastResult,
    correct_shifts,
    kind_rows,
    matched_contrast,
    refused_contrast,
)
from qk_taxonomy.hypotheses.family import FamilyResult, compare_families, unmatched_rows
from qk_taxonomy.hypotheses.heads import HeadSet, load_heads
from qk_taxonomy.hypotheses.pairs import (
    Pair,
    catalogued_pairs,
    named_heads,
    one_per_training,
    stack_pairs,
    training_origins,
    twin_pairs,
)
from qk_taxonomy.hypotheses.rank import RankResult, rank_hypothesis
from qk_taxonomy.hypotheses.table import corrected, empty_table
from qk_taxonomy.hypotheses.trend import trend_rows
from qk_taxonomy.records import Circuit, Contrast, Convention

Hypothesis = Literal["rank", "contrast", "family", "trend"]
HYPOTHESES: tuple[Hypothesis, ...] = get_args(Hypothesis)

#: Called before each piece of work with what it is, its number (from 0) and how many there are.
Watcher = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What all tests found: ``table``, one row a test, and what figures are drawn from.

    ``families``: None where there was no comparison of families. ``failures``: what could not be
    tested, by name. ``notes``: what was left out, and why.
    """

    table: pd.DataFrame
    ranks: tuple[RankResult, ...] = ()
    contrasts: tuple[ContrastResult, ...] = ()
    families: tuple[FamilyResult, ...] = ()
    failures: dict[str, Exception] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def run_hypotheses(
    data_root: str | Path = ".",
    families: str | Iterable[str] | None = None,
    *,
    hypotheses: Iterable[Hypothesis] = HYPOTHESES,
    circuit: Circuit = "qk",
    convention: Convention = "raw",
    contrasts: Iterable[str] = (),
    treatments: Sequence[str] = (),
    controls: Sequence[str] = (),
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    include_imported: bool = False,
    catalog: str | Path | None = None,
    watcher: Watcher | None = None,
) -> Outcome:
    """Test what is surveyed under ``data_root``; one that fails leaves the others be.

    ``rank``: every head of every model and random twin against untrained heads. ``contrast``: the
    catalogue's contrasts with both sides surveyed (those of the names ``contrasts``, or all), and
    every model against its random twins; or, where they are given, ``treatments`` against
    ``controls`` alone (files, stems, ids): head by head for one model a side of one shape, else
    with the model as unit. ``family``: families of two or more, by the model. ``trend``: each
    statistic with depth. ``include_imported``: compare the predecessor's numbers with true spectra,
    those of untrained heads among them. Raises SpectraFileError where there is nothing to test,
    CatalogError for unknown contrasts, HypothesisError for models that were named and cannot be
    found or compared.
    """
    paths = find_spectra(data_root, families, controls=True)
    surveyed = load_heads(paths, circuit, convention)
    sets = surveyed.sets
    if surveyed.failures and not sets:
        raise PartialFailureError(surveyed.failures)
    if not sets:
        raise SpectraFileError(
            f"No file under {data_root} has {circuit} {convention} spectra; add them by giving the "
            f"command that made it (`qk-taxonomy download ...`) --circuit {circuit} --convention "
            f"{convention}."
        )
    known = load_contrasts(catalog)
    run = _Run(sets, permutations, seed, include_imported, watcher)
    run.failures |= surveyed.failures
    run.notes += [f"{path} has no {circuit} {convention} spectra" for path in surveyed.without]
    wanted = set(hypotheses)
    if "rank" in wanted:
        run.ranks()
    if treatments or controls:
        run.named(treatments, controls)
    elif "contrast" in wanted:
        chosen = _chosen(contrasts, known)
        run.pairs([*catalogued_pairs(chosen, sets), *twin_pairs(sets)], training_origins(known))
    if "family" in wanted:
        run.families(known)
    if "trend" in wanted:
        run.trends()
    return run.outcome()


def _chosen(names: Iterable[str], known: Sequence[Contrast]) -> list[Contrast]:
    wanted = [name.casefold() for name in names]
    unknown = set(wanted) - {contrast.name.casefold() for contrast in known}
    if unknown:
        raise CatalogError(
            f"There is no contrast {', '.join(sorted(unknown))} in the catalogue. `qk-taxonomy "
            "families --contrasts` lists all of them; any two models are compared with "
            "--treatment and --control."
        )
    return [c for c in known if not wanted or c.name.casefold() in wanted]


class _Run:
    """One run over all heads: what it has found so far."""

    def __init__(
        self,
        sets: Sequence[HeadSet],
        permutations: int,
        seed: int,
        include_imported: bool,
        watcher: Watcher | None,
    ) -> None:
        self.models = [heads for heads in sets if not heads.spectra.control]
        self.twins = [heads for heads in sets if heads.spectra.control.startswith("random")]
        self.sets = sets
        self.permutations = permutations
        self.seed = seed
        self.include_imported = include_imported
        self.watch: Watcher = watcher or (lambda name, index, total: None)
        self.tables: list[pd.DataFrame] = []
        self.rank_results: list[RankResult] = []
        self.contrasts: list[ContrastResult] = []
        self.family_results: list[FamilyResult] = []
        self.failures: dict[str, Exception] = {}
        self.notes: list[str] = []

    def ranks(self) -> None:
        """Rank hypothesis of every model, and of every random twin, where it holds by design."""
        subjects = [*self.models, *self.twins]
        for index, heads in enumerate(subjects):
            self.watch(f"rank: {heads.name}", index, len(subjects))
            result = rank_hypothesis(heads, self.twins, include_imported=self.include_imported)
            self.rank_results.append(result)
            self.tables.append(result.rows)

    def named(self, treatments: Sequence[str], controls: Sequence[str]) -> None:
        """The comparison of models that a user named. Raises HypothesisError."""
        if not (treatments and controls):
            raise HypothesisError("A comparison needs a --treatment and a --control, at least.")
        treated = [named_heads(ref, self.sets) for ref in treatments]
        control = [named_heads(ref, self.sets) for ref in controls]
        if len(treated) == len(control) == 1:
            name = f"{treated[0][0].model}-against-{control[0][0].model}"
            pairs = stack_pairs(name, "named", treated[0], control[0])
            if not pairs:
                raise HypothesisError(f"{treatments[0]} and {controls[0]} share no stack.")
            for pair in pairs:
                self._matched(pair)
            self._correct()
            return
        self.watch("contrast: groups of models", 0, 1)
        stacks = dict.fromkeys(heads.stack for side in (*treated, *control) for heads in side)
        for stack in stacks:
            sides = [
                [heads for side in group for heads in side if heads.stack == stack]
                for group in (treated, control)
            ]
            self.tables.append(
                unmatched_rows(*sides, seed=self.seed, include_imported=self.include_imported)
            )

    def pairs(self, pairs: Sequence[Pair], origins: Mapping[str, str]) -> None:
        """All contrasts that are surveyed; those of two shapes get a row that says so."""
        for index, pair in enumerate(pairs):
            self.watch(f"contrast: {pair.name}", index, len(pairs))
            try:
                self._matched(pair)
            except HypothesisError as err:
                self.tables.append(refused_contrast(pair.treatment, pair.control, str(err)))
            except QKTaxonomyError as err:
                self.failures[f"contrast {pair.name}"] = err
        self._correct()
        self.tables.append(kind_rows(self.contrasts, origins))

    def _matched(self, pair: Pair) -> None:
        self.contrasts.append(
            matched_contrast(
                pair.name,
                pair.kind,
                pair.treatment,
                pair.control,
                twins=self.twins,
                permutations=self.permutations,
                seed=self.seed,
                include_imported=self.include_imported,
            )
        )

    def _correct(self) -> None:
        """Correct the shifts of all contrasts together."""
        self.contrasts = correct_shifts(self.contrasts)
        self.tables += [result.rows for result in self.contrasts]

    def families(self, contrasts: Sequence[Contrast]) -> None:
        """Compare families, stack by stack, by independent models of one formula."""
        models, others = one_per_training(contrasts, self.models)
        if others:
            names = ", ".join(heads.name for heads in others)
            self.notes.append(
                f"left out of the comparison of families, being trained from others in it: {names}"
            )
        if not self.include_imported:
            exact = [heads for heads in models if not heads.spectra.is_imported]
            if 0 < len(exact) < len(models):
                self.notes.append(
                    f"{len(models) - len(exact)} imported models are left out of the comparison of "
                    "families, being the predecessor's numbers (--include-imported takes them in)"
                )
            models = exact or models
        stacks = dict.fromkeys(heads.stack for heads in models)
        for index, stack in enumerate(stacks):
            self.watch(f"families {stack}".rstrip(), index, len(stacks))
            of_stack = [heads for heads in models if heads.stack == stack]
            if len({heads.family for heads in of_stack}) < 2:
                continue
            try:
                result = compare_families(
                    of_stack, seed=self.seed, include_imported=self.include_imported
                )
            except QKTaxonomyError as err:
                self.failures[f"families {stack}".rstrip()] = err
                continue
            self.family_results.append(result)
            self.tables.append(result.rows)

    def trends(self) -> None:
        """Trends of every model; p-values are corrected over models and statistics."""
        tables = []
        for index, heads in enumerate(self.models):
            self.watch(f"trend: {heads.name}", index, len(self.models))
            tables.append(trend_rows(heads))
        self.tables.append(corrected(pd.concat(tables, ignore_index=True), ["method"]))

    def outcome(self) -> Outcome:
        found = [table for table in self.tables if len(table)]
        return Outcome(
            table=pd.concat(found, ignore_index=True) if found else empty_table(),
            ranks=tuple(self.rank_results),
            contrasts=tuple(self.contrasts),
            families=tuple(self.family_results),
            failures=self.failures,
            notes=tuple(self.notes),
        )
