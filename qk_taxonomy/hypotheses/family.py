"""Differences between families, and between groups of models whose heads have no match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from qk_taxonomy.errors import HypothesisError
from qk_taxonomy.hypotheses.contrast import check_comparable
from qk_taxonomy.hypotheses.heads import Array, HeadSet, common_statistics
from qk_taxonomy.hypotheses.table import corrected, finding_rows
from qk_taxonomy.records import N_BINS, N_CLUSTERS
from qk_taxonomy.statistics.groups import GroupComparison, composition_test, kruskal_dunn
from qk_taxonomy.statistics.moments import with_logs
from qk_taxonomy.statistics.profiles import depth_profile
from qk_taxonomy.statistics.unmatched import unmatched_contrast
from qk_taxonomy.taxonomy import sort_into_classes, space_of
from qk_taxonomy.taxonomy.pool import pool_models

COMPOSITION, PROFILE, PAIRS = "families: classes", "families: by depth", "families: pairs"
UNMATCHED = "contrast: unmatched models"


@dataclass(frozen=True, eq=False)
class FamilyResult:
    """Families compared: ``compositions`` (models, classes), the shares of each model's heads;
    ``comparisons`` by statistic; and all rows.
    """

    models: tuple[HeadSet, ...]
    compositions: Array
    comparisons: dict[str, GroupComparison]
    rows: pd.DataFrame

    @property
    def families(self) -> list[str]:
        """The family of each model."""
        return [heads.family for heads in self.models]


def compare_families(
    models: Sequence[HeadSet],
    *,
    n_clusters: int = N_CLUSTERS,
    seed: int = 0,
    include_imported: bool = False,
) -> FamilyResult:
    """Do families differ: in their heads' classes, and in each statistic by depth?

    The model is the unit. Classes are those of all the models' heads together. q-values are over
    all statistics, and for pairs of families over all statistics and pairs. Raises HypothesisError
    where models cannot be compared.
    """
    check_comparable(models, include_imported=include_imported)
    families = [heads.family for heads in models]
    shared = {
        "stack": models[0].stack,
        "circuit": models[0].circuit,
        "convention": models[0].convention,
    }
    compositions = _compositions(models, n_clusters, seed)
    classes = composition_test(compositions, families, seed=seed)
    rows = [
        finding_rows(
            {**shared, "hypothesis": COMPOSITION}, [({"statistic": "class composition"}, classes)]
        )
    ]
    comparisons = {}
    for name in common_statistics(models):
        profiles = [depth_profile(m.statistics[name].to_numpy(), m.depth) for m in models]
        comparisons[name] = kruskal_dunn(np.stack(profiles), families, seed=seed)
    overall = [({"statistic": name}, found.overall) for name, found in comparisons.items()]
    rows.append(finding_rows({**shared, "hypothesis": PROFILE}, overall))
    pairs = [
        ({"statistic": name, "family": one, "against": two}, finding)
        for name, found in comparisons.items()
        for (one, two), finding in found.pairs.items()
    ]
    rows.append(finding_rows({**shared, "hypothesis": PAIRS}, pairs))
    table = corrected(pd.concat(rows, ignore_index=True), ["hypothesis"])
    return FamilyResult(tuple(models), compositions, comparisons, table)


def _compositions(models: Sequence[HeadSet], n_clusters: int, seed: int) -> Array:
    """Shares (models, classes) of each model's heads in the classes of all heads together.

    Fewer classes than ``n_clusters`` where there are fewer different heads.
    """
    spectra = [replace(heads.spectra, layers=heads.layers) for heads in models]
    pool = pool_models(spectra, models[0].circuit, models[0].convention, include_imported=True)
    space = space_of(pool.histograms(pool.edges(N_BINS)), "euclidean")
    n_clusters = min(n_clusters, space.n_distinct)
    labels = sort_into_classes(space, n_clusters, seed=seed).labels
    counts = np.zeros((len(models), n_clusters))
    np.add.at(counts, (pool.models, labels), 1)
    return counts / counts.sum(-1, keepdims=True)


def unmatched_rows(
    treatments: Sequence[HeadSet],
    controls: Sequence[HeadSet],
    *,
    seed: int = 0,
    include_imported: bool = False,
) -> pd.DataFrame:
    """Two groups of models of any shapes, treated and not: two tests a statistic, model as unit.

    Differences are of logarithms for ``LOG_STATISTICS``. q-values are over the statistics, for
    each test. Raises HypothesisError where models cannot be compared, or one is named twice.
    """
    models = [*treatments, *controls]
    files = [heads.file for heads in models]
    twice = sorted({file for file in files if files.count(file) > 1})
    if twice:
        raise HypothesisError(
            f"{', '.join(twice)} is named more than once; every model counts as one unit, on one "
            "side. Name each once."
        )
    check_comparable(models, include_imported=include_imported)
    sizes = [len(heads.table) for heads in models]
    number = np.repeat(np.arange(len(models)), sizes)
    treated = number < len(treatments)
    depths = np.concatenate([heads.depth for heads in models])
    findings = []
    names = common_statistics(models)
    table = with_logs(np.concatenate([heads.statistics[names] for heads in models]), names)
    for name, values in zip(names, table.T, strict=True):
        found = unmatched_contrast(values, number.tolist(), treated, depths, seed=seed)
        findings += [({"statistic": name}, finding) for finding in (found.mixed, found.medians)]
    shared = {
        "model": " + ".join(heads.file for heads in treatments),
        "against": " + ".join(heads.file for heads in controls),
        "stack": models[0].stack,
        "circuit": models[0].circuit,
        "convention": models[0].convention,
        "hypothesis": UNMATCHED,
    }
    return corrected(finding_rows(shared, findings), ["method"])
