"""References to models and to their training checkpoints, listed in the catalogue or not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from qk_taxonomy.catalog.names import (
    UNLISTED_FAMILY,
    check_family_name,
    check_file_name,
    without_gaps,
)
from qk_taxonomy.catalog.tables import load_families
from qk_taxonomy.errors import CatalogError
from qk_taxonomy.records import Checkpoints, Family, ModelEntry, ModelRef
from qk_taxonomy.training_steps import CheckpointChoice, choose_checkpoints

# Files that every checkpoint folder calls the same, so that only their folder tells them apart.
_USUAL_FILES = {"model.safetensors", "pytorch_model.bin"}


def family_refs(family: Family, models: Iterable[str] | None = None) -> tuple[ModelRef, ...]:
    """References to the models of a family, or to those of them that ``models`` names by hub id."""
    if models is None:
        chosen = family.models
    else:
        by_id = {model.id: model for model in family.models}
        chosen = tuple(by_id.get(model) or ModelEntry(model, 0, family.license) for model in models)
    return tuple(
        ModelRef(
            ref=model.id,
            family=family.name,
            name=check_file_name(model.name, "model name"),
            package=model.package,
            hub=model.hub,
            architecture=model.architecture,
        )
        for model in chosen
    )


def _local_name(path: Path) -> str:
    """What the results of a local model are called: its folder's name, or its file's stem, with
    ``-`` for spaces and the like.
    """
    if path.is_dir():
        return without_gaps(path.resolve().name)
    # Not resolved: files of the hub's cache are links to files named by their hash.
    file = Path(os.path.abspath(path))
    return without_gaps(file.parent.name if file.name in _USUAL_FILES else file.stem)


def model_ref(
    ref: str,
    *,
    family_name: str | None = None,
    revision: str | None = None,
    architecture: str | None = None,
    families: Iterable[Family] | None = None,
) -> ModelRef:
    """A reference to one model by hub id, local folder or file, listed in the catalogue or not.

    Its family is ``family_name``, else that of the catalogue's entry, else ``unlisted``. A file
    is called by its stem, but ``model.safetensors`` and ``pytorch_model.bin`` by their folder.
    Raises CatalogError where a name could not name a file.
    """
    known = load_families() if families is None else tuple(families)
    local = Path(ref).expanduser()
    found = None
    if not local.exists():
        found = next(((f, m) for f in known for m in f.models if m.id == ref), None)
    family, model = found or (None, None)
    name = _local_name(local) if local.exists() else ref.rstrip("/").rpartition("/")[2]
    return ModelRef(
        ref=ref,
        family=check_family_name(family_name or (family.name if family else UNLISTED_FAMILY)),
        name=check_file_name(name, "model name"),
        revision=revision,
        package=model.package if model else None,
        hub=model is None or model.hub,
        architecture=architecture or (model.architecture if model else None),
    )


def _published(model_id: str, families: Iterable[Family]) -> Checkpoints | None:
    """A model's training checkpoints; None where none are known. Raises CatalogError for a model of
    no family."""
    models = (model for family in families for model in family.models)
    found = next((model for model in models if model.id == model_id), None)
    if found is None:
        raise CatalogError(
            f"No family of the catalogue has the model {model_id!r}. "
            "`qk-taxonomy families NAME` lists the models of a family."
        )
    return found.checkpoints


def training_checkpoints(model_id: str) -> list[str]:
    """Revisions that hold a model's training checkpoints, in order of training; [] for none known.

    They are revisions of the model's own repository, or of the one that its catalogue entry names
    as ``checkpoints.repository``. Raises CatalogError for a model of no family.
    """
    checkpoints = _published(model_id, load_families())
    return list(checkpoints.revisions) if checkpoints else []


def checkpoint_refs(
    ref: ModelRef, how: CheckpointChoice, families: Iterable[Family] | None = None
) -> tuple[ModelRef, ...]:
    """References to some of a model's training checkpoints, in order of training; none where the
    catalogue knows of none.

    ``how``: which, as in :func:`choose_checkpoints`. They keep the model's family and name, and
    each has a revision, of another repository where the catalogue names one. Raises CatalogError
    for a model of no family.
    """
    checkpoints = _published(ref.ref, load_families() if families is None else families)
    if checkpoints is None:
        return ()
    repository = checkpoints.repository or ref.ref
    return tuple(
        replace(ref, ref=repository, revision=revision, package=None, hub=True)
        for revision in choose_checkpoints(checkpoints.revisions, how)
    )
