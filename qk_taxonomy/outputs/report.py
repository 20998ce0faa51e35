"""The page that shows a whole survey, made from what is on disk."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd

from qk_taxonomy.cache import filed_as, find_spectra, of_each_model, stack_table, write_file
from qk_taxonomy.errors import PartialFailureError
from qk_taxonomy.outputs.files import PLOT_FOLDER, load_models, stem_of
from qk_taxonomy.outputs.findings import read_findings
from qk_taxonomy.outputs.taxonomies import (
    NClusters,
    SortedHeads,
    joint_rows,
    quality_of,
    sort_models,
)
from qk_taxonomy.progress import Report, StepProgress
from qk_taxonomy.records import (
    CIRCUITS,
    CONVENTIONS,
    N_BINS,
    N_CLUSTERS,
    Circuit,
    Convention,
    Distance,
    FileStem,
    ModelSpectra,
)
from qk_taxonomy.report import Atlas
from qk_taxonomy.tables import spectra_rows
from qk_taxonomy.taxonomy import chosen_models
from qk_taxonomy.wording import counted

_PUBLIC_HUB = "huggingface.co"

_KEY = ["family", "model", "stack", "layer", "head"]

# Up to this many families the title names them.
_NAMED_FAMILIES = 3

_PACKAGES = ("numpy", "scikit-learn", "umap-learn", "plotly")


@dataclass(frozen=True)
class Choices:
    """What a page is made with: the defaults of :func:`generate_report` and of its command.

    Each field's ``option`` is that of ``qk-taxonomy report``.
    """

    n_clusters: NClusters = field(default=N_CLUSTERS, metadata={"option": "--clusters"})
    n_bins: int = field(default=N_BINS, metadata={"option": "--bins"})
    distance: Distance = field(default="euclidean", metadata={"option": "--distance"})
    seed: int = field(default=0, metadata={"option": "--seed"})
    circuit: Circuit = field(default=CIRCUITS[0], metadata={"option": "--circuit"})
    convention: Convention = field(default=CONVENTIONS[0], metadata={"option": "--convention"})
    include_imported: bool = field(default=False, metadata={"option": "--include-imported"})
    revisions: bool = field(default=False, metadata={"option": "--revisions"})

    @property
    def options(self) -> list[str]:
        """As words of a command line; what is as it is by default is not named."""
        words = []
        for choice in fields(self):
            value, option = getattr(self, choice.name), choice.metadata["option"]
            if value != choice.default:
                words += [option] if value is True else [option, str(value)]
        return words


DEFAULTS = Choices()


def generate_report(
    data_root: str | Path = ".",
    families: str | Iterable[str] | None = None,
    *,
    n_clusters: NClusters = DEFAULTS.n_clusters,
    n_bins: int = DEFAULTS.n_bins,
    circuit: Circuit = DEFAULTS.circuit,
    convention: Convention = DEFAULTS.convention,
    seed: int = DEFAULTS.seed,
    distance: Distance = DEFAULTS.distance,
    include_imported: bool = DEFAULTS.include_imported,
    revisions: bool = DEFAULTS.revisions,
    report: Report | None = None,
    progress: StepProgress | None = None,
) -> list[Path]:
    """Write the page that shows all surveyed heads, of some families or (None) of all; its path.

    One file, ``<data_root>/plots/report.html``, which needs no network; the name is extended by
    circuit and convention where they are not ``qk`` and ``raw``. The same spectra and tests give
    the same page. What it shows, and what is left out: :func:`load_atlas`. report: called with a
    line on the page and each of its notes, but those that an error tells. Raises as ``load_atlas``
    does, and, when the page is there, PartialFailureError where models could not be read or have no
    such spectra.
    """
    from qk_taxonomy.report.page import atlas_page

    watch = progress or _unwatched
    choices = Choices(
        n_clusters=n_clusters,
        n_bins=n_bins,
        distance=distance,
        seed=seed,
        circuit=circuit,
        convention=convention,
        include_imported=include_imported,
        revisions=revisions,
    )
    atlas, failures = load_atlas(data_root, families, choices, progress=progress)
    watch("page", 0, 1)
    path = Path(data_root) / PLOT_FOLDER / f"{stem_of('report', circuit, convention)}.html"
    page = atlas_page(atlas).encode()
    write_file(path, page)
    if report is not None:
        report(
            f"{path}: {len(page) / 1e6:.1f} MB, {len(atlas.heads):,} heads of "
            f"{counted(len(atlas.models), 'model')}"
        )
        for note in atlas.notes:
            if note not in _not_shown(failures):  # the error that is raised tells of these
                report(note)
    if failures:
        raise PartialFailureError(failures)
    return [path]


def load_atlas(
    data_root: str | Path = ".",
    families: str | Iterable[str] | None = None,
    choices: Choices = DEFAULTS,
    *,
    progress: StepProgress | None = None,
) -> tuple[Atlas, dict[str, Exception]]:
    """What a page shows of the spectra under ``<data_root>/data``; and, by name, what failed.

    Classes and map are those of one :func:`~qk_taxonomy.taxonomy.joint_taxonomy` of all these
    heads; tests come from the files that ``generate_hypothesis_tests`` wrote, of the models that
    are shown. Controls are left out, and imported spectra where there are exact ones and not
    ``include_imported``. Of a model with several revisions the last counts (the file of no named
    revision, else main, else the last training step), since heads of one training are much alike
    and would outnumber those of other models; ``revisions``: all count. Notes of the atlas say
    what is left out. Raises SpectraFileError where there are no spectra, PartialFailureError where
    none can be read, TaxonomyError.
    """
    watch = progress or _unwatched
    found = find_spectra(data_root, families)
    n_controls = len(find_spectra(data_root, families, controls=True)) - len(found)
    groups = of_each_model(found)
    kept = found if choices.revisions else [group[-1] for group in groups]
    reading = iter(range(len(kept)))
    paths, models, failures = load_models(
        kept,
        choices.circuit,
        choices.convention,
        lambda path: watch(path.stem, next(reading), len(kept) + 1),
    )
    pooled = chosen_models(models, include_imported=choices.include_imported)
    names = [filed_as(paths[i]) for i in pooled]
    n_heads = sum(len(layer.statistics) for i in pooled for layer in models[i].layers)
    watch(f"classes and map of {n_heads:,} heads", len(kept), len(kept) + 1)
    heads = sort_models(
        models,
        choices.n_clusters,
        circuit=choices.circuit,
        convention=choices.convention,
        n_bins=choices.n_bins,
        seed=choices.seed,
        distance=choices.distance,
        include_imported=choices.include_imported,
    )
    taxonomy = heads.taxonomy
    findings = read_findings(data_root, names, choices.circuit, choices.convention)
    shown = [] if choices.revisions else groups
    notes = _left_out(n_controls, shown, len(models) - len(pooled))
    atlas = Atlas(
        title=_title([paths[i].parent.name for i in pooled]),
        circuit=choices.circuit,
        convention=choices.convention,
        heads=_heads(heads, paths, models),
        histograms=taxonomy.space.histograms.astype(np.float32),
        edges=taxonomy.edges,
        beyond=np.concatenate(
            [(block > taxonomy.edges[-1]).mean(-1) for block in taxonomy.pool.normalised]
        ),
        classes=taxonomy.classes,
        models=_models([(paths[i], models[i]) for i in pooled]),
        tests=findings.tests,
        contrasts=findings.contrasts,
        changed=findings.changed,
        provenance={"command": _command(families, choices), **_made(heads, models)},
        notes=(*notes, *_not_shown(failures), *findings.notes),
    )
    return atlas, failures


def _unwatched(what: str, number: int, total: int) -> None:
    """What takes note of work where nobody looks on."""


def _heads(
    found: SortedHeads, paths: Sequence[Path], models: Sequence[ModelSpectra]
) -> pd.DataFrame:
    """One row a head, in the taxonomy's order: its place, class, and statistics."""
    taxonomy = found.taxonomy
    statistics = pd.concat(
        [
            spectra_rows(models[i], models[i].layers, paths[i].stem)
            .assign(family=paths[i].parent.name)
            .set_index(_KEY)[models[i].statistic_names]
            for i in dict.fromkeys(taxonomy.models.tolist())
        ]
    )
    rows = joint_rows(taxonomy, paths)
    return rows.join(statistics, on=_KEY, validate="one_to_one")


