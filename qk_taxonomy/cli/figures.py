"""``qk-taxonomy cluster`` and ``boxplots``: figures and tables from spectra files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def figure_bar(label: str) -> Iterator[Callable[[int, int, Path], None]]:
    """A progress bar over figures, on a terminal only; off one, nothing is drawn."""
    from rich.progress import Progress

    out = console(stderr=True)
    with Progress(console=out, disable=not out.is_terminal, transient=True) as bars:
        task = bars.add_task(label, total=None)

        def advance(index: int, total: int, path: Path) -> None:
            bars.update(task, completed=index, total=total, description=f"{label} {path.stem}")

        yield advance


def make_class_figures(families: tuple[str, ...], **options: Any) -> list[Path]:
    from qk_taxonomy.outputs import generate_cluster_figures

    with figure_bar("classes (the first map takes a minute to compile)") as progress:
        return [
            path
            for family in families or (None,)
            for path in generate_cluster_figures(family, progress=progress, **options)
        ]


def make_boxplots(families: tuple[str, ...], **options: Any) -> list[Path]:
    from qk_taxonomy.outputs import generate_stat_boxplots

    with figure_bar("box plots") as progress:
        return [
            path
            for family in families or (None,)
            for path in generate_stat_boxplots(family=family, progress=progress, **options)
        ]


def print_figures(figures: list[Path]) -> None:
    """Each folder with its number of figures, and the figures where they are few."""
    folders: dict[Path, list[Path]] = {}
    for path in figures:
        folders.setdefault(path.parent, []).append(path)
    for folder, paths in folders.items():
        for path in paths[:4]:
            click.echo(path)
        if len(paths) > 4:
            click.echo(f"{folder}: {len(paths) - 4} more")


@click.command(epilog="Example: qk-taxonomy cluster --family minilm --clusters 6")
@family_option("Only this family (repeatable); default: all that have spectra.")
@data_root_option
@click.option("--clusters", "n_clusters", type=click.IntRange(1), default=6, show_default=True)
@click.option("--bins", "n_bins", type=click.IntRange(2), default=24, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@one_circuit_options
@debug_option
def cluster(families: tuple[str, ...], **options: Any) -> None:
    """Sort heads into classes by eigenvalue histogram; a figure and tables for each model.

    Writes ESDs/<family>/<model>.png, .csv (one row a head) and .classes.csv (one row a class).
    """
    print_figures(make_class_figures(families, **options))


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
    print_figures(
        make_boxplots(
            families, data_root=data_root, skip=skip, circuit=circuit, convention=convention
        )
    )
