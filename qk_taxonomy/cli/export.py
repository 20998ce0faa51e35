"""``qk-taxonomy export``: one table of all heads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qk_taxonomy.cli.making import bar
from qk_taxonomy.cli.options import (
    circuits_option,
    conventions_option,
    debug_option,
)
from qk_taxonomy.cli.surveyed import surveyed_families_option
from qk_taxonomy.errors import PartialFailureError
from qk_taxonomy.wording import counted

if TYPE_CHECKING:
    from qk_taxonomy.records import Circuit, Convention

_FORMATS = ("csv", "parquet")


def _format_of(output: Path | None, chosen: str | None) -> str:
    """The format that was chosen, else that of the file's ending; CSV for no file."""
    if chosen is not None:
        return chosen
    if output is None or output == Path("-"):
        return "csv"
    ending = output.suffix.casefold().removeprefix(".")
    if ending not in _FORMATS:
        raise click.BadParameter(
            f"{output} ends in neither .csv nor .parquet. Name it so, or choose a --format.",
            param_hint="OUTPUT",
        )
    return ending


@click.command(epilog="Example: qk-taxonomy export heads.parquet --family minilm")
@click.argument(
    "output", required=False, type=click.Path(dir_okay=False, allow_dash=True, path_type=Path)
)
@surveyed_families_option(controls=True)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(_FORMATS),
    show_default="as OUTPUT ends",
    help="CSV, or Parquet with the dtypes of the columns.",
)
@circuits_option((), "both", "Only this circuit (repeatable).")
@conventions_option("Only this convention (repeatable).", ())
@debug_option
def export(
    output: Path | None,
    families: tuple[str, ...],
    data_root: Path,
    file_format: str | None,
    circuits: tuple[Circuit, ...],
    conventions: tuple[Convention, ...],
) -> None:
    """Write one table of all heads: a row a head, circuit and convention, with all statistics.

    OUTPUT is a file that ends in .csv or .parquet, or - for standard output; by default
    plots/heads.csv beside data/. Spectra files that cannot be read are left out, and named.
    """
    chosen = _format_of(output, file_format)

    from qk_taxonomy.cache import write_file
    from qk_taxonomy.outputs.files import PLOT_FOLDER
    from qk_taxonomy.tables import csv_bytes, parquet_bytes, readable_heads

    with bar("heads") as advance:
        table, failures = readable_heads(
            data_root,
            families or None,
            circuits=circuits or None,
            conventions=conventions or None,
            progress=advance,
        )
        content = parquet_bytes(table) if chosen == "parquet" else csv_bytes(table)
    if len(table):
        if output == Path("-"):
            click.echo(content, nl=False)
        else:
            path = write_file(output or data_root / PLOT_FOLDER / f"heads.{chosen}", content)
            click.echo(f"{path}: {counted(len(table), 'row')}")
    if failures:
        raise PartialFailureError(failures)
