"""Making files from spectra files, with a bar, and naming them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from qk_taxonomy.cli.options import console
from qk_taxonomy.errors import PartialFailureError, QKTaxonomyError
from qk_taxonomy.progress import FileProgress, Report, StepProgress
from qk_taxonomy.wording import counted

# So many files are named one by one.
_FEW = 12


@dataclass(frozen=True)
class Making:
    """What is told of files while they are made: each of them, and what there is to say."""

    progress: FileProgress
    report: Report


@contextmanager
def steps(label: str) -> Iterator[StepProgress]:
    """A bar on a terminal, pulsing until it is told how far the work is; silent elsewhere."""
    from rich.progress import Progress

    out = console(stderr=True)
    with Progress(console=out, disable=not out.is_terminal, transient=True) as bars:
        task = bars.add_task(label, total=None)

        def step(what: str, done: int, total: int) -> None:
            bars.update(task, completed=done, total=total, description=what)

        yield step


@contextmanager
def bar(label: str) -> Iterator[FileProgress]:
    """A bar as of :func:`steps`, that goes on with each file."""
    with steps(label) as step:
        yield lambda index, total, path: step(path.stem, index, total)


@contextmanager
def making(label: str, noun: str = "figure") -> Iterator[Making]:
    """A bar on a terminal; then names the files made and prints what was said of them.

    So it does also where the rest failed.
    """
    made: list[Path] = []
    lines: list[str] = []
    try:
        with bar(label) as advance:

            def progress(index: int, total: int, path: Path) -> None:
                made.append(path)
                advance(index, total, path)

            yield Making(progress, lines.append)
    finally:
        print_files(made, noun)
        for line in lines:
            click.echo(line)


def write_files(label: str, files: Iterable[Path], *, told: bool) -> None:
    """Let files be made one by one, with a bar and named in the end if they are ``told``."""
    if not told:
        for _ in files:
            pass
        return
    with making(label, "file") as bars:
        for number, path in enumerate(files, start=1):
            bars.progress(number, number + 1, path)


def make_figures(
    label: str, make: Callable[[str | None, Making], object], families: tuple[str, ...]
) -> None:
    """Make the figures of each family, or (None) of all; those of others also where one fails."""
    failures: dict[str, Exception] = {}
    with making(label) as told:
        for family in families or (None,):
            try:
                make(family, told)
            except PartialFailureError as err:
                failures |= err.failures
            except QKTaxonomyError as err:
                if len(families) < 2:
                    raise
                failures[str(family)] = err
    if failures:
        raise PartialFailureError(failures)


def print_files(files: list[Path], noun: str) -> None:
    """Every file where they are few, else how many each folder has."""
    if len(files) <= _FEW:
        for path in files:
            click.echo(path)
        return
    for folder, number in Counter(path.parents[1] for path in files).items():
        click.echo(f"{folder}: {counted(number, noun)}")
