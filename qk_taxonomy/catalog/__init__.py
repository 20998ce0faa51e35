"""Model families and contrasts: the tables under ``catalog/`` and the user's own.

A user's families come from TOML files in the user's config folder
(``platformdirs.user_config_path("qk-taxonomy") / "families"``) or in a folder given by name;
one of the same name as a built-in family takes its place. Contrasts come from the file
``contrasts.toml`` of the same places.
"""

from qk_taxonomy.catalog.files import read_contrast, read_family
from qk_taxonomy.catalog.names import (
    EMBEDDED_FAMILY,
    RESERVED_NAMES,
    UNLISTED_FAMILY,
    check_family_name,
    check_file_name,
)
from qk_taxonomy.catalog.references import (
    checkpoint_refs,
    family_refs,
    model_ref,
    training_checkpoints,
)
from qk_taxonomy.catalog.tables import (
    find_family,
    get_model_names,
    list_families,
    load_contrasts,
    load_families,
    user_catalog,
)

__all__ = [
    "EMBEDDED_FAMILY",
    "RESERVED_NAMES",
    "UNLISTED_FAMILY",
    "check_family_name",
    "check_file_name",
    "checkpoint_refs",
    "family_refs",
    "find_family",
    "get_model_names",
    "list_families",
    "load_contrasts",
    "load_families",
    "model_ref",
    "read_contrast",
    "read_family",
    "training_checkpoints",
    "user_catalog",
]
