"""What outputs of one model's taxonomy and of a joint one share: the work, tables, sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from qk_taxonomy.cache import remove_file, write_file
from qk_taxonomy.records import ModelSpectra
from qk_taxonomy.tables import csv_bytes
from qk_taxonomy.taxonomy import (
    Agreement,
    ClusterChoice,
    ClusterQuality,
    SavedTaxonomy,
    Taxonomy,
    choose_n_clusters,
    class_agreement,
    cluster_quality,
    joint_taxonomy,
    taxonomy_bytes,
)
from qk_taxonomy.wording import counted

#: Number of classes, or "auto": the choice of :func:`choose_n_clusters`.
NClusters = int | Literal["auto"]


@dataclass(frozen=True, eq=False)
class SortedHeads:
    """A taxonomy and the quality of its number of classes.

    ``choice`` is None where the number of classes was given.
    """

    taxonomy: Taxonomy
    quality: ClusterQuality
    choice: ClusterChoice | None


@dataclass(frozen=True, eq=False)
class Classified(SortedHeads):
    """... and how far it depends on other choices."""

    agreement: tuple[Agreement, ...]


def classify(models: Sequence[ModelSpectra], n_clusters: NClusters, **how: Any) -> Classified:
    """The joint taxonomy of models, with all that is reported of it. Raises TaxonomyError.

    how: as :func:`sort_models` takes it.
    """
    found = sort_models(models, n_clusters, **how)
    agreement = class_agreement(found.taxonomy)
    return Classified(found.taxonomy, found.quality, found.choice, agreement)


def sort_models(models: Sequence[ModelSpectra], n_clusters: NClusters, **how: Any) -> SortedHeads:
    """The joint taxonomy of models, and the quality of its classes. Raises TaxonomyError.

    how: what :func:`joint_taxonomy` and :func:`choose_n_clusters` both take.
    """
    choice = None
    if n_clusters == "auto":
        choice = choose_n_clusters(models, **how)
        n_clusters = choice.chosen.n_clusters
    taxonomy = joint_taxonomy(models, n_clusters=n_clusters, **how)
    seed = taxonomy.saved.seed
    quality = (
        choice.chosen if choice else cluster_quality(taxonomy.space, taxonomy.labels, seed=seed)
    )
    return SortedHeads(taxonomy, quality, choice)


def head_rows(taxonomy: Taxonomy) -> pd.DataFrame:
    """One row a head."""
    return pd.DataFrame(
        {
            "layer": taxonomy.layers,
            "head": taxonomy.heads,
            "class": taxonomy.labels,
            "umap_x": taxonomy.map[:, 0],
            "umap_y": taxonomy.map[:, 1],
        }
    )


def joint_rows(taxonomy: Taxonomy, paths: Sequence[Path]) -> pd.DataFrame:
    """One row a head, with its model; ``paths``: those of the models handed to the taxonomy."""
    rows = head_rows(taxonomy)
    rows.insert(0, "family", [paths[model].parent.name for model in taxonomy.models])
    rows.insert(1, "model", [paths[model].stem for model in taxonomy.models])
    rows.insert(2, "stack", taxonomy.stacks)
    return rows


def _class_rows(taxonomy: Taxonomy) -> pd.DataFrame:
    classes = pd.DataFrame(
        [
            {"class": c.number, "heads": c.n_heads, **asdict(c.gamma), "share_beyond": c.beyond}
            for c in taxonomy.classes
        ]
    )
    return classes.rename(columns={"divergence": "jsd_nats"})


def _choice_rows(choice: ClusterChoice) -> pd.DataFrame:
    """One row a number of classes."""
    table = pd.DataFrame([asdict(quality) for quality in choice.table])
    table["chosen"] = table["n_clusters"] == choice.chosen.n_clusters
    return table.rename(columns={"n_clusters": "clusters"})


def write_tables(base: Path, classified: Classified, heads: pd.DataFrame) -> list[Path]:
    """Write ``base``.csv (``heads``), .classes.csv, .agreement.csv, .taxonomy.safetensors, and
    .choice.csv where the number of classes was chosen; their paths. Raises SpectraFileError.
    """
    tables = {
        "": heads,
        ".classes": _class_rows(classified.taxonomy),
        ".agreement": pd.DataFrame([asdict(run) for run in classified.agreement]),
    }
    if classified.choice is not None:
        tables[".choice"] = _choice_rows(classified.choice)
    else:  # that of an earlier run is not of these classes
        remove_file(base.with_name(f"{base.name}.choice.csv"))
    written = [
        write_file(base.with_name(f"{base.name}{suffix}.csv"), csv_bytes(table))
        for suffix, table in tables.items()
    ]
    file = base.with_name(f"{base.name}.taxonomy.safetensors")
    return [*written, save_taxonomy(file, classified.taxonomy.saved)]


def save_taxonomy(path: str | Path, taxonomy: SavedTaxonomy) -> Path:
    """Write a taxonomy file, beside its name first. Raises SpectraFileError."""
    return write_file(Path(path), taxonomy_bytes(taxonomy))


def summary(name: str, classified: Classified) -> str:
    """What there is to say of a taxonomy: the table of choices, if any, and one line."""
    quality = classified.quality
    k = quality.n_clusters
    line = (
        f"{name}: {counted(k, 'class', 'classes')}, {quality_of(quality)}; "
        f"{_lowest(classified.agreement)}"
    )
    if classified.choice is None:
        return line
    header = f"{'classes':>9}  {'stability':>15}  silhouette"
    return "\n".join([line, header, *map(_choice_line, classified.choice.table)])


def quality_of(quality: ClusterQuality) -> str:
    """Stability and silhouette in words."""
    return (
        f"stability {quality.stability:.2f} ± {quality.standard_error:.2f}, "
        f"silhouette {_number(quality.silhouette)}"
    )


def _choice_line(quality: ClusterQuality) -> str:
    stability = f"{quality.stability:.2f} ± {quality.standard_error:.2f}"
    return f"{quality.n_clusters:>9}  {stability:>15}  {_number(quality.silhouette):>10}"


def _lowest(agreement: Sequence[Agreement]) -> str:
    known = [run for run in agreement if np.isfinite(run.ari)]
    if not known:
        return "no other run to compare with"
    run = min(known, key=lambda run: run.ari)
    which = {
        "seed": f"seed {run.value}",
        "bins": f"{run.value} bins",
        "distance": f"the {run.value} distance",
    }
    return f"agreement with other runs at the lowest {run.ari:.2f} ({which[run.varied]})"


def _number(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "not defined"
