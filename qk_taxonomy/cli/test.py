"""``qk-taxonomy test``: hypotheses about what is surveyed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from qk_taxonomy.cli.making import steps
from qk_taxonomy.cli.options import (
    catalog_option,
    debug_option,
    figure_options,
    one_circuit_options,
    seed_option,
)
from qk_taxonomy.cli.surveyed import surveyed_families_option
from qk_taxonomy.errors import PartialFailureError
from qk_taxonomy.records import SCREEN_PNG, FigureFiles

_HYPOTHESES = ("rank", "contrast", "family", "trend")


def run_tests(
    families: tuple[str, ...] | None = None,
    *,
    data_root: Path,
    circuit: str,
    convention: str,
    figures: FigureFiles = SCREEN_PNG,
    treatments: tuple[str, ...] = (),
    controls: tuple[str, ...] = (),
    **options: Any,
) -> None:
    """Test with a bar on a terminal, print what was found, and raise for what failed."""
    from qk_taxonomy.hypotheses.run import compare_models, run_hypotheses
    from qk_taxonomy.hypotheses.summary import summary
    from qk_taxonomy.outputs.hypotheses import generate_hypothesis_tests

    which: dict[str, Any] = {"circuit": circuit, "convention": convention}
    failures: dict[str, Exception] = {}
    files: list[Path] = []
    with steps("tests") as step:
        options |= {**which, "data_root": data_root, "families": families or None}
        if treatments:
            outcome = compare_models(treatments, controls, progress=step, **options)
        else:
            outcome = run_hypotheses(progress=step, **options)
        failures |= outcome.failures

        def written(index: int, total: int, path: Path) -> None:
            files.append(path)
            step(path.stem, index, total)

        try:
            generate_hypothesis_tests(
                data_root, outcome, progress=written, figures=figures, **which
            )
        except PartialFailureError as err:
            failures |= err.failures
    for line in summary(outcome):
        click.echo(line)
    _name_files(files)
    for note in outcome.notes:
        click.echo(f"Note: {note}.", err=True)
    if failures:
        raise PartialFailureError(failures)


def _name_files(files: list[Path]) -> None:
    """The table, and how many others are where."""
    for path in files if len(files) < 4 else files[:1]:
        click.echo(path)
    if len(files) >= 4:
        folder = os.path.commonpath([path.parent for path in files[1:]])
        click.echo(f"and {len(files) - 1} figures and tables under {folder}")


@click.command(epilog="Example: qk-taxonomy test --family rxnfp --hypothesis contrast")
@surveyed_families_option(controls=True)
@click.option(
    "--hypothesis",
    "hypotheses",
    type=click.Choice(_HYPOTHESES),
    multiple=True,
    default=_HYPOTHESES,
    show_default="all",
    help="rank: heads against untrained ones; contrast: models that differ by training; family: "
    "families of models; trend: statistics with depth (repeatable).",
)
@click.option(
    "--contrast",
    "contrasts",
    multiple=True,
    metavar="NAME",
    help="Only this contrast of the catalogue (repeatable); default: all with both sides surveyed, "
    "and random twins.",
)
@click.option(
    "--treatment",
    "treatments",
    multiple=True,
    metavar="MODEL",
    help="Compare this surveyed model (its file, FAMILY/NAME or id) with --control, instead of the "
    "catalogue's contrasts. Several a side, of any shapes, are compared as groups.",
)
@click.option("--control", "controls", multiple=True, metavar="MODEL", help="See --treatment.")
@click.option(
    "--permutations",
    type=click.IntRange(99),
    default=9999,
    show_default=True,
    help="Sign flips of a contrast: p-values reach 1 / (1 + N).",
)
@seed_option("Of permutations and classes.")
@click.option(
    "--include-imported",
    is_flag=True,
    help="Compare imported spectra, of the predecessor's formula, with true ones.",
)
@catalog_option
@one_circuit_options
@figure_options
@debug_option
def test(
    families: tuple[str, ...],
    hypotheses: tuple[str, ...],
    contrasts: tuple[str, ...],
    treatments: tuple[str, ...],
    controls: tuple[str, ...],
    **options: Any,
) -> None:
    """Test rank, contrasts, families and trends; one table, and figures.

    Writes plots/tests.csv, the tests of this run (one row a test: effect, interval, p-value,
    corrected q-value, number of units, method), and figures under plots/tests/. Contrasts of the
    catalogue are tested where both models are surveyed, and models against their random twins
    (`download --control random`). A comparison by --treatment and --control has a table of its own,
    plots/tests/contrasts/<family>/<name>.tests.csv.
    """
    if bool(treatments) != bool(controls):
        raise click.UsageError("A comparison needs a --treatment and a --control.")
    source = click.get_current_context().get_parameter_source("hypotheses")
    if treatments and (contrasts or source is not click.core.ParameterSource.DEFAULT):
        raise click.UsageError(
            "--treatment and --control make one comparison; --hypothesis and --contrast choose "
            "among the others. Give one or the other."
        )
    if contrasts and "contrast" not in hypotheses:
        raise click.UsageError("--contrast goes with --hypothesis contrast.")
    if treatments:
        options |= {"treatments": treatments, "controls": controls}
    else:
        options |= {"hypotheses": hypotheses, "contrasts": contrasts}
    run_tests(families, **options)
