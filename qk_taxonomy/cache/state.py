"""Whether a spectra file has what is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from qk_taxonomy.cache.files import load_spectra, stack_table
from qk_taxonomy.errors import SpectraFileError
from qk_taxonomy.records import Circuit, Convention, ModelSpectra
from qk_taxonomy.statistics.moments import STATISTICS

CacheState = Literal["missing", "stale", "incomplete", "whole"]


def cache_state(
    path: Path,
    model_id: str,
    circuits: Iterable[Circuit],
    conventions: Iterable[Convention],
    *,
    revision: str | None = None,
    architecture: str | None = None,
    control: str = "",
) -> CacheState:
    """Whether a file has what is asked for: ``missing``, ``stale`` (damaged or of an older
    format), ``incomplete`` (lacks a circuit or convention) or ``whole``.

    ``control``: the label of the control whose spectra are asked for. Raises SpectraFileError where
    the file holds another model or control or imported spectra, or where ``revision`` or
    ``architecture`` are given and it holds another of them.
    """
    if not path.exists():
        return "missing"
    try:
        spectra = load_spectra(path)
    except SpectraFileError:
        return "stale"
    if spectra.is_imported:
        raise SpectraFileError(
            f"{path} holds imported spectra ({spectra.metadata['source']}), whose formula is not "
            f"that of W_QK; a survey of {model_id} would take its place. Keep both with another "
            "--family-name, or replace the file with --force."
        )
    identity = {
        "model_id": model_id,
        "revision": revision,
        "architecture": architecture,
        "control": control,
    }
    for key, wanted in identity.items():
        found = spectra.metadata.get(key, "")
        if wanted is not None and found != wanted:
            raise SpectraFileError(
                f"{path} holds the spectra of {spectra.model_id} ({key} {found}); those of "
                f"{model_id} ({key} {wanted}) would take its place. Keep both with another "
                "--family-name, or replace the file with --force."
            )
    if spectra.metadata["statistics"] != ",".join(STATISTICS):
        return "stale"
    present = contents(spectra)
    pairs = {(circuit, convention) for circuit in circuits for convention in conventions}
    n_layers = sum(stack["n_layers"] for stack in stack_table(spectra.metadata).values())
    whole = all(len(spectra.select(*pair)) == n_layers for pair in pairs & present)
    return "whole" if whole and pairs <= present else "incomplete"


def contents(spectra: ModelSpectra) -> set[tuple[Circuit, Convention]]:
    """The (circuit, convention) pairs that a spectra file has."""
    return {(layer.circuit, layer.convention) for layer in spectra.layers}
