"""The table of tests and its figures on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qk_taxonomy.figures.contrasts import contrast_figure
from qk_taxonomy.figures.families import family_figure
from qk_taxonomy.figures.ranks import rank_figure
from qk_taxonomy.figures.style import house_style
from qk_taxonomy.hypotheses.run import Outcome, run_hypotheses
from qk_taxonomy.outputs.files import PLOT_FOLDER, png_bytes, stem_of, write_file
from qk_taxonomy.records import Circuit, Convention
from qk_taxonomy.tables import csv_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Called with each file that is written.
FileProgress = Callable[[Path], None]


def generate_hypothesis_tests(
    data_root: str | Path = ".",
    *,
    circuit: Circuit = "qk",
    convention: Convention = "raw",
    file_progress: FileProgress | None = None,
    **options: Any,
) -> Outcome:
    """Run the hypotheses on what is surveyed and write ``<data_root>/plots/tests.csv``.

    ``options`` are those of :func:`~qk_taxonomy.hypotheses.run.run_hypotheses`, whose outcome is
    returned. Besides the table (columns of ``qk_taxonomy.hypotheses.table.COLUMNS``), in
    ``plots/tests/``: ``<family>/<model>_rank.png``; ``contrasts/<name>.png`` and ``.csv``, heads in
    order of change; ``families.png``. Names are extended by the stack where a model has several,
    and by circuit and convention where they are not ``qk`` and ``raw``. The table has the tests of
    this run alone. Raises as ``run_hypotheses`` does.
    """
    outcome = run_hypotheses(data_root, circuit=circuit, convention=convention, **options)
    folder = Path(data_root) / PLOT_FOLDER
    for path in _write_all(outcome, folder, circuit, convention):
        if file_progress is not None:
            file_progress(path)
    return outcome


def _write_all(
    outcome: Outcome, folder: Path, circuit: Circuit, convention: Convention
) -> Iterator[Path]:
    def named(name: str, stack: str = "") -> str:
        return stem_of(name, circuit, convention, stack)

    what = f"{circuit.upper()} circuit, {convention} weights"
    yield write_file(folder / f"{named('tests')}.csv", csv_bytes(outcome.table))
    figures = folder / "tests"
    for rank in outcome.ranks:
        heads = rank.heads
        if rank.test is not None:
            title = f"{heads.name}: lower-rank than an untrained head? ({what})"
            place = figures / heads.family / f"{named(heads.model, heads.stack)}_rank.png"
            yield _draw(place, partial(rank_figure, rank, title))
    for contrast in outcome.contrasts:
        stem = figures / "contrasts" / named(contrast.name, contrast.treatment.stack)
        yield write_file(stem.parent / f"{stem.name}.csv", csv_bytes(contrast.heads))
        title = f"{contrast.treatment.name} against {contrast.control.name} ({what})"
        yield _draw(stem.parent / f"{stem.name}.png", partial(contrast_figure, contrast, title))
    for family in outcome.families:
        stack = family.models[0].stack
        title = f"Families compared{', ' if stack else ''}{stack} ({what})"
        place = figures / f"{named('families', stack)}.png"
        yield _draw(place, partial(family_figure, family, title))


def _draw(path: Path, make: Callable[[], Figure]) -> Path:
    with house_style():
        return write_file(path, png_bytes(make()))
