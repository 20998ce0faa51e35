"""Two models compared, on disk: a table of heads and a figure a stack."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from qk_taxonomy.cache import write_file
from qk_taxonomy.figures.difference import difference_caption, difference_figure
from qk_taxonomy.outputs.drawing import Caption, write_figure
from qk_taxonomy.outputs.files import PLOT_FOLDER, numbers_of, source_of, stem_of
from qk_taxonomy.records import SCREEN_PNG, FigureFiles
from qk_taxonomy.studies.differences.records import ModelDifference
from qk_taxonomy.tables import csv_bytes

DIFFERENCE_FOLDER = "differences"


def write_difference(
    difference: ModelDifference,
    data_root: str | Path = ".",
    *,
    figures: FigureFiles = SCREEN_PNG,
) -> Iterator[Path]:
    """Write the table and the figures of a comparison; each path when the file is there.

    In ``<data_root>/plots/differences/<family of the first>/``: ``<first>-to-<second>.csv``, a row
    a matched pair of heads; ``.shifts.csv``, a row a statistic of all of them; and ``.png``, named
    after the stack too where models share several. The second model is named with its family where
    that is another; names are extended by circuit and convention where these are not ``qk`` and
    ``raw``. Raises SpectraFileError.
    """
    one = difference.stacks[0]
    first, second = one.first, one.second
    kind = first.circuit, first.convention
    own = second.family == first.family
    name = f"{first.model}-to-{second.model if own else f'{second.family}.{second.model}'}"
    folder = Path(data_root) / PLOT_FOLDER / DIFFERENCE_FOLDER / first.family
    table = folder / f"{stem_of(name, *kind)}.csv"
    yield write_file(table, csv_bytes(difference.table))
    yield write_file(table.with_suffix(".shifts.csv"), csv_bytes(difference.shifts))
    for stack in difference.stacks:
        sides = stack.first, stack.second
        numbers = numbers_of([heads.spectra for heads in sides], *kind)
        title = f"{sides[0].name} (first) to {sides[1].name} (second), {numbers}"
        text = f"{difference_caption(stack)} {source_of([heads.spectra for heads in sides])}"
        yield from write_figure(
            folder / stem_of(name, *kind, stack.first.stack),
            partial(difference_figure, stack, title),
            Caption(title, text),
            figures,
        )