def _models(pooled: Iterable[tuple[Path, ModelSpectra]]) -> pd.DataFrame:
    """One row a model: what its file tells, as text."""
    return pd.DataFrame([_model(path, spectra) for path, spectra in pooled])


def _model(path: Path, spectra: ModelSpectra) -> dict[str, str]:
    told = spectra.metadata
    table = {stack: row for stack, row in stack_table(told).items() if stack in spectra.stacks}

    def number(key: str) -> str:
        """A stack's number, or those of all; "" where it is not known."""
        return ", ".join(f"{stack} {row[key]}".strip() for stack, row in table.items() if row[key])

    geometry = {
        key: number(key) for key in ("n_layers", "n_heads", "n_kv_heads", "d_head", "d_model")
    }
    return {
        "family": path.parent.name,
        "model": path.stem,
        **{key: told[key] for key in ("model_id", "revision", "architecture")},
        **geometry,
        "heads": str(sum(len(layer.statistics) for layer in spectra.layers)),
        "weights_dtype": told["weights_dtype"],
        "source": _shown_source(told["source"]),
        "tool_version": told["tool_version"],
        "formula": spectra.formula,
        "notes": "; ".join(_provenance(spectra).get("notes", ())),
    }


def _shown_source(source: str) -> str:
    """A source without a hub's port and path; the public hub needs no address."""
    kind, _, address = source.partition(" ")
    host = urlsplit(address).hostname if kind == "hub" else None
    if host is None:
        return source
    return "hub" if host == _PUBLIC_HUB else f"hub at {host}"


