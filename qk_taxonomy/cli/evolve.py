"""``qk-taxonomy evolve``: heads of a model through training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from qk_taxonomy.cli.making import write_files
from qk_taxonomy.cli.options import (
    catalog_option,
    console,
    data_root_option,
    debug_option,
    figure_options,
    one_circuit_options,
    seed_option,
)
from qk_taxonomy.errors import PartialFailureError
from qk_taxonomy.records import N_CLUSTERS

if TYPE_CHECKING:
    from qk_taxonomy.records import Circuit, Convention, FigureFiles


@click.command(epilog="Example: qk-taxonomy evolve pythia-14m --family pythia")
@click.argument("model")
@click.option("--family", metavar="NAME", help="The family, where a name is in several.")
@data_root_option
@click.option(
    "--clusters",
    "n_clusters",
    type=click.IntRange(min=1),
    default=N_CLUSTERS,
    show_default=True,
    help="Classes of the one taxonomy of all steps.",
)
@seed_option("Of classes, and of the paths that others are measured against.")
@one_circuit_options
@catalog_option
@figure_options
@debug_option
def evolve(
    model: str,
    family: str | None,
    data_root: Path,
    circuit: str,
    convention: str,
    catalog: Path | None,
    figures: FigureFiles,
    **options: Any,
) -> None:
    """Follow a model's heads through training, and rank them by how unusual their path is.

    MODEL is the name of files under data/<family>/, one a revision: <model>@<revision>; FAMILY/NAME
    and the model's id will do. `qk-taxonomy download --checkpoints log` makes them. Writes to
    plots/evolution/<family>/ a table with a row a step and head, one with a row a head (when it
    leaves its first class, how far it travels, how unusual that is, corrected; for that the paths
    of other heads are taken for a cloud with heavy tails, of Student's t), figures, and densities
    that move, as a GIF and as a page of HTML.
    """
    from qk_taxonomy.outputs.evolution import write_evolution
    from qk_taxonomy.studies.evolution import evolve as evolve_heads
    from qk_taxonomy.studies.evolution import load_revisions
    from qk_taxonomy.studies.evolution.summary import summary

    loaded = load_revisions(
        model,
        family,
        data_root,
        circuit=cast("Circuit", circuit),
        convention=cast("Convention", convention),
        catalog=catalog,
    )
    for note in loaded.notes:
        click.echo(f"Note: {note}.", err=True)
    for revisions in loaded.stacks:
        found = evolve_heads(revisions, **options)
        out = console()
        for line in summary(found):
            out.print(line)
        for note in found.notes:
            click.echo(f"Note: {note}.", err=True)
        files = write_evolution(found, data_root, figures=figures)
        write_files(f"figures of {found.name}", files, told=True)
    if loaded.failures:
        raise PartialFailureError(loaded.failures)
