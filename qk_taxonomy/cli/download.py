"""``qk-taxonomy download``: survey models into spectra files."""

from __future__ import annotations

import dataclasses
import json
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qk_taxonomy.cli.making import print_files
from qk_taxonomy.cli.options import (
    checkpoint_choice,
    console,
    duration,
    family_option,
    size,
    survey_options,
)
from qk_taxonomy.records import CONTROL_KINDS, Control
from qk_taxonomy.wording import counted

if TYPE_CHECKING:
    from rich.table import Table

    from qk_taxonomy.records import ControlKind, Family, ModelRef, ModelResult
    from qk_taxonomy.training_steps import CheckpointChoice


# Letters that no table is as wide as.
_WIDEST = 100_000


def survey_with_bars(
    refs: Sequence[ModelRef], *, dask: str | None, **options: Any
) -> list[ModelResult]:
    """Survey with progress bars, here or on a cluster; torch is loaded here and not before."""
    from qk_taxonomy.cli.progress import SurveyBars
    from qk_taxonomy.survey import survey
    from qk_taxonomy.survey.cluster import dask_executor

    cluster = nullcontext() if dask is None else dask_executor(dask)
    with cluster as executor, SurveyBars() as bars:
        return survey(refs, progress=bars, executor=executor, **options)


def print_results(results: Sequence[ModelResult]) -> None:
    """One row a model; what went wrong, in full and once for all it befell, on stderr.

    Files have a column where the terminal is wide enough, and else lines of their own; names of
    models are broken at their slash, and columns stand closer, where that is too wide as well.
    """
    from rich.measure import Measurement

    out = console()
    # A measure is cut at the width that it is taken for.
    boundless = out.options.update(max_width=_WIDEST)
    for files, broken in ((True, False), (False, False), (False, True)):
        table = _results_table(results, files=files, broken=broken)
        if Measurement.get(out, boundless, table).maximum <= out.width:
            break
    out.print(table)
    if not files:
        print_files([Path(result.path) for result in results if result.path], "file")
    _print_notes(results)


