"""``qk-taxonomy run``: the whole job for a family."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qk_taxonomy.cli.boxplots import make_boxplots
from qk_taxonomy.cli.cluster import make_class_figures
from qk_taxonomy.cli.download import print_results, survey_with_bars
from qk_taxonomy.cli.options import family_option, figure_options, survey_options
from qk_taxonomy.cli.report import make_report
from qk_taxonomy.cli.test import run_tests
from qk_taxonomy.errors import PartialFailureError, QKTaxonomyError

# What is drawn of the spectra, in order.
_DRAWING: dict[str, Callable[..., None]] = {
    "classes": make_class_figures,
    "box plots": make_boxplots,
    "tests": run_tests,
}

if TYPE_CHECKING:
    from qk_taxonomy.records import FigureFiles


@click.command(epilog="Example: qk-taxonomy run")
@family_option("Run this family (repeatable); default: the embedded one, without the network.")
@figure_options
@survey_options
def run(
    families: tuple[str, ...],
    output_root: Path,
    catalog: Path | None,
    circuits: tuple[str, ...],
    conventions: tuple[str, ...],
    figures: FigureFiles,
    **options: Any,
) -> None:
    """Survey, classify, plot, test and report: `download` to `report` in one.

    Figures, tests and report show the first circuit and convention surveyed.
    """
    from qk_taxonomy.catalog import EMBEDDED_FAMILY, family_refs, find_family, load_families

    known = load_families(catalog)
    chosen = [find_family(name, known) for name in families or (EMBEDDED_FAMILY,)]
    results = survey_with_bars(
        [ref for family in chosen for ref in family_refs(family)],
        output_root=output_root,
        circuits=circuits,
        conventions=conventions,
        **options,
    )
    print_results(results)
    failed = [result for result in results if result.status == "failed"]
    done = tuple(
        family.name
        for family in chosen
        if any(model.id == r.model for model in family.models for r in results if r not in failed)
    )
    problems: dict[str, Exception] = {}
    which: dict[str, Any] = {"circuit": circuits[0], "convention": conventions[0]}
    makers: dict[str, Callable[..., None]] = {
        **{what: partial(make, figures=figures) for what, make in _DRAWING.items()},
        "report": make_report,
    }
    for what, make in makers.items() if done else ():
        try:
            make(done, data_root=output_root, **which)
        except PartialFailureError as err:
            # Each step calls a model by the same name.
            problems |= {f"{what}, {name}": error for name, error in err.failures.items()}
        except QKTaxonomyError as err:
            problems[what] = err
    if problems:
        raise PartialFailureError(problems)
    if failed:
        raise click.exceptions.Exit(1)
