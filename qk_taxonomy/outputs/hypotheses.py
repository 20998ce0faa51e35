"""The table of tests and its figures on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from qk_taxonomy.cache import write_file
from qk_taxonomy.errors import PartialFailureError, SpectraFileError
from qk_taxonomy.figures.contrasts import contrast_caption, contrast_figure
from qk_taxonomy.figures.families import family_caption, family_figure
from qk_taxonomy.figures.ranks import rank_caption, rank_figure
from qk_taxonomy.hypotheses.contrast import CHANGE, ContrastResult
from qk_taxonomy.hypotheses.heads import HeadSet
from qk_taxonomy.hypotheses.rank import RankResult
from qk_taxonomy.hypotheses.run import Outcome, run_hypotheses
from qk_taxonomy.hypotheses.table import subject
from qk_taxonomy.outputs.drawing import Caption, Draw, write_figure
from qk_taxonomy.outputs.files import PLOT_FOLDER, numbers_of, source_of, stem_of
from qk_taxonomy.progress import FileProgress
from qk_taxonomy.records import SCREEN_PNG, Circuit, Convention, FigureFiles
from qk_taxonomy.tables import csv_bytes

#: Where files of contrasts are, below the folder of plots.
CONTRAST_FOLDER = Path("tests", "contrasts")

#: How the table of a named comparison ends.
TABLE_OF_ONE = ".tests.csv"

#: What tells a contrast from others in tables.
SIDES = ("family", "model", "against", "stack", "circuit", "convention")


def generate_hypothesis_tests(
    data_root: str | Path = ".",
    outcome: Outcome | None = None,
    *,
    circuit: Circuit = "qk",
    convention: Convention = "raw",
    progress: FileProgress | None = None,
    figures: FigureFiles = SCREEN_PNG,
) -> list[Path]:
    """Write a table of tests and its figures; the paths, the table's first.

    ``outcome``: of :func:`run_hypotheses` or :func:`compare_models` for this circuit and
    convention; None: all hypotheses are run on what is surveyed. Writes
    ``<data_root>/plots/tests.csv`` (columns of ``qk_taxonomy.hypotheses.table.COLUMNS``; the tests
    of this outcome alone) and, in ``plots/tests/``, ``<family>/<model>_rank.png``,
    ``contrasts/<family>/<name>.png`` and ``.csv`` (heads in order of change, of
    :func:`ranked_heads`) and ``families.png``. The table of a named comparison is
    ``contrasts/<family>/<name>.tests.csv`` instead. Names are extended by the stack where a model
    has several, and by circuit and convention where they are not ``qk`` and ``raw``. ``figures``:
    their formats and size, as :class:`FigureFiles` says. Raises as ``run_hypotheses`` does;
    SpectraFileError where the table cannot be written; and, when all others are,
    PartialFailureError where figures cannot.
    """
    if outcome is None:
        outcome = run_hypotheses(data_root, circuit=circuit, convention=convention)
    place = _Place(Path(data_root) / PLOT_FOLDER, circuit, convention)
    table = place.table(outcome.comparison)
    written: list[Path] = []
    failures: dict[str, Exception] = {}
    files: dict[Path, Callable[[], list[Path]]] = {
        table: partial(_table, table, outcome.table),
        **dict(_files(outcome, place, figures)),
    }
    for index, (path, write) in enumerate(files.items(), start=1):
        try:
            done = write()
        except SpectraFileError as err:
            if path == table:
                raise
            failures[str(path)] = err
            continue
        written += done
        if progress is not None:
            for one in done:
                progress(index, len(files), one)
    if failures:
        raise PartialFailureError(failures)
    return written


@dataclass(frozen=True)
class _Place:
    """Where the files of one circuit and convention go."""

    plots: Path
    circuit: Circuit
    convention: Convention

    @property
    def _contrasts(self) -> Path:
        return self.plots / CONTRAST_FOLDER

    def stem(self, name: str, stack: str = "") -> str:
        return stem_of(name, self.circuit, self.convention, stack)

    def table(self, comparison: str) -> Path:
        if comparison:
            family, _, name = comparison.partition("/")
            return self._contrasts / family / f"{self.stem(name)}{TABLE_OF_ONE}"
        return self.plots / f"{self.stem('tests')}.csv"

    # Figures, without an ending.

    def rank(self, rank: RankResult) -> Path:
        heads = rank.heads
        stem = self.stem(heads.model, heads.stack)
        return self.plots / "tests" / heads.family / f"{stem}_rank"

    def contrast(self, contrast: ContrastResult) -> Path:
        stem = self.stem(contrast.name, contrast.treatment.stack)
        return self._contrasts / contrast.treatment.family / stem

    def families(self, stack: str) -> Path:
        return self.plots / "tests" / self.stem("families", stack)


def _files(
    outcome: Outcome, place: _Place, figures: FigureFiles
) -> Iterator[tuple[Path, Callable[[], list[Path]]]]:
    """The files beside the table, figures by their path less its ending, and how to write them."""

    def what(*heads: HeadSet) -> str:
        models = [one.spectra for one in heads]
        return f"({numbers_of(models, place.circuit, place.convention)})"

    def figure(
        base: Path, draw: Draw, title: str, text: str, heads: Sequence[HeadSet]
    ) -> tuple[Path, Callable[[], list[Path]]]:
        caption = Caption(title, f"{text} {source_of([one.spectra for one in heads])}")
        return base, partial(write_figure, base, draw, caption, figures)

    for rank in outcome.ranks:
        if rank.test is not None:
            title = f"{rank.heads.name}: lower-rank than an untrained head? {what(rank.heads)}"
            draw = partial(rank_figure, rank, title)
            yield figure(place.rank(rank), draw, title, rank_caption(rank), [rank.heads])
    for contrast in outcome.contrasts:
        base = place.contrast(contrast)
        table = base.with_name(f"{base.name}.csv")
        yield table, partial(_table, table, ranked_heads(contrast))
        sides = contrast.treatment, contrast.control
        title = f"{sides[0].name} against {sides[1].name} {what(*sides)}"
        draw = partial(contrast_figure, contrast, title)
        yield figure(base, draw, title, contrast_caption(contrast), sides)
    for family in outcome.families:
        stack = family.models[0].stack
        title = f"Families compared{', ' if stack else ''}{stack} {what(*family.models)}"
        draw = partial(family_figure, family, title)
        yield figure(place.families(stack), draw, title, family_caption(family), family.models)


def _table(path: Path, table: pd.DataFrame) -> list[Path]:
    return [write_file(path, csv_bytes(table))]


def ranked_heads(contrast: ContrastResult) -> pd.DataFrame:
    """The heads of a contrast in order of change, each with what tells whose they are.

    Columns :data:`SIDES`, then those of ``ContrastResult.heads``.
    """
    rows = subject(contrast.treatment, CHANGE, against=contrast.control.file)
    return pd.concat(
        [
            pd.DataFrame({name: rows[name] for name in SIDES}, index=contrast.heads.index),
            contrast.heads,
        ],
        axis=1,
    )