def _results_table(results: Sequence[ModelResult], *, files: bool, broken: bool) -> Table:
    """The table, with a column of ``files`` or without, models' names ``broken`` or whole."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=broken)
    table.add_column("model", overflow="fold")
    table.add_column("status", no_wrap=True)
    for column in ("layers", "heads", "read", "of", "saved", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    if files:
        table.add_column("file", overflow="fold")
    for result in results:
        known = result.layers > 0
        table.add_row(
            "/\n".join(result.title.rsplit("/", 1)) if broken else result.title,
            result.status,
            str(result.layers) if known else "",
            str(result.heads) if known else "",
            size(result.bytes_read) if result.bytes_total else "",
            size(result.bytes_total) if result.bytes_total else "",
            _saved(result.bytes_read, result.bytes_total),
            duration(result.seconds) if result.seconds is not None else "",
            *([result.path or ""] if files else []),
        )
    planned = [result for result in results if result.status == "planned"]
    if len(planned) > 1:
        times = [result.seconds for result in planned if result.seconds is not None]
        read, total = (sum(getattr(r, of) for r in planned) for of in ("bytes_read", "bytes_total"))
        table.add_section()
        table.add_row(
            counted(len(planned), "model"),
            "",
            str(sum(result.layers for result in planned)),
            str(sum(result.heads for result in planned)),
            size(read),
            size(total),
            _saved(read, total),
            duration(sum(times)) if len(times) == len(planned) else "",
        )
    return table


def _print_notes(results: Sequence[ModelResult]) -> None:
    """What the table does not tell, on stderr."""
    unmeasured = sum(
        result.bytes_read
        for result in results
        if result.status == "planned"
        and result.seconds is None
        and result.source.startswith("hub ")
    )
    if unmeasured:
        click.echo(
            f"How fast the hub's {size(unmeasured)} come was not measured yet; the first survey "
            f"does. At 100 Mbit/s they take {duration(8 * unmeasured / 100e6)}.",
            err=True,
        )
    failed: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            click.echo(f"Note: {result.title}: {note}.", err=True)
        if result.error is not None:
            failed.setdefault(result.error, []).append(result.title)
    for error, titles in failed.items():
        click.echo(f"Error: {', '.join(titles)}: {error}", err=True)
    for result in results:
        if result.exception is not None and click.get_current_context().meta.get("debug"):
            click.echo("".join(traceback.format_exception(result.exception)), err=True)


def _saved(read: int, total: int) -> str:
    """What need not be read; nothing for a model of which some is read twice, to save memory."""
    return size(total - read) if total > read else ""


@click.command(epilog="Example: qk-taxonomy download --family pythia --dry-run")
@family_option("Survey this family (repeatable).")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="REF",
    help="Survey this model: a hub id (org/name), a local folder, or a file "
    "(.gguf, .safetensors, .bin; repeatable).",
)
@click.option("--family-name", metavar="NAME", help="File the --model results under this family.")
@click.option(
    "--revision",
    "revisions",
    multiple=True,
    metavar="REV",
    help="A branch, tag or commit (repeatable).",
)
@click.option(
    "--checkpoints",
    type=checkpoint_choice,
    metavar="log|all|N",
    help="Survey training checkpoints that the catalogue knows of each model: all of them, log "
    "(first, last, and about one a doubling of the steps), or so many.",
)
@click.option("--architecture", metavar="NAME", help="The table's row, where a config names none.")
@click.option(
    "--control",
    "controls",
    type=click.Choice(CONTROL_KINDS),
    multiple=True,
    help="Survey this twin of each model instead of the model itself: random, untrained and drawn "
    "with --seed, or one-layer, the first layer alone (repeatable).",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    help="The seed of --control random.  [default: 0]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be read; move no tensors.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@survey_options
def download(
    families: tuple[str, ...],
    models: tuple[str, ...],
    family_name: str | None,
    revisions: tuple[str, ...],
    checkpoints: CheckpointChoice | None,
    architecture: str | None,
    controls: tuple[ControlKind, ...],
    seed: int | None,
    as_json: bool,
    catalog: Path | None,
    **options: Any,
) -> None:
    """Stream attention weights and cache the spectra of every head.

    Only the byte ranges of the attention tensors cross the network, and no weights are kept. Layers
    that another revision has in the same files are taken from its spectra.
    """
    from qk_taxonomy.catalog import family_refs, find_family, load_families, model_ref

    if not families and not models:
        raise click.UsageError(
            "Name a --family or a --model. `qk-taxonomy families` lists the families."
        )
    if family_name is not None and not models:
        raise click.UsageError(
            "--family-name is for --model; a family's results have its own name."
        )
    if not all(model.strip() for model in models):
        raise click.UsageError("--model needs a hub id, a folder or a file.")
    if checkpoints is not None and revisions:
        raise click.UsageError("--checkpoints chooses revisions; --revision names them. Give one.")
    if seed is not None and "random" not in controls:
        raise click.UsageError("--seed is for --control random; nothing else is drawn.")
    known = load_families(catalog)
    of_families = [ref for name in families for ref in family_refs(find_family(name, known))]
    alone = [model_ref(ref, family_name=family_name, families=known) for ref in models]
    if checkpoints is not None:
        of_families, alone = _checkpoints_of(of_families, alone, checkpoints, known)
    refs = [
        dataclasses.replace(
            ref,
            revision=revision,
            architecture=architecture or ref.architecture,
            control=Control(control, seed or 0) if control else None,
        )
        for ref in (*of_families, *alone)
        for revision in revisions or (ref.revision,)
        for control in controls or (None,)
    ]
    results = survey_with_bars(refs, **options)
    if as_json:
        rows = [dataclasses.asdict(dataclasses.replace(r, exception=None)) for r in results]
        for row in rows:
            del row["exception"]
        click.echo(json.dumps(rows, indent=2))
    else:
        print_results(results)
    if any(result.status == "failed" for result in results):
        raise click.exceptions.Exit(1)


def _checkpoints_of(
    of_families: Sequence[ModelRef],
    alone: Sequence[ModelRef],
    how: CheckpointChoice,
    known: Sequence[Family],
) -> tuple[list[ModelRef], list[ModelRef]]:
    """Training checkpoints in place of models; those of a family that have none are left out.

    Raises CatalogError where a model named by itself, or all of the families, have none.
    """
    from qk_taxonomy.catalog import checkpoint_refs
    from qk_taxonomy.errors import CatalogError

    found = {ref: checkpoint_refs(ref, how, known) for ref in (*of_families, *alone)}
    without = [ref for ref, refs in found.items() if not refs]
    names = ", ".join(dict.fromkeys(ref.ref for ref in without))
    if set(without) & set(alone) or len(without) == len(found):
        raise CatalogError(
            f"The catalogue knows of no training checkpoints of {names}. `qk-taxonomy families "
            "NAME` shows which models have some; revisions of others are named with --revision."
        )
    if without:
        click.echo(f"Note: left out, for want of training checkpoints: {names}.", err=True)
    chosen = [[made for ref in refs for made in found[ref]] for refs in (of_families, alone)]
    return chosen[0], chosen[1]
