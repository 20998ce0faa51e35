"""Model families and contrasts: the tables under ``catalog/`` and the user's own.

A user's families come from TOML files in the user's config folder
(``platformdirs.user_config_path("qk-taxonomy") / "families"``) or in a folder given by name;
one of the same name as a built-in family takes its place. Contrasts come from the file
``contrasts.toml`` of the same places.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import platformdirs

from qk_taxonomy.errors import CatalogError
from qk_taxonomy.records import (
    CONTRAST_KINDS,
    Checkpoints,
    Contrast,
    Family,
    ModelEntry,
    ModelRef,
    PackagedFolder,
)
from qk_taxonomy.resources import TomlFile, builtin_catalog, read_toml
from qk_taxonomy.training_steps import CheckpointChoice, choose_checkpoints

#: The family that ``qk-taxonomy run`` surveys when none is named: it needs no network.
EMBEDDED_FAMILY = "minilm"

#: The family of models that are in no catalogue and given no family name.
UNLISTED_FAMILY = "unlisted"

#: Folders that outputs have beside those of families: ESDs/joint, plots/tests and its contrasts.
RESERVED_NAMES = ("joint", "tests", "contrasts")

_FAMILY_KEYS = {"name": str, "title": str, "description": str, "license": str, "models": list}
_FAMILY_OPTIONS = {"aliases": list, "gated": bool, "url": str, "checkpoints": dict}
_MODEL_KEYS = {"id": str, "parameters": int}
_MODEL_OPTIONS = {
    "license": str,
    "gated": bool,
    "hub": bool,
    "package": dict,
    "architecture": str,
    "checkpoints": dict,
}
_PACKAGE_KEYS = {"distribution": str, "module": str, "folder": str}
_CHECKPOINT_KEYS = {"revisions": list}
_CHECKPOINT_OPTIONS = {"repository": str, "note": str}
_RANGE_KEYS = {"pattern": str, "first": int, "last": int, "every": int}
_CONTRAST_KEYS = {"name": str, "kind": str, "treatment": str, "control": str}
_CONTRASTS_FILE = "contrasts.toml"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_ID = re.compile(r"([\w.-]+/)?[A-Za-z0-9][\w.-]*", re.ASCII)
_STEP = re.compile(r"\{step(?::0(\d))?\}")

# Files that every checkpoint folder calls the same, so that only their folder tells them apart.
_USUAL_FILES = {"model.safetensors", "pytorch_model.bin"}


def check_file_name(
    name: str,
    what: str,
    advice: str = "Give another with --family-name, or rename the folder.",
) -> str:
    """Return ``name`` if it is safe as a file or folder name. Raises CatalogError otherwise."""
    if not _FILE_NAME.fullmatch(name):
        raise CatalogError(
            f"The {what} {name!r} cannot name a file: results are kept under it, so it must begin "
            "with a letter or digit and hold only letters, digits, '.', '_' and '-'. "
            f"{advice}"
        )
    return name


def check_family_name(name: str) -> str:
    """Return ``name`` if a family's folders can have it. Raises CatalogError otherwise."""
    if check_file_name(name, "family name").casefold() in RESERVED_NAMES:
        raise CatalogError(
            f"The family name {name!r} is taken: outputs of several models are kept under "
            f"{', '.join(RESERVED_NAMES)}. Choose another."
        )
    return name


def _revisions(file: TomlFile, item: Any, *keys: str | int) -> list[str]:
    """The revision names that one item of ``revisions`` stands for.

    A string is itself. A table ``{ pattern, first, last, every }`` stands for
    ``first, first + every, ..., last``, each written into ``pattern`` where that has ``{step}``,
    or ``{step:03}`` for three digits.
    """
    if isinstance(item, str):
        return [item]
    if not isinstance(item, dict):
        raise file.error(f"wanted a revision's name or a table of steps, found {item!r}.", *keys)
    file.check(item, keys, _RANGE_KEYS, {})
    steps = range(item["first"], item["last"] + 1, max(item["every"], 1))
    if item["every"] < 1 or not steps or steps[-1] != item["last"]:
        raise file.error(f"no number of steps of {item['every']} goes from first to last.", *keys)
    if len(_STEP.findall(item["pattern"])) != 1:
        raise file.error(f"{item['pattern']!r} needs one {{step}} for the number.", *keys)
    before, digits, after = _STEP.split(item["pattern"])
    return [f"{before}{step:0{digits or 1}}{after}" for step in steps]


