"""``qk-taxonomy families``: what is in the catalogue."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from qk_taxonomy.cli.options import catalog_option, console, count, debug_option


@click.command(epilog="Example: qk-taxonomy families pythia")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@catalog_option
@debug_option
def families(names: tuple[str, ...], as_json: bool, catalog: Path | None) -> None:
    """List the families of the catalogue, or the models of those named."""
    from rich.table import Table

    from qk_taxonomy.catalog import find_family, load_families

    known = load_families(catalog)
    chosen = [find_family(name, known) for name in names] or list(known)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(family) for family in chosen], indent=2))
        return
    out = console()
    if not names:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in ("family", "models", "sizes", "gated", "licence", "also called"):
            table.add_column(column, justify="right" if column == "models" else "left")
        for family in chosen:
            sizes = [model.parameters for model in family.models]
            table.add_row(
                family.name,
                str(len(sizes)),
                f"{count(min(sizes))} to {count(max(sizes))}"
                if len(sizes) > 1
                else count(sizes[0]),
                "yes" if family.gated else "",
                family.license,
                ", ".join(family.aliases),
            )
        out.print(table)
        return
    for family in chosen:
        out.print(family.title, style="bold")
        out.print(family.description)
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("model", no_wrap=True)
        table.add_column("parameters", justify="right")
        table.add_column("gated")
        table.add_column("licence")
        for model in family.models:
            gated = "yes" if model.gated else ""
            table.add_row(model.id, count(model.parameters), gated, model.license)
        out.print(table)
