"""``qk-taxonomy notebook``: the whole job in cells."""

from __future__ import annotations

from pathlib import Path

import click

from qk_taxonomy.cli.options import catalog_option, debug_option


@click.command(epilog="Example: qk-taxonomy notebook --family minilm")
@click.option("--family", required=True, metavar="NAME", help="The family it is about.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    show_default="<family>.ipynb",
    help="Where to write it.",
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@catalog_option
@debug_option
def notebook(family: str, output: Path | None, force: bool, catalog: Path | None) -> None:
    """Write a Jupyter notebook that does it all for a family, cell by cell.

    Its first cell chooses circuits, models and numbers of classes and bins; the others survey the
    family, show class figures, box plots, tables and tests, and write the report. It runs from an
    empty folder, and needs Jupyter (or an editor that opens notebooks), which this package does
    not install.
    """
    from qk_taxonomy.outputs.notebook import generate_notebook

    click.echo(generate_notebook(family, output, force=force, catalog=catalog))
