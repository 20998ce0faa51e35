"""The errors this package raises: one base class, a subclass for each thing that can be wrong.

Every message says what was wanted, what was found and what to do next; the layer that knows the
model, the file or the layer number adds the place with ``raise ... from err``. They cross from a
worker's process to the survey's by pickle, whole.
"""

from __future__ import annotations

from collections.abc import Mapping


class QKTaxonomyError(Exception):
    """Base class of every error raised on purpose by qk_taxonomy."""


class CatalogError(QKTaxonomyError):
    """A catalogue file is broken, or a family or model is not in the catalogue."""


class CheckpointError(QKTaxonomyError):
    """A checkpoint cannot be found, reached or read."""


class HubUnreachableError(CheckpointError):
    """The hub does not answer at all: what failed for one model fails for the next one too."""


class LayoutError(QKTaxonomyError):
    """An architecture is unknown, or tensors are not what its table row says."""


class SpectrumError(QKTaxonomyError, ArithmeticError):
    """Weights have no spectrum: they are not finite. ``role`` says which factor ("q", "k", ...)."""

    def __init__(self, message: str, role: str) -> None:
        super().__init__(message)
        self.role = role

    def __reduce__(self) -> tuple[type[SpectrumError], tuple[str, str]]:
        return type(self), (str(self), self.role)


class ShapeError(QKTaxonomyError, ValueError):
    """Arrays do not have the shapes a function is defined for."""


class SpectraFileError(QKTaxonomyError):
    """A spectra file or output folder cannot be read, trusted or written."""


class NoSuchSpectraError(SpectraFileError):
    """Spectra are sound, and of no circuit, convention or formula that is asked for."""


class BusyFileError(SpectraFileError):
    """Another process is making the file."""


class TaxonomyError(QKTaxonomyError, ValueError):
    """Heads cannot be sorted into the classes asked for, or a taxonomy file cannot be used."""


class HypothesisError(QKTaxonomyError, ValueError):
    """Heads cannot be tested or compared as asked."""


class StudyError(QKTaxonomyError, ValueError):
    """A study cannot be made as it is configured, or its training diverges."""


class PartialFailureError(QKTaxonomyError):
    """Some models failed; the others, if any, are done. ``failures`` maps model to error."""

    def __init__(self, failures: Mapping[str, Exception]) -> None:
        self.failures = dict(failures)
        listing = "\n".join(f"{model}: {error}" for model, error in self.failures.items())
        super().__init__(f"{len(self.failures)} failed; what could be done is saved.\n{listing}")

    def __reduce__(self) -> tuple[type[PartialFailureError], tuple[dict[str, Exception]]]:
        return type(self), (self.failures,)
