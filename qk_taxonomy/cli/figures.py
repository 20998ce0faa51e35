"""``qk-taxonomy cluster`` and ``boxplots``: figures and tables from spectra files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qk_taxonomy.cli.options import (
    console,
    data_root_option,
    debug_option,
    family_option,
    one_circuit_options,
)

if TYPE_CHECKING:
    from qk_taxonomy.records import Circuit, Convention


def make_figures(
    label: str, make: Callable[..., list[Path]], families: tuple[str, ...], **options: Any
) -> None:
    """Make figures with a bar on a terminal, and name those made also where others failed."""
    from rich.progress import Progress

    from qk_taxonomy.errors import PartialFailureError, QKTaxonomyError

    out = console(stderr=True)
    made: list[Path] = []
    failures: dict[str, Exception] = {}
    try:
        with Progress(console=out, disable=not out.is_terminal, transient=True) as bars:
            task = bars.add_task(label, total=None)

            def advance(index: int, total: int, path: Path) -> None:
                made.append(path)
                bars.update(task, completed=index, total=total, description=path.stem)

            for family in families or (None,):
                try:
                    make(family=family, progress=advance, **options)
                except PartialFailureError as err:
                    failures |= err.failures
                except QKTaxonomyError as err:
                    if len(families) < 2:
                        raise
                    failures[str(family)] = err
    finally:
        print_figures(made)
    if failures:
        raise PartialFailureError(failures)


def make_class_figures(families: tuple[str, ...], **options: Any) -> None:
    from qk_taxonomy.outputs import generate_cluster_figures

    label = "classes (the map compiles first)"
    make_figures(label, generate_cluster_figures, families, **options)


def make_boxplots(families: tuple[str, ...], **options: Any) -> None:
    from qk_taxonomy.outputs import generate_stat_boxplots

    make_figures("box plots", generate_stat_boxplots, families, **options)


def print_figures(figures: list[Path]) -> None:
    """Every figure where they are few, else how many each folder has."""
    folders = Counter(path.parents[1] if len(figures) > 12 else path for path in figures)
    for place, number in folders.items():
        click.echo(place if number == 1 else f"{place}: {number} figures")


@click.command(epilog="Example: qk-taxonomy cluster --family minilm --clusters 6")
@family_option("Only this family (repeatable); default: all that have spectra.")
@data_root_option
@click.option(
    "--clusters",
    "n_clusters",
    type=click.IntRange(1),
    default=6,
    show_default=True,
    help="Number of classes.",
)
@click.option(
    "--bins",
    "n_bins",
    type=click.IntRange(2),
    default=24,
    show_default=True,
    help="Bins of a head's histogram.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of k-means and of the map.",
)
@one_circuit_options
@debug_option
def cluster(families: tuple[str, ...], **options: Any) -> None:
    """Sort heads into classes by eigenvalue histogram; a figure and tables for each model.

    Writes ESDs/<family>/<model>.png, .csv (one row a head) and .classes.csv (one row a class).
    """
    make_class_figures(families, **options)


@click.command(epilog="Example: qk-taxonomy boxplots --family minilm --skip MIN")
@family_option("Only this family (repeatable); default: all that have spectra.")
@data_root_option
@click.option("--skip", multiple=True, metavar="STAT", help="Leave out a statistic (repeatable).")
@one_circuit_options
@debug_option
def boxplots(
    families: tuple[str, ...],
    data_root: Path,
    skip: tuple[str, ...],
    circuit: Circuit,
    convention: Convention,
) -> None:
    """Plot every statistic by layer and test its trend with depth.

    Writes plots/<family>/<STAT>/<model>_<STAT>_box.png and plots/<family>/boxplots.csv.
    """
    make_boxplots(families, data_root=data_root, skip=skip, circuit=circuit, convention=convention)
