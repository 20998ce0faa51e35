"""The study of heads through training: the path of every head's spectrum over a model's steps."""

from qk_taxonomy.studies.evolution.path import evolve
from qk_taxonomy.studies.evolution.records import Evolution, UnusualPaths
from qk_taxonomy.studies.evolution.revisions import Revisions, load_revisions
from qk_taxonomy.studies.evolution.table import heads_table, path_table

__all__ = [
    "Evolution",
    "Revisions",
    "UnusualPaths",
    "evolve",
    "heads_table",
    "load_revisions",
    "path_table",
]
