"""What sound spectra files do not have of what is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path

from qk_taxonomy.cache.state import contents
from qk_taxonomy.errors import NoSuchSpectraError, PartialFailureError, QKTaxonomyError
from qk_taxonomy.records import Circuit, Convention, ModelSpectra


def lacking(
    path: Path,
    spectra: ModelSpectra,
    circuits: Iterable[Circuit] | None = None,
    conventions: Iterable[Convention] | None = None,
) -> NoSuchSpectraError | None:
    """What tells that a file has not all of these circuits in all of these conventions (None: in
    any); None where it has.
    """
    present = sorted(contents(spectra), reverse=True)
    asked = product(circuits or (None,), conventions or (None,))
    absent = [
        (circuit, convention)
        for circuit, convention in asked
        if not any(circuit in (None, own) and convention in (None, way) for own, way in present)
    ]
    if not absent:
        return None
    named = " or ".join(" ".join(filter(None, pair)) for pair in absent)
    options = [f"--circuit {one}" for one in dict.fromkeys(pair[0] for pair in absent) if one]
    options += [f"--convention {one}" for one in dict.fromkeys(pair[1] for pair in absent) if one]
    return NoSuchSpectraError(
        f"{path} has no {named} spectra, but {' and '.join(map(' '.join, present)) or 'none'}; add "
        f"them by giving the command that made it (`qk-taxonomy download ...`) {' '.join(options)}."
    )


def nothing_left(failures: Mapping[str, Exception]) -> QKTaxonomyError:
    """What to raise where no file can be used: one error where none has what is asked for."""
    (name, first), *others = failures.items()
    if not all(isinstance(error, NoSuchSpectraError) for error in failures.values()):
        return PartialFailureError(failures)
    if not others:
        return NoSuchSpectraError(str(first))
    return NoSuchSpectraError(
        f"None of {len(failures)} spectra files has what is asked for; the first, {name}: {first}"
    )
