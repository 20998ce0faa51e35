"""Errors as a worker's process hands them to the survey's: nothing of them is lost."""

from __future__ import annotations

import pickle

import pytest

from qk_taxonomy import errors

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.QKTaxonomyError)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_survives_the_way_to_another_process(kind: type[Exception]) -> None:
    arguments = {
        errors.SpectrumError: ("layer 3: not finite", "q"),
        errors.PartialFailureError: ({"org/model": errors.LayoutError("unknown")},),
    }
    error = kind(*arguments.get(kind, ("wanted, found, next",)))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert vars(copy).keys() == vars(error).keys()


def test_what_errors_carry_comes_along() -> None:
    spectrum = pickle.loads(pickle.dumps(errors.SpectrumError("not finite", "k")))
    assert spectrum.role == "k"
    failures = {"org/model": errors.SpectrumError("not finite", "k")}
    partial = pickle.loads(pickle.dumps(errors.PartialFailureError(failures)))
    assert str(partial.failures["org/model"]) == "not finite"
    assert partial.failures["org/model"].role == "k"