def _checkpoints(file: TomlFile, table: Mapping[str, Any], *keys: str | int) -> Checkpoints:
    file.check(table, keys, _CHECKPOINT_KEYS, _CHECKPOINT_OPTIONS)
    revisions = [
        name for item in table["revisions"] for name in _revisions(file, item, *keys, "revisions")
    ]
    if not revisions or len(set(revisions)) < len(revisions):
        raise file.error("wanted names of revisions, each once.", *keys, "revisions")
    return Checkpoints(tuple(revisions), table.get("repository"), table.get("note"))


def _model(file: TomlFile, index: int, table: Any, checkpoints: Checkpoints | None) -> ModelEntry:
    """The model of one table; ``checkpoints`` are its family's, for a model that names none."""
    family = file.data
    if not isinstance(table, dict):
        raise file.error(f"wanted a table, found {table!r}.", "models", index)
    file.check(table, ("models", index), _MODEL_KEYS, _MODEL_OPTIONS)
    package = table.get("package")
    if package is not None:
        file.check(package, ("models", index, "package"), _PACKAGE_KEYS, {})
    if not _HUB_ID.fullmatch(table["id"]):
        raise file.error(f"{table['id']!r} is not a hub id.", "models", index, "id")
    hub = table.get("hub", True)
    if not hub and package is None:
        raise file.error("a model that is not on the hub needs a package.", "models", index, "hub")
    if "checkpoints" in table:
        checkpoints = _checkpoints(file, table["checkpoints"], "models", index, "checkpoints")
    return ModelEntry(
        id=table["id"],
        parameters=table["parameters"],
        license=table.get("license", family["license"]),
        gated=table.get("gated", family.get("gated", False)),
        hub=hub,
        package=PackagedFolder(**package) if package else None,
        architecture=table.get("architecture"),
        checkpoints=checkpoints,
    )


def read_family(path: Path) -> Family:
    """Read one family file. Raises CatalogError naming the file, line and key that is wrong."""
    file = read_toml(path)
    table = file.data
    file.check(table, (), _FAMILY_KEYS, _FAMILY_OPTIONS)
    try:
        check_family_name(table["name"])
    except CatalogError as err:
        raise file.error(str(err), "name") from err
    aliases = table.get("aliases", [])
    if not all(isinstance(alias, str) for alias in aliases):
        raise file.error(f"wanted an array of strings, found {aliases!r}.", "aliases")
    checkpoints = None
    if "checkpoints" in table:
        checkpoints = _checkpoints(file, table["checkpoints"], "checkpoints")
    models = tuple(_model(file, i, entry, checkpoints) for i, entry in enumerate(table["models"]))
    if not models:
        raise file.error("a family needs at least one model.", "models")
    names: dict[str, str] = {}
    for index, model in enumerate(models):
        other = names.setdefault(model.name.casefold(), model.id)
        if other != model.id:
            raise file.error(
                f"{model.id} would write the same files as {other}; put one of them in a family "
                "of its own.",
                "models",
                index,
                "id",
            )
    return Family(
        name=table["name"],
        title=table["title"],
        description=table["description"],
        license=table["license"],
        models=models,
        aliases=tuple(aliases),
        gated=table.get("gated", False),
        url=table.get("url"),
    )


def user_catalog() -> Path:
    """The folder under which a user's own ``families/*.toml`` are looked for."""
    return platformdirs.user_config_path("qk-taxonomy")


def _catalogs(catalog: str | Path | None) -> list[Path]:
    """The built-in catalogue, the user's and the chosen one, if any: later ones take precedence."""
    folders = [builtin_catalog(), user_catalog()]
    if catalog is not None:
        chosen = Path(catalog)
        if not chosen.is_dir():
            raise CatalogError(f"The catalogue {chosen} is not a folder of family files (*.toml).")
        folders.append(chosen)
    return folders


def _read_families(catalog: Path) -> dict[str, Family]:
    """The families of one catalogue: of its folder ``families``, or else of the folder itself."""
    folder = catalog / "families"
    families: dict[str, Family] = {}
    for path in sorted((folder if folder.is_dir() else catalog).glob("*.toml")):
        if path.name == _CONTRASTS_FILE:
            continue
        family = read_family(path)
        if families.setdefault(family.name.casefold(), family) is not family:
            raise CatalogError(f"{path}: another file of {path.parent} has the name {family.name}.")
    return families


