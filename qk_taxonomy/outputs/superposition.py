"""Figures and tables of the superposition study on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qk_taxonomy.cache import write_file
from qk_taxonomy.errors import StudyError
from qk_taxonomy.figures.parts import Array
from qk_taxonomy.figures.superposition.alignment import (
    TrainingCourse,
    alignment_caption,
    alignment_figure,
)
from qk_taxonomy.figures.superposition.answers import answer_caption, answer_figure
from qk_taxonomy.figures.superposition.arrows import Plane, arrow_caption, arrow_figure
from qk_taxonomy.figures.superposition.decomposition import (
    DecomposedLogits,
    decomposition_caption,
    decomposition_figure,
)
from qk_taxonomy.figures.superposition.dimensionality import (
    dimensionality_caption,
    dimensionality_figure,
)
from qk_taxonomy.figures.superposition.gram import gram_caption, gram_figure
from qk_taxonomy.figures.superposition.losses import loss_caption, loss_figure
from qk_taxonomy.figures.superposition.norms import norm_caption, norm_figure
from qk_taxonomy.figures.superposition.parts import sparsity_label
from qk_taxonomy.figures.superposition.phases import PhaseMap, phase_caption, phase_figure
from qk_taxonomy.figures.superposition.singular import singular_caption, singular_figure
from qk_taxonomy.figures.superposition.tegum import FactorShares, tegum_caption, tegum_figure
from qk_taxonomy.outputs.drawing import Caption, Draw, write_figure
from qk_taxonomy.outputs.files import PLOT_FOLDER
from qk_taxonomy.records import SCREEN_PNG, FigureFiles
from qk_taxonomy.statistics.decomposition import SingularVectors
from qk_taxonomy.studies.superposition.alignment import ALIGNED
from qk_taxonomy.studies.superposition.answers import Answer
from qk_taxonomy.studies.superposition.answers.order import LEVELS
from qk_taxonomy.studies.superposition.config import Phase, Target
from qk_taxonomy.studies.superposition.logits import SHARE, decomposed_logits
from qk_taxonomy.studies.superposition.measured import MeasuredRun
from qk_taxonomy.studies.superposition.measures import (
    dimensions_per_feature,
    feature_dimensionality,
    feature_norms,
    gram,
    interference,
    tegum_factors,
)
from qk_taxonomy.studies.superposition.records import SuperpositionRun
from qk_taxonomy.studies.superposition.sharing import factor_spread
from qk_taxonomy.studies.superposition.tables import tables
from qk_taxonomy.tables import csv_bytes
from qk_taxonomy.wording import counted

#: Where the study's tables and figures are, below the folder of plots.
SUPERPOSITION_FOLDER = "superposition"

# Targets of an instance that a heading names.
_MOST_NAMED = 3

# Leading singular vectors that are held against tegum factors.
_MOST_VECTORS = 6


def write_superposition(
    measured: MeasuredRun,
    data_root: str | Path = ".",
    *,
    seed: int = 0,
    figures: FigureFiles = SCREEN_PNG,
) -> Iterator[Path]:
    """Write the tables and figures of a run, and yield the path of each when it is there.

    In ``<data_root>/plots/superposition/<name>/``: ``instances.csv``, ``features.csv``,
    ``targets.csv`` and ``singular_values.csv``, of all instances at the end of training;
    ``losses.png``, ``dimensionality.png``, ``training.png`` (in frozen training one a phase) and
    ``decomposition.png``, over all seeds; ``norms.png``, ``gram.png``, ``singular.png``,
    ``arrows.png`` and ``tegum.png``, of the instances of ``seed``. A head of one dimension has
    neither a plane of vectors nor a decomposition. Raises StudyError for a seed the run has not,
    and SpectraFileError.
    """
    run = measured.run
    shown = measured.of_seed(seed)
    folder = superposition_folder(run.config.name, data_root)
    for name, table in tables(measured).items():
        yield write_file(folder / f"{name}.csv", csv_bytes(table, digits=6))
    for name, draw, caption in _drawings(measured, shown):
        yield from write_figure(folder / name, draw, caption, figures)
    groups = [
        DecomposedLogits(sparsity_label(p), found)
        for p, found in decomposed_logits(measured).items()
    ]
    if groups and run.config.d_head > 1:
        title = _title(run, "sparse attention decomposition")
        draw = partial(decomposition_figure, groups, title, share=SHARE)
        caption = Caption(title, decomposition_caption(groups, share=SHARE))
        yield from write_figure(folder / "decomposition", draw, caption, figures)


def write_phase_diagram(
    measured: Sequence[MeasuredRun],
    name: str,
    data_root: str | Path = ".",
    *,
    figures: FigureFiles = SCREEN_PNG,
) -> list[Path]:
    """Write the phase diagram of runs that differ in d_head, ``<name>/phases.png``; its files.

    A target without a singular vector of its own counts as not aligned at all. Raises StudyError
    for runs of other probabilities or seeds than the first, and SpectraFileError.
    """
    runs = [one.run for one in measured]
    alike = {(run.config.probabilities, run.config.n_seeds) for run in runs}
    if len(alike) != 1:
        raise StudyError(
            f"Wanted runs of the same probabilities and as many seeds for a phase diagram, found "
            f"{len(alike)} kinds of them in {', '.join(run.config.name for run in runs) or 'none'}."
        )
    ordered = sorted(measured, key=lambda one: one.run.config.d_head / one.run.config.d_hidden)
    ratios = [one.run.config.d_head / one.run.config.d_hidden for one in ordered]
    probabilities = np.sort(np.array(runs[0].config.probabilities))[::-1]
    lesser, recovered = (np.full((len(ratios), len(probabilities)), np.nan) for _ in range(2))
    for row, one in enumerate(ordered):
        cosines = one.targets.lesser[-1]
        for column, p in enumerate(probabilities):
            of_seeds = cosines[one.run.instances.probability == p]
            # Instances without targets have nothing to recover.
            known = of_seeds[np.isfinite(of_seeds).any(axis=-1)]
            if len(known):
                lesser[row, column] = np.median(np.nanmean(known, axis=-1))
                recovered[row, column] = np.mean(known[np.isfinite(known)] >= ALIGNED)
    maps = [
        PhaseMap(
            "alignment: the lesser |cos| of both sides,\nmean over targets, median over seeds",
            lesser,
        ),
        PhaseMap(
            f"targets recovered, both |cos| ≥ {ALIGNED:g}:\nshare of the targets of all seeds",
            recovered,
        ),
    ]
    title, n_seeds = f"{name}: phase diagram", runs[0].config.n_seeds
    draw = partial(phase_figure, ratios, probabilities, maps, title, n_seeds=n_seeds)
    caption = Caption(title, phase_caption(ratios, probabilities, n_seeds=n_seeds))
    return write_figure(superposition_folder(name, data_root) / "phases", draw, caption, figures)


def write_answer(
    answer: Answer, name: str, data_root: str | Path = ".", *, figures: FigureFiles = SCREEN_PNG
) -> Iterator[Path]:
    """Write what is found of a question, and yield the path of each file when it is there.

    ``<name>/answer.csv`` and ``answer.png``; name: of the preset that the question is asked of, as
    its numbers of seeds and steps have changed it. Raises SpectraFileError.
    """
    folder = superposition_folder(name, data_root)
    yield write_file(folder / "answer.csv", csv_bytes(_answer_table(answer), digits=6))
    draw = partial(answer_figure, answer, name)
    caption = Caption(name, answer_caption(answer))
    yield from write_figure(folder / "answer", draw, caption, figures)


def _answer_table(answer: Answer) -> pd.DataFrame:
    """A row an effect, of one measure after the other; ``chance`` and ``reference`` as they have
    them.
    """
    columns = ("effect", "low", "high", "n", "p_value", "statistic", "method", "note")
    rows = []
    for one in answer.measures:
        chance = one.chance or (np.nan,) * len(one.effects)
        for (name, found), level in zip(one.effects, chance, strict=True):
            numbers = {column: getattr(found, column) for column in columns}
            rows.append({"measure": one.measure, "name": name, **numbers,
                         "chance": level, "reference": one.reference})  # fmt: skip
    return pd.DataFrame(rows)


def superposition_folder(name: str, data_root: str | Path = ".") -> Path:
    """Where the tables and figures of a run are."""
    return Path(data_root) / PLOT_FOLDER / SUPERPOSITION_FOLDER / name


def _drawings(
    measured: MeasuredRun, shown: NDArray[np.intp]
) -> Iterator[tuple[str, Draw, Caption]]:
    """The figures of a run: what each is called, how to draw it, and its caption."""
    run, last = measured.run, measured.last
    w = last.w.astype(np.float64)
    targets = [run.targets[number] for number in shown]
    headings = [_heading(run, number) for number in shown]
    u, sigma, v = (one[-1] for one in measured.vectors)
    seed = f"seed {run.instances.seed[shown[0]]} of {run.config.n_seeds}"
    title = _title(run, "losses")
    yield "losses", partial(loss_figure, run, title), Caption(title, loss_caption(run))
    title, norms = _title(run, "norms of features", seed), feature_norms(w)[shown]
    draw: Draw = partial(norm_figure, headings, norms, interference(w)[shown], targets, title)
    yield "norms", draw, Caption(title, norm_caption(norms))
    title, products = _title(run, "products of features", seed), gram(w)[shown]
    draw = partial(gram_figure, headings, products, last.bias[shown], targets, title)
    yield "gram", draw, Caption(title, gram_caption(products))
    title, left = _title(run, "singular vectors by features", seed), (w.mT @ u)[shown]
    right = (w.mT @ v)[shown]
    draw = partial(singular_figure, headings, left, right, sigma[shown], targets, title)
    yield "singular", draw, Caption(title, singular_caption(left))
    planes = [
        plane
        for number, heading in zip(shown, headings, strict=True)
        for plane in _planes(heading, w[number], u[number], v[number], run.targets[number])
    ]
    if planes:
        title = _title(run, "features and singular vectors", seed)
        yield "arrows", partial(arrow_figure, planes, title), Caption(title, arrow_caption(planes))
    title, dimensions = _title(run, "dimensionality of features"), feature_dimensionality(w)
    draw = partial(
        dimensionality_figure, run.instances, dimensions, dimensions_per_feature(w), run.targets,
        title,
    )  # fmt: skip
    text = dimensionality_caption(run.instances, dimensions)
    yield "dimensionality", draw, Caption(title, text)
    shares = [
        _factor_shares(heading, w[number], SingularVectors(u[number], sigma[number], v[number]),
                       run.targets[number])
        for number, heading in zip(shown, headings, strict=True)
    ]  # fmt: skip
    panels = [one for one in shares if one.factors]
    if panels:
        title = _title(run, "singular vectors in tegum factors", seed)
        yield "tegum", partial(tegum_figure, panels, title), Caption(title, tegum_caption(panels))
    start = 0
    for phase, n_steps in run.config.phases:
        yield _of_phase(measured, phase, start, start + n_steps)
        start += n_steps


def _heading(run: SuperpositionRun, instance: int) -> str:
    """The sparsity of an instance, and its targets where others have other ones."""
    label = sparsity_label(run.instances.probability[instance])
    if len(set(run.targets)) == 1:
        return label
    own = [f"{target.i} → {target.j}" for target in run.targets[instance]]
    named = own if len(own) <= _MOST_NAMED else [*own[:_MOST_NAMED], "…"]
    return f"{label}\n{', '.join(named) if named else 'no such targets'}"


def _planes(
    heading: str, w: Array, u: Array, v: Array, targets: Sequence[Target]
) -> Iterator[Plane]:
    """The hidden space itself if it is a plane; else that of u₁ and u₂, and that of v₁ and v₂."""
    names = [f"{side}{index}" for index in "₁₂"[: u.shape[-1]] for side in "uv"]
    if len(w) == 2:
        vectors = np.stack([u, v], axis=-1).reshape(2, -1).T
        yield Plane(heading, w.T, dict(zip(names, vectors, strict=True)), ("h₁", "h₂"), targets)
    elif u.shape[-1] > 1:
        for side, vectors, sides in (("u", u, (True, False)), ("v", v, (False, True))):
            axes = {f"{side}₁": np.array([1.0, 0.0]), f"{side}₂": np.array([0.0, 1.0])}
            along = (f"along {side}₁", f"along {side}₂")
            yield Plane(heading, w.T @ vectors[:, :2], axes, along, targets, sides)


def _factor_shares(
    heading: str, w: Array, vectors: SingularVectors, targets: Sequence[Target]
) -> FactorShares:
    """Shares of as many leading singular vectors as there are targets, and of one more, if that is
    not too many to be seen.
    """
    labels = tegum_factors(w)
    n_factors = int(labels.max()) + 1
    k = min(len(targets) + 1, vectors.sigma.shape[-1], _MOST_VECTORS)
    left, right, axes = (
        factor_spread(w, labels, one).mass for one in (vectors.u[:, :k], vectors.v[:, :k],
                                                       np.eye(len(w)))
    )  # fmt: skip
    return FactorShares(
        heading,
        tuple(tuple(np.flatnonzero(labels == label).tolist()) for label in range(n_factors)),
        # The trace of a projector is the dimension of what it projects on.
        tuple(round(trace) for trace in axes.sum(axis=0)),
        left,
        right,
        vectors.sigma[:k],
        targets,
    )


def _of_phase(
    measured: MeasuredRun, phase: Phase, start: int, end: int
) -> tuple[str, Draw, Caption]:
    """The course of a phase of training: of what is trained in it."""
    run = measured.run
    kept = [place for place, one in enumerate(run.snapshots) if start <= one.step <= end]
    steps = np.array([run.snapshots[place].step - start for place in kept])
    targets = measured.targets
    courses = []

    def course(label: str, values: Array, onsets: Array | None = None) -> None:
        shown = measured.by_probability(values)
        if onsets is None:
            courses.append(TrainingCourse(label, shown))
            return
        reached = measured.by_probability(onsets[..., None] - start)[:, 0]
        what = f"{LEVELS[-1]:.0%} of its way, to stay"
        courses.append(TrainingCourse(label, shown, reached, what))

    alignment, orthogonality = measured.onsets(LEVELS[-1:], kept)
    if phase != "representations":
        label = "alignment: the least |cos| of any target"
        course(label, measured.alignment[kept, :, None], alignment)
    if phase != "heads":
        label = "orthogonality of the features learned"
        course(label, measured.orthogonality[kept, :, None], orthogonality)
        course("norm of a target's i", targets.left_norm[kept])
        course("norm of its j", targets.right_norm[kept])
    name = "training" if phase == "joint" else f"training_{phase}"
    of = f"the targets of {counted(run.config.n_seeds, 'seed')}"
    headings = [sparsity_label(p) for p in np.unique(run.instances.probability)[::-1]]
    what = "alignment over training" if phase == "joint" else f"training of {phase}"
    title = _title(run, what)
    draw = partial(alignment_figure, headings, steps, courses, title, of=of)
    return name, draw, Caption(title, alignment_caption(headings, courses, of))


def _title(run: SuperpositionRun, what: str, of: str = "") -> str:
    config = run.config
    shape = f"n = {config.n_features}, m = {config.d_hidden}, r = {config.d_head}"
    # Numbers are not to be parted from what they are of.
    parts = [f"{config.name}: {what}", *(one.replace(" ", "\u00a0") for one in (shape, of) if one)]
    return ", ".join(parts)
