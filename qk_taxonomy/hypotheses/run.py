"""All hypotheses on what is surveyed: which tests there are, and one table of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from qk_taxonomy.cache import find_spectra, nothing_left
from qk_taxonomy.catalog import load_contrasts
from qk_taxonomy.errors import (
    CatalogError,
    HypothesisError,
    NoSuchSpectraError,
    QKTaxonomyError,
)
from qk_taxonomy.hypotheses.contrast import (
    PERMUTATIONS,
    ContrastResult,
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
from qk_taxonomy.hypotheses.table import empty_table
from qk_taxonomy.hypotheses.trend import trend_rows
from qk_taxonomy.progress import StepProgress
from qk_taxonomy.records import Circuit, Contrast, Convention

Hypothesis = Literal["rank", "contrast", "family", "trend"]
HYPOTHESES: tuple[Hypothesis, ...] = get_args(Hypothesis)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What all tests found: ``table``, one row a test, and what figures are drawn from.

    ``comparison``: ``family/name`` of the one comparison that was asked for, "" where none was.
    ``failures``: what could not be tested, by name. ``notes``: what was left out, and why.
    """

    table: pd.DataFrame
    ranks: tuple[RankResult, ...] = ()
    contrasts: tuple[ContrastResult, ...] = ()
    families: tuple[FamilyResult, ...] = ()
    comparison: str = ""
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
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    include_imported: bool = False,
    catalog: str | Path | None = None,
    progress: StepProgress | None = None,
) -> Outcome:
    """Test what is surveyed under ``data_root``.

    ``rank``: every head of every model and random twin against untrained heads. ``contrast``: the
    catalogue's contrasts with both sides surveyed, and every model against its random twins; of
    ``contrasts`` those names alone. ``family``: families of two or more, by the model. ``trend``:
    each statistic with depth. ``include_imported``: compare the predecessor's numbers with true
    spectra, those of untrained heads among them. Files that cannot be read or have no such spectra,
    and contrasts and families that cannot be compared, are in the outcome's ``failures``. Raises
    SpectraFileError where there is nothing to test, CatalogError for unknown contrasts and
    HypothesisError for those that are not surveyed.
    """
    how = _Settings(permutations, seed, include_imported)
    paths = find_spectra(data_root, families, controls=True, catalog=catalog)
    run = _surveyed(paths, circuit, convention, how, progress)
    run.failures |= run.without
    known = load_contrasts(catalog)
    names = list(contrasts)
    pairs = catalogued_pairs(_chosen(names, known), run.sets)
    if names:
        _check_surveyed(names, pairs)
    else:
        pairs += twin_pairs(run.sets)
    wanted = set(hypotheses)
    if "rank" in wanted:
        run.ranks()
    if "contrast" in wanted:
        run.pairs(pairs, training_origins(known))
    if "family" in wanted:
        run.families(known)
    if "trend" in wanted:
        run.trends()
    return run.outcome()


def compare_models(
    treatments: Sequence[str],
    controls: Sequence[str],
    data_root: str | Path = ".",
    families: str | Iterable[str] | None = None,
    *,
    circuit: Circuit = "qk",
    convention: Convention = "raw",
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    include_imported: bool = False,
    catalog: str | Path | None = None,
    progress: StepProgress | None = None,
) -> Outcome:
    """Compare surveyed models that are named: by file, ``family/stem``, stem or id.

    One a side: head by head. Several, of any shapes: as groups, the model being the unit. Raises
    SpectraFileError where there is nothing to test, HypothesisError where a name fits no surveyed
    model or several, or the models cannot be compared.
    """
    if not (treatments and controls):
        raise HypothesisError("A comparison needs at least one treatment and one control.")
    how = _Settings(permutations, seed, include_imported)
    paths = find_spectra(data_root, families, controls=True, catalog=catalog)
    run = _surveyed(paths, circuit, convention, how, progress)
    run.named(treatments, controls, load_contrasts(catalog))
    return run.outcome()


def _surveyed(
    paths: Sequence[Path],
    circuit: Circuit,
    convention: Convention,
    how: _Settings,
    progress: StepProgress | None,
) -> _Run:
    """A run over all heads of a circuit and convention. Raises where there are none."""
    heads = load_heads(paths, circuit, convention)
    if not heads.sets:
        raise nothing_left({**heads.failures, **heads.without})
    run = _Run(heads.sets, how, progress)
    run.failures |= heads.failures
    run.without = heads.without
    return run


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


def _check_surveyed(names: Iterable[str], pairs: Sequence[Pair]) -> None:
    """Raises HypothesisError for contrasts that were asked for and have a side missing."""
    found = {pair.name.casefold() for pair in pairs}
    missing = [name for name in names if name.casefold() not in found]
    if missing:
        raise HypothesisError(
            f"Both models of {', '.join(missing)} are wanted, with spectra of this circuit and "
            "convention by one formula, and are not here. `qk-taxonomy families --contrasts` names "
            "them, `qk-taxonomy download` surveys them; --family leaves others out."
        )


