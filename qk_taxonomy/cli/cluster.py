"""``qk-taxonomy cluster``: classes of heads, from spectra files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qk_taxonomy.cli.making import Making, make_figures, making
from qk_taxonomy.cli.options import (
    debug_option,
    figure_options,
    one_circuit_options,
    pool_imported_option,
    taxonomy_options,
)
from qk_taxonomy.cli.surveyed import surveyed_families_option

_SLOW_START = "(the map compiles first)"


def make_class_figures(families: tuple[str, ...], **options: Any) -> None:
    from qk_taxonomy.outputs.classes import generate_cluster_figures

    def make(family: str | None, told: Making) -> None:
        generate_cluster_figures(family, progress=told.progress, report=told.report, **options)

    make_figures(f"classes {_SLOW_START}", make, families)


def _make_joint_taxonomy(families: tuple[str, ...], **options: Any) -> None:
    from qk_taxonomy.outputs.joint import generate_joint_taxonomy

    with making(f"joint classes {_SLOW_START}") as told:
        generate_joint_taxonomy(
            families or None, progress=told.progress, report=told.report, **options
        )


@click.command(epilog="Example: qk-taxonomy cluster --family minilm --clusters 6")
@surveyed_families_option()
@taxonomy_options
@click.option(
    "--joint",
    is_flag=True,
    help="One taxonomy of all these models, on common bins, under ESDs/joint/.",
)
@click.option(
    "--name",
    metavar="NAME",
    help="Of the joint taxonomy's files; default: its families', or all.",
)
@pool_imported_option
@one_circuit_options
@figure_options
@debug_option
def cluster(
    families: tuple[str, ...],
    data_root: Path,
    joint: bool,
    name: str | None,
    include_imported: bool,
    **options: Any,
) -> None:
    """Sort heads into classes by eigenvalue histogram; a figure and tables for each model.

    Writes ESDs/<family>/<model>.png, .csv (one row a head), .classes.csv (one row a class),
    .agreement.csv (adjusted Rand index with the classes of other seeds, bins and distance) and
    .taxonomy.safetensors (see `assign`). Prints the stability of that number of classes (mean
    adjusted Rand index with those of bootstrap samples of heads), their silhouette, and the lowest
    agreement. With --joint: one taxonomy, ESDs/joint/NAME.png and so on, also .composition.csv (one
    row a model).
    """
    if not joint:
        for given, option in (
            (name is not None, "--name"),
            (include_imported, "--include-imported"),
        ):
            if given:
                raise click.UsageError(f"{option} is for --joint.")
        make_class_figures(families, data_root=data_root, **options)
        return
    _make_joint_taxonomy(
        families, data_root=data_root, name=name, include_imported=include_imported, **options
    )
