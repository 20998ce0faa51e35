"""``qk-taxonomy assign``: heads of surveyed models in the classes of a taxonomy."""

from __future__ import annotations

from pathlib import Path

import click

from qk_taxonomy.cli.making import making
from qk_taxonomy.cli.options import debug_option
from qk_taxonomy.cli.surveyed import surveyed_families_option


@click.command(epilog="Example: qk-taxonomy assign ESDs/joint/all.taxonomy.safetensors")
@click.argument("taxonomy", type=click.Path(path_type=Path))
@surveyed_families_option()
@debug_option
def assign(taxonomy: Path, families: tuple[str, ...], data_root: Path) -> None:
    """Sort the heads of surveyed models into the classes of a TAXONOMY made by `cluster`.

    The taxonomy's own circuit, convention, bins and distance are used. Writes
    ESDs/<family>/<model>.assigned.csv: layer, head, class, distance to the class's centre, and
    beyond, True where that is farther than 99 % of the class's own heads: perhaps a head of another
    kind. Names what is written, and prints how many heads each class has, and how many are beyond.
    """
    from qk_taxonomy.outputs.assigned import generate_assignments

    with making("classes of heads", "table") as told:
        generate_assignments(
            taxonomy,
            families or None,
            data_root=data_root,
            report=told.report,
            progress=told.progress,
        )
