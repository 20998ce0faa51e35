"""The real hub, and numbers others have published: off by default (``pytest -m network``)."""

from __future__ import annotations

import numpy as np
import pytest

from qk_taxonomy import load_spectra
from qk_taxonomy.catalog import load_contrasts, load_families, model_ref, training_checkpoints
from qk_taxonomy.records import Contrast, Family
from qk_taxonomy.survey import survey_model

pytestmark = pytest.mark.network


@pytest.mark.parametrize(
    ("model", "d_head", "imaginary", "henrici", "largest"),
    [
        ("openai-community/gpt2", 64, 0.456261, 0.964639, 0.828607),
        ("EleutherAI/pythia-410m", 64, 0.269395, 0.933390, 0.376373),
    ],
)
def test_circuit_eigenvalues_published_by_qk_spectral_fingerprint(
    model: str, d_head: int, imaginary: float, henrici: float, largest: float
) -> None:
    """Head (0, 0): Σ|Im μ|/Σ|μ|, √(‖W‖² − Σ|μ|²)/‖W‖ and max |μ|, folded but without the scale."""
    result = survey_model(model_ref(model))
    assert result.bytes_read < 0.25 * result.bytes_total
    layer = load_spectra(str(result.path)).select("qk", "folded")[0]
    mu = layer.eigenvalues[0].astype(np.complex128) * d_head**0.5
    energy = (layer.singular_values[0].astype(np.float64) ** 2).sum() * d_head
    assert np.abs(mu.imag).sum() / np.abs(mu).sum() == pytest.approx(imaginary, rel=1e-4)
    departure = np.sqrt((energy - (np.abs(mu) ** 2).sum()) / energy)
    assert departure == pytest.approx(henrici, rel=1e-4)
    assert np.abs(mu).max() == pytest.approx(largest, rel=1e-4)


@pytest.mark.parametrize("family", load_families(), ids=lambda family: family.name)
def test_the_smallest_open_model_of_a_family_can_be_surveyed(family: Family) -> None:
    """Names, shapes and config of real checkpoints fit the architecture table."""
    open_models = [model for model in family.models if model.hub and not model.gated]
    for model in open_models[:1]:
        result = survey_model(model_ref(model.id), circuits=("qk", "ov"), dry_run=True)
        assert result.heads >= result.layers > 0


def test_training_checkpoints_are_revisions_of_the_hub() -> None:
    names = training_checkpoints("EleutherAI/pythia-70m")
    for revision in (names[0], names[77], names[-1]):
        ref = model_ref("EleutherAI/pythia-70m", revision=revision)
        assert survey_model(ref, dry_run=True).layers == 6


@pytest.mark.parametrize("contrast", load_contrasts(), ids=lambda contrast: contrast.name)
def test_both_sides_of_a_contrast_have_the_same_heads(contrast: Contrast) -> None:
    gated = {model.id for family in load_families() for model in family.models if model.gated}
    if {contrast.treatment, contrast.control} & gated:
        pytest.skip("one side is gated")
    treatment, control = (
        survey_model(model_ref(side), dry_run=True)
        for side in (contrast.treatment, contrast.control)
    )
    assert (treatment.layers, treatment.heads) == (control.layers, control.heads)
