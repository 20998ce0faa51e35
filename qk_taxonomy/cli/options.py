"""Options that several commands share, and how they print."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qk_taxonomy.records import (
    CIRCUITS,
    CONVENTIONS,
    DEFAULT_JOBS,
    DEFAULT_MEMORY,
    DISTANCES,
    FIGURE_FORMATS,
    FIGURE_SIZES,
    N_BINS,
    N_CLUSTERS,
    SCREEN_PNG,
    Circuit,
    Convention,
    FigureFiles,
    FigureFormat,
    FigureSize,
)

if TYPE_CHECKING:
    from rich.console import Console

    from qk_taxonomy.training_steps import CheckpointChoice

Command = TypeVar("Command", bound=Callable[..., Any])

# What computing itself takes, and a little for weights.
_LEAST_MEMORY = 80 * 1000**2

# A pipe or file has no width of its own: wide enough to fold no line.
_PIPE_WIDTH = 1000


def checkpoint_choice(value: str) -> CheckpointChoice:
    """How many of a model's training checkpoints: log, all, or a number from 2 on."""
    if value == "log":
        return "log"
    if value == "all":
        return "all"
    if not value.isdecimal() or int(value) < 2:
        raise click.BadParameter(f"{value!r}: wanted log, all, or a number from 2 on.")
    return int(value)


