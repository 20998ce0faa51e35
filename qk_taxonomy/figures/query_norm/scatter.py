"""Query norm against entropy, token by token, of the heads in which they go together most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qk_taxonomy.figures.parts import Array, put_title
from qk_taxonomy.figures.query_norm.parts import measure_label, numbers, rounded
from qk_taxonomy.figures.style import SCREEN, Page
from qk_taxonomy.studies.circuits.chosen import Head
from qk_taxonomy.studies.query_norm.records import LayerMeasures, Sample
from qk_taxonomy.wording import counted

# Heads of each kind, and tokens of a head: more would lie upon each other.
_OF_A_KIND, _MOST_POINTS = 2, 3000

# Inches that a panel has at least.
_WIDTH = 2.2


@dataclass(frozen=True)
class ExtremeHead:
    """A head that is shown, and why; its Pearson r, as measured and given position."""

    head: Head
    reason: str
    raw: float
    partial: float


def extreme_heads(heads: pd.DataFrame, n: int = _OF_A_KIND) -> list[ExtremeHead]:
    """``n`` heads of lowest, of highest r and of largest |r| given position each, none twice.

    heads: as of :func:`~qk_taxonomy.figures.query_norm.maps.correlation_map`.
    """
    raw, partial = numbers(heads, "pearson"), numbers(heads, "partial_pearson")
    scores = {"lowest r": raw, "highest r": -raw, "largest |r| given position": -np.abs(partial)}
    found: dict[int, str] = {}
    # In turn, so that of few heads each kind has its own.
    for reason in [*scores] * n:
        score = scores[reason].copy()
        score[[*found]] = np.nan
        if np.isfinite(score).any():
            found[int(np.nanargmin(score))] = reason
    rows = heads[["stack", "layer", "head"]].to_numpy()
    return [
        ExtremeHead(Head(str(rows[i][0]), int(rows[i][1]), int(rows[i][2])), reason, raw[i],
                    partial[i])
        for reason in scores
        for i, its in found.items()
        if its == reason
    ]  # fmt: skip


def scatter_figure(
    samples: Sequence[Sample],
    chosen: Sequence[ExtremeHead],
    title: str,
    page: Page = SCREEN,
) -> Figure:
    """A column a head: above, the entropy of each token against its query norm; below, what is left
    of both when, in every window, a line in log position (in sliding attention, and in the log of
    the number of keys) is taken out. Coloured by position.
    """
    n_columns = page.columns(len(chosen), _WIDTH)
    n_blocks = -(-len(chosen) // n_columns)
    height = 6.1 if n_blocks == 1 else 4.2
    size = page.width(2.55 * max(len(chosen), 2) + 1.2), height * n_blocks + 0.2
    fig = Figure(figsize=size, layout="constrained")
    longest = max(len(one.tokens) for one in samples)
    scale = ScalarMappable(LogNorm(1.0, max(longest, 2)), "viridis")
    grid = fig.subplots(2 * n_blocks, n_columns, squeeze=False)
    pairs = grid.reshape(n_blocks, 2, n_columns).swapaxes(1, 2).reshape(-1, 2)
    for ax in pairs[len(chosen) :].ravel():
        ax.set_visible(False)
    for (above, below), one in zip(pairs, chosen, strict=False):
        points = _points(samples, one.head)
        order = np.random.default_rng(0).permutation(points.shape[1])[:_MOST_POINTS]
        position, norm, entropy, norm_left, entropy_left = points[:, order]
        colours = scale.to_rgba(position)
        _draw(above, norm, entropy, colours)
        _draw(below, norm_left, entropy_left, colours)
        above.set_title(f"head {one.head}\n{one.reason}\nr = {rounded(one.raw)}")
        below.set_title(f"given log position, r = {rounded(one.partial)}")
        above.set_xlabel(measure_label("query_norm"))
        below.set_xlabel("‖q‖, what position leaves")
    for block in grid[:, 0].reshape(-1, 2):
        block[0].set_ylabel(measure_label("entropy"))
        block[1].set_ylabel("H, what position leaves, nats")
    put_title(fig, title, f"tokens of {counted(len(samples), 'window')}; r: Pearson, their mean")
    label = "position in the window, tokens"
    where: Any = (
        {"location": "bottom", "aspect": 30, "fraction": 0.05, "pad": 0.01}
        if page.narrow
        else {"aspect": 40}
    )
    fig.colorbar(scale, ax=grid, label=label, **where)
    return fig


def scatter_caption(samples: Sequence[Sample], chosen: Sequence[ExtremeHead]) -> str:
    """What the scatter plots of heads show."""
    return (
        f"{counted(len(chosen))} of extreme correlation, a column each: attention entropy in nats "
        f"against query norm ‖q‖ (in the unit of activations), a point a token of n = "
        f"{counted(len(samples), 'window')}, coloured by its position, {_MOST_POINTS} tokens at "
        "most, drawn at random with seed 0; below, what is left of both when a line in the "
        "logarithm of position is taken out in every window (in sliding attention also one in "
        "that of the number of keys). r: Pearson's, a mean over windows."
    )


def _draw(ax: Axes, x: Array, y: Array, colours: Array) -> None:
    size = float(np.clip(6000 / max(len(x), 1), 2.0, 14.0))
    ax.scatter(x, y, c=colours, s=size, alpha=0.7, linewidth=0)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4))


def _points(samples: Sequence[Sample], head: Head) -> Array:
    """Position (from 1), norm, entropy and the residuals of both, (5, n), of all windows."""
    found = []
    for layer in (_layer(sample, head) for sample in samples):
        both = np.stack([layer.values[name][head.head] for name in ("query_norm", "entropy")])
        defined = np.isfinite(both).all(axis=0)
        position = np.arange(1.0, both.shape[1] + 1.0)[defined]
        both = both[:, defined].astype(np.float64)
        # Without a sliding window the number of keys follows from position, and adds nothing.
        given = np.stack([np.ones_like(position), np.log(position), np.log(layer.n_keys[defined])])
        left = both.T - given.T @ np.linalg.lstsq(given.T, both.T)[0]
        found.append(np.stack([position, *both, *left.T]))
    return np.concatenate(found, axis=1)


def _layer(sample: Sample, head: Head) -> LayerMeasures:
    (found,) = (one for one in sample.layers if (one.stack, one.layer) == (head.stack, head.layer))
    return found
