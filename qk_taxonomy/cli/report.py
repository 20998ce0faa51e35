"""``qk-taxonomy report``: one page to explore a survey."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qk_taxonomy.cli.making import steps
from qk_taxonomy.cli.options import (
    debug_option,
    one_circuit_options,
    pool_imported_option,
    taxonomy_options,
)
from qk_taxonomy.cli.surveyed import surveyed_families_option


def make_report(families: tuple[str, ...], *, opened: bool = False, **options: Any) -> None:
    """Write the page with a bar on a terminal, print what there is to say, and open it if asked."""
    from qk_taxonomy.outputs.report import generate_report

    lines: list[str] = []
    try:
        with steps("report (the map compiles first)") as step:
            (page,) = generate_report(
                families=families or None, progress=step, report=lines.append, **options
            )
    finally:
        for line in lines:
            click.echo(line)
    if opened:
        _open(page)


def _open(page: Path) -> None:
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        click.echo(f"No browser could be started here; open {page.resolve()} in one.", err=True)


@click.command(epilog="Example: qk-taxonomy report --family minilm --open")
@surveyed_families_option()
@taxonomy_options
@click.option(
    "--revisions",
    is_flag=True,
    help="Show every surveyed revision of a model; default: the last one alone.",
)
@pool_imported_option
@one_circuit_options
@click.option("--open", "opened", is_flag=True, help="Open the page in the browser.")
@debug_option
def report(families: tuple[str, ...], opened: bool, **options: Any) -> None:
    """Write one page to explore all of it: a map of the heads, classes, statistics and tests.

    Writes plots/report.html, a file of its own that needs no network when opened and can be sent
    on. Its classes and map are those of one taxonomy of all heads, as of `cluster --joint`; its
    tests those that `test` wrote. Controls are left out. Prints the page's size, and what is left
    out and why. 100,000 heads take a few minutes, most of them for the map.
    """
    make_report(families, opened=opened, **options)