def _memory_size(value: str) -> float:
    """Bytes of a number with or without a unit: 300000000, 256 MB, 1.5GB."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)i?B?\s*", value, re.IGNORECASE)
    n_bytes = float(match[1]) * 1000.0 ** " kmgt".index(match[2].lower() or " ") if match else 0.0
    if n_bytes < _LEAST_MEMORY:
        raise click.BadParameter(
            f"{value!r}: wanted at least {size(_LEAST_MEMORY)}, such as 256MB or 1GB."
        )
    return n_bytes


def _remember_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta["debug"] = value


def debug_option(command: Command) -> Command:
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=_remember_debug,
        help="Show the traceback of an error.",
    )(command)


def family_option(help_text: str) -> Callable[[Command], Command]:
    return click.option("--family", "families", multiple=True, metavar="NAME", help=help_text)


def catalog_option(command: Command) -> Command:
    return click.option(
        "--catalog",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="A folder with family files (*.toml) of your own.",
    )(command)


def data_root_option(command: Command) -> Command:
    return click.option(
        "--data-root",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path(),
        show_default="working directory",
        metavar="DIR",
        help="The folder that holds data/; figures go beside it.",
    )(command)


def output_root_option(command: Command) -> Command:
    return click.option(
        "--output-root",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path(),
        show_default="working directory",
        metavar="DIR",
        help="Results go to DIR/data, tables and figures of studies to DIR/plots.",
    )(command)


def one_circuit_options(command: Command) -> Command:
    """Which circuit and convention to look at."""
    with_circuit = click.option(
        "--circuit", type=click.Choice(CIRCUITS), default="qk", show_default=True
    )(command)
    return click.option(
        "--convention",
        type=click.Choice(CONVENTIONS),
        default="raw",
        show_default=True,
        help="raw: weights as stored; folded: with norm gains and attention scale.",
    )(with_circuit)


def seed_option(of: str) -> Callable[[Command], Command]:
    """``--seed``, ``of`` whatever chance has a part in."""
    return click.option(
        "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help=of
    )


def figure_options(command: Command) -> Command:
    """``--format`` and ``--size``, handed on as ``figures``: what figures are written to."""

    @functools.wraps(command)
    def collected(
        *arguments: Any, formats: tuple[FigureFormat, ...], size: FigureSize, **options: Any
    ) -> Any:
        return command(*arguments, figures=FigureFiles(formats, size), **options)

    with_size = click.option(
        "--size",
        type=click.Choice(FIGURE_SIZES),
        default=SCREEN_PNG.size,
        show_default=True,
        help="Of figures. one-column, two-column: of a paper, 3.5 and 7.2 inches wide with letters "
        "of 6 to 8 points; the size is in the files' names.",
    )(collected)
    return click.option(  # type: ignore[return-value]
        "--format",
        "formats",
        type=click.Choice(FIGURE_FORMATS),
        multiple=True,
        default=SCREEN_PNG.formats,
        show_default=True,
        help="Of figures (repeatable); a caption is beside each, as Markdown.",
    )(with_size)


class _NumberOfClasses(click.IntRange):
    """A number from 1 on, or "auto"."""

    name = "number or auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return "auto" if value == "auto" else super().convert(value, param, ctx)


def taxonomy_options(command: Command) -> Command:
    """How heads are sorted into classes."""
    options = [
        click.option(
            "--clusters",
            "n_clusters",
            type=_NumberOfClasses(1),
            default=N_CLUSTERS,
            show_default=True,
            help="Number of classes. auto: of 2 to 10, the largest whose stability is at least 0.8 "
            "and within 0.05 of the best; if none reaches 0.8, the smallest within 0.1 of the "
            "best.",
        ),
        click.option(
            "--bins",
            "n_bins",
            type=click.IntRange(2),
            default=N_BINS,
            show_default=True,
            help="Bins of a head's histogram.",
        ),
        click.option(
            "--distance",
            type=click.Choice(DISTANCES),
            default="euclidean",
            show_default=True,
            help="Between histograms. euclidean: k-means; jensen-shannon: k-medoids, of 6,000 "
            "heads at most.",
        ),
        seed_option("Of the classes and of the map."),
    ]
    return functools.reduce(lambda done, option: option(done), reversed(options), command)


def pool_imported_option(command: Command) -> Command:
    return click.option(
        "--include-imported",
        is_flag=True,
        help="Pool imported spectra, which are by another formula, with exact ones.",
    )(command)


def circuits_option(
    default: Sequence[Circuit], said: str | None, help_text: str
) -> Callable[[Command], Command]:
    """``--circuit``, repeatable; ``said``: how the default is shown, None as it is."""
    return click.option(
        "--circuit", "circuits", type=click.Choice(CIRCUITS), multiple=True, default=default,
        show_default=said or True, help=help_text,
    )  # fmt: skip


def conventions_option(
    help_text: str, default: Sequence[Convention] = CONVENTIONS
) -> Callable[[Command], Command]:
    """``--convention``, repeatable; both by default, or ``default`` that stands for both."""
    return click.option(
        "--convention", "conventions", type=click.Choice(CONVENTIONS), multiple=True,
        default=default, show_default="both", help=help_text,
    )  # fmt: skip


def survey_options(command: Command) -> Command:
    """How to survey: shared by download and run."""
    options = [
        circuits_option(("qk",), None, "Repeat for both."),
        conventions_option("raw: weights as stored; folded: with norm gains and attention scale."),
        output_root_option,
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="auto: CUDA where there is any.",
        ),
        click.option(
            "--jobs",
            type=click.IntRange(1, 64),
            default=DEFAULT_JOBS,
            show_default=True,
            help="Layers, or parts of large ones, read side by side at most; fewer while the hub "
            "asks for it.",
        ),
        click.option(
            "--memory",
            type=_memory_size,
            default=size(DEFAULT_MEMORY),
            show_default=True,
            metavar="SIZE",
            help="About what weights and products take together; larger layers are cut by heads.",
        ),
        click.option(
            "--dask",
            metavar="ADDRESS",
            help="Survey on the workers of this Dask scheduler (tcp://host:8786) instead of here, "
            "with --memory for each of their threads.",
        ),
        click.option("--force", is_flag=True, help="Compute what is there already again."),
        catalog_option,
        debug_option,
    ]
    return functools.reduce(lambda done, option: option(done), reversed(options), command)


def console(*, stderr: bool = False) -> Console:
    """A console that keeps tables whole when it is no terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    # No markup: a model's folder may have brackets in its name.
    return Console(stderr=stderr, width=width, highlight=False, markup=False)


def count(n: int) -> str:
    """A count in the units of its size: 135M, 8.0B."""
    for unit, one in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= 0.9995 * one:
            return f"{n / one:.3g}{unit}"
    return str(n)


def size(n_bytes: float) -> str:
    """A number of bytes: 7.1 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} PB"


def duration(seconds: float) -> str:
    """A time in words: 42 s, 12 min, 3.5 h."""
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.3g} h"
