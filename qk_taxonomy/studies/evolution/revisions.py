"""The revisions of one model that are surveyed, in order of training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qk_taxonomy.cache import (
    files_of_model,
    find_spectra,
    nothing_left,
    unfinished_stems,
)
from qk_taxonomy.catalog import load_families
from qk_taxonomy.errors import SpectraFileError, StudyError
from qk_taxonomy.hypotheses.heads import HeadSet, load_heads
from qk_taxonomy.records import Circuit, Convention, FileStem
from qk_taxonomy.studies.evolution.absent import absence, published_checkpoints
from qk_taxonomy.training_steps import steps_so_far, training_stage, training_step

# What a model's newest weights are called; they have no step of their own.
_NEWEST = "main"

_MADE_BY = "`qk-taxonomy download --family NAME --model MODEL --checkpoints log` surveys some"


@dataclass(frozen=True, eq=False)
class Revisions:
    """Heads of one stack of a model at several steps, in order of training.

    ``sets``: one a revision; ``names`` and ``steps``: its revision and the steps since training
    began, None for the newest weights, which come last; ``twins``: heads of the model's
    untrained twins.
    """

    stack: str
    sets: tuple[HeadSet, ...]
    names: tuple[str, ...]
    steps: tuple[int | None, ...]
    twins: tuple[HeadSet, ...] = ()


@dataclass(frozen=True, eq=False)
class LoadedRevisions:
    """Every stack's revisions; the files that cannot be used, by name; and what else to say."""

    stacks: tuple[Revisions, ...]
    failures: dict[str, Exception]
    notes: tuple[str, ...]


def load_revisions(
    model: str,
    family: str | None = None,
    data_root: str | Path = ".",
    *,
    circuit: Circuit = "qk",
    convention: Convention = "raw",
    catalog: str | Path | None = None,
) -> LoadedRevisions:
    """The surveyed revisions of a model: ``<data_root>/data/<family>/<model>[@<revision>]``.

    ``model``: its name, ``family/name`` or id; ``family`` where a name is in several. What is not
    surveyed of the checkpoints that the catalogue lists, and what was begun, a note tells.
    Files that cannot be read, or lack the circuit, are left out and named, as are revisions whose
    names tell of no step, or of one that is there already; the newest weights (of no revision, or
    main) count as the last step, unless their spectra are the last step's. Raises SpectraFileError
    where the family or model has no spectra; PartialFailureError where no file can be used;
    StudyError where there are fewer than two steps, or revisions differ in shape.
    """
    paths = find_spectra(data_root, family, controls=True, catalog=catalog)
    ours = files_of_model(model, paths)
    own = [path for path in ours if not FileStem.parse(path.stem).control]
    if not own:
        raise SpectraFileError(_no_such_model(model, family, paths))
    folders = list(dict.fromkeys(path.parent for path in own))
    if len(folders) > 1:
        raise StudyError(
            f"{model} is in several families, {', '.join(folder.name for folder in folders)}; name "
            "one of them (--family)."
        )
    loaded = load_heads(own, circuit, convention)
    failures = {**loaded.failures, **loaded.without}
    sets, notes = _with_steps(loaded.sets)
    if not sets:
        raise nothing_left(failures)
    twins = [path for path in ours if FileStem.parse(path.stem).control.startswith("random")]
    untrained = load_heads(twins, circuit, convention).sets
    notes += _absence(own, sets, catalog)
    model = FileStem.parse(own[0].stem).model
    stacks = []
    for stack in dict.fromkeys(one.stack for one in sets):
        chosen, said = _in_order([one for one in sets if one.stack == stack])
        notes += said
        _check(model, chosen, failures)
        names = tuple(_revision_of(one.path) for one in chosen)
        stacks.append(Revisions(stack, chosen, names, _steps(names), untrained))
    return LoadedRevisions(tuple(stacks), failures, tuple(dict.fromkeys(notes)))


def _revision_of(path: Path) -> str:
    """The revision that a file's name tells of; "main" where it tells of none."""
    return FileStem.parse(path.stem).revision or _NEWEST


