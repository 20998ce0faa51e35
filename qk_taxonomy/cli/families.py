"""``qk-taxonomy families``: what is in the catalogue."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qk_taxonomy.cli.options import catalog_option, console, count, debug_option

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from qk_taxonomy.records import Checkpoints, Contrast, Family, ModelEntry


@click.command(epilog="Example: qk-taxonomy families pythia")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--contrasts", is_flag=True, help="List the pairs of models that differ by training.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@catalog_option
@debug_option
def families(names: tuple[str, ...], contrasts: bool, as_json: bool, catalog: Path | None) -> None:
    """List the families of the catalogue, or the models and contrasts of those named."""
    from qk_taxonomy.catalog import find_family, load_contrasts, load_families

    known = load_families(catalog)
    chosen = [find_family(name, known) for name in names] or list(known)
    if not (names or contrasts or as_json):
        out = console()
        out.print(_family_table(chosen))
        out.print(
            f"{len(chosen)} families, {sum(len(family.models) for family in chosen):,} models. "
            "`qk-taxonomy families NAME` lists the models of one, `--contrasts` pairs of models "
            "that differ by training."
        )
        return
    pairs = load_contrasts(catalog)
    if names:
        pairs = _touching(pairs, chosen)
    if as_json and contrasts:
        click.echo(json.dumps([dataclasses.asdict(pair) for pair in pairs], indent=2))
    elif as_json:
        click.echo(json.dumps([_record(family, pairs) for family in chosen], indent=2))
    elif contrasts:
        console().print(_contrast_table(pairs))
    else:
        for family in chosen:
            _print_family(console(), family, _touching(pairs, [family]))


def _touching(pairs: Iterable[Contrast], chosen: Iterable[Family]) -> tuple[Contrast, ...]:
    """The contrasts that have a side in one of the families."""
    ids = {model.id for family in chosen for model in family.models}
    return tuple(pair for pair in pairs if {pair.treatment, pair.control} & ids)


def _record(family: Family, pairs: Iterable[Contrast]) -> dict[str, object]:
    """A family for JSON, with the contrasts that have a side in it."""
    touching = [dataclasses.asdict(pair) for pair in _touching(pairs, [family])]
    return {**dataclasses.asdict(family), "contrasts": touching}


def _table(*whole: str, right: tuple[str, ...] = (), folding: str) -> Table:
    """A table without lines: columns that stay ``whole``, some at the ``right``, one to fold."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in whole:
        table.add_column(name, no_wrap=True, justify="right" if name in right else "left")
    table.add_column(folding, overflow="fold")
    return table


def _family_table(chosen: Iterable[Family]) -> Table:
    table = _table(
        *("family", "models", "sizes", "gated", "checkpoints"),
        right=("models", "checkpoints"),
        folding="licence",
    )
    for family in chosen:
        sizes = [model.parameters for model in family.models]
        ends = dict.fromkeys([count(min(sizes)), count(max(sizes))])
        gated = {model.gated for model in family.models}
        kept = {len(model.checkpoints.revisions) for model in family.models if model.checkpoints}
        licences = {model.license for model in family.models}
        table.add_row(
            family.name,
            str(len(sizes)),
            " to ".join(ends),
            "" if gated == {False} else "yes" if gated == {True} else "some",
            "" if not kept else str(*kept) if len(kept) == 1 else f"up to {max(kept)}",
            *licences if len(licences) == 1 else ["mixed"],
        )
    return table


def _print_family(out: Console, family: Family, pairs: tuple[Contrast, ...]) -> None:
    out.print(family.title, style="bold")
    out.print(family.description)
    if family.aliases:
        out.print(f"Also called {', '.join(family.aliases)}.")
    table = _table("model", "size", "gated", "licence", right=("size",), folding="checkpoints")
    for model in family.models:
        table.add_row(
            model.id,
            count(model.parameters),
            "yes" if model.gated else "",
            model.license,
            _span(model.checkpoints),
        )
    out.print(table)
    for note in dict.fromkeys(note for model in family.models for note in _notes(model)):
        out.print(note)
    if pairs:
        out.print(_contrast_table(pairs))
    out.print()


def _span(checkpoints: Checkpoints | None) -> str:
    """How many training checkpoints there are, the first and the last."""
    if checkpoints is None:
        return ""
    names = checkpoints.revisions
    return f"{len(names)}: {' … '.join(dict.fromkeys([names[0], names[-1]]))}"


def _notes(model: ModelEntry) -> list[str]:
    """What the row of a model cannot say."""
    notes = []
    if model.checkpoints and model.checkpoints.repository:
        notes.append(f"Checkpoints of {model.name}: revisions of {model.checkpoints.repository}.")
    if model.checkpoints and model.checkpoints.note:
        notes.append(model.checkpoints.note)
    if model.package:
        where = "comes with" if model.hub else "is not on the hub but in"
        notes.append(f"{model.name} {where} the Python package {model.package.distribution}.")
    return notes


def _contrast_table(pairs: Iterable[Contrast]) -> Table:
    table = _table("contrast", "kind", folding="treatment against control")
    for pair in pairs:
        table.add_row(pair.name, pair.kind, f"{pair.treatment} against {pair.control}")
    return table
