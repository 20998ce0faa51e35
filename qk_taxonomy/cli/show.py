"""``qk-taxonomy show``: what is in a spectra file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qk_taxonomy.cli.options import console, debug_option, one_circuit_options
from qk_taxonomy.records import PREDECESSOR_FORMULA
from qk_taxonomy.wording import counted

if TYPE_CHECKING:
    from qk_taxonomy.records import Circuit, Convention

_COLUMNS = (
    "MAX",
    "MEAN",
    "STD",
    "SKEW",
    "stable_rank",
    "participation_ratio",
    "effective_rank_sigma",
    "r90",
)


@click.command(epilog="Example: qk-taxonomy show data/minilm/all-MiniLM-L6-v2.safetensors")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the metadata as JSON.")
@one_circuit_options
@debug_option
def show(file: Path, as_json: bool, circuit: Circuit, convention: Convention) -> None:
    """Show a spectra file: where it comes from, and each layer's medians over heads."""
    from rich.table import Table

    from qk_taxonomy.cache import contents, load_spectra, stack_table
    from qk_taxonomy.tables import layer_summary

    spectra = load_spectra(file)
    if as_json:
        metadata = dict(sorted(spectra.metadata.items()))
        provenance = json.loads(metadata.get("provenance", "{}"))
        click.echo(json.dumps(metadata | {"provenance": provenance}, indent=2))
        return
    m = spectra.metadata
    out = console()
    out.print(m["model_id"], style="bold")
    if spectra.control:
        out.print(f"a control of that model: {spectra.control}")
    out.print(f"family {m['family']}, revision {m['revision']}")
    out.print(f"{m['architecture']}, {m['weights_dtype']}, from {m['source']}")
    for name, g in stack_table(m).items():
        out.print(
            f"{name + ': ' if name else ''}{counted(g['n_layers'], 'layer')} × "
            f"{counted(g['n_heads'], 'head')} "
            f"({g['n_kv_heads'] or 'unknown'} key-value), d_head {g['d_head']}, "
            f"d_model {g['d_model'] or 'unknown'}"
        )
    if spectra.is_imported:
        out.print(f"predecessor's formula ({PREDECESSOR_FORMULA})")
    for note in json.loads(m.get("provenance", "{}")).get("notes", ()):
        out.print(f"Note: {note}.")
    pairs = sorted(contents(spectra))
    out.print(
        f"holds {', '.join(f'{c} {v}' for c, v in pairs)}; made by qk-taxonomy {m['tool_version']}"
    )
    layers = spectra.select(circuit, convention)
    if not layers:
        out.print(f"No {circuit} {convention} spectra in this file.")
        return
    for stack in spectra.stacks:
        summary = layer_summary(spectra.select(circuit, convention, stack), spectra.statistic_names)
        table = Table(box=None, header_style="bold", pad_edge=False)
        columns = [column for column in _COLUMNS if column in summary]
        for column in ("layer", *columns):
            table.add_column(column.replace("_", " "), justify="right")
        for row in summary.to_dict("records"):
            table.add_row(str(row["layer"]), *(f"{row[column]:.4g}" for column in columns))
        where = f"{stack} stack, " if stack else ""
        out.print(f"\nMedians over heads of λ = σ², {where}{circuit} circuit, {convention}:")
        out.print(table)
