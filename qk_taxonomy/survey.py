"""The survey: stream a model's attention tensors, compute the spectra of its heads, keep them.

The unit of work is a layer plan: a worker reads its byte ranges, computes, and returns a few
kilobytes of spectra. Finished layers are kept at once, so a survey that stops goes on from there.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from qk_taxonomy import __version__
from qk_taxonomy.architectures import named_architecture, restrict
from qk_taxonomy.cache import (
    FORMAT,
    FORMAT_VERSION,
    CacheState,
    UnfinishedSpectra,
    cache_state,
    contents,
    load_spectra,
    make_folder,
    spectra_path,
    stack_table,
)
from qk_taxonomy.catalog import family_refs, find_family, load_families, model_ref
from qk_taxonomy.checkpoints import open_checkpoint
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.circuits.conventions import circuit_factors
from qk_taxonomy.circuits.spectra import FORMULA, layer_spectra
from qk_taxonomy.circuits.threads import start_threads
from qk_taxonomy.controls import make_control, surveyed
from qk_taxonomy.errors import (
    CatalogError,
    PartialFailureError,
    QKTaxonomyError,
    SpectraFileError,
    SpectrumError,
)
from qk_taxonomy.records import (
    CIRCUITS,
    CONVENTIONS,
    DEFAULT_JOBS,
    AttentionLayout,
    Circuit,
    Control,
    ControlKind,
    Convention,
    LayerPlan,
    LayerSpectra,
    ModelRef,
    ModelResult,
)
from qk_taxonomy.statistics.moments import STATISTICS, describe

if TYPE_CHECKING:
    from huggingface_hub import HfApi


class Progress(Protocol):
    """What a survey tells while it runs; the command line draws bars from it."""

    def start(self, ref: ModelRef, layers: int, n_bytes: int) -> None: ...

    def advance(self, layers: int, n_bytes: int) -> None: ...

    def finish(self, result: ModelResult) -> None: ...


class Silent:
    """Progress that nobody watches."""

    def start(self, ref: ModelRef, layers: int, n_bytes: int) -> None: ...

    def advance(self, layers: int, n_bytes: int) -> None: ...

    def finish(self, result: ModelResult) -> None: ...


def resolve_device(device: str | None) -> torch.device:
    """The device to compute on: "cpu", "cuda", or with "auto" or None CUDA where there is any."""
    if device in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise QKTaxonomyError(
            "CUDA was asked for and torch finds none on this machine. Use --device cpu, or install "
            "a CUDA build of torch."
        )
    return torch.device(device)


def survey_layer(
    checkpoint: Checkpoint,
    plan: LayerPlan,
    circuits: Sequence[Circuit],
    conventions: Sequence[Convention],
    device: torch.device,
) -> list[LayerSpectra]:
    """Read one layer's tensors and compute its spectra, one record a circuit and convention.

    Raises CheckpointError, and SpectrumError naming the tensors that are not finite.
    """
    tensors = {role: checkpoint.read(info).to(device) for role, info in plan.tensors.items()}
    results = []
    for circuit in circuits:
        try:
            found = layer_spectra(circuit_factors(plan, tensors, circuit, conventions))
        except SpectrumError as err:
            raise _not_finite(plan, tensors, err.role) from err
        for convention, spectra in zip(conventions, found, strict=True):
            sigma = spectra.singular_values.cpu().numpy()
            if not sigma.max() ** 2 < np.finfo(np.float32).max:
                raise SpectrumError(
                    f"{_place(plan)}: the {circuit} circuit has σ up to {sigma.max():.3g}, "
                    "whose square no spectra file holds. The weights may be damaged: compare the "
                    "file with the original.",
                    "left",
                )
            assert spectra.eigenvalues is not None
            results.append(
                LayerSpectra(
                    layer=plan.layer,
                    circuit=circuit,
                    convention=convention,
                    singular_values=sigma,
                    eigenvalues=spectra.eigenvalues.cpu().numpy(),
                    statistics=describe(sigma**2),
                    n_recomputed=spectra.n_recomputed,
                    stack=plan.stack,
                )
            )
    return results


def _place(plan: LayerPlan) -> str:
    return f"{plan.stack} layer {plan.layer}".strip()


def _not_finite(plan: LayerPlan, tensors: Mapping[str, torch.Tensor], side: str) -> SpectrumError:
    """The error that names the tensors of a layer that are not finite."""
    broken = [
        plan.tensors[role].name
        for role, tensor in tensors.items()
        if not torch.isfinite(tensor).all()
    ]
    what = f"{', '.join(broken)} holds" if broken else "products of the weights overflow to"
    return SpectrumError(
        f"{_place(plan)}: {what} values that are not finite (NaN or infinity), so its heads "
        "have no spectrum. The file may be damaged: compare it with the original.",
        side,
    )


def _metadata(ref: ModelRef, checkpoint: Checkpoint, layout: AttentionLayout) -> dict[str, str]:
    g = layout.layers[0].geometry
    stacks = {
        name: {
            "n_layers": sum(plan.stack == name for plan in layout.layers),
            **dataclasses.asdict(geometry),
        }
        for name, geometry in layout.stacks.items()
    }
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_id": checkpoint.model_id,
        "family": ref.family,
        "revision": checkpoint.revision,
        "architecture": layout.architecture,
        "n_layers": str(len(layout.layers)),
        "n_heads": str(g.n_heads),
        "n_kv_heads": str(g.n_kv_heads),
        "d_head": str(g.d_head),
        "d_model": str(g.d_model),
        "stacks": json.dumps(stacks),
        "weights_dtype": layout.weights_dtype,
        "source": checkpoint.source,
        "statistics": ",".join(STATISTICS),
        "tool_version": __version__,
        **_control_metadata(ref.control),
    }


def _control_metadata(control: Control | None) -> dict[str, str]:
    """What only the file of a control has: its label and, where chance has a part, the seed."""
    if control is None:
        return {}
    seed = {"seed": str(control.seed)} if control.kind == "random" else {}
    return {"control": control.label, **seed}


def _provenance(
    layout: AttentionLayout,
    circuits: Sequence[Circuit],
    conventions: Sequence[Convention],
    recomputed: dict[str, int],
) -> str:
    return json.dumps(
        {
            "circuits": list(circuits),
            "conventions": list(conventions),
            "formula": FORMULA,
            "model_type": layout.model_type,
            "notes": list(layout.notes),
            "recomputed_heads": recomputed,
            "skipped_layers": dict(layout.skipped),
            "weights_bytes": sum(restrict(plan, circuits).n_bytes for plan in layout.layers),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        },
        sort_keys=True,
    )


def survey_model(
    ref: ModelRef,
    *,
    output_root: str | Path = ".",
    circuits: Sequence[Circuit] = ("qk",),
    conventions: Sequence[Convention] = CONVENTIONS,
    device: str | None = None,
    jobs: int = DEFAULT_JOBS,
    force: bool = False,
    dry_run: bool = False,
    api: HfApi | None = None,
    progress: Progress | None = None,
) -> ModelResult:
    """Survey one model into its spectra file; a file that has all of it already is left alone.

    With ``ref.control`` that control is surveyed, into a file of its own, and not the model.
    ``dry_run`` opens the checkpoint and says what would be read. Raises QKTaxonomyError; layers
    that were finished by then are kept and not computed again.
    """
    progress = progress or Silent()
    path = spectra_path(output_root, ref)
    checkpoint = _open(ref, api) if Path(ref.ref).expanduser().exists() else None
    state = "missing" if force else _state(path, ref, checkpoint, circuits, conventions)
    if state == "whole":
        return _present(ref, path)
    if path.exists():
        circuits, conventions = _with_present(path, circuits, conventions)
    target = resolve_device(device)
    if not dry_run:
        make_folder(path.parent)
    checkpoint, layout = surveyed(checkpoint or _open(ref, api), ref.architecture, ref.control)
    plans = [restrict(plan, circuits) for plan in layout.layers]
    checkpoint.check_readable(info for plan in plans for info in plan.tensors.values())
    n_bytes = sum(plan.n_bytes for plan in plans)
    n_heads = sum(plan.geometry.n_heads for plan in plans)
    total = checkpoint.n_bytes
    if dry_run:
        planned = ModelResult(ref.ref, "planned", str(path), len(plans), n_heads, n_bytes, total)
        return dataclasses.replace(planned, notes=layout.notes, control=ref.control_label)
    metadata = _metadata(ref, checkpoint, layout)
    asked = {
        "circuits": ",".join(circuits),
        "conventions": ",".join(conventions),
        "forced": str(force),
    }
    unfinished = UnfinishedSpectra(path, {**metadata, **asked})
    todo = [plan for plan in plans if plan.place not in unfinished.layers]
    progress.start(ref, len(todo), sum(plan.n_bytes for plan in todo))
    start_threads()
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="qk-layer")
    futures: dict[Future[list[LayerSpectra]], LayerPlan] = {}
    try:
        for plan in todo:
            arguments = (checkpoint, plan, circuits, conventions, target)
            futures[pool.submit(survey_layer, *arguments)] = plan
        for future in as_completed(futures):
            unfinished.add(future.result())
            progress.advance(1, futures[future].n_bytes)
    finally:
        # Layers under way end and are kept; those not begun are left to a later run.
        pool.shutdown(cancel_futures=True)
        for future, plan in futures.items():
            done = future.done() and not future.cancelled() and future.exception() is None
            if done and plan.place not in unfinished.layers:
                unfinished.add(future.result())
    recomputed = unfinished.recomputed_heads
    metadata["provenance"] = _provenance(layout, circuits, conventions, recomputed)
    unfinished.finish(metadata)
    return ModelResult(
        ref.ref,
        "computed",
        str(path),
        layers=len(plans),
        heads=n_heads,
        bytes_read=sum(plan.n_bytes for plan in todo),
        bytes_total=total,
        n_recomputed=sum(recomputed.values()),
        notes=layout.notes,
        control=ref.control_label,
    )


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
    return ModelResult(ref.ref, "present", str(path), layers, heads, control=ref.control_label)


def _with_present(
    path: Path, circuits: Sequence[Circuit], conventions: Sequence[Convention]
) -> tuple[list[Circuit], list[Convention]]:
    """What is asked for and what the file has already: a survey takes nothing away."""
    try:
        present = contents(load_spectra(path))
    except SpectraFileError:
        present = set()
    return (
        [c for c in CIRCUITS if c in circuits or any(c == pair[0] for pair in present)],
        [c for c in CONVENTIONS if c in conventions or any(c == pair[1] for pair in present)],
    )


def survey(
    refs: Iterable[ModelRef], *, progress: Progress | None = None, **options: object
) -> list[ModelResult]:
    """Survey models one after another; one that fails is reported and the others go on.

    ``options`` are those of :func:`survey_model`. Every model has a result, in order.
    """
    watcher = progress or Silent()
    results = []
    for ref in refs:
        try:
            result = survey_model(ref, progress=watcher, **options)  # type: ignore[arg-type]
        except QKTaxonomyError as err:
            result = _failed(ref, str(err), err)
        except Exception as err:
            # A survey of an evening must not end with the first model nobody has thought of.
            message = f"unexpected {type(err).__name__}: {err} (--debug shows where)"
            result = _failed(ref, message, err)
        watcher.finish(result)
        results.append(result)
    return results


def _failed(ref: ModelRef, message: str, error: Exception) -> ModelResult:
    return ModelResult(ref.ref, "failed", error=message, exception=error, control=ref.control_label)


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
    catalog: str | Path | None = None,
    progress: Progress | None = None,
    control: ControlKind | None = None,
    seed: int = 0,
) -> list[Path]:
    """Survey a family and return the paths of its spectra files, in the catalogue's order.

    family: a name of the catalogue, without regard to case, or with ``models`` any name to file
    them under; models: hub ids or folders to survey instead of all; api: a configured HfApi;
    device: "cpu", "cuda" or None for CUDA where there is any. Files that are whole are kept unless
    ``force``. control: "random" or "one-layer" to survey that twin of each model instead of the
    model, the random one drawn with ``seed``. Raises CatalogError for an unknown family,
    QKTaxonomyError for an unknown control, and PartialFailureError, after all others are done,
    where models failed.
    """
    stand_in = None if control is None else make_control(control, seed)
    known = load_families(catalog)
    try:
        refs = family_refs(find_family(family, known), models)
    except CatalogError:
        if models is None:
            raise
        refs = tuple(model_ref(model, family_name=family, families=known) for model in models)
    results = survey(
        [dataclasses.replace(ref, control=stand_in) for ref in refs],
        output_root=output_root,
        api=api,
        device=device,
        force=force,
        circuits=circuits,
        conventions=conventions,
        jobs=jobs,
        progress=progress,
    )
    failures = {r.model: r.exception for r in results if r.exception is not None}
    if failures:
        raise PartialFailureError(failures)
    return [Path(result.path) for result in results if result.path is not None]
