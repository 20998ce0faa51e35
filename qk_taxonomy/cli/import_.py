"""``qk-taxonomy import``: spectra files of what qk-spectral-analysis published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qk_taxonomy.cli.options import debug_option, output_root_option


@click.command("import", epilog="Example: qk-taxonomy import Qwen3-0.6B.pkl --kv-heads 8")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE..."
)
@click.option(
    "--family-name",
    metavar="NAME",
    help="File the results under this family; default: <family>-predecessor.",
)
@click.option("--d-model", type=click.IntRange(1), metavar="N", help="The models' width.")
@click.option(
    "--kv-heads",
    "n_kv_heads",
    type=click.IntRange(1),
    metavar="N",
    help="Key-value heads a layer. The files have neither number.",
)
@output_root_option
@click.option("--force", is_flag=True, help="Replace files that are there already.")
@debug_option
def import_(files: tuple[Path, ...], **options: Any) -> None:
    """Make spectra files of pickles that qk-spectral-analysis wrote, this program's predecessor.

    The values are kept as they are, and marked: its formula is not that of W_QK. Pickles are read
    as data, and nothing in them is run.
    """
    from qk_taxonomy.errors import PartialFailureError, QKTaxonomyError
    from qk_taxonomy.predecessor import import_predecessor

    failures: dict[str, Exception] = {}
    for file in files:
        try:
            click.echo(import_predecessor(file, **options))
        except QKTaxonomyError as err:
            if len(files) < 2:
                raise
            failures[str(file)] = err
    if failures:
        raise PartialFailureError(failures)
