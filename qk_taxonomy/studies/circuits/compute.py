"""Full-circuit spectra of a model, layer by layer into its file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qk_taxonomy import __version__
from qk_taxonomy.cache import exclusive, make_folder
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.circuits.full import full_spectra
from qk_taxonomy.errors import QKTaxonomyError, SpectraFileError
from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Circuit, Convention, LayerPlan, ModelRef
from qk_taxonomy.studies.circuits.records import LayerCircuits, ModelCircuits
from qk_taxonomy.studies.circuits.source import Advance, CircuitSource, ahead
from qk_taxonomy.studies.circuits.store import (
    FORMAT,
    FORMAT_VERSION,
    circuits_path,
    load_circuits,
    same_model,
    save_circuits,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def full_circuits(
    ref: str | ModelRef,
    *,
    output_root: str | Path = ".",
    layers: Sequence[int] | None = None,
    circuits: Sequence[Circuit] = CIRCUITS,
    conventions: Sequence[Convention] = CONVENTIONS,
    force: bool = False,
    api: HfApi | None = None,
    advance: Advance | None = None,
) -> ModelCircuits:
    """Spectra of the full QK and OV circuits of every head, kept under ``data/circuits/``.

    ref: a hub id, local folder or file, or a reference that names a control. layers: numbers of
    the layers to compute, all unless given; the file keeps those it has, and what is there is not
    computed again unless ``force``. advance: called with numbers of bytes as they are read.
    Returns all that the file holds. Raises QKTaxonomyError; layers that are done are kept, on
    Ctrl-C too.
    """
    ref = model_ref(ref) if isinstance(ref, str) else ref
    return circuits_of(
        CircuitSource.open(ref, api, advance),
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
    plans = chosen_layers(source, layers)
    path = circuits_path(output_root, source.ref)
    metadata = _metadata(source)
    make_folder(path.parent)
    with exclusive(path):
        done = {} if force else _present(path, metadata)
        wanted = {(circuit, convention) for circuit in circuits for convention in conventions}
        todo = [
            plan
            for plan in plans
            if not wanted <= {key[2:] for key in done if key[:2] == plan.place}
        ]
        try:
            for layer in _computed(source, todo, circuits, conventions):
                done[_key(layer)] = layer
        finally:
            if todo and done:
                save_circuits(path, ModelCircuits(metadata, tuple(done.values())))
        return load_circuits(path)


def chosen_layers(source: CircuitSource, layers: Sequence[int] | None) -> list[LayerPlan]:
    """The layers of some numbers, in every stack that has them. Raises QKTaxonomyError."""
    plans = source.layers
    numbers = sorted({plan.layer for plan in plans})
    missing = sorted(set(layers or ()) - set(numbers))
    if missing:
        raise QKTaxonomyError(
            f"{source.ref.ref} has no attention layer {', '.join(map(str, missing))}; it has "
            f"{_ranges(numbers)}."
        )
    return [plan for plan in plans if not layers or plan.layer in layers]


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in order, as runs: 0 to 5, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first} to {last}" if last > first else f"{first}" for first, last in runs)


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
    vocabularies = {convention: source.vocabulary(convention) for convention in conventions}
    read = ahead(lambda plan: source.factors(plan, circuits, conventions), plans)
    for plan, pairs in zip(plans, read, strict=True):
        for (circuit, convention), pair in pairs.items():
            found = full_spectra(pair, vocabularies[convention], circuit)
            yield LayerCircuits(
                layer=plan.layer,
                stack=plan.stack,
                circuit=circuit,
                convention=convention,
                singular_values=found.singular_values.numpy(),
                eigenvalues=found.eigenvalues.numpy(),
                symmetric=found.symmetric.numpy(),
                antisymmetric=found.antisymmetric.numpy(),
            )


def _metadata(source: CircuitSource) -> dict[str, str]:
    """What a file says of the weights, and of how they are read."""
    ref, checkpoint, layout, tokens = source.ref, source.checkpoint, source.layout, source.tokens
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_id": checkpoint.model_id,
        "family": ref.family,
        "name": ref.name,
        "revision": checkpoint.revision,
        "control": ref.control_label,
        "architecture": layout.architecture,
        "d_model": str(tokens.d_model),
        "n_tokens": str(tokens.n_tokens),
        "tied": str(tokens.unembed is None),
        "layers": json.dumps(
            [[plan.stack, plan.layer, plan.geometry.n_heads] for plan in source.layers]
        ),
        "notes": json.dumps([*layout.notes, *tokens.notes]),
        "source": checkpoint.source,
        "tool_version": __version__,
    }
