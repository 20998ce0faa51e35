"""The study of full circuits over the vocabulary: what heads look for and what they write."""

from qk_taxonomy.studies.circuits.compute import full_circuits
from qk_taxonomy.studies.circuits.records import LayerCircuits, ModelCircuits, TokenEnds
from qk_taxonomy.studies.circuits.series import WordSeries, read_word_series
from qk_taxonomy.studies.circuits.store import circuits_path, load_circuits
from qk_taxonomy.studies.circuits.study import CircuitStudy, study_circuits
from qk_taxonomy.studies.circuits.table import circuit_table

__all__ = [
    "CircuitStudy",
    "LayerCircuits",
    "ModelCircuits",
    "TokenEnds",
    "WordSeries",
    "circuit_table",
    "circuits_path",
    "full_circuits",
    "load_circuits",
    "read_word_series",
    "study_circuits",
]
