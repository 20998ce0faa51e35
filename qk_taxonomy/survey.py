"""The survey: stream a model's attention tensors, compute the spectra of its heads, keep them.

The unit of work is a layer plan: a worker reads its byte ranges, computes, and returns a few
kilobytes of spectra. Finished layers are kept at once, so a survey that stops goes on from there.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from qk_taxonomy import __version__
from qk_taxonomy.architectures import attention_layout, restrict
from qk_taxonomy.cache import (
    FORMAT,
    FORMAT_VERSION,
    UnfinishedSpectra,
    cache_state,
    contents,
    load_spectra,
    make_folder,
    spectra_path,
)
from qk_taxonomy.catalog import family_refs, find_family, load_families
from qk_taxonomy.checkpoints import open_checkpoint
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.circuits.conventions import circuit_factors
from qk_taxonomy.circuits.spectra import circuit_spectra
from qk_taxonomy.errors import LayoutError, QKTaxonomyError, SpectrumError, SurveyError
from qk_taxonomy.records import (
    CIRCUITS,
    CONVENTIONS,
    AttentionLayout,
    Circuit,
    Convention,
    LayerPlan,
    LayerSpectra,
    ModelRef,
    ModelResult,
)
from qk_taxonomy.statistics.moments import STATISTICS, describe

if TYPE_CHECKING:
    from huggingface_hub import HfApi

#: Layers read and computed side by side unless told otherwise: reads wait more than they work.
DEFAULT_JOBS = 4


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
        for convention in conventions:
            left, right, scale = circuit_factors(plan, tensors, circuit, convention)
            try:
                spectra = circuit_spectra(left, right, scale=scale)
            except SpectrumError as err:
                broken = [
                    plan.tensors[role].name
                    for role, tensor in tensors.items()
                    if not torch.isfinite(tensor).all()
                ]
                raise SpectrumError(
                    f"layer {plan.layer}: {', '.join(broken)} holds values that are not finite "
                    "(NaN or infinity), so its heads have no spectrum. The file may be damaged: "
                    "compare it with the original.",
                    err.role,
                ) from err
            sigma = spectra.singular_values.cpu().numpy()
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
                )
            )
    return results


def _metadata(ref: ModelRef, checkpoint: Checkpoint, layout: AttentionLayout) -> dict[str, str]:
    g = layout.geometry
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
        "weights_dtype": layout.weights_dtype,
        "source": checkpoint.source,
        "statistics": ",".join(STATISTICS),
        "tool_version": __version__,
    }


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
            "formula": "svdvals(L_A^T L_B) of float64 Cholesky factors of the Gram matrices",
            "model_type": layout.model_type,
            "recomputed_heads": recomputed,
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

    ``dry_run`` opens the checkpoint and says what would be read. Raises QKTaxonomyError; layers
    that were finished by then are kept and not computed again.
    """
    progress = progress or Silent()
    path = spectra_path(output_root, ref)
    state = "missing" if force else cache_state(path, _expected_id(ref), circuits, conventions)
    if state == "whole":
        return ModelResult(ref.ref, "present", str(path))
    if state == "incomplete":
        present = contents(load_spectra(path))
        circuits = [c for c in CIRCUITS if c in circuits or any(c == p[0] for p in present)]
        conventions = [
            c for c in CONVENTIONS if c in conventions or any(c == p[1] for p in present)
        ]
    target = resolve_device(device)
    if not dry_run:
        make_folder(path.parent)
    checkpoint = open_checkpoint(ref.ref, ref.revision, package=ref.package, api=api)
    try:
        layout = attention_layout(checkpoint.config, checkpoint.tensors, ref.architecture)
    except LayoutError as err:
        raise LayoutError(f"{ref.ref}: {err}") from err
    plans = [restrict(plan, circuits) for plan in layout.layers]
    n_bytes = sum(plan.n_bytes for plan in plans)
    n_heads = sum(plan.geometry.n_heads for plan in plans)
    total = sum(info.n_bytes for info in checkpoint.tensors.values())
    if dry_run:
        return ModelResult(ref.ref, "planned", str(path), len(plans), n_heads, n_bytes, total)
    metadata = _metadata(ref, checkpoint, layout)
    wanted = {"circuits": ",".join(circuits), "conventions": ",".join(conventions)}
    unfinished = UnfinishedSpectra(path, {**metadata, **wanted})
    if force:
        unfinished.discard()
        unfinished = UnfinishedSpectra(path, {**metadata, **wanted})
    todo = [plan for plan in plans if plan.layer not in unfinished.layers]
    progress.start(ref, len(todo), sum(plan.n_bytes for plan in todo))
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="qk-layer")
    try:
        futures = {
            pool.submit(survey_layer, checkpoint, plan, circuits, conventions, target): plan
            for plan in todo
        }
        for future in as_completed(futures):
            unfinished.add(future.result())
            progress.advance(1, futures[future].n_bytes)
    finally:
        # Layers under way end; those not begun are dropped, and a later run takes them up.
        pool.shutdown(cancel_futures=True)
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
    )


def _expected_id(ref: ModelRef) -> str:
    """The ``model_id`` that a file of this reference carries."""
    local = Path(ref.ref).expanduser()
    return local.resolve().name if local.is_dir() else ref.ref


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
            result = ModelResult(ref.ref, "failed", error=str(err))
        watcher.finish(result)
        results.append(result)
    return results


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
) -> list[Path]:
    """Survey a family and return the paths of its spectra files, in the catalogue's order.

    family: a name of the catalogue, without regard to case; models: hub ids to survey instead of
    all; api: a configured HfApi; device: "cpu", "cuda" or None for CUDA where there is any. Files
    that are whole are kept unless ``force``. Raises CatalogError for an unknown family, and
    SurveyError, after all others are done, where models failed.
    """
    found = find_family(family, load_families(catalog))
    results = survey(
        family_refs(found, models),
        output_root=output_root,
        api=api,
        device=device,
        force=force,
        circuits=circuits,
        conventions=conventions,
        jobs=jobs,
        progress=progress,
    )
    failures = {r.model: QKTaxonomyError(r.error) for r in results if r.status == "failed"}
    if failures:
        raise SurveyError(failures)
    return [Path(result.path) for result in results if result.path is not None]
