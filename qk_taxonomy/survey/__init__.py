"""The survey: stream a model's attention tensors, compute the spectra of its heads, keep them.

``survey_model`` plans a :class:`~qk_taxonomy.survey.job.Job` from names and shapes; its layers are
cut into parts that an executor's workers read and compute; finished layers are kept at once.
"""

from qk_taxonomy.survey.layers import resolve_device
from qk_taxonomy.survey.models import generate_family_spectra, survey, survey_model

__all__ = [
    "generate_family_spectra",
    "resolve_device",
    "survey",
    "survey_model",
]
