"""``qk-taxonomy circuits``: full QK and OV circuits over the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qk_taxonomy.cli.making import write_files
from qk_taxonomy.cli.options import (
    catalog_option,
    console,
    conventions_option,
    debug_option,
    figure_options,
    output_root_option,
)
from qk_taxonomy.errors import PartialFailureError, QKTaxonomyError
from qk_taxonomy.records import CONTROL_KINDS, Convention, FigureFiles

if TYPE_CHECKING:
    from qk_taxonomy.records import ModelRef
    from qk_taxonomy.studies.circuits.records import TokenEnds
    from qk_taxonomy.studies.circuits.study import CircuitStudy

# Tokens at each end of a vector, in tables and panels.
_N_TOKENS = 10

# Characters of a token in a printed table; tables on disk have all of it.
_LONGEST_TOKEN = 16


@click.command(
    epilog="Example: qk-taxonomy circuits HuggingFaceTB/SmolLM2-135M --layer 3 --top-tokens"
)
@click.argument("refs", nargs=-1, required=True, metavar="REF...")
@click.option("--family-name", metavar="NAME", help="File the results under this family.")
@click.option("--revision", metavar="REV", help="A branch, tag or commit.")
@click.option("--architecture", metavar="NAME", help="The table's row, where a config names none.")
@click.option(
    "--control",
    "control_kind",
    type=click.Choice([*CONTROL_KINDS, "none"]),
    default="random",
    show_default=True,
    help="What the model is compared with: its untrained twin, its first layer alone, or nothing.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    help="The seed of --control random.  [default: 0]",
)
@click.option(
    "--layer",
    "layers",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="N",
    help="Compute this layer alone, show its heads and score words by them (repeatable).",
)
@click.option(
    "--head",
    "heads",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="N",
    help="Show this head (repeatable).  [default: the most unusual and the most copying]",
)
@click.option(
    "--top-tokens",
    "top_tokens",
    is_flag=False,
    flag_value=_N_TOKENS,
    type=click.IntRange(min=1),
    metavar="[N]",
    help=f"Print the N tokens at both ends of the shown heads' leading vectors.  [default N: "
    f"{_N_TOKENS}]",
)
@click.option(
    "--words",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Graded word series of your own (TOML, as catalog/word_series.toml).",
)
@conventions_option(
    "raw: weights as stored; folded: with norms, attention scale and embedding multiplier."
)
@output_root_option
@click.option("--force", is_flag=True, help="Compute what is there already again.")
@click.option("--json", "as_json", is_flag=True, help="Print the tables as JSON.")
@catalog_option
@figure_options
@debug_option
def circuits(
    refs: tuple[str, ...],
    family_name: str | None,
    revision: str | None,
    architecture: str | None,
    control_kind: str,
    seed: int | None,
    top_tokens: int | None,
    words: Path | None,
    output_root: Path,
    as_json: bool,
    catalog: Path | None,
    conventions: tuple[Convention, ...],
    figures: FigureFiles,
    **options: Any,
) -> None:
    """What heads look for and what they write: their circuits over the whole vocabulary.

    REF is a hub id, a local folder or a file. Entry (t, s) of W_E W_QK W_Eᵀ is the score of token
    t's query and token s's key, of W_U W_OV W_Eᵀ what attending to s adds to the logit of t. Writes
    spectra to data/circuits/, and to plots/circuits/<family>/ a table (one row a head and
    convention), tokens, words and figures; of several models also their symmetry by depth.
    """
    from qk_taxonomy.catalog import load_families, model_ref
    from qk_taxonomy.controls import make_control
    from qk_taxonomy.outputs.circuits import compare_circuits, write_circuit_study
    from qk_taxonomy.studies.circuits.series import read_word_series

    if seed is not None and control_kind != "random":
        raise click.UsageError("--seed is for --control random; nothing else is drawn.")
    known = load_families(catalog)
    models = [
        model_ref(
            ref,
            family_name=family_name,
            revision=revision,
            architecture=architecture,
            families=known,
        )
        for ref in refs
    ]
    control = None if control_kind == "none" else make_control(control_kind, seed or 0)
    options |= {"series": None if words is None else read_word_series(words)}
    studies: list[CircuitStudy] = []
    failures: dict[str, Exception] = {}
    for ref in models:
        try:
            study = _studied(
                ref,
                control=control,
                output_root=output_root,
                conventions=conventions,
                n_tokens=top_tokens or _N_TOKENS,
                **options,
            )
        except QKTaxonomyError as err:
            if len(models) == 1:
                raise
            failures[ref.ref] = err
            continue
        studies.append(study)
        if not as_json:
            _print_study(study, tokens=top_tokens is not None)
        files = write_circuit_study(study, output_root, figures=figures)
        write_files(f"figures of {ref.name}", files, told=not as_json)
    if len(studies) > 1:
        compared = compare_circuits(studies, output_root, figures=figures)
        write_files("comparison", compared, told=not as_json)
    if as_json:
        click.echo(json.dumps([_as_json(study) for study in studies], indent=2))
    if failures:
        raise PartialFailureError(failures)


def _studied(ref: ModelRef, **options: Any) -> CircuitStudy:
    """Study a model, with a bar; torch is loaded here and not before."""
    from qk_taxonomy.cli.progress import ByteBars
    from qk_taxonomy.studies.circuits.study import study_circuits

    with ByteBars() as bars:
        return study_circuits(ref, progress=bars, **options)


def _print_study(study: CircuitStudy, *, tokens: bool) -> None:
    """The study's answers, a line each, and the tokens at both ends of vectors."""
    from qk_taxonomy.studies.circuits.summary import summary

    out = console()
    m = study.model.metadata
    out.print(f"{m['model_id']}, {int(m['n_tokens']):,} tokens, {study.convention}", style="bold")
    for line in summary(study):
        out.print(line)
    if tokens:
        _print_ends(study.ends)
    for note in study.notes:
        click.echo(f"Note: {note}.", err=True)


def _print_ends(ends: Sequence[TokenEnds]) -> None:
    from rich.table import Table

    from qk_taxonomy.studies.circuits.records import SIDES

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("head", "circuit", "vector", "value", "tokens", "highest", "lowest"):
        table.add_column(column, overflow="fold")
    for one in ends:
        value = f"{one.value:.3g}" if one.value.imag else f"{one.value.real:.3g}"
        table.add_row(
            f"{one.stack} {one.layer}.{one.head}".strip(),
            one.circuit.upper(),
            f"{one.kind} {one.number}",
            value,
            SIDES[one.circuit, one.side],
            " ".join(_short(text) for text, _ in one.top),
            " ".join(_short(text) for text, _ in one.bottom),
        )
    console().print(table)


def _short(token: str) -> str:
    return token if len(token) <= _LONGEST_TOKEN else f"{token[: _LONGEST_TOKEN - 1]}…"


def _as_json(study: CircuitStudy) -> dict[str, Any]:
    """A study's metadata, notes and tables; numbers that are not there are null."""
    from qk_taxonomy.outputs.circuits import token_table

    tables = {"heads": study.table, "tokens": token_table(study.ends)}
    if study.words is not None:
        tables["words"] = study.words.table
    rows = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
    layers = json.loads(study.model.metadata["layers"])
    return {**study.model.metadata, "layers": layers, "notes": list(study.notes), **rows}
