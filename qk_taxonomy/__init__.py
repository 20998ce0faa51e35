"""Survey and taxonomy of attention heads from weights.

The names below are loaded on first use: importing the package loads neither torch nor pandas.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

__version__ = version("qk-taxonomy")
"""The version that is installed."""

__docformat__ = "restructuredtext"

_HOMES = {
    "generate_family_spectra": "survey",
    "dask_executor": "survey.cluster",
    "generate_cluster_figures": "outputs.classes",
    "generate_joint_taxonomy": "outputs.joint",
    "generate_assignments": "outputs.assigned",
    "generate_report": "outputs.report",
    "generate_notebook": "outputs.notebook",
    "generate_stat_boxplots": "outputs.boxes",
    "get_model_names": "catalog",
    "list_families": "catalog",
    "load_contrasts": "catalog",
    "training_checkpoints": "catalog",
    "Contrast": "records",
    "FigureFiles": "records",
    "get_stats": "statistics.moments",
    "Stats": "statistics.moments",
    "jensen_shannon_divergence": "statistics.densities",
    "robust_lowrank_singular_values": "circuits.spectra",
    "singular_values": "circuits.spectra",
    "circuit_eigenvalues": "circuits.spectra",
    "correlation_eigenvalues": "circuits.spectra",
    "load_spectra": "cache",
    "import_predecessor": "predecessor",
    "open_checkpoint": "checkpoints",
    "head_table": "tables",
    "classify_heads": "taxonomy",
    "run_hypotheses": "hypotheses.run",
    "compare_models": "hypotheses.run",
    "generate_hypothesis_tests": "outputs.hypotheses",
    "diff_models": "studies.differences.study",
    "family_sizes": "studies.sizes",
    "evolve": "studies.evolution",
    "load_revisions": "studies.evolution",
    "write_evolution": "outputs.evolution",
    "untrained_spectra": "statistics.nulls",
    "untrained_edges": "statistics.nulls",
    "untrained_density": "statistics.nulls",
    "joint_taxonomy": "taxonomy",
    "choose_n_clusters": "taxonomy",
    "class_agreement": "taxonomy",
    "assign_heads": "taxonomy",
    "load_taxonomy": "taxonomy",
    "save_taxonomy": "outputs.taxonomies",
    "LayerSpectra": "records",
    "ModelSpectra": "records",
    "Checkpoint": "checkpoints.base",
    "Agreement": "taxonomy",
    "Assignment": "taxonomy",
    "ClusterChoice": "taxonomy",
    "HeadClass": "taxonomy",
    "SavedTaxonomy": "taxonomy",
    "Taxonomy": "taxonomy",
    "Outcome": "hypotheses.run",
    "ModelDifference": "studies.differences.records",
    "FamilySizes": "studies.sizes",
    "Evolution": "studies.evolution.records",
    "LoadedRevisions": "studies.evolution.revisions",
    "QKTaxonomyError": "errors",
    "BusyFileError": "errors",
    "NoSuchSpectraError": "errors",
    "CatalogError": "errors",
    "CheckpointError": "errors",
    "HubUnreachableError": "errors",
    "HypothesisError": "errors",
    "LayoutError": "errors",
    "PartialFailureError": "errors",
    "ShapeError": "errors",
    "SpectraFileError": "errors",
    "SpectrumError": "errors",
    "StudyError": "errors",
    "TaxonomyError": "errors",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from qk_taxonomy.cache import load_spectra as load_spectra
    from qk_taxonomy.catalog import get_model_names as get_model_names
    from qk_taxonomy.catalog import list_families as list_families
    from qk_taxonomy.catalog import load_contrasts as load_contrasts
    from qk_taxonomy.catalog import training_checkpoints as training_checkpoints
    from qk_taxonomy.checkpoints import open_checkpoint as open_checkpoint
    from qk_taxonomy.checkpoints.base import Checkpoint as Checkpoint
    from qk_taxonomy.circuits.spectra import circuit_eigenvalues as circuit_eigenvalues
    from qk_taxonomy.circuits.spectra import correlation_eigenvalues as correlation_eigenvalues
    from qk_taxonomy.circuits.spectra import (
        robust_lowrank_singular_values as robust_lowrank_singular_values,
    )
    from qk_taxonomy.circuits.spectra import singular_values as singular_values
    from qk_taxonomy.errors import BusyFileError as BusyFileError
    from qk_taxonomy.errors import CatalogError as CatalogError
    from qk_taxonomy.errors import CheckpointError as CheckpointError
    from qk_taxonomy.errors import HubUnreachableError as HubUnreachableError
    from qk_taxonomy.errors import HypothesisError as HypothesisError
    from qk_taxonomy.errors import LayoutError as LayoutError
    from qk_taxonomy.errors import NoSuchSpectraError as NoSuchSpectraError
    from qk_taxonomy.errors import PartialFailureError as PartialFailureError
    from qk_taxonomy.errors import QKTaxonomyError as QKTaxonomyError
    from qk_taxonomy.errors import ShapeError as ShapeError
    from qk_taxonomy.errors import SpectraFileError as SpectraFileError
    from qk_taxonomy.errors import SpectrumError as SpectrumError
    from qk_taxonomy.errors import StudyError as StudyError
    from qk_taxonomy.errors import TaxonomyError as TaxonomyError
    from qk_taxonomy.hypotheses.run import Outcome as Outcome
    from qk_taxonomy.hypotheses.run import compare_models as compare_models
    from qk_taxonomy.hypotheses.run import run_hypotheses as run_hypotheses
    from qk_taxonomy.outputs.assigned import generate_assignments as generate_assignments
    from qk_taxonomy.outputs.boxes import generate_stat_boxplots as generate_stat_boxplots
    from qk_taxonomy.outputs.classes import generate_cluster_figures as generate_cluster_figures
    from qk_taxonomy.outputs.evolution import write_evolution as write_evolution
    from qk_taxonomy.outputs.hypotheses import (
        generate_hypothesis_tests as generate_hypothesis_tests,
    )
    from qk_taxonomy.outputs.joint import generate_joint_taxonomy as generate_joint_taxonomy
    from qk_taxonomy.outputs.notebook import generate_notebook as generate_notebook
    from qk_taxonomy.outputs.report import generate_report as generate_report
    from qk_taxonomy.outputs.taxonomies import save_taxonomy as save_taxonomy
    from qk_taxonomy.predecessor import import_predecessor as import_predecessor
    from qk_taxonomy.records import Contrast as Contrast
    from qk_taxonomy.records import FigureFiles as FigureFiles
    from qk_taxonomy.records import LayerSpectra as LayerSpectra
    from qk_taxonomy.records import ModelSpectra as ModelSpectra
    from qk_taxonomy.statistics.densities import (
        jensen_shannon_divergence as jensen_shannon_divergence,
    )
    from qk_taxonomy.statistics.moments import Stats as Stats
    from qk_taxonomy.statistics.moments import get_stats as get_stats
    from qk_taxonomy.statistics.nulls import untrained_density as untrained_density
    from qk_taxonomy.statistics.nulls import untrained_edges as untrained_edges
    from qk_taxonomy.statistics.nulls import untrained_spectra as untrained_spectra
    from qk_taxonomy.studies.differences.records import ModelDifference as ModelDifference
    from qk_taxonomy.studies.differences.study import diff_models as diff_models
    from qk_taxonomy.studies.evolution import evolve as evolve
    from qk_taxonomy.studies.evolution import load_revisions as load_revisions
    from qk_taxonomy.studies.evolution.records import Evolution as Evolution
    from qk_taxonomy.studies.evolution.revisions import LoadedRevisions as LoadedRevisions
    from qk_taxonomy.studies.sizes import FamilySizes as FamilySizes
    from qk_taxonomy.studies.sizes import family_sizes as family_sizes
    from qk_taxonomy.survey import generate_family_spectra as generate_family_spectra
    from qk_taxonomy.survey.cluster import dask_executor as dask_executor
    from qk_taxonomy.tables import head_table as head_table
    from qk_taxonomy.taxonomy import Agreement as Agreement
    from qk_taxonomy.taxonomy import Assignment as Assignment
    from qk_taxonomy.taxonomy import ClusterChoice as ClusterChoice
    from qk_taxonomy.taxonomy import HeadClass as HeadClass
    from qk_taxonomy.taxonomy import SavedTaxonomy as SavedTaxonomy
    from qk_taxonomy.taxonomy import Taxonomy as Taxonomy
    from qk_taxonomy.taxonomy import assign_heads as assign_heads
    from qk_taxonomy.taxonomy import choose_n_clusters as choose_n_clusters
    from qk_taxonomy.taxonomy import class_agreement as class_agreement
    from qk_taxonomy.taxonomy import classify_heads as classify_heads
    from qk_taxonomy.taxonomy import joint_taxonomy as joint_taxonomy
    from qk_taxonomy.taxonomy import load_taxonomy as load_taxonomy


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # once; and pdoc looks nowhere else
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
