"""``qk-taxonomy test``: hypotheses about what is surveyed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qk_taxonomy.cli.options import (
    catalog_option,
    console,
    data_root_option,
    debug_option,
    family_option,
    one_circuit_options,
)
from qk_taxonomy.errors import PartialFailureError

if TYPE_CHECKING:
    from qk_taxonomy.hypotheses.run import Outcome

_HYPOTHESES = ("rank", "contrast", "family", "trend")


def run_tests(families: tuple[str, ...] | None = None, **options: Any) -> None:
    """Test with a bar on a terminal, print what was found, and raise for what failed."""
    from rich.progress import Progress

    from qk_taxonomy.hypotheses.summary import summary
    from qk_taxonomy.outputs import generate_hypothesis_tests

    out = console(stderr=True)
    files: list[Path] = []
    with Progress(console=out, disable=not out.is_terminal, transient=True) as bars:
        task = bars.add_task("tests", total=None)

        def watch(name: str, index: int, total: int) -> None:
            bars.update(task, completed=index, total=total, description=name)

        outcome: Outcome = generate_hypothesis_tests(
            families=families or None, watcher=watch, file_progress=files.append, **options
        )
    for line in summary(outcome):
        click.echo(line)
    table, *others = files
    click.echo(table)
    if others:
        click.echo(f"{table.parent / 'tests'}: {len(others)} figures and tables")
    for note in outcome.notes:
        click.echo(f"Note: {note}.", err=True)
    if outcome.failures:
        raise PartialFailureError(outcome.failures)


@click.command(epilog="Example: qk-taxonomy test --family rxnfp --hypothesis contrast")
@family_option("Only this family (repeatable); default: all that have spectra.")
@data_root_option
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
    help="Only this contrast of the catalogue (repeatable); default: all with both sides surveyed.",
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
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of permutations and classes.",
)
@click.option(
    "--include-imported",
    is_flag=True,
    help="Compare imported spectra, of the predecessor's formula, with true ones.",
)
@catalog_option
@one_circuit_options
@debug_option
def test(families: tuple[str, ...], **options: Any) -> None:
    """Test rank, contrasts, families and trends; one table, and figures.

    Writes plots/tests.csv (one row a test: effect, interval, p-value, corrected q-value, number of
    units, method) and figures under plots/tests/. Contrasts of the catalogue are tested where both
    models are surveyed, and models against their random twins (`download --control random`).
    """
    run_tests(families, **options)
