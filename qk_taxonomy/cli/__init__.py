"""The command line: one file a command group; commands parse, call and print."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import click

from qk_taxonomy import __version__
from qk_taxonomy.cli.assign import assign
from qk_taxonomy.cli.boxplots import boxplots
from qk_taxonomy.cli.circuits import circuits
from qk_taxonomy.cli.cluster import cluster
from qk_taxonomy.cli.diff import diff
from qk_taxonomy.cli.download import download
from qk_taxonomy.cli.evolve import evolve
from qk_taxonomy.cli.export import export
from qk_taxonomy.cli.families import families
from qk_taxonomy.cli.import_ import import_
from qk_taxonomy.cli.notebook import notebook
from qk_taxonomy.cli.plan import plan
from qk_taxonomy.cli.query_norm import query_norm
from qk_taxonomy.cli.report import report
from qk_taxonomy.cli.run import run
from qk_taxonomy.cli.show import show
from qk_taxonomy.cli.sizes import sizes
from qk_taxonomy.cli.superposition import superposition
from qk_taxonomy.cli.test import test
from qk_taxonomy.errors import CatalogError, QKTaxonomyError


class _WrongCall(click.ClickException):
    exit_code = 2


class _Commands(click.Group):
    """Turns the package's errors into one paragraph on stderr, in this place alone."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except QKTaxonomyError as err:
            if ctx.meta.get("debug"):
                raise
            wrong_call = isinstance(err, CatalogError)
            raise (_WrongCall if wrong_call else click.ClickException)(str(err)) from err
        except KeyboardInterrupt:
            click.echo(
                "\nInterrupted. Files under their final names are whole; the same command goes on "
                "where it can.",
                err=True,
            )
            if threading.active_count() > 1:
                # A thread that waits for the network would hold up the end of the process.
                sys.stdout.flush()
                os._exit(130)
            ctx.exit(130)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are added: that of the work."""
        return list(self.commands)


@click.group(
    cls=_Commands,
    epilog="Example: qk-taxonomy run",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="qk-taxonomy")
def main() -> None:
    """What kinds of attention heads are there? Answered from weights alone.

    `run` does it all for a model that needs no network; `families` lists what else there is.
    """


for command in (
    *(run, families, plan, download, cluster, assign, boxplots, test, report),
    *(evolve, diff, sizes),
    *(circuits, superposition, query_norm, show, export, import_, notebook),
):
    main.add_command(command)
