"""Heads through training: paths, their null, and which of them are unusual."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted import SHAPES
from planted_paths import (
    SHAPE,
    STEPS,
    drifting,
    models_of,
    revisions_of,
    untrained_steps,
    write_revisions,
)
from scipy.spatial.distance import jensenshannon
from scipy.stats import kstest
from untrained import Shape

from qk_taxonomy.cache import write_spectra
from qk_taxonomy.errors import PartialFailureError, SpectraFileError, StudyError
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.statistics.nulls import untrained_spectra
from qk_taxonomy.studies.evolution import Evolution, evolve, heads_table, load_revisions, path_table
from qk_taxonomy.studies.evolution.null import untrained_p_values
from qk_taxonomy.studies.evolution.records import settled_from, step_times
from qk_taxonomy.studies.evolution.revisions import training_step
from qk_taxonomy.studies.evolution.summary import summary
from qk_taxonomy.studies.evolution.unusual import FEWEST_HEADS, unusual_paths
from qk_taxonomy.hypotheses.heads import Untrained

_ = SHAPES


@pytest.fixture(scope="module")
def drifted() -> Evolution:
    """Heads that drift from an untrained start, of which the eighth goes its own way."""
    return evolve(revisions_of(drifting(np.random.default_rng(1), odd=(7,))))
