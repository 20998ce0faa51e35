"""The study of heads through training on disk: tables, figures, and densities that move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qk_taxonomy.cache import write_file
from qk_taxonomy.figures.evolution.densities import density_caption, density_figure
from qk_taxonomy.figures.evolution.maps import map_caption, map_figure
from qk_taxonomy.figures.evolution.parts import chosen_steps
from qk_taxonomy.figures.evolution.paths import path_caption, path_figure
from qk_taxonomy.figures.evolution.river import river_caption, river_figure
from qk_taxonomy.figures.moving import Frame, moving_densities
from qk_taxonomy.figures.style import Page, house_style
from qk_taxonomy.outputs.drawing import Caption, write_figure
from qk_taxonomy.outputs.files import PLOT_FOLDER, numbers_of, source_of, stem_of
from qk_taxonomy.records import SCREEN_PNG, FigureFiles
from qk_taxonomy.studies.evolution import Evolution, heads_table, path_table
from qk_taxonomy.tables import csv_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Where the study's tables and figures are, below the folder of plots.
EVOLUTION_FOLDER = "evolution"

# Frames of what moves: each costs a fraction of a second, and some 4 kB of the page.
_MOST_FRAMES = 48

#: The figures of the study and their captions, by the end of their file's name.
FIGURES: dict[str, tuple[Callable[[Evolution, str, Page], Figure], Callable[[Evolution], str]]] = {
    "river": (river_figure, river_caption),
    "maps": (map_figure, map_caption),
    "densities": (density_figure, density_caption),
    "paths": (path_figure, path_caption),
}


def write_evolution(
    evolution: Evolution, data_root: str | Path = ".", *, figures: FigureFiles = SCREEN_PNG
) -> Iterator[Path]:
    """Write the tables and figures of a model's evolution, and yield each when it is there.

    In ``<data_root>/plots/evolution/<family>/``: ``<model>.csv``, one row a step and head;
    ``<model>_heads.csv``, one row a head, the most unusual path first; ``_river.png``,
    ``_maps.png``, ``_densities.png``, ``_paths.png``; and densities that move, of up to 48 steps,
    ``_moving.gif`` and ``_moving.html``, which needs no network. ``<model>`` is extended by the
    stack where a model has several, and by circuit and convention where they are not ``qk`` and
    ``raw``. Raises SpectraFileError.
    """
    model = evolution.model
    folder = Path(data_root) / PLOT_FOLDER / EVOLUTION_FOLDER / model.family
    stem = stem_of(evolution.name, model.circuit, model.convention, model.stack)
    yield write_file(folder / f"{stem}.csv", csv_bytes(path_table(evolution)))
    yield write_file(folder / f"{stem}_heads.csv", csv_bytes(heads_table(evolution)))
    title = _title(evolution)
    source = source_of([evolution.model.spectra])
    for name, (draw, caption) in FIGURES.items():
        about = Caption(title, f"{caption(evolution)} {source}")
        base = folder / f"{stem}_{name}"
        yield from write_figure(base, partial(draw, evolution, title), about, figures)
    with house_style():
        moving = moving_densities(_frames(evolution), evolution.edges, title)
    yield write_file(folder / f"{stem}_moving.gif", moving.gif)
    yield write_file(folder / f"{stem}_moving.html", moving.page)


def _title(evolution: Evolution) -> str:
    model = evolution.model
    stack = f", {model.stack} stack" if model.stack else ""
    numbers = numbers_of([model.spectra], model.circuit, model.convention)
    s, h = evolution.labels.shape
    return f"{evolution.name}{stack} ({model.family}), {h} heads at {s} steps, {numbers}"


def _frames(evolution: Evolution) -> list[Frame]:
    """A frame a step, of steps even in log(step + 1) where there are more than are wanted."""
    untrained = evolution.null.histogram if evolution.null.n else None
    return [
        Frame(evolution.names[step], evolution.histograms[step], untrained)
        for step in chosen_steps(evolution, _MOST_FRAMES)
    ]