def load_families(catalog: str | Path | None = None) -> tuple[Family, ...]:
    """All families in order of name: built-in ones, the user's, then those of ``catalog``.

    ``catalog`` is a folder of family files, or one that has them under ``families/``.
    Raises CatalogError where a file is broken or two families share a name or an alias.
    """
    families: dict[str, Family] = {}
    for folder in _catalogs(catalog):
        families |= _read_families(folder)
    owners: dict[str, str] = {name: name for name in families}
    for name, family in families.items():
        for alias in family.aliases:
            owner = owners.setdefault(alias.casefold(), name)
            if owner != name:
                raise CatalogError(
                    f"The name {alias!r} belongs to two families, {families[owner].name} and "
                    f"{family.name}; take it from the aliases of one of them."
                )
    return tuple(families[name] for name in sorted(families))


def _contrast(file: TomlFile, index: int, table: Any, known: set[str]) -> Contrast:
    if not isinstance(table, dict):
        raise file.error(f"wanted a table, found {table!r}.", "contrasts", index)
    file.check(table, ("contrasts", index), _CONTRAST_KEYS, {"note": str})
    if table["kind"] not in CONTRAST_KINDS:
        raise file.error(
            f"wanted one of {', '.join(CONTRAST_KINDS)}, found {table['kind']!r}.",
            *("contrasts", index, "kind"),
        )
    for side in ("treatment", "control"):
        if table[side] not in known:
            raise file.error(
                f"no family of the catalogue has the model {table[side]!r}; add it to one.",
                *("contrasts", index, side),
            )
    if table["treatment"] == table["control"]:
        raise file.error("treatment and control are the same model.", "contrasts", index, "control")
    return Contrast(**table)


def load_contrasts(catalog: str | Path | None = None) -> tuple[Contrast, ...]:
    """All contrasts in order of name: built-in ones, the user's, then those of ``catalog``.

    One of the same name as a built-in contrast takes its place. Raises CatalogError, with file and
    line, where a contrast has an unknown kind, names a model of no family, or repeats a name.
    """
    contrasts: dict[str, Contrast] = {}
    known: set[str] = set()
    for folder in _catalogs(catalog):
        # Families that another replaces count too: built-in contrasts outlive their replacement.
        known |= {model.id for family in _read_families(folder).values() for model in family.models}
        path = folder / _CONTRASTS_FILE
        if not path.exists():
            continue
        file = read_toml(path)
        file.check(file.data, (), {"contrasts": list}, {})
        here: dict[str, Contrast] = {}
        for index, table in enumerate(file.data["contrasts"]):
            contrast = _contrast(file, index, table, known)
            if here.setdefault(contrast.name.casefold(), contrast) is not contrast:
                raise file.error(
                    f"another contrast has the name {contrast.name}.", "contrasts", index, "name"
                )
        contrasts |= here
    return tuple(contrasts[name] for name in sorted(contrasts))


def find_family(name: str, families: Iterable[Family] | None = None) -> Family:
    """The family called ``name``, without regard to case, by its name or an alias.

    Raises CatalogError that offers the nearest names.
    """
    known = load_families() if families is None else tuple(families)
    by_name = {alias.casefold(): family for family in known for alias in family.aliases}
    by_name |= {family.name.casefold(): family for family in known}
    found = by_name.get(name.casefold())
    if found is not None:
        return found
    near = difflib.get_close_matches(name.casefold(), by_name, n=3, cutoff=0.5)
    nearest = list(dict.fromkeys(by_name[key].name for key in near))
    hint = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
    raise CatalogError(
        f"There is no family {name!r} in the catalogue. {hint}"
        "`qk-taxonomy families` lists all of them; a single model is surveyed with --model."
    )


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
    """What the results of a local model are called: its folder's name, or its file's stem."""
    if path.is_dir():
        return path.resolve().name
    # Not resolved: files of the hub's cache are links to files named by their hash.
    file = Path(os.path.abspath(path))
    return file.parent.name if file.name in _USUAL_FILES else file.stem


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


def list_families() -> list[str]:
    """Names of all families in the catalogue, in alphabetical order."""
    return [family.name for family in load_families()]


def get_model_names(family: str) -> list[str]:
    """Hub ids of a family's models, smallest first. Raises CatalogError for an unknown family."""
    return [model.id for model in find_family(family).models]
