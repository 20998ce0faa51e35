"""What figures are written to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

FigureFormat = Literal["png", "pdf", "svg"]
FigureSize = Literal["screen", "one-column", "two-column"]

FIGURE_FORMATS: tuple[FigureFormat, ...] = get_args(FigureFormat)
FIGURE_SIZES: tuple[FigureSize, ...] = get_args(FigureSize)


@dataclass(frozen=True)
class FigureFiles:
    """The files that a figure is written to: one a format, all of one size.

    size: of a screen, or as wide as one column of a paper (3.5 inches) or two (7.2 inches).
    """

    formats: tuple[FigureFormat, ...] = ("png",)
    size: FigureSize = "screen"


#: What figures are written to unless told otherwise.
SCREEN_PNG = FigureFiles()
