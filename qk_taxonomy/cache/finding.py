"""Which spectra files there are, of all families or of some."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qk_taxonomy.cache.files import DATA_FOLDER
from qk_taxonomy.catalog import find_family, load_families
from qk_taxonomy.errors import CatalogError, SpectraFileError
from qk_taxonomy.records import FileStem

_ADVICE = (
    "Make them with `qk-taxonomy download`, or name the folder that holds data/ with --data-root."
)


def find_spectra(
    root: str | Path,
    families: str | Iterable[str] | None = None,
    *,
    controls: bool = False,
    catalog: str | Path | None = None,
) -> list[Path]:
    """Spectra files under ``<root>/data``, in order of family and name.

    ``families``: folders, or families by a name or alias of the catalogue (the built-in one, the
    user's, and that of ``catalog``), without regard to case. ``controls``: also those of random and
    one-layer twins. Raises SpectraFileError where a family has no spectra, and CatalogError where
    it is none of the catalogue's either.
    """
    found = _files(root, controls)
    if families is None:
        if not found:
            raise SpectraFileError(f"There are no spectra under {_base(root)}. {_ADVICE}")
        return found
    names = [families] if isinstance(families, str) else families
    folders, missing = surveyed_families(root, names, controls=controls, catalog=catalog)
    for error in missing.values():
        raise error
    return [path for path in found if path.parent.name in folders]


def surveyed_families(
    root: str | Path,
    families: Iterable[str],
    *,
    controls: bool = False,
    catalog: str | Path | None = None,
) -> tuple[list[str], dict[str, SpectraFileError]]:
    """The folders of families that have spectra; by name, the errors of those that have none.

    Arguments are :func:`find_spectra`'s. Raises CatalogError for what is no family: it has no
    folder, and is not in the catalogue.
    """
    folders = {path.parent.name.casefold(): path.parent.name for path in _files(root, controls)}
    there: dict[str, None] = {}
    missing: dict[str, SpectraFileError] = {}
    for name in families:
        folder = folders.get(name.casefold())
        if folder is None:
            try:
                catalogued = find_family(name, load_families(catalog), folders.values()).name
            except CatalogError as err:
                raise CatalogError(
                    f"{err} Nor are there spectra of {name} under {_base(root)}."
                ) from err
            folder = folders.get(catalogued.casefold())
        if folder is None:
            missing[name] = SpectraFileError(
                f"There are no spectra of {name} under {_base(root)}. {_ADVICE}"
            )
        else:
            there[folder] = None
    return list(there), missing


def _base(root: str | Path) -> Path:
    return Path(root) / DATA_FOLDER


def _files(root: str | Path, controls: bool) -> list[Path]:
    """All spectra files."""
    return [
        path
        for path in sorted(_base(root).glob("*/*.safetensors"))
        if path.name[0] != "." and (controls or not FileStem.parse(path.stem).control)
    ]
