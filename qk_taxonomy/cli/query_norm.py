"""``qk-taxonomy query-norm``: does the norm of a query predict how sharply its head attends?"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qk_taxonomy.cli.making import bar
from qk_taxonomy.cli.options import (
    catalog_option,
    console,
    debug_option,
    figure_options,
    output_root_option,
)

if TYPE_CHECKING:
    from qk_taxonomy.records import FigureFiles, ModelRef
    from qk_taxonomy.studies.query_norm.study import QueryNormStudy

_HEAD = re.compile(r"(\d+)\.(\d+)")


def _heads(
    _: click.Context, __: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[int, int], ...]:
    """Places of heads, each once."""
    heads = []
    for value in values:
        found = _HEAD.fullmatch(value)
        if found is None:
            raise click.BadParameter(f"{value!r} is no LAYER.HEAD, such as 3.0.")
        heads.append((int(found[1]), int(found[2])))
    return tuple(dict.fromkeys(heads))


@click.command(
    epilog="Example: qk-taxonomy query-norm HuggingFaceTB/SmolLM2-135M --context 1024 --samples 4"
)
@click.argument("ref", metavar="REF")
@click.option(
    "--text",
    "files",
    type=click.Path(dir_okay=False, path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Text to show the model (repeatable).  [default: Python's documentation topics]",
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of each window of text, 32 and the special tokens at least.  [default: 512, or "
    "what the model has positions for]",
)
@click.option(
    "--samples",
    "n_samples",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="N",
    help="Windows to show the model, of all texts in turn: the unit of replication.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "float64"]),
    default="float32",
    show_default=True,
    help="Of weights and activations; attention and its statistics have float32 or better.",
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option("--after-rope", is_flag=True, help="Take norms of queries after RoPE.")
@click.option(
    "--scale",
    "scaled",
    multiple=True,
    callback=_heads,
    metavar="LAYER.HEAD",
    help="Scale this head's queries (repeatable).  [default: the heads of extreme correlation]",
)
@click.option(
    "--scale-keys",
    "scaled_keys",
    multiple=True,
    callback=_heads,
    metavar="LAYER.HEAD",
    help="Scale this head's keys, with all heads whose queries meet them (repeatable); HEAD counts "
    "heads of keys.",
)
@click.option(
    "--criteria",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What the verdict goes by (TOML, as catalog/query-norm.toml).",
)
@click.option(
    "--control",
    type=click.Choice(["untrained", "none"]),
    default="untrained",
    show_default=True,
    help="Whether to show an untrained model of this shape up to 4 of the windows as well.",
)
@click.option("--family-name", metavar="NAME", help="File the results under this family.")
@click.option("--revision", metavar="REV", help="A branch, tag or commit.")
@output_root_option
@click.option("--force", is_flag=True, help="Capture and survey again what is there already.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@catalog_option
@figure_options
@debug_option
def query_norm(
    ref: str,
    files: tuple[Path, ...],
    criteria: Path | None,
    family_name: str | None,
    revision: str | None,
    output_root: Path,
    catalog: Path | None,
    as_json: bool,
    scaled: tuple[tuple[int, int], ...],
    scaled_keys: tuple[tuple[int, int], ...],
    figures: FigureFiles,
    **options: Any,
) -> None:
    """Does the norm of a query predict how sharply its head attends?

    Runs a model on texts and measures, in every head at every token, the norm of the query, the
    entropy of its attention and more. Correlates both, with position held fixed and without, and
    decides by criteria fixed in advance, beside an untrained model of the same shape; then asks
    which of the model's spectra tell what its heads do. REF is a hub id, a local folder or a .gguf
    file. Needs pip install "qk-taxonomy[activations]".

    Spectra are those of qk-taxonomy download, which it surveys where data/ does not have them: of
    a hub id it may read the weights a second time. What each window of text gave is kept in
    data/query-norm/, so that a run that was stopped goes on with the next window. The report,
    tables and figures go to plots/query-norm/, in a folder named after the model, the context and
    what of --dtype, --after-rope, --control, --samples, --text and --criteria is not the default.
    """
    from qk_taxonomy.catalog import load_families, model_ref
    from qk_taxonomy.outputs.query_norm import write_query_norm
    from qk_taxonomy.studies.query_norm.criteria import load_criteria
    from qk_taxonomy.studies.query_norm.texts import read_texts

    fixed = load_criteria(criteria)
    texts = read_texts(files)
    model = model_ref(
        ref, family_name=family_name, revision=revision, families=load_families(catalog)
    )
    study = _studied(
        model,
        criteria=fixed,
        texts=texts,
        output_root=output_root,
        queries=scaled,
        keys=scaled_keys,
        **options,
    )
    if not as_json:
        _print_study(study)
    for note in _notes(study):
        click.echo(f"Note: {note}", err=True)
    with bar(f"report of {study.ref_name}") as advance:
        for number, path in enumerate(
            write_query_norm(study, output_root, figures=figures), start=1
        ):
            advance(number, number + 1, path)
    if as_json:
        click.echo(json.dumps({**_as_json(study), "report": str(path)}, indent=2))
    else:
        click.echo(f"{path}, and its tables and figures beside it")


def _studied(
    ref: ModelRef,
    *,
    queries: tuple[tuple[int, int], ...],
    keys: tuple[tuple[int, int], ...],
    **options: Any,
) -> QueryNormStudy:
    """Study a model, with a bar; torch is loaded here and not before.

    queries, keys: (layer, head) of those to be scaled.
    """
    from qk_taxonomy.cli.progress import StepBars
    from qk_taxonomy.studies.query_norm.scaling import ScaledHead
    from qk_taxonomy.studies.query_norm.study import study_query_norm

    scaled = [ScaledHead(*place) for place in queries]
    scaled += [ScaledHead(*place, "keys") for place in keys]
    with StepBars() as bars:
        return study_query_norm(ref, scaled=scaled, progress=bars, **options)


def _print_study(study: QueryNormStudy) -> None:
    out = console()
    told = study.description
    out.print(f"{told['model']}; windows: {told['windows']}", style="bold")
    out.print(study.verdict.line)
    if study.bridge is not None:
        out.print(study.bridge.line)


def _as_json(study: QueryNormStudy) -> dict[str, Any]:
    """The verdict, what it rests on, and what was run; numbers that are not there are null."""
    from qk_taxonomy.studies.query_norm.criteria import differing

    numbers = {
        name: value if value == value else None for name, value in study.verdict.numbers.items()
    }
    return {
        "verdict": study.verdict.kind,
        "line": study.verdict.line,
        "numbers": numbers,
        "criteria": asdict(study.criteria),
        "criteria that are not the built-in ones": [*differing(study.criteria)],
        "bridge": None if study.bridge is None else study.bridge.line,
        **study.description,
        "notes": _notes(study),
    }


def _notes(study: QueryNormStudy) -> list[str]:
    """What is not as in every run."""
    why = study.without_bridge
    bridge = (f"Behaviour is not held against spectra: {why}",) if why else ()
    return list(dict.fromkeys((*study.notes, *study.correlations.notes, *bridge)))
