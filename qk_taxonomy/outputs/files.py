"""What all outputs share: names, titles, whole files, and going on where one model fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from qk_taxonomy.cache import filed_as, lacking, load_spectra, nothing_left
from qk_taxonomy.errors import PartialFailureError, QKTaxonomyError
from qk_taxonomy.progress import FileProgress
from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Circuit, Convention, ModelSpectra

CLASS_FOLDER = "ESDs"
PLOT_FOLDER = "plots"

# Models that a caption names one by one.
_NAMED_MODELS = 6


def stem_of(name: str, circuit: Circuit, convention: Convention, stack: str = "") -> str:
    """The stem of outputs: a name alone for the QK circuit as stored of a model of one stack."""
    usual = (circuit, convention) == (CIRCUITS[0], CONVENTIONS[0])
    parts = (name, stack, "" if usual else f"{circuit}.{convention}")
    return ".".join(part for part in parts if part)


def title_of(spectra: ModelSpectra, path: Path, circuit: Circuit, convention: Convention) -> str:
    (stack,) = spectra.stacks
    which = f"{path.stem}, {stack} stack" if stack else path.stem
    return f"{which} ({spectra.family}), {numbers_of([spectra], circuit, convention)}"


def numbers_of(models: Iterable[ModelSpectra], circuit: Circuit, convention: Convention) -> str:
    """What the numbers of a figure are of, for its title."""
    imported = any(spectra.is_imported for spectra in models)
    formula = ", predecessor's formula" if imported else ""
    return f"{circuit.upper()} circuit, {convention} weights{formula}"


def source_of(models: Iterable[ModelSpectra]) -> str:
    """A sentence on what the spectra of a figure are of, for its caption."""
    named = []
    for spectra in models:
        told = spectra.metadata
        revision = f" at revision {told['revision']}" if told.get("revision") else ""
        untrained = " (untrained)" if "control" in told else ""
        named.append(f"{told['model_id']}{revision}{untrained}")
    distinct = list(dict.fromkeys(named))
    if len(distinct) > _NAMED_MODELS:
        return f"Spectra of {len(distinct)} models."
    return f"Spectra of {'; '.join(distinct)}."


def load_stacks(path: Path, circuit: Circuit, convention: Convention) -> list[ModelSpectra]:
    """A file's spectra of one circuit and convention, stack by stack.

    Raises NoSuchSpectraError if there are none.
    """
    spectra = load_spectra(path)
    if (error := lacking(path, spectra, [circuit], [convention])) is not None:
        raise error
    return [
        replace(spectra, layers=layers)
        for stack in spectra.stacks
        if (layers := spectra.select(circuit, convention, stack))
    ]


def load_models(
    paths: Sequence[Path],
    circuit: Circuit,
    convention: Convention,
    watch: Callable[[Path], None] = lambda path: None,
) -> tuple[list[Path], list[ModelSpectra], dict[str, Exception]]:
    """The models that have spectra of a circuit and convention, with their paths; failures.

    ``watch``: called with each path before it is read. Raises where there is none.
    """
    found: list[Path] = []
    models: list[ModelSpectra] = []
    failures: dict[str, Exception] = {}
    for path in paths:
        watch(path)
        try:
            stacks = load_stacks(path, circuit, convention)
        except QKTaxonomyError as err:
            failures[filed_as(path)] = err
            continue
        layers = tuple(layer for stack in stacks for layer in stack.layers)
        found.append(path)
        models.append(replace(stacks[0], layers=layers))
    if not models:
        raise nothing_left(failures)
    return found, models, failures


def for_each_file(
    paths: Sequence[Path], make: Callable[[Path], Iterator[Path]], progress: FileProgress | None
) -> list[Path]:
    """Make the figures of every file; one that fails is reported when all others are done."""
    figures: list[Path] = []
    failures: dict[str, Exception] = {}
    for index, path in enumerate(paths, start=1):
        try:
            for figure in make(path):
                figures.append(figure)
                if progress is not None:
                    progress(index, len(paths), figure)
        except QKTaxonomyError as err:
            failures[filed_as(path)] = err
    if failures:
        raise PartialFailureError(failures) if figures else nothing_left(failures)
    return figures