@dataclass(frozen=True)
class _Settings:
    """How tests are made: those of the public functions."""

    permutations: int
    seed: int
    include_imported: bool


class _Run:
    """One run over all heads: how it tests, and what it has found so far."""

    def __init__(
        self, sets: Sequence[HeadSet], how: _Settings, progress: StepProgress | None
    ) -> None:
        self.sets = sets
        self.how = how
        self.models = [heads for heads in sets if not heads.spectra.control]
        self.twins = [heads for heads in sets if heads.spectra.is_random_twin]
        self.watch = progress or (lambda what, done, total: None)
        self.comparison = ""
        self.tables: list[pd.DataFrame] = []
        self.rank_results: list[RankResult] = []
        self.contrasts: list[ContrastResult] = []
        self.family_results: list[FamilyResult] = []
        self.failures: dict[str, Exception] = {}
        self.without: dict[str, NoSuchSpectraError] = {}
        self.notes: list[str] = []

    def ranks(self) -> None:
        """Rank hypothesis of every model, and of every random twin, where it holds by design."""
        subjects = [*self.models, *self.twins]
        for index, heads in enumerate(subjects):
            self.watch(f"rank: {heads.name}", index, len(subjects))
            result = rank_hypothesis(heads, self.twins, include_imported=self.how.include_imported)
            self.rank_results.append(result)
            self.tables.append(result.rows)

    def named(
        self, treatments: Sequence[str], controls: Sequence[str], contrasts: Sequence[Contrast]
    ) -> None:
        """The comparison of models that a user named. Raises HypothesisError."""
        treated = [named_heads(ref, self.sets) for ref in treatments]
        control = [named_heads(ref, self.sets) for ref in controls]
        home = treated[0][0].family
        name = f"{_side(treated, home)}-against-{_side(control, home)}"
        self.comparison = f"{home}/{name}"
        self.watch(f"contrast: {self.comparison}", 0, 1)
        if len(treated) == len(control) == 1:
            pairs = stack_pairs(name, "named", treated[0], control[0])
            if not pairs or treated[0][0].path == control[0][0].path:
                why = "share no stack" if not pairs else "are one model"
                raise HypothesisError(
                    f"{treatments[0]} and {controls[0]} {why}: nothing to compare."
                )
            for pair in pairs:
                self._matched(pair)
            return
        for stack in dict.fromkeys(heads.stack for side in (*treated, *control) for heads in side):
            sides = [
                [heads for side in group for heads in side if heads.stack == stack]
                for group in (treated, control)
            ]
            if not all(sides):
                self.notes.append(f"the stack {stack} is on one side alone, and was not compared")
                continue
            related = [
                heads.name for side in sides for heads in one_per_training(contrasts, side)[1]
            ]
            if related:
                self.notes.append(
                    f"{', '.join(related)}: of the same training as others on that side, which the "
                    "tests take for independent; their p-values are too small"
                )
            self.tables.append(
                unmatched_rows(
                    *sides, seed=self.how.seed, include_imported=self.how.include_imported
                )
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
        self.tables.append(kind_rows(self.contrasts, origins))

    def _matched(self, pair: Pair) -> None:
        result = matched_contrast(
            pair.name,
            pair.kind,
            pair.treatment,
            pair.control,
            twins=self.twins,
            permutations=self.how.permutations,
            seed=self.how.seed,
            include_imported=self.how.include_imported,
        )
        self.contrasts.append(result)
        self.tables.append(result.rows)

    def families(self, contrasts: Sequence[Contrast]) -> None:
        """Compare families, stack by stack, by independent models of one formula."""
        models, others = one_per_training(contrasts, self.models)
        if others:
            names = ", ".join(heads.name for heads in others)
            self.notes.append(
                "left out of the comparison of families, being of the same training as others in "
                f"it: {names}"
            )
        if not self.how.include_imported:
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
                    of_stack, seed=self.how.seed, include_imported=self.how.include_imported
                )
            except QKTaxonomyError as err:
                self.failures[f"families {stack}".rstrip()] = err
                continue
            self.family_results.append(result)
            self.tables.append(result.rows)

    def trends(self) -> None:
        """Trends of every model."""
        for index, heads in enumerate(self.models):
            self.watch(f"trend: {heads.name}", index, len(self.models))
            self.tables.append(trend_rows(heads))

    def outcome(self) -> Outcome:
        found = [table for table in self.tables if len(table)]
        return Outcome(
            table=pd.concat(found, ignore_index=True) if found else empty_table(),
            ranks=tuple(self.rank_results),
            contrasts=tuple(self.contrasts),
            families=tuple(self.family_results),
            comparison=self.comparison,
            failures=self.failures,
            notes=tuple(self.notes),
        )


def _side(models: Sequence[Sequence[HeadSet]], home: str) -> str:
    """A side of a comparison as a file is named: its first model, with its family where that is not
    the folder ``home``, and how many more there are.
    """
    first = models[0][0]
    name = first.model if first.family == home else f"{first.family}.{first.model}"
    return name if len(models) == 1 else f"{name}-and-{len(models) - 1}-more"
