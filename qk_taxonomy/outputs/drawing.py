"""Figures on disk: formats, sizes, and a caption beside each."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qk_taxonomy.cache import remove_file, write_file
from qk_taxonomy.figures.style import PAGES, PAPER_DPI, TWO_COLUMN, Page, house_style
from qk_taxonomy.records import SCREEN_PNG, FigureFiles, FigureFormat

#: A figure for a page.
Draw = Callable[[Page], Figure]

# Points or vertices beyond which marks and lines of a vector file are pixels: it would be slow to
# open, and large, while nobody could tell them apart.
_MOST_VERTICES = 1000

# Inches of a page of paper: what is higher in one column stands in two.
_HIGHEST = 9.5

# What is not to depend on when a file is made.
_UNDATED: dict[FigureFormat, dict[str, Any]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}

# What figures, their captions and what moves end in.
_FIGURE_FILES = (".png", ".pdf", ".svg", ".md", ".gif", ".html")

_TWO_COLUMNS = "This figure has no room in one column of a page: it is as wide as two (7.2 inches)."


@dataclass(frozen=True)
class Caption:
    """What a figure is of, as its title says, and what is to be known of it."""

    title: str
    text: str


def write_figure(
    base: Path, draw: Draw, caption: Caption, files: FigureFiles = SCREEN_PNG
) -> list[Path]:
    """Draw a figure and write it in each format, its caption beside it; paths of the figure's
    files.

    base: the path without an ending. Files for paper have the size in their name,
    ``<base>.one-column.pdf``, so that none takes another's place; a figure that cannot be read in
    one column, or would be higher than a page, is as wide as two, has that in its name, and says so
    in its caption. The caption is Markdown with the figure on top, ``<base>.md``. What is drawn
    again is the same bytes. Raises SpectraFileError.
    """
    page = PAGES[files.size]
    with house_style():
        fig = draw(page)
        wider = False
        if page.narrow:
            tall = fig.get_figheight() * page.reduction > _HIGHEST
            wider = tall or fig.get_figwidth() > page.width(0.0)
            if tall:
                fig = draw(TWO_COLUMN)
            page = TWO_COLUMN if wider else page
        contents = [(one, figure_bytes(fig, one, page)) for one in dict.fromkeys(files.formats)]
    stem = base.name if page.room is None else f"{base.name}.{page.name}"
    written = [write_file(base.with_name(f"{stem}.{one}"), content) for one, content in contents]
    notes = f" {_TWO_COLUMNS}" if wider else ""
    text = _captioned(written, caption, notes)
    write_file(base.with_name(f"{stem}.md"), text.encode())
    return written


def remove_others(folder: Path, stems: Collection[str], kinds: str, made: Collection[str]) -> None:
    """Remove figures of an earlier run that this one made none of: beside new tables they would be
    taken for theirs.

    Those are meant whose names are ``<stem>_<kind>``, in whatever format and size, with their
    captions. stems: of this run's results, whatever it drew of them. kinds: a regular expression of
    what a figure may be. made: the names that this run made, without size and ending.
    """
    named = "|".join(re.escape(stem) for stem in stems)
    figure = re.compile(rf"((?:{named})_(?:{kinds}))(?:\.(?:one|two)-column)?\.\w+")
    for path in sorted(folder.glob("*")):
        found = figure.fullmatch(path.name)
        if found and found[1] not in made and path.suffix in _FIGURE_FILES:
            remove_file(path)


def figure_bytes(fig: Figure, form: FigureFormat, page: Page) -> bytes:
    """The bytes of a file; dots are of the size that things have in the end."""
    dpi = page.dpi if form == "png" else PAPER_DPI
    if form != "png":
        _rasterise(fig)
    options: dict[str, Any] = {"metadata": _UNDATED[form]} if form in _UNDATED else {}
    if form == "png" and page.reduction != 1.0:
        # The file's own note of its dots an inch is of its final size too.
        options["pil_kwargs"] = {"dpi": (dpi, dpi)}
    buffer = io.BytesIO()
    fig.savefig(buffer, format=form, dpi=dpi * page.reduction, **options)
    content = buffer.getvalue()
    if page.reduction == 1.0:
        return content
    reduced = {"png": lambda one, _: one, "pdf": _reduced_pdf, "svg": _reduced_svg}
    return reduced[form](content, page.reduction)


def _rasterise(fig: Figure) -> None:
    """Clouds of points and tangles of lines as pixels, letters and axes above them as they are."""
    for axes in fig.axes:
        n_vertices = sum(int(np.size(one.get_xdata())) for one in axes.lines)
        tangled = n_vertices > 10 * _MOST_VERTICES
        for one in axes.get_children():
            cloud = (
                isinstance(one, PathCollection) and np.shape(one.get_offsets())[0] > _MOST_VERTICES
            )
            if cloud or (tangled and isinstance(one, Line2D)):
                one.set_rasterized(True)


def _reduced_pdf(content: bytes, factor: float) -> bytes:
    # Loaded where it is needed: only figures for paper are made smaller.
    from pypdf import PdfWriter

    writer = PdfWriter(clone_from=io.BytesIO(content))
    writer.pages[0].scale_by(factor)
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def _reduced_svg(content: bytes, factor: float) -> bytes:
    """An SVG's own size, smaller; what it shows stays as it is, in the units of its view box."""

    def smaller(found: re.Match[str]) -> str:
        return f'{found[1]}="{factor * float(found[2]):.6g}pt"'

    head, tag, rest = content.decode().partition("<svg ")
    opening, end, body = rest.partition(">")
    opening = re.sub(r'\b(width|height)="([\d.]+)pt"', smaller, opening)
    return "".join((head, tag, opening, end, body)).encode()


def _captioned(figure: list[Path], caption: Caption, notes: str) -> str:
    """A page in Markdown: the figure, if a browser can show it, its title and its caption."""
    shown = [path for path in figure if path.suffix != ".pdf"]
    title = escaped(caption.title)
    parts = [f"![{title}]({quote(shown[0].name)})"] if shown else []
    if len(figure) > 1 or not shown:
        links = ", ".join(f"[{path.name}]({quote(path.name)})" for path in figure)
        parts.append(f"Files: {links}")
    parts.append(f"**{title}.** {escaped(caption.text)}{notes}")
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text as it is in Markdown, where some signs would be taken for markup."""
    return re.sub(r"([\\`*~<>\[\]$]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
