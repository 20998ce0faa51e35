"""``qk-taxonomy superposition``: do singular vectors find the features a head attends to?"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qk_taxonomy.cli.making import write_files
from qk_taxonomy.cli.options import debug_option, figure_options, output_root_option
from qk_taxonomy.errors import PartialFailureError, QKTaxonomyError
from qk_taxonomy.wording import counted

if TYPE_CHECKING:
    from qk_taxonomy.records import FigureFiles
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
@figure_options
@debug_option
def superposition(
    names: tuple[str, ...],
    seeds: int | None,
    steps: int | None,
    show_seed: int,
    output_root: Path,
    as_json: bool,
    figures: FigureFiles,
) -> None:
    """Train toy models with a pseudo-attention head, and see what its singular vectors are.

    NAME is a preset (--list; default: basic), "all" of them, or a TOML file of the form of
    catalog/superposition.toml. Training is kept in data/superposition/ and goes on from there;
    tables and figures go to plots/superposition/<name>/, and with them the answer.png and
    answer.csv of a preset that asks one of the study's questions. Other --seeds or --steps are
    other trainings, of other names.
    """
    from qk_taxonomy.studies.superposition.answers import QUESTIONS
    from qk_taxonomy.studies.superposition.presets import adjusted, load_tables, presets

    wanted = list(chain(*(presets() if name == "all" else [name] for name in names or ["basic"])))
    groups: dict[str, _Group] = {}
    for name in dict.fromkeys(wanted):
        for table, loaded in load_tables(name).items():
            if table in groups:
                raise click.UsageError(f"There are two configurations of the name {table}.")
            whole = adjusted(dataclasses.replace(loaded[0], name=table), seeds, steps)
            configs = [adjusted(config, seeds, steps) for config in loaded]
            # A table of one's own may have the name of a preset, and ask something else.
            question = QUESTIONS.get(name) if name in presets() else None
            groups[table] = _Group(whole.name, configs, question)
    for config in chain.from_iterable(group.configs for group in groups.values()):
        if show_seed >= config.n_seeds:
            raise click.UsageError(
                f"--show-seed {show_seed}: {config.name} has seeds 0 to {config.n_seeds - 1}."
            )
    answers: list[Answer] = []
    failures: dict[str, Exception] = {}
    for table, group in groups.items():
        try:
            answer = _made(group, output_root, show_seed, figures, told=not as_json)
        except QKTaxonomyError as err:
            if len(groups) == 1:
                raise
            failures[table] = err
            continue
        if answer is None:
            continue
        answers.append(answer)
        if not as_json:
            click.echo(f"{answer.question}\n  {answer.answer}")
    if as_json:
        text = json.dumps([dataclasses.asdict(answer) for answer in answers])
        # JSON has no NaN.
        click.echo(json.dumps(json.loads(text, parse_constant=lambda _: None), indent=2))
    if failures:
        raise PartialFailureError(failures)


@dataclass(frozen=True)
class _Group:
    """The configurations of a table; name: as --seeds and --steps have changed it."""

    name: str
    configs: Sequence[SuperpositionConfig]
    question: Callable[[Sequence[MeasuredRun]], Answer] | None


def _made(
    group: _Group, root: Path, show_seed: int, figures: FigureFiles, *, told: bool
) -> Answer | None:
    """Train a group and write its files; the answer, if the group asks one of the questions."""
    from qk_taxonomy.outputs.superposition import (
        write_answer,
        write_phase_diagram,
        write_superposition,
    )
    from qk_taxonomy.studies.superposition.measured import MeasuredRun

    runs = [MeasuredRun(run) for run in _trained(group.configs, root)]
    _tell_notes([one.run for one in runs])
    answer = None if group.question is None else group.question(runs)

    def files() -> Iterator[Path]:
        for one in runs:
            yield from write_superposition(one, root, seed=show_seed, figures=figures)
        # A phase diagram has one row a size of head.
        if len({one.run.config.d_head for one in runs}) == len(runs) > 1:
            yield from write_phase_diagram(runs, group.name, root, figures=figures)
        if answer is not None:
            yield from write_answer(answer, group.name, root, figures=figures)

    write_files(f"figures of {group.name}", files(), told=told)
    return answer


def _trained(configs: Sequence[SuperpositionConfig], root: Path) -> list[SuperpositionRun]:
    """Train, with a bar; torch is loaded here and not before."""
    from qk_taxonomy.cli.progress import StepBars
    from qk_taxonomy.studies.superposition.store import run_path
    from qk_taxonomy.studies.superposition.train import train

    with StepBars() as bars:
        return [
            train(config, progress=bars, checkpoint=run_path(root, config)) for config in configs
        ]


def _tell_notes(runs: Sequence[SuperpositionRun]) -> None:
    """Each note once, with the names of the runs that it is of."""
    notes: dict[str, list[str]] = {}
    for run in runs:
        for note in run.notes:
            notes.setdefault(note, []).append(run.config.name)
    for note, names in notes.items():
        click.echo(f"Note: {', '.join(names)}: {note}.", err=True)
