"""Making figures from spectra files, with a bar, and naming them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from qk_taxonomy.cli.options import console, counted

# So many files are named one by one.
_FEW = 12


def make_figures(
    label: str, make: Callable[..., list[Path]], families: tuple[str, ...], **options: Any
) -> None:
    """Make figures with a bar on a terminal, and name those made also where others failed."""
    from rich.progress import Progress

    from qk_taxonomy.errors import PartialFailureError, QKTaxonomyError

    out = console(stderr=True)
    made: list[Path] = []
    failures: dict[str, Exception] = {}
    try:
        with Progress(console=out, disable=not out.is_terminal, transient=True) as bars:
            task = bars.add_task(label, total=None)

            def advance(index: int, total: int, path: Path) -> None:
                made.append(path)
                bars.update(task, completed=index, total=total, description=path.stem)

            for family in families or (None,):
                try:
                    make(family=family, progress=advance, **options)
                except PartialFailureError as err:
                    failures |= err.failures
                except QKTaxonomyError as err:
                    if len(families) < 2:
                        raise
                    failures[str(family)] = err
    finally:
        print_figures(made)
    if failures:
        raise PartialFailureError(failures)


def print_figures(figures: list[Path]) -> None:
    """Every figure where they are few, else how many each folder has."""
    if len(figures) <= _FEW:
        for path in figures:
            click.echo(path)
        return
    for folder, number in Counter(path.parents[1] for path in figures).items():
        click.echo(f"{folder}: {counted(number, 'figure')}")
