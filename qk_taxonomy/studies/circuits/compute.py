"""Full-circuit spectra of a model, layer by layer into its file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qk_taxonomy import __version__
from qk_taxonomy.architectures import restrict
from qk_taxonomy.cache import exclusive, make_folder
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.circuits.full import full_spectra
from qk_taxonomy.errors import SpectraFileError
from qk_taxonomy.progress import Progress
from qk_taxonomy.records import (
    CIRCUITS,
    CONVENTIONS,
    Circuit,
    Convention,
    LayerPlan,
    ModelRef,
    at_revision,
)
from qk_taxonomy.studies.circuits.chosen import asked_heads
from qk_taxonomy.studies.circuits.records import LayerCircuits, ModelCircuits
from qk_taxonomy.studies.circuits.source import CircuitSource, ahead
from qk_taxonomy.studies.circuits.store import (
    FORMAT,
    FORMAT_VERSION,
    circuits_path,
    layer_table,
    load_circuits,
    same_model,
    save_circuits,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Seconds of work that a process which is killed may lose.
_SAVED_EVERY = 60.0


def full_circuits(
    ref: str | ModelRef,
    *,
    output_root: str | Path = ".",
    layers: Sequence[int] | None = None,
    circuits: Sequence[Circuit] = CIRCUITS,
    conventions: Sequence[Convention] = CONVENTIONS,
    force: bool = False,
    api: HfApi | None = None,
    progress: Progress | None = None,
) -> ModelCircuits:
    """Spectra of the full QK and OV circuits of every head, kept under ``data/circuits/``.

    ref: a hub id, local folder or file, or a reference that names a control. layers: numbers of
    the layers to compute, all unless given; the file keeps those it has, and what is there is not
    computed again unless ``force``. progress: is told of the bytes that are read. Returns all that
    the file holds. Raises QKTaxonomyError; layers that are done are kept, on Ctrl-C too.
    """
    ref = model_ref(ref) if isinstance(ref, str) else ref
    return circuits_of(
        CircuitSource.open(ref, api, progress),
        output_root=output_root,
        layers=layers,
        circuits=circuits,
        conventions=conventions,
        force=force,
    )


def circuits_of(
    source: CircuitSource,
    *,
    output_root: str | Path = ".",
    layers: Sequence[int] | None = None,
    circuits: Sequence[Circuit] = CIRCUITS,
    conventions: Sequence[Convention] = CONVENTIONS,
    force: bool = False,
) -> ModelCircuits:
    """As :func:`full_circuits`, of a model that is open already."""
    places = {(head.stack, head.layer) for head in asked_heads(source.layers, layers, None)}
    path = circuits_path(output_root, source.ref)
    metadata = _metadata(source)
    make_folder(path.parent)
    with exclusive(path):
        done = _present(path, metadata)
        wanted = {(circuit, convention) for circuit in circuits for convention in conventions}
        todo = [
            plan
            for plan in source.layers
            if plan.place in places
            and (force or not wanted <= {key[2:] for key in done if key[:2] == plan.place})
        ]
        saved = time.monotonic()
        try:
            for layer in _computed(source, todo, circuits, conventions):
                done[_key(layer)] = layer
                if time.monotonic() - saved >= _SAVED_EVERY:
                    save_circuits(path, ModelCircuits(metadata, tuple(done.values())))
                    saved = time.monotonic()
        finally:
            if todo and done:
                save_circuits(path, ModelCircuits(metadata, tuple(done.values())))
        return load_circuits(path)


def _key(layer: LayerCircuits) -> tuple[str, int, Circuit, Convention]:
    return layer.stack, layer.layer, layer.circuit, layer.convention


def _present(
    path: Path, metadata: dict[str, str]
) -> dict[tuple[str, int, Circuit, Convention], LayerCircuits]:
    """What a file holds of the same weights; nothing where it is missing, damaged or of others."""
    try:
        model = load_circuits(path)
    except SpectraFileError:
        return {}
    same = same_model(model.metadata, metadata)
    return {_key(layer): layer for layer in model.layers} if same else {}


def _computed(
    source: CircuitSource,
    plans: Sequence[LayerPlan],
    circuits: Sequence[Circuit],
    conventions: Sequence[Convention],
) -> Iterator[LayerCircuits]:
    if not plans:
        return
    n_bytes = sum(restrict(plan, circuits).n_bytes for plan in plans)
    control = source.ref.control_label
    name = f"{source.ref.name} ({control})" if control else source.ref.name
    source.progress.start(name, source.vocabulary_bytes + n_bytes)
    vocabularies = {convention: source.vocabulary(convention) for convention in conventions}
    read = ahead(lambda plan: source.factors(plan, circuits, conventions), plans)
    for plan, pairs in zip(plans, read, strict=True):
        for (circuit, convention), pair in pairs.items():
            found = full_spectra(pair, vocabularies[convention], circuit)
            yield LayerCircuits(
                layer=plan.layer,
                stack=plan.stack,
                n_kv_heads=plan.geometry.n_kv_heads,
                circuit=circuit,
                convention=convention,
                **{name: part.numpy() for name, part in vars(found).items()},
            )


def _metadata(source: CircuitSource) -> dict[str, str]:
    """What a file says of the weights, and of how they are read."""
    ref, checkpoint, layout, tokens = source.ref, source.checkpoint, source.layout, source.plan
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_id": checkpoint.model_id,
        "family": ref.family,
        "name": at_revision(ref.name, ref.revision),
        "revision": checkpoint.revision,
        "control": ref.control_label,
        "architecture": layout.architecture,
        "d_model": str(tokens.d_model),
        "n_tokens": str(tokens.n_tokens),
        "tied": str(tokens.unembed is None),
        "kind": _kind(source),
        "layers": layer_table(source.layers),
        "notes": json.dumps([*layout.notes, *tokens.notes]),
        "source": checkpoint.source,
        "tool_version": __version__,
    }


def _kind(source: CircuitSource) -> str:
    """ "encoder" or "decoder"; "" for a model whose stacks tell."""
    if len(source.plan.stacks) > 1:
        return ""
    return "encoder" if source.plan.is_encoder else "decoder"