def _provenance(spectra: ModelSpectra) -> dict[str, Any]:
    """How a file's numbers were made."""
    told: dict[str, Any] = json.loads(spectra.metadata.get("provenance", "{}"))
    return told


def _made(found: SortedHeads, models: Sequence[ModelSpectra]) -> dict[str, str]:
    """How classes and map were made, and by which versions; no date, which would change a page
    that shows the same.
    """
    saved = found.taxonomy.saved
    torch = sorted(
        {str(_provenance(spectra).get("versions", {}).get("torch", "")) for spectra in models}
        - {""}
    )
    return {
        "classes": f"{saved.n_clusters}, {quality_of(found.quality)}",
        "bins": f"{len(saved.edges) - 1} on [0, {saved.edges[-1]:.4g}] of λ over its head's mean",
        "distance": saved.distance,
        "seed": str(saved.seed),
        "qk-taxonomy": _own_version(),
        **{package: version(package) for package in _PACKAGES},
        **({"torch of the survey": ", ".join(torch)} if torch else {}),
    }


def _own_version() -> str:
    """The package's version, and its commit where it was installed from a repository (PEP 610)."""
    own = distribution("qk-taxonomy")
    origin = json.loads(own.read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id")
    return f"{own.version}, commit {commit}" if commit else own.version


def _command(families: str | Iterable[str] | None, choices: Choices) -> str:
    """The command that makes the same page in the same folder."""
    names = [families] if isinstance(families, str) else families or ()
    asked = [word for name in names for word in ("--family", name)]
    return shlex.join(["qk-taxonomy", "report", *asked, *choices.options])


def _title(families: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(families))
    if len(distinct) > _NAMED_FAMILIES:
        return f"Attention heads of {len(distinct)} families"
    return f"Attention heads of {', '.join(distinct)}"


def _left_out(n_controls: int, groups: Iterable[Sequence[Path]], n_imported: int) -> list[str]:
    """Sentences on what the page is not to show. ``groups``: files of each model, the last of which
    is shown.
    """
    notes = []
    if n_controls:
        files = "1 control is" if n_controls == 1 else f"{n_controls} controls are"
        notes.append(f"{files} left out (random or one-layer twins); tests compare with them.")
    for *others, last in groups:
        if others:
            stem = FileStem.parse(last.stem)
            shown = stem.revision or "the one that nobody had to name"
            notes.append(
                f"Of {len(others) + 1} revisions of {last.parent.name}/{stem.model} the last "
                f"is shown, {shown}; --revisions shows all."
            )
    if n_imported:
        files = "1 model is" if n_imported == 1 else f"{n_imported} models are"
        notes.append(
            f"{files} left out, whose imported spectra are by another formula; "
            "--include-imported shows them too."
        )
    return notes


def _not_shown(failures: Mapping[str, Exception]) -> list[str]:
    """Sentences on what the page was to show, and does not."""
    return [f"{name} could not be shown: {error}" for name, error in failures.items()]
