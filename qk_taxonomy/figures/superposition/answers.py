"""The study's questions, and what was found: effects with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qk_taxonomy.figures.style import KEPT
from qk_taxonomy.figures.superposition.parts import put_title, seeds_text
from qk_taxonomy.statistics.findings import Finding
from qk_taxonomy.studies.superposition.answers import Answer

# Inches of a row and of a line of a title, and the characters of such a line.
_ROW, _LINE = 0.26, 0.16
_WIDTH = 110

# Effects are of the order of one: an axis shows no less than this.
_NARROWEST = 0.05


def answer_figure(answers: Sequence[Answer], title: str) -> Figure:
    """Effects with their intervals, a panel a question, an effect a row; dotted: the reference."""
    rows = [max(len(answer.effects), 1) for answer in answers]
    titles = [_LINE * len(_lines(answer)) for answer in answers]
    heights = [_ROW * n + 0.75 + title for n, title in zip(rows, titles, strict=True)]
    fig = Figure(figsize=(9.0, sum(heights) + 0.7), layout="constrained")
    put_title(fig, title, "intervals of 95 % over seeds")
    axes = fig.subplots(len(answers), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, answer in zip(axes, answers, strict=True):
        _draw(ax, answer)
    return fig


def _lines(answer: Answer) -> list[str]:
    """Question and answer, in lines that fit."""
    return [answer.question, *wrap(answer.answer, _WIDTH)]


def _draw(ax: Axes, answer: Answer) -> None:
    for place, (_, effect) in enumerate(answer.effects):
        if np.isfinite((effect.low, effect.high)).all():
            ax.plot([effect.low, effect.high], [place, place], color=KEPT, lw=1.6)
        ax.plot([effect.effect], [place], marker="o", ms=5, color=KEPT)
        ax.annotate(_numbers(effect), (1.01, place), xycoords=("axes fraction", "data"),
                    va="center", fontsize=8, annotation_clip=False)  # fmt: skip
    if answer.reference is not None:
        ax.axvline(answer.reference, color="black", ls=":", lw=1.0)
    left, right = ax.get_xlim()
    if right - left < _NARROWEST:
        # Rounding of training is no difference to be seen.
        ax.set_xlim((left + right - _NARROWEST) / 2, (left + right + _NARROWEST) / 2)
    ax.ticklabel_format(axis="x", useOffset=False)
    names = [name for name, _ in answer.effects]
    ax.set_yticks(range(len(names)), names)
    ax.set(ylim=(len(names) - 0.4, -0.6), xlabel=answer.unit)
    ax.set_title("\n".join(_lines(answer)), loc="left")
    if not names:
        ax.text(0.5, 0.5, "nothing was measured", transform=ax.transAxes, ha="center", va="center")


def _numbers(effect: Finding) -> str:
    n = seeds_text(effect.n)
    if not np.isfinite(effect.effect):
        return f"no value, {n}"
    text = f"{effect.effect:.3g}"
    if np.isfinite((effect.low, effect.high)).all():
        text += f" [{effect.low:.3g}, {effect.high:.3g}]"
    return f"{text.replace('-', '−')}, {n}"
