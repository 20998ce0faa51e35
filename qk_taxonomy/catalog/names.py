"""Names that results are kept under: which can name a file, and which are taken."""

from __future__ import annotations

import re

from qk_taxonomy.errors import CatalogError

#: The family that ``qk-taxonomy run`` surveys when none is named: it needs no network.
EMBEDDED_FAMILY = "minilm"

#: The family of models that are in no catalogue and given no family name.
UNLISTED_FAMILY = "unlisted"

#: Folders that outputs have beside those of families: ESDs/joint, plots/tests and its contrasts.
RESERVED_NAMES = ("joint", "tests", "contrasts")

_FILE_NAME = re.compile(r"[^\W_][\w.-]*")


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


def without_gaps(name: str) -> str:
    """A file's or folder's name with ``-`` for all that :func:`check_file_name` refuses in it.

    >>> without_gaps("my model (2)")
    'my-model-2'
    """
    return re.sub(r"[^\w.-]+", "-", name).strip("-")


def check_family_name(name: str) -> str:
    """Return ``name`` if a family's folders can have it. Raises CatalogError otherwise."""
    if check_file_name(name, "family name").casefold() in RESERVED_NAMES:
        raise CatalogError(
            f"The family name {name!r} is taken: outputs of several models are kept under "
            f"{', '.join(RESERVED_NAMES)}. Choose another."
        )
    return name
