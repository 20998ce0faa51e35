"""``qk-taxonomy diff``: two surveyed models, head by head."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qk_taxonomy.cli.making import write_files
from qk_taxonomy.cli.options import (
    data_root_option,
    debug_option,
    figure_options,
    one_circuit_options,
    seed_option,
)
from qk_taxonomy.records import MATCHES

if TYPE_CHECKING:
    from qk_taxonomy.records import FigureFiles


@click.command(epilog="Example: qk-taxonomy diff rxnfp/bert_pretrained rxnfp/bert_ft")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@data_root_option
@click.option(
    "--match",
    type=click.Choice(MATCHES),
    default="auto",
    show_default=True,
    help="place: heads of one layer and number; spectra: those whose spectra are most alike, for "
    "models of different depth; auto: by place where architecture and shape are one.",
)
@seed_option("Of pairs of heads, where a model has very many, and of orders of layers.")
@click.option(
    "--include-imported",
    is_flag=True,
    help="Compare imported spectra, of the predecessor's formula, with true ones.",
)
@one_circuit_options
@figure_options
@debug_option
def diff(first: str, second: str, data_root: Path, figures: FigureFiles, **options: Any) -> None:
    """What moved from model A to model B: the scale, shape and rank of each head's spectrum.

    A and B are spectra files, or names of surveyed models (FAMILY/NAME, NAME or id): a base and a
    tuned model, two revisions, a model and its quantised copy. How far each head moved is told in
    units of how far heads of A are apart; whether all heads together did is tested, as `test
    --treatment B --control A` does for each layer too. Writes plots/differences/<family>/
    <A>-to-<B>.csv, a row a head, .shifts.csv, a row a statistic, and .png.
    """
    from qk_taxonomy.outputs.difference import write_difference
    from qk_taxonomy.studies.differences.study import diff_models
    from qk_taxonomy.studies.differences.summary import summary

    difference = diff_models(first, second, data_root, **options)
    for line in summary(difference):
        click.echo(line)
    write_files("difference", write_difference(difference, data_root, figures=figures), told=True)
    notes = (*difference.notes, *(note for one in difference.stacks for note in one.notes))
    for note in dict.fromkeys(notes):
        click.echo(f"Note: {note}.", err=True)
