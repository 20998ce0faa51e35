"""All families and contrasts: the built-in ones, the user's and those of a chosen folder."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

import platformdirs

from qk_taxonomy.catalog.files import read_contrast, read_family
from qk_taxonomy.errors import CatalogError
from qk_taxonomy.records import Contrast, Family
from qk_taxonomy.resources import builtin_catalog, read_toml

_CONTRASTS_FILE = "contrasts.toml"


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
            contrast = read_contrast(file, index, table, known)
            if here.setdefault(contrast.name.casefold(), contrast) is not contrast:
                raise file.error(
                    f"another contrast has the name {contrast.name}.", "contrasts", index, "name"
                )
        contrasts |= here
    return tuple(contrasts[name] for name in sorted(contrasts))


def find_family(
    name: str, families: Iterable[Family] | None = None, others: Iterable[str] = ()
) -> Family:
    """The family called ``name``, without regard to case, by its name or an alias.

    Raises CatalogError that offers the nearest names, of families and of ``others``.
    """
    known = load_families() if families is None else tuple(families)
    by_name = {alias.casefold(): family for family in known for alias in family.aliases}
    by_name |= {family.name.casefold(): family for family in known}
    found = by_name.get(name.casefold())
    if found is not None:
        return found
    offered = {key: family.name for key, family in by_name.items()}
    offered |= {other.casefold(): other for other in others}
    near = difflib.get_close_matches(name.casefold(), offered, n=3, cutoff=0.5)
    nearest = list(dict.fromkeys(offered[key] for key in near))
    hint = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
    raise CatalogError(
        f"There is no family {name!r} in the catalogue. {hint}"
        "`qk-taxonomy families` lists all of them; a single model is surveyed with --model."
    )


def list_families() -> list[str]:
    """Names of all families in the catalogue, in alphabetical order."""
    return [family.name for family in load_families()]


def get_model_names(family: str) -> list[str]:
    """Hub ids of a family's models, smallest first. Raises CatalogError for an unknown family."""
    return [model.id for model in find_family(family).models]
