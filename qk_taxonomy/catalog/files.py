"""Family files and tables of contrasts, read: what is wrong is named by file, line and key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qk_taxonomy.catalog.names import check_family_name
from qk_taxonomy.errors import CatalogError
from qk_taxonomy.records import (
    CONTRAST_KINDS,
    Checkpoints,
    Contrast,
    Family,
    ModelEntry,
    PackagedFolder,
)
from qk_taxonomy.resources import TomlFile, read_toml

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
_HUB_ID = re.compile(r"([\w.-]+/)?[A-Za-z0-9][\w.-]*", re.ASCII)
_STEP = re.compile(r"\{step(?::0(\d))?\}")


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


def _checkpoints(file: TomlFile, table: Mapping[str, Any], *keys: str | int) -> Checkpoints:
    file.check(table, keys, _CHECKPOINT_KEYS, _CHECKPOINT_OPTIONS)
    revisions = [
        name for item in table["revisions"] for name in _revisions(file, item, *keys, "revisions")
    ]
    if not revisions or len(set(revisions)) < len(revisions):
        raise file.error("wanted names of revisions, each once.", *keys, "revisions")
    return Checkpoints(tuple(revisions), table.get("repository"), table.get("note"))


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


def read_contrast(file: TomlFile, index: int, table: Any, known: set[str]) -> Contrast:
    """Read one table of a file of contrasts, between models that are ``known`` by their ids.

    Raises CatalogError naming the file, line and key that is wrong.
    """
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
