"""The survey of models, one after another, each into a spectra file of its own.

Finished layers are kept at once, so a survey that stops goes on from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING

from qk_taxonomy.architectures import named_architecture
from qk_taxonomy.cache import (
    CacheState,
    cache_state,
    contents,
    exclusive,
    load_spectra,
    make_folder,
    spectra_path,
    stack_table,
)
from qk_taxonomy.catalog import checkpoint_refs, family_refs, find_family, load_families, model_ref
from qk_taxonomy.checkpoints import open_checkpoint
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.controls import make_control
from qk_taxonomy.errors import (
    BusyFileError,
    CatalogError,
    PartialFailureError,
    QKTaxonomyError,
    SpectraFileError,
)
from qk_taxonomy.progress import Silent, SurveyProgress
from qk_taxonomy.records import (
    CIRCUITS,
    CONVENTIONS,
    DEFAULT_JOBS,
    DEFAULT_MEMORY,
    Circuit,
    ControlKind,
    Convention,
    ModelRef,
    ModelResult,
)
from qk_taxonomy.survey.job import Job
from qk_taxonomy.survey.layers import resolve_device
from qk_taxonomy.survey.streaming import workers_of
from qk_taxonomy.training_steps import CheckpointChoice

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def survey_model(
    ref: ModelRef,
    *,
    output_root: str | Path = ".",
    circuits: Sequence[Circuit] = ("qk",),
    conventions: Sequence[Convention] = CONVENTIONS,
    device: str | None = None,
    jobs: int = DEFAULT_JOBS,
    memory: float = DEFAULT_MEMORY,
    force: bool = False,
    dry_run: bool = False,
    api: HfApi | None = None,
    executor: Executor | None = None,
    progress: SurveyProgress | None = None,
) -> ModelResult:
    """Survey one model into its spectra file; a file that has all of it already is left alone.

    With ``ref.control`` that control is surveyed, into a file of its own, and not the model.
    ``jobs`` parts of layers are read side by side, and take about ``memory`` bytes together; an
    ``executor``, such as that of a Dask cluster, takes them all at once instead. ``dry_run`` opens
    the checkpoint and says what would be read. Raises QKTaxonomyError, and BusyFileError, which is
    one, where another process is surveying the model; layers that were finished by then are kept
    and not computed again.
    """
    path = spectra_path(output_root, ref)
    local = _open(ref, api) if Path(ref.ref).expanduser().exists() else None
    if not force and _state(path, ref, local, circuits, conventions) == "whole":
        return _present(ref, path)
    if executor is None:
        resolve_device(device)
    checkpoint = local or _open(ref, api)
    wanted = _with_present(path, circuits, conventions)
    job = Job.planned(ref, path, checkpoint, *wanted, device, forced=force)
    with workers_of(executor, jobs, memory) as workers:
        if dry_run:
            return job.expected(workers)
        make_folder(path.parent)
        with exclusive(path):
            # Another process may have made it since, or a file with other circuits.
            if not force and _state(path, ref, local, circuits, conventions) == "whole":
                return _present(ref, path)
            now_wanted = _with_present(path, circuits, conventions)
            if now_wanted != wanted:
                job = Job.planned(ref, path, checkpoint, *now_wanted, device, forced=force)
            return job.run(workers, progress or Silent(), forced=force)


def _open(ref: ModelRef, api: HfApi | None) -> Checkpoint:
    return open_checkpoint(ref.ref, ref.revision, package=ref.package, hub=ref.hub, api=api)


def _state(
    path: Path,
    ref: ModelRef,
    local: Checkpoint | None,
    circuits: Sequence[Circuit],
    conventions: Sequence[Convention],
) -> CacheState:
    """The state of a model's file. A folder's weights may have changed; a hub model is its id."""
    row = None if ref.architecture is None else named_architecture(ref.architecture).name
    return cache_state(
        path,
        ref.ref if local is None else local.model_id,
        circuits,
        conventions,
        revision=None if local is None else local.revision,
        architecture=row,
        control=ref.control_label,
    )


def _present(ref: ModelRef, path: Path) -> ModelResult:
    stacks = stack_table(load_spectra(path).metadata).values()
    layers = sum(stack["n_layers"] for stack in stacks)
    heads = sum(stack["n_layers"] * stack["n_heads"] for stack in stacks)
    return ModelResult(
        ref.ref,
        "present",
        str(path),
        layers,
        heads,
        control=ref.control_label,
        revision=ref.revision or "",
    )


def _with_present(
    path: Path, circuits: Sequence[Circuit], conventions: Sequence[Convention]
) -> tuple[tuple[Circuit, ...], tuple[Convention, ...]]:
    """What is asked for and what the file has already: a survey takes nothing away."""
    try:
        present = contents(load_spectra(path))
    except SpectraFileError:
        return tuple(circuits), tuple(conventions)
    return (
        tuple(c for c in CIRCUITS if c in circuits or any(c == pair[0] for pair in present)),
        tuple(c for c in CONVENTIONS if c in conventions or any(c == pair[1] for pair in present)),
    )


def survey(
    refs: Iterable[ModelRef], *, progress: SurveyProgress | None = None, **options: object
) -> list[ModelResult]:
    """Survey models one after another; one that fails is reported and the others go on.

    ``options`` are those of :func:`survey_model`. Every model has a result, in order. A model that
    another process is surveying is looked at again after all others.
    """
    watcher = progress or Silent()
    waiting = list(enumerate(refs))
    results: dict[int, ModelResult] = {}
    while waiting:
        busy = []
        for number, ref in waiting:
            result = _attempt(ref, watcher, options)
            again = isinstance(result.exception, BusyFileError) and number not in results
            results[number] = result
            if again:
                busy.append((number, ref))
            else:
                watcher.finish(result)
        waiting = busy
    return [results[number] for number in sorted(results)]


def _attempt(ref: ModelRef, progress: SurveyProgress, options: Mapping[str, object]) -> ModelResult:
    """The survey of one model, or what kept it from being done."""
    try:
        return survey_model(ref, progress=progress, **options)  # type: ignore[arg-type]
    except QKTaxonomyError as err:
        return _failed(ref, str(err), err)
    except Exception as err:
        # A survey of an evening must not end with the first model nobody has thought of.
        message = f"unexpected {type(err).__name__}: {err} (--debug shows where)"
        return _failed(ref, message, err)


def _failed(ref: ModelRef, message: str, error: Exception) -> ModelResult:
    return ModelResult(
        ref.ref,
        "failed",
        error=message,
        exception=error,
        control=ref.control_label,
        revision=ref.revision or "",
    )


def generate_family_spectra(
    family: str,
    *,
    models: Sequence[str] | None = None,
    output_root: str | Path = ".",
    api: HfApi | None = None,
    device: str | None = None,
    force: bool = False,
    circuits: Sequence[Circuit] = ("qk",),
    conventions: Sequence[Convention] = CONVENTIONS,
    jobs: int = DEFAULT_JOBS,
    memory: float = DEFAULT_MEMORY,
    executor: Executor | None = None,
    catalog: str | Path | None = None,
    progress: SurveyProgress | None = None,
    control: ControlKind | None = None,
    seed: int = 0,
    checkpoints: CheckpointChoice | None = None,
) -> list[Path]:
    """Survey a family and return the paths of its spectra files, in the catalogue's order.

    family: a name of the catalogue, without regard to case, or with ``models`` any name to file
    them under; models: hub ids or folders to survey instead of all; api: a configured HfApi;
    device: "cpu", "cuda" or None for CUDA where there is any; jobs: parts of layers to read side by
    side, in about ``memory`` bytes together; executor: where to do so instead, such as a Dask
    cluster, ``with dask_executor(address) as executor``. Files that are whole are kept unless
    ``force``.
    control: "random" or "one-layer" to survey that twin of each model instead of the
    model, the random one drawn with ``seed``. checkpoints: "all", "log" or a number to survey
    instead those of each model's training checkpoints that
    ``qk_taxonomy.training_steps.choose_checkpoints`` takes; a model of which the catalogue
    knows none is left out. Raises CatalogError for an unknown family, and where there are no such
    checkpoints; QKTaxonomyError for an unknown control; and PartialFailureError, after all others
    are done, where models failed.
    """
    stand_in = None if control is None else make_control(control, seed)
    known = load_families(catalog)
    try:
        refs = family_refs(find_family(family, known), models)
    except CatalogError:
        if models is None:
            raise
        refs = tuple(model_ref(model, family_name=family, families=known) for model in models)
    if checkpoints is not None:
        refs = tuple(made for ref in refs for made in checkpoint_refs(ref, checkpoints, known))
        if not refs:
            raise CatalogError(f"The catalogue knows of no training checkpoints of {family}.")
    results = survey(
        [dataclasses.replace(ref, control=stand_in) for ref in refs],
        output_root=output_root,
        api=api,
        device=device,
        force=force,
        circuits=circuits,
        conventions=conventions,
        jobs=jobs,
        memory=memory,
        executor=executor,
        progress=progress,
    )
    failures = {r.title: r.exception for r in results if r.exception is not None}
    if failures:
        raise PartialFailureError(failures)
    return [Path(result.path) for result in results if result.path is not None]
