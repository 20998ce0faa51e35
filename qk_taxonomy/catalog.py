"""Model families: the tables ``catalog/families/*.toml`` and the user's own, found by name.

A user's families come from TOML files in the user's config folder
(``platformdirs.user_config_path("qk-taxonomy") / "families"``) or in a folder given by name;
one of the same name as a built-in family takes its place.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import platformdirs

from qk_taxonomy.errors import CatalogError
from qk_taxonomy.records import Family, ModelEntry, ModelRef, PackagedFolder
from qk_taxonomy.resources import TomlFile, builtin_catalog, read_toml

#: The family that ``qk-taxonomy run`` surveys when none is named: it needs no network.
EMBEDDED_FAMILY = "minilm"

#: The family of models that are in no catalogue and given no family name.
UNLISTED_FAMILY = "unlisted"

_FAMILY_KEYS = {"name": str, "title": str, "description": str, "license": str, "models": list}
_FAMILY_OPTIONS = {"aliases": list, "gated": bool, "url": str}
_MODEL_KEYS = {"id": str, "parameters": int}
_MODEL_OPTIONS = {"license": str, "gated": bool, "package": dict}
_PACKAGE_KEYS = {"distribution": str, "module": str, "folder": str}
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_file_name(name: str, what: str) -> str:
    """Return ``name`` if it is safe as a file or folder name. Raises CatalogError otherwise."""
    if not _FILE_NAME.fullmatch(name):
        raise CatalogError(
            f"The {what} {name!r} cannot name a file: results are kept under it, so it must begin "
            "with a letter or digit and hold only letters, digits, '.', '_' and '-'. "
            "Give another with --family-name, or rename the folder."
        )
    return name


def _model(file: TomlFile, index: int, table: Any, family: Mapping[str, Any]) -> ModelEntry:
    if not isinstance(table, dict):
        raise file.error(f"wanted a table, found {table!r}.", "models", index)
    file.check(table, ("models", index), _MODEL_KEYS, _MODEL_OPTIONS)
    package = table.get("package")
    if package is not None:
        file.check(package, ("models", index, "package"), _PACKAGE_KEYS, {})
    if not re.fullmatch(r"([\w.-]+/)?[A-Za-z0-9][\w.-]*", table["id"], re.ASCII):
        raise file.error(f"{table['id']!r} is not a hub id.", "models", index, "id")
    return ModelEntry(
        id=table["id"],
        parameters=table["parameters"],
        license=table.get("license", family["license"]),
        gated=table.get("gated", family.get("gated", False)),
        package=PackagedFolder(**package) if package else None,
    )


def read_family(path: Path) -> Family:
    """Read one family file. Raises CatalogError naming the file, line and key that is wrong."""
    file = read_toml(path)
    table = file.data
    file.check(table, (), _FAMILY_KEYS, _FAMILY_OPTIONS)
    try:
        check_file_name(table["name"], "family name")
    except CatalogError as err:
        raise file.error(str(err), "name") from err
    aliases = table.get("aliases", [])
    if not all(isinstance(alias, str) for alias in aliases):
        raise file.error(f"wanted an array of strings, found {aliases!r}.", "aliases")
    models = tuple(_model(file, i, entry, table) for i, entry in enumerate(table["models"]))
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


def load_families(catalog: str | Path | None = None) -> tuple[Family, ...]:
    """All families in order of name: built-in ones, the user's, then those of ``catalog``.

    ``catalog`` is a folder of family files, or one that has them under ``families/``.
    Raises CatalogError where a file is broken or two families share a name or an alias.
    """
    folders = [builtin_catalog() / "families", user_catalog() / "families"]
    if catalog is not None:
        chosen = Path(catalog)
        if not chosen.is_dir():
            raise CatalogError(f"The catalogue {chosen} is not a folder of family files (*.toml).")
        folders.append(chosen / "families" if (chosen / "families").is_dir() else chosen)
    families: dict[str, Family] = {}
    for folder in folders:
        here: dict[str, Family] = {}
        for path in sorted(folder.glob("*.toml")):
            family = read_family(path)
            if here.setdefault(family.name.casefold(), family) is not family:
                raise CatalogError(f"{path}: another file of {folder} has the name {family.name}.")
        families |= here
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
        )
        for model in chosen
    )


def model_ref(
    ref: str,
    *,
    family_name: str | None = None,
    revision: str | None = None,
    architecture: str | None = None,
    families: Iterable[Family] | None = None,
) -> ModelRef:
    """A reference to one model by hub id or local folder, listed in the catalogue or not.

    Its family is ``family_name``, else that of the catalogue's entry, else ``unlisted``.
    Raises CatalogError where a name could not name a file.
    """
    known = load_families() if families is None else tuple(families)
    local = Path(ref).expanduser()
    name = local.resolve().name if local.exists() else ref.rstrip("/").rpartition("/")[2]
    listed = None
    if not local.exists():
        listed = next(((f, m) for f in known for m in f.models if m.id == ref), None)
    return ModelRef(
        ref=ref,
        family=check_file_name(
            family_name or (listed[0].name if listed else UNLISTED_FAMILY), "family name"
        ),
        name=check_file_name(name, "model name"),
        revision=revision,
        package=listed[1].package if listed else None,
        architecture=architecture,
    )


def list_families() -> list[str]:
    """Names of all families in the catalogue, in alphabetical order."""
    return [family.name for family in load_families()]


def get_model_names(family: str) -> list[str]:
    """Hub ids of a family's models, smallest first. Raises CatalogError for an unknown family."""
    return [model.id for model in find_family(family).models]
