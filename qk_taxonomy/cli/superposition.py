"""``qk-taxonomy superposition``: do singular vectors find the features a head attends to?"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qk_taxonomy.cli.making import write_files
from qk_taxonomy.cli.options import counted, debug_option, output_root_option
from qk_taxonomy.errors import PartialFailureError, QKTaxonomyError

if TYPE_CHECKING:
    from qk_taxonomy.studies.superposition.answers import Answer
    from qk_taxonomy.studies.superposition.config import SuperpositionConfig
    from qk_taxonomy.studies.superposition.measured import MeasuredRun
    from qk_taxonomy.studies.superposition.records import SuperpositionRun


def _list_presets(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value:
        return
    from qk_taxonomy.studies.superposition.presets import load_config, presets

    for name in presets():
        configs = load_config(name)
        instances = counted(sum(config.n_instances for config in configs), "instance")
        click.echo(f"{name:14} {instances}, {configs[0].n_steps} steps: {configs[0].question}")
    ctx.exit()


@click.command(epilog="Example: qk-taxonomy superposition basic --seeds 3 --steps 2000")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_presets,
    help="List the presets and their questions.",
)
@click.option("--seeds", type=click.IntRange(1), metavar="N", help="Seeds of each probability.")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Steps of each phase.")
@click.option(
    "--show-seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="The seed whose instances are drawn one by one.",
)
@output_root_option
@click.option("--json", "as_json", is_flag=True, help="Print the answers as JSON.")
@debug_option
def superposition(
    names: tuple[str, ...],
    seeds: int | None,
    steps: int | None,
    show_seed: int,
    output_root: Path,
    as_json: bool,
) -> None:
    """Train toy models with a pseudo-attention head, and see what its singular vectors are.

    NAME is a preset (--list; default: basic), "all" of them, or a TOML file of the form of
    catalog/superposition.toml. Training is kept in data/superposition/ and goes on from there;
    tables and figures go to plots/superposition/<name>/, and what is answered of the study's
    questions to plots/superposition/answers.png.
    """
    from qk_taxonomy.outputs.superposition import (
        write_answers,
        write_phase_diagram,
        write_superposition,
    )
    from qk_taxonomy.studies.superposition.answers import answers
    from qk_taxonomy.studies.superposition.measured import MeasuredRun
    from qk_taxonomy.studies.superposition.presets import adjusted, load_tables, presets

    wanted = list(chain(*(presets() if name == "all" else [name] for name in names or ["basic"])))
    groups: dict[str, list[SuperpositionConfig]] = {}
    for name in dict.fromkeys(wanted):
        for table, loaded in load_tables(name).items():
            if table in groups:
                raise click.UsageError(f"There are two configurations of the name {table}.")
            groups[table] = [adjusted(config, seeds, steps) for config in loaded]
    for config in chain.from_iterable(groups.values()):
        if show_seed >= config.n_seeds:
            raise click.UsageError(
                f"--show-seed {show_seed}: {config.name} has seeds 0 to {config.n_seeds - 1}."
            )
    runs: dict[str, list[MeasuredRun]] = {}
    failures: dict[str, Exception] = {}
    for name, configs in groups.items():
        try:
            trained = _trained(configs, output_root)
        except QKTaxonomyError as err:
            if len(groups) == 1:
                raise
            failures[name] = err
            continue
        runs[name] = [MeasuredRun(run) for run in trained]
        notes = dict.fromkeys(note for run in trained for note in run.notes)
        for note in notes:
            click.echo(f"Note: {name}: {note}.", err=True)
        files = (write_superposition(one, output_root, seed=show_seed) for one in runs[name])
        made: Iterable[Path] = chain.from_iterable(files)
        if len(trained) > 1:
            made = chain(made, [write_phase_diagram(runs[name], name, output_root)])
        write_files(f"figures of {name}", made, told=not as_json)
    found = answers({name: runs[name] for name in runs.keys() & set(wanted) & set(presets())})
    if found:
        write_files("answers", [write_answers(found, output_root)], told=not as_json)
    _print(found, as_json=as_json)
    if failures:
        raise PartialFailureError(failures)


def _trained(configs: Sequence[SuperpositionConfig], root: Path) -> list[SuperpositionRun]:
    """Train, with a bar; torch is loaded here and not before."""
    from qk_taxonomy.cli.progress import StepBars
    from qk_taxonomy.studies.superposition.store import run_path
    from qk_taxonomy.studies.superposition.train import train

    with StepBars() as bars:
        return [
            train(config, progress=bars, checkpoint=run_path(root, config)) for config in configs
        ]


def _print(found: Sequence[Answer], *, as_json: bool) -> None:
    if as_json:
        text = json.dumps([dataclasses.asdict(answer) for answer in found])
        # JSON has no NaN.
        click.echo(json.dumps(json.loads(text, parse_constant=lambda _: None), indent=2))
        return
    for answer in found:
        click.echo(f"{answer.question}\n  {answer.answer}")
