"""Token panels: the tokens at both ends of a head's leading directions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qk_taxonomy.circuits.full import Vectors
from qk_taxonomy.figures.circuits.glyphs import TOKEN_FONT, token_text
from qk_taxonomy.figures.parts import put_title
from qk_taxonomy.figures.style import KEPT, REJECTED, SCREEN, Page
from qk_taxonomy.studies.circuits.records import SIDES, TokenEnds

_SYMBOLS: dict[Vectors, str] = {"eigenvector": "μ", "singular vector": "σ"}

_LONGEST = 22

# Inches that a panel has at least.
_WIDTH = 4.4
# Inches of a row of tokens, and of what stands above and below the rows of a panel.
_ROW, _AROUND = 0.17, 0.75


def token_figure(ends: Sequence[TokenEnds], title: str, page: Page = SCREEN) -> Figure:
    """The tokens of highest and of lowest score, a row a direction and a column a side, for one
    head's circuit: ``ends`` are all of one head, circuit and convention.
    """
    directions = sorted({(one.kind, one.number) for one in ends})
    sides = [side for side in ("rows", "columns") if any(one.side == side for one in ends)]
    tallest = max(len(one.top) + len(one.bottom) for one in ends)
    n_columns = page.columns(len(sides), _WIDTH)
    n_rows = len(directions) * len(sides) // n_columns
    height = (_ROW * (tallest + 1) + _AROUND) * n_rows + 0.5
    size = page.width(max(5.2 * len(sides), 6.0)), height
    fig = Figure(figsize=size, layout="constrained")
    put_title(fig, title)
    grid = fig.subplots(n_rows, n_columns, squeeze=False)
    axes = grid.reshape(len(directions), len(sides))
    for ax in axes.ravel():
        ax.set_visible(False)
    for one in ends:
        ax = axes[directions.index((one.kind, one.number)), sides.index(one.side)]
        ax.set_visible(True)
        _draw(ax, one)
    return fig


def token_caption(ends: Sequence[TokenEnds]) -> str:
    """What the token panels of a head show."""
    one = ends[0]
    n_directions = len({(end.kind, end.number) for end in ends})
    return (
        f"Head {one.layer}.{one.head}, {one.circuit.upper()} circuit: the tokens of the "
        f"{len(one.top)} highest and the {len(one.bottom)} lowest scores along each of "
        f"n = {n_directions} leading directions, a row a direction and a column a side of the "
        "circuit. Bars: scores, the coordinates of a vector of unit length over the tokens, "
        "without unit. Titles: the eigenvalue μ or singular value σ of the direction."
    )


def _draw(ax: Axes, one: TokenEnds) -> None:
    """Bars of scores, the highest on top and the lowest at the bottom; each token at the zero line,
    on the side where its bar is not.
    """
    # Ascending scores of the lowest, so that the lowest of all is the last row.
    shown = [*one.top, *reversed(one.bottom)]
    rows = np.arange(len(shown), dtype=np.float64)
    rows[len(one.top) :] += 1.0  # a gap between both ends
    scores = np.array([score for _, score in shown], dtype=np.float64)
    drawn = np.nan_to_num(scores, posinf=0.0, neginf=0.0)
    ax.barh(rows, drawn, height=0.8, color=np.where(drawn < 0, REJECTED, KEPT).tolist())
    reach = float(np.abs(drawn).max(initial=0.0)) or 1.0
    for row, (token, _), score in zip(rows, shown, drawn, strict=True):
        ax.text(
            -0.03 * reach if score >= 0 else 0.03 * reach, row, token_text(token, _LONGEST),
            ha="right" if score >= 0 else "left", va="center", fontsize=8,
            fontfamily=TOKEN_FONT, parse_math=False,
        )  # fmt: skip
    ax.axvline(0.0, color="0.6", lw=0.8)
    ax.set(xlim=(-1.05 * reach, 1.05 * reach), ylim=(max(rows, default=0.0) + 0.7, -0.7), yticks=[])
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(f"score over the tokens ({len(one.top)} highest, {len(one.bottom)} lowest)")
    tokens = f"tokens {SIDES[one.circuit, one.side]} ({one.side})"
    ax.set_title(f"{one.kind} {one.number}, {_value(one)}\n{tokens}")


def _value(one: TokenEnds) -> str:
    number = f"{one.value.real:.3g}"
    if one.value.imag:
        sign = "+" if one.value.imag > 0 else "-"
        number += f" {sign} {abs(one.value.imag):.3g}i"
    return f"{_SYMBOLS[one.kind]} = {number}".replace("-", "−")
