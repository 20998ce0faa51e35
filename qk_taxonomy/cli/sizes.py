"""``qk-taxonomy sizes``: a family's statistics by depth and by parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qk_taxonomy.cli.making import write_files
from qk_taxonomy.cli.options import (
    catalog_option,
    circuits_option,
    conventions_option,
    debug_option,
    figure_options,
)
from qk_taxonomy.cli.surveyed import surveyed_families_option
from qk_taxonomy.errors import PartialFailureError, QKTaxonomyError
from qk_taxonomy.records import FigureFiles


@click.command(epilog="Example: qk-taxonomy sizes --family pythia")
@surveyed_families_option("Of this family (repeatable).")
@circuits_option((), "both", "Only this circuit.")
@conventions_option("Only this convention.", ())
@click.option(
    "--revision",
    metavar="REV",
    help="Models at this revision, such as step1000; otherwise at their newest.",
)
@catalog_option
@figure_options
@debug_option
def sizes(families: tuple[str, ...], data_root: Path, figures: FigureFiles, **options: Any) -> None:
    """How statistics change with depth and with parameters over the sizes of a family.

    Of three or more surveyed models, each of which counts once: the mean over models of each
    statistic's slope with depth, and its slope with the logarithm of the parameters, with
    intervals and corrected tests. Parameters are the catalogue's; a family of your own has them in
    a file (--catalog). Where the same models are surveyed at step 0 too, slopes with parameters are
    set beside those of these: widths alone move them. Writes plots/sizes/<family>/: tables,
    figures, densities that move from size to size, and a page.
    """
    from qk_taxonomy.outputs.sizes import write_sizes
    from qk_taxonomy.studies.sizes import family_sizes, summary

    if not families:
        raise click.UsageError("Name a family: --family NAME.")
    failures: dict[str, Exception] = {}
    for family in families:
        try:
            found = family_sizes(family, data_root, **options)
        except QKTaxonomyError as err:
            if len(families) == 1:
                raise
            failures[family] = err
            continue
        failures |= found.failures
        for line in summary(found):
            click.echo(line)
        files = write_sizes(found, data_root, figures=figures)
        write_files(f"sizes of {family}", files, told=True)
        for note in found.notes:
            click.echo(f"Note: {note}.", err=True)
    if failures:
        raise PartialFailureError(failures)
