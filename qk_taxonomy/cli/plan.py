"""``qk-taxonomy plan``: what a survey would cost, without the network."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qk_taxonomy.cli.options import (
    catalog_option,
    circuits_option,
    console,
    count,
    debug_option,
    family_option,
    size,
)
from qk_taxonomy.costs import COMPUTE_RATE, RATE_LIMITS, Assumptions, Estimate
from qk_taxonomy.wording import counted

if TYPE_CHECKING:
    from rich.table import Table

    from qk_taxonomy.costs import Account
    from qk_taxonomy.records import Circuit

_TOTAL = "all of them"
_COLUMNS = ("models", "weights", "to move", "saved", "requests", "hours")


@click.command(epilog="Example: qk-taxonomy plan --family pythia --checkpoints --link 100")
@family_option("Plan for this family (repeatable).  [default: the whole catalogue]")
@circuits_option(("qk",), None, "Repeat for both.")
@click.option(
    "--link",
    type=click.FloatRange(min=0, min_open=True),
    default=1000.0,
    show_default=True,
    metavar="MBIT/S",
    help="Speed of the link to the hub.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Machines that read and compute.",
)
@click.option(
    "--own-links",
    is_flag=True,
    help="Each worker has such a link and an IP address of its own; they share one otherwise.",
)
@click.option(
    "--account",
    type=click.Choice(list(RATE_LIMITS)),
    default="anonymous",
    show_default=True,
    help="Whose rate limits the hub applies.",
)
@click.option(
    "--compute",
    type=click.FloatRange(min=0, min_open=True),
    default=COMPUTE_RATE / 1e6,
    show_default=True,
    metavar="MB/S",
    help="Attention weights a worker turns into spectra; the default is two cores'.",
)
@click.option(
    "--bytes-per-weight",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    show_default="2, or what the catalogue says",
    help="How weights are stored.",
)
@click.option("--checkpoints", is_flag=True, help="Plan for training checkpoints too.")
@click.option(
    "--collection",
    type=(click.IntRange(min=1), click.FloatRange(min=0, min_open=True)),
    metavar="MODELS TERABYTES",
    help="Plan for so many models with so many TB of weights, of the make of those planned for.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@catalog_option
@debug_option
def plan(
    families: tuple[str, ...],
    circuits: tuple[Circuit, ...],
    link: float,
    workers: int,
    own_links: bool,
    account: Account,
    compute: float,
    bytes_per_weight: float | None,
    checkpoints: bool,
    collection: tuple[int, float] | None,
    as_json: bool,
    catalog: Path | None,
) -> None:
    """Estimate bytes, requests and hours of a survey, without the network.

    From the catalogue's numbers of parameters: good for an evening's planning. The exact bytes of
    a model come from `qk-taxonomy download --dry-run`, which opens its checkpoint.
    """
    from qk_taxonomy.catalog import find_family, load_families
    from qk_taxonomy.costs import collection_cost, estimate, family_costs, useful_workers

    known = load_families(catalog)
    chosen = {family.name: family for name in families for family in [find_family(name, known)]}
    assumed = Assumptions(link * 1e6 / 8, workers, account, compute * 1e6, own_links)
    costs = {
        family.name: family_costs(
            family, circuits, checkpoints=checkpoints, bytes_per_weight=bytes_per_weight
        )
        for family in chosen.values() or known
    }
    together = [cost for of_family in costs.values() for cost in of_family]
    if collection is not None:
        models, terabytes = collection
        together = [collection_cost(together, models, terabytes * 1e12)]
        costs = {}
    rows = {name: estimate(of_family, assumed) for name, of_family in costs.items()}
    total = estimate(together, assumed)
    enough = useful_workers(together, assumed)
    if as_json:
        click.echo(json.dumps(_record(rows, total, assumed, circuits, enough), indent=2))
        return
    out = console()
    out.print(_table(rows, total, "the collection" if collection else _TOTAL))
    for line in _said(assumed, circuits, enough):
        out.print(line)


def _row(found: Estimate) -> tuple[str, ...]:
    return (
        f"{found.models:,}",
        size(found.weights),
        size(found.moved) if found.moved else "nothing",
        f"{found.weights / found.moved:.3g}×" if found.moved else "",
        count(found.requests) if found.requests else "",
        _hours(found.seconds),
        found.limit,
    )


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}" if hours >= 0.01 else "under 0.01"


def _table(rows: dict[str, Estimate], total: Estimate, title: str) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("family", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("slowest", no_wrap=True)
    for name, found in rows.items():
        table.add_row(name, *_row(found))
    if len(rows) != 1:
        table.add_row(title, *_row(total), style="bold")
    return table


def _said(assumed: Assumptions, circuits: Sequence[Circuit], enough: int) -> list[str]:
    """What the numbers assume, and how many workers help."""
    api, resolvers = RATE_LIMITS[assumed.account]
    whose = "a link each" if assumed.own_links else "one link"
    return [
        f"Estimated from parameters, not measured: {' and '.join(circuits)} of "
        f"{counted(assumed.workers, 'worker')} on {whose} of {assumed.link * 8 / 1e6:,.4g} Mbit/s, "
        f"each computing {assumed.compute / 1e6:,.4g} MB/s; the slowest of link, rate limit and "
        "computing decides.",
        f"The hub grants {assumed.account} users {api:,} API requests and {resolvers:,} file "
        "look-ups in five minutes; reads of bytes from a file that was looked up do not count.",
        (
            "One worker is enough: more do not help."
            if enough == 1
            else f"More than {enough:,} workers do not help."
        )
        + " Bytes of a single model may be off by a factor of two, rarely of five; "
        "`qk-taxonomy download --dry-run` gives the exact ones.",
    ]


def _record(
    rows: dict[str, Estimate],
    total: Estimate,
    assumed: Assumptions,
    circuits: Sequence[Circuit],
    enough: int,
) -> dict[str, Any]:
    def numbers(found: Estimate) -> dict[str, Any]:
        return {**dataclasses.asdict(found), "seconds": found.seconds, "limit": found.limit}

    return {
        "families": {name: numbers(found) for name, found in rows.items()},
        "total": numbers(total),
        "useful_workers": enough,
        "circuits": list(circuits),
        "assumptions": dataclasses.asdict(assumed),
    }
