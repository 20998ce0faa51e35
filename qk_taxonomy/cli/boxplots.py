"""``qk-taxonomy boxplots``: statistics by layer, from spectra files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qk_taxonomy.cli.making import Making, make_figures
from qk_taxonomy.cli.options import (
    debug_option,
    figure_options,
    one_circuit_options,
)
from qk_taxonomy.cli.surveyed import surveyed_families_option

if TYPE_CHECKING:
    from qk_taxonomy.records import Circuit, Convention, FigureFiles
    from qk_taxonomy.statistics.trends import Smoothing


def make_boxplots(families: tuple[str, ...], **options: Any) -> None:
    from qk_taxonomy.outputs.boxes import generate_stat_boxplots

    def make(family: str | None, told: Making) -> None:
        generate_stat_boxplots(family=family, progress=told.progress, **options)

    make_figures("box plots", make, families)


@click.command(epilog="Example: qk-taxonomy boxplots --family minilm --skip MIN")
@surveyed_families_option()
@click.option("--skip", multiple=True, metavar="STAT", help="Leave out a statistic (repeatable).")
@click.option(
    "--smoothing",
    type=click.Choice(["relative", "predecessor"]),
    default="relative",
    show_default=True,
    help="Dashed line through the means: relative to the statistic's size, or as absolute as "
    "qk-spectral-analysis drew it.",
)
@one_circuit_options
@figure_options
@debug_option
def boxplots(
    families: tuple[str, ...],
    data_root: Path,
    skip: tuple[str, ...],
    smoothing: Smoothing,
    circuit: Circuit,
    convention: Convention,
    figures: FigureFiles,
) -> None:
    """Plot every statistic by layer and test its trend with depth.

    Writes plots/<family>/<STAT>/<model>_<STAT>_box.png and plots/<family>/boxplots.csv.
    """
    make_boxplots(
        families,
        data_root=data_root,
        skip=skip,
        smoothing=smoothing,
        circuit=circuit,
        convention=convention,
        figures=figures,
    )
