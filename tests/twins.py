"""Surveys of controls, for the tests of both kinds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from qk_taxonomy import load_spectra
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.records import Control, ModelResult, ModelSpectra
from qk_taxonomy.survey import survey_model

RANDOM = Control("random")
ONE_LAYER = Control("one-layer")


def survey_control(path: Path, control: Control | None, **options: Any) -> ModelResult:
    """Survey a folder or file, or a control of it."""
    ref = model_ref(str(path), family_name="tiny", families=())
    return survey_model(dataclasses.replace(ref, control=control), **options)


def spectra_of(result: ModelResult) -> ModelSpectra:
    return load_spectra(str(result.path))
