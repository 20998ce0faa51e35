"""``qk-taxonomy cluster``: classes of heads, from spectra files."""

from __future__ import annotations

from typing import Any

import click

from qk_taxonomy.cli.figures import make_figures
from qk_taxonomy.cli.options import (
    data_root_option,
    debug_option,
    family_option,
    one_circuit_options,
)


def make_class_figures(families: tuple[str, ...], **options: Any) -> None:
    from qk_taxonomy.outputs import generate_cluster_figures

    label = "classes (the map compiles first)"
    make_figures(label, generate_cluster_figures, families, **options)


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