def _absence(own: Sequence[Path], sets: Sequence[HeadSet], catalog: str | Path | None) -> list[str]:
    surveyed = {_revision_of(path) for path in own}
    ids = {one.spectra.model_id for one in sets}
    name = FileStem.parse(own[0].stem).model
    unfinished = map(FileStem.parse, unfinished_stems(own[0].parent))
    begun = [
        stem.revision or _NEWEST for stem in unfinished if stem.model == name and not stem.control
    ]
    return absence(surveyed, published_checkpoints(ids, load_families(catalog)), begun)


def _no_such_model(model: str, family: str | None, paths: Iterable[Path]) -> str:
    several = Counter(
        f"{'' if family else f'{path.parent.name}/'}{stem.model}"
        for path in paths
        if not (stem := FileStem.parse(path.stem)).control
    )
    found = ", ".join(f"{name} ({n})" for name, n in sorted(several.items()))
    where = f" in family {family}" if family else ""
    return (
        f"There are no spectra of {model}{where}. The models, with their numbers of revisions: "
        f"{found}."
    )


def _with_steps(sets: Sequence[HeadSet]) -> tuple[list[HeadSet], list[str]]:
    """Those that have a place in the order, and a sentence on the others."""
    placed: list[HeadSet] = []
    others: list[HeadSet] = []
    for one in sets:
        name = _revision_of(one.path)
        known = training_step(name) is not None or name == _NEWEST
        (placed if known else others).append(one)
    names = dict.fromkeys(_revision_of(one.path) for one in others)
    said = [f"{name} is left out: its name tells of no training step" for name in names]
    return placed, said


def _in_order(sets: Sequence[HeadSet]) -> tuple[tuple[HeadSet, ...], list[str]]:
    """In order of stage and step, the newest weights last; without those that are there twice.

    Of revisions of one step the first by name stays; the newest weights go where they are the last
    step's. A sentence tells of each that goes.
    """
    by_name = {_revision_of(one.path): one for one in sets}
    newest = by_name.pop(_NEWEST, None)
    of_step: dict[tuple[int, int], str] = {}
    said = []
    for name in sorted(by_name):
        kept = of_step.setdefault(_place(name), name)
        if kept != name:
            said.append(f"{name} is left out: it is of the same step as {kept}")
    ordered = [by_name[of_step[place]] for place in sorted(of_step)]
    if newest is None:
        return tuple(ordered), said
    if ordered and newest.shape == ordered[-1].shape and (newest.lam == ordered[-1].lam).all():
        last = _revision_of(ordered[-1].path)
        return tuple(ordered), [*said, f"{_NEWEST} is left out: its spectra are those of {last}"]
    return (*ordered, newest), said


def _place(name: str) -> tuple[int, int]:
    step = training_step(name)
    assert step is not None
    return training_stage(name), step


def _steps(names: Sequence[str]) -> tuple[int | None, ...]:
    """Steps since training began, None for the newest weights, of revisions in order."""
    numbered = [name for name in names if name != _NEWEST]
    return (*steps_so_far(numbered), *(None for _ in names[len(numbered) :]))


def _check(model: str, sets: Sequence[HeadSet], failures: dict[str, Exception]) -> None:
    """Raises StudyError where there is no path to follow."""
    if len(sets) < 2:
        unread = f" {len(failures)} could not be used: {', '.join(failures)}." if failures else ""
        raise StudyError(
            f"A path needs at least two revisions of {model}, found one ({sets[0].file}).{unread} "
            f"{_MADE_BY}."
        )
    shapes: dict[tuple[object, ...], list[HeadSet]] = {}
    for one in sets:
        shapes.setdefault((one.shape, one.geometry["d_model"]), []).append(one)
    if len(shapes) > 1:
        described = "; ".join(
            f"{', '.join(_revision_of(one.path) for one in group)}: {group[0].described_shape}, "
            f"d_model {group[0].geometry['d_model']}"
            for group in shapes.values()
        )
        raise StudyError(
            f"Wanted revisions of {model} of one shape, found {len(shapes)}: {described}. Move the "
            "files of one shape to a family of their own (--family-name)."
        )
