"""The page of a family over its sizes: tables, figures, and what holds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd

from qk_taxonomy.cache import write_file
from qk_taxonomy.figures.moving import Frame, Moving, moving_densities
from qk_taxonomy.figures.sizes import (
    depth_caption,
    depth_figure,
    size_caption,
    size_figure,
    size_label,
)
from qk_taxonomy.figures.style import house_style
from qk_taxonomy.outputs.drawing import Caption, Draw, remove_others, write_figure
from qk_taxonomy.outputs.files import PLOT_FOLDER, numbers_of, source_of, stem_of
from qk_taxonomy.outputs.markdown import markdown_table, number
from qk_taxonomy.records import CIRCUITS, CONVENTIONS, SCREEN_PNG, FigureFiles, FileStem
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.statistics.slopes import LEAST_SQUARES, THEIL_SEN
from qk_taxonomy.studies.sizes import (
    ALSO_UNTRAINED,
    BY_DEPTH,
    BY_SIZE,
    UNTRAINED_BY_SIZE,
    FamilySizes,
    SizeTrends,
    densities_of,
    slope_label,
)
from qk_taxonomy.tables import csv_bytes

SIZES_FOLDER = "sizes"

_KINDS = tuple(itertools.product(CIRCUITS, CONVENTIONS))


def write_sizes(
    sizes: FamilySizes, data_root: str | Path = ".", *, figures: FigureFiles = SCREEN_PNG
) -> Iterator[Path]:
    """Write the tables, figures and page of a family; each path when the file is there.

    In ``<data_root>/plots/sizes/<family>/``: ``<family>.csv``, a row a test;
    ``<family>_models.csv``, a row a model, circuit and convention, with each statistic's value and
    slope with depth; ``<family>_depth.png`` and, where three models' parameters are known,
    ``<family>_parameters.png``; densities that move from model to model in order of size,
    ``<family>_moving.gif`` and ``_moving.html``; and at last the page, ``<family>.md``. Figures are
    named after stack, circuit and convention where these are not the usual, and ``<family>`` is
    followed by @ and the revision where one was asked for. Figures of an earlier run of the same
    name that there is nothing for now are removed. Raises SpectraFileError.
    """
    folder = Path(data_root) / PLOT_FOLDER / SIZES_FOLDER / sizes.family
    name = str(FileStem(sizes.family, sizes.revision))
    yield write_file(folder / f"{name}.csv", csv_bytes(sizes.rows))
    models = pd.concat([_models(one) for one in sizes.trends], ignore_index=True)
    yield write_file(folder / f"{name}_models.csv", csv_bytes(models))
    sections = []
    made: set[str] = set()
    for one in sizes.trends:
        heads = one.models[0]
        kind = heads.circuit, heads.convention
        stem = stem_of(name, *kind, heads.stack)
        title = numbers_of([m.spectra for m in one.models], *kind)
        title += f", {heads.stack} stack" if heads.stack else ""
        sections.append(f"## {title[0].upper()}{title[1:]}")
        for what, draw, caption in _figures(one, f"{name} by", title):
            written = write_figure(folder / f"{stem}_{what}", draw, caption, figures)
            yield from written
            made.add(f"{stem}_{what}")
            # A page can show all but PDF.
            shown = [path for path in written if path.suffix != ".pdf"]
            link = f"by {what}]({_link((shown or written)[0])})"
            sections.append(f"![{link}" if shown else f"[{link}")
        # Heads of several widths have no one spectrum.
        if all(len(model.widths) == 1 for model in one.models):
            moving = _moving(one, f"{name}, {title}")
            gif, page = folder / f"{stem}_moving.gif", folder / f"{stem}_moving.html"
            yield write_file(gif, moving.gif)
            yield write_file(page, moving.page)
            made.add(f"{stem}_moving")
            sections.append(f"[![from size to size]({_link(gif)})]({_link(page)})")
        sections.append(_trend_table(one))
    stacks = {one.models[0].stack for one in sizes.trends}
    stems = {stem_of(name, *kind, stack) for kind in _KINDS for stack in stacks}
    remove_others(folder, stems, "depth|parameters|moving", made)
    yield write_file(folder / f"{name}.md", _page(sizes, name, sections).encode())


def _figures(one: SizeTrends, beginning: str, title: str) -> Iterator[tuple[str, Draw, Caption]]:
    """The figures that there is something to draw in: what each is called, and its caption."""
    source = source_of([model.spectra for model in one.models])
    about = "depth, mean slopes of models from first layer to last"
    heading = f"{beginning} {about}: {title}"
    caption = Caption(heading, f"{depth_caption(one)} {source}")
    yield "depth", partial(depth_figure, one, heading), caption
    if one.by_size:
        heading = f"{beginning} parameters, slopes per factor of ten: {title}"
        caption = Caption(heading, f"{size_caption(one)} {source}")
        yield "parameters", partial(size_figure, one, heading), caption


def _moving(one: SizeTrends, title: str) -> Moving:
    """A frame a model, in order of size."""
    densities = densities_of(one.models)
    labels = [size_label(m.model, n) for m, n in zip(one.models, one.parameters, strict=True)]
    frames = [
        Frame(*values)
        for values in zip(labels, densities.histograms, densities.untrained, strict=True)
    ]
    with house_style():
        return moving_densities(frames, densities.edges, title)


def _link(path: Path) -> str:
    """What a page beside it calls the file: a name, whose own % and blanks are quoted."""
    return quote(path.name)


def _page(sizes: FamilySizes, name: str, sections: list[str]) -> str:
    shown = max(sizes.trends, key=lambda one: len(one.models))
    rows = [
        (
            heads.model,
            f"{n:,.0f}" if np.isfinite(n) else "–",
            *(str(heads.geometry[key] or "–") for key in ("n_layers", "n_heads", "n_kv_heads")),
            *(str(heads.geometry[key] or "–") for key in ("d_head", "d_model")),
        )
        for heads, n in zip(shown.models, shown.parameters, strict=True)
    ]
    header = ("model", "parameters", "layers", "heads", "key-value heads", "d_head", "d_model")
    limits = (
        "The model is the unit: a layer's value is the median over its heads, a model's the "
        "median over its layers. Logarithms are natural.",
        "Slopes with depth are of whole models, first layer to last; with parameters, per factor "
        "of ten. In brackets: 95 % intervals over models. q: corrected over the statistics of a "
        "test (Benjamini–Hochberg).",
        "Sizes of a family differ in more than parameters: in layers, heads and d_head, and often "
        "in training.",
        *_untrained_limits(sizes),
    )
    parts = [
        f"# {name}: statistics by depth and by size",
        markdown_table(header, rows),
        *sections,
        "## How to read it",
        "\n".join(f"- {line}" for line in (*limits, *(f"{note}." for note in sizes.notes))),
        f"All numbers: `{name}.csv`, a row a test; `{name}_models.csv`, a row a model.",
    ]
    return "\n\n".join(parts) + "\n"


def _untrained_limits(sizes: FamilySizes) -> Iterator[str]:
    """What is to be known of slopes with parameters, which widths of models have a part in."""
    if any(one.untrained_known for one in sizes.trends):
        yield (
            "Untrained: slopes with parameters of the same models at step 0, whose spectra depend "
            "on d_head, d_model and the initialisation alone; what both show, with q ≤ "
            f'{LEVEL} and one sign, is marked "also" and need not come of training.'
        )
    elif any(one.by_size and not one.are_untrained for one in sizes.trends):
        yield (
            "Spectra of untrained heads depend on d_head and d_model too: where first steps are "
            "surveyed (`qk-taxonomy download --revision step0`), slopes with parameters are set "
            "beside those before training."
        )


def _trend_table(trends: SizeTrends) -> str:
    """A row a statistic: its slopes with depth and, both ways, with parameters where known."""
    header = ["statistic", "slope with depth", "q"]
    if trends.by_size:
        header += ["slope with parameters, least squares", "q", "Theil–Sen"]
    if trends.untrained_known:
        header += ["untrained, least squares", "q"]
    rows = []
    for name in trends.statistics:
        own = trends.rows[trends.rows["statistic"] == name]
        depth = own[own["hypothesis"] == BY_DEPTH].iloc[0]
        cells = [slope_label(name), _slope(depth), number(depth["q_value"], ".2g")]
        if trends.by_size:
            by_size = own[own["hypothesis"] == BY_SIZE].set_index("method")
            least, median = by_size.loc[LEAST_SQUARES], by_size.loc[THEIL_SEN]
            cells += [_slope(least), number(least["q_value"], ".2g"), _slope(median)]
            if trends.untrained_known:
                before = own[own["hypothesis"] == UNTRAINED_BY_SIZE]
                cells += _untrained_cells(before, also=ALSO_UNTRAINED in least["note"])
        rows.append(cells)
    return markdown_table(header, rows)


def _untrained_cells(before: pd.DataFrame, *, also: bool) -> list[str]:
    """The slope of untrained models, where their files have the statistic, and its q-value."""
    if before.empty:
        return ["–", "–"]
    row = before.iloc[0]
    return [f"{'also ' if also else ''}{_slope(row)}", number(row["q_value"], ".2g")]


def _slope(row: pd.Series) -> str:
    if not np.isfinite(row["effect"]):
        return str(row["note"])
    ends = f" [{number(row['low'], '.3g')}, {number(row['high'], '.3g')}]"
    return number(row["effect"], ".3g") + (ends if np.isfinite(row["low"]) else "")


def _models(trends: SizeTrends) -> pd.DataFrame:
    """A row a model: what it is, and each statistic's value and slope with depth."""
    heads = trends.models
    what = pd.DataFrame(
        {
            "family": [one.family for one in heads],
            "model": [one.model for one in heads],
            "stack": [one.stack for one in heads],
            "circuit": [one.circuit for one in heads],
            "convention": [one.convention for one in heads],
            "parameters": pd.array(trends.parameters, dtype="Float64").astype("Int64"),
        }
    )
    values = trends.values.reset_index(drop=True)
    return pd.concat([what, values, trends.slopes.add_suffix("_slope")], axis=1)
