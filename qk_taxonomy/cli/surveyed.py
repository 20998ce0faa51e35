"""Which families a command on spectra is for, and what comes of those that have none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from qk_taxonomy.cli.options import Command, data_root_option, family_option
from qk_taxonomy.errors import (
    CatalogError,
    NoSuchSpectraError,
    PartialFailureError,
    QKTaxonomyError,
)


def surveyed_families_option(
    help_text: str = "Only this family (repeatable); default: all that have spectra.",
    *,
    controls: bool = False,
) -> Callable[[Command], Command]:
    """``--family``, repeatable, and ``--data-root``, for a command on the spectra of families.

    A name of no family is a wrong call, before any work. Of those named, the command is given the
    folders that have spectra (``controls``: or only spectra of controls); when the work is done,
    families without any are named as what failed. It is given none where none is named, which asks
    for what there is: a file that has no such spectra is then named and no failure.
    """

    def with_options(command: Command) -> Command:
        @functools.wraps(command)
        def on_surveyed(
            *arguments: Any, families: tuple[str, ...], data_root: Path, **options: Any
        ) -> None:
            from qk_taxonomy.cache import surveyed_families

            there, missing = surveyed_families(
                data_root, families, controls=controls, catalog=options.get("catalog")
            )
            failures: dict[str, Exception] = dict(missing)
            if families and not there:
                raise (
                    next(iter(failures.values()))
                    if len(failures) == 1
                    else PartialFailureError(failures)
                )
            try:
                command(*arguments, families=tuple(there), data_root=data_root, **options)
            except PartialFailureError as err:
                failures |= err.failures
            except CatalogError:
                raise
            except QKTaxonomyError as err:
                if not failures:
                    raise
                failures[", ".join(there)] = err
            if not families:
                failures = _without_others(failures)
            if failures:
                raise PartialFailureError(failures)

        return data_root_option(family_option(help_text)(on_surveyed))  # type: ignore[return-value]

    return with_options


def _without_others(failures: Mapping[str, Exception]) -> dict[str, Exception]:
    """What failed; files that lack the spectra asked for are named, and are not among it."""
    failed: dict[str, Exception] = {}
    for name, error in failures.items():
        if isinstance(error, NoSuchSpectraError):
            click.echo(f"Note: {name}: {error}", err=True)
        else:
            failed[name] = error
    return failed
