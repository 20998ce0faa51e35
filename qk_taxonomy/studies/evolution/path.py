"""The path of every head through training."""

from __future__ import annotations

import numpy as np

from qk_taxonomy.hypotheses.contrast import check_comparable
from qk_taxonomy.hypotheses.heads import untrained_like
from qk_taxonomy.records import N_BINS, N_CLUSTERS
from qk_taxonomy.statistics.densities import jensen_shannon_divergence
from qk_taxonomy.statistics.findings import join_notes
from qk_taxonomy.statistics.moments import effective_rank_lambda
from qk_taxonomy.studies.evolution.classes import classes_of_steps
from qk_taxonomy.studies.evolution.null import outliers, untrained_null, untrained_p_values
from qk_taxonomy.studies.evolution.records import Evolution, step_times
from qk_taxonomy.studies.evolution.revisions import Revisions
from qk_taxonomy.studies.evolution.unusual import path_features, unusual_paths


def evolve(
    revisions: Revisions, *, n_clusters: int = N_CLUSTERS, n_bins: int = N_BINS, seed: int = 0
) -> Evolution:
    """Follow every head of a model through training.

    revisions: of :func:`load_revisions`, at least two, of one shape. All steps share one taxonomy
    of ``n_clusters`` classes, on ``n_bins`` bins; ``seed`` is that of the classes, and of the paths
    that others are measured against. Raises HypothesisError where spectra are by different
    formulas, TaxonomyError where there is nothing to classify.
    """
    sets = revisions.sets
    check_comparable(sets)
    steps = np.array([np.nan if step is None else step for step in revisions.steps], np.float64)
    lam = np.stack([one.lam for one in sets])
    untrained = untrained_like(sets[0], revisions.twins)
    found = classes_of_steps(sets, n_clusters=n_clusters, n_bins=n_bins, seed=seed)
    histograms = found.histograms
    travelled = jensen_shannon_divergence(histograms[1:], histograms[:-1])
    effective_rank, largest = effective_rank_lambda(lam), lam.max(-1)
    features = path_features(step_times(steps), travelled, effective_rank, largest, found.labels)
    unusual = unusual_paths(features, seed=seed)
    unknown = ""
    if np.isnan(steps[-1]):
        unknown = (
            f"{revisions.names[-1]} has no known step: on the axis of time it follows the step "
            "before by the mean gap of the others, which is invented"
        )
    notes = join_notes(untrained.reason, unusual.note, unknown)
    return Evolution(
        sets=sets,
        names=revisions.names,
        steps=steps,
        heads=sets[0].table[["stack", "layer", "head", "kv_head"]],
        effective_rank=effective_rank,
        largest=largest,
        n_outliers=outliers(lam, untrained),
        p_untrained=untrained_p_values(lam, untrained),
        labels=found.labels,
        classes=found.classes,
        edges=found.edges,
        histograms=histograms,
        travelled=travelled,
        from_start=jensen_shannon_divergence(
            histograms, np.broadcast_to(histograms[:1], histograms.shape)
        ),
        null=untrained_null(untrained, found.edges),
        unusual=unusual,
        notes=(notes,) if notes else (),
    )
