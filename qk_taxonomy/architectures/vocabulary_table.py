"""The table ``catalog/vocabulary.toml``: names of embeddings, read and checked."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qk_taxonomy.architectures.table import architecture_table
from qk_taxonomy.resources import TomlFile, builtin_catalog, read_toml

Powers = Mapping[str, float]
Kind = Literal["rms", "layer"]

_NAMES = (
    "embedding",
    "unembedding",
    "embedding_norm",
    "final_norm",
    "gains",
    "head_transform",
    "encoders",
)
_ROW_KEYS = {
    "embedding_norm": str,
    "final_norm": str,
    "init": dict,
    "unembed": dict,
    "refuse": dict,
    "note": str,
}


@dataclass(frozen=True)
class VocabularyRow:
    """What is otherwise in the models of one row of the architecture table, or of one type."""

    embedding_norm: Kind | None = None
    final_norm: Kind | None = None
    init: Powers | None = None
    unembed: Powers = field(default_factory=dict)
    refuse: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True)
class VocabularyTable:
    """Names of tensors in order of preference, and rules. Meanings: the table's head."""

    embedding: tuple[str, ...]
    unembedding: tuple[str, ...]
    embedding_norm: tuple[str, ...]
    final_norm: tuple[str, ...]
    gains: tuple[str, ...]
    head_transform: tuple[str, ...]
    encoders: tuple[str, ...]
    without_tokens: Mapping[str, str]
    scale_keys: tuple[str, ...]
    scale_when: Mapping[str, Powers]
    scale_rows: Mapping[str, Powers]
    init_keys: tuple[str, ...]
    rows: Mapping[str, VocabularyRow]


@functools.cache
def vocabulary_table() -> VocabularyTable:
    """The table of vocabularies, read once. Raises CatalogError naming the line of a mistake."""
    file = read_toml(builtin_catalog() / "vocabulary.toml")
    tables = ("without_tokens", "embed_scale", "embed_init", "rows")
    file.check(file.data, (), dict.fromkeys(_NAMES, list) | dict.fromkeys(tables, dict), {})
    names = {key: _strings(file, file.data[key], key) for key in _NAMES}
    scale, init = file.data["embed_scale"], file.data["embed_init"]
    file.check(scale, ("embed_scale",), {"keys": list, "when": dict, "rows": dict}, {})
    file.check(init, ("embed_init",), {"keys": list}, {})
    without = {
        row: what
        for what, rows in file.data["without_tokens"].items()
        for row in _strings(file, rows, "without_tokens", what)
    }
    _check_rows(file, without, "without_tokens")
    _check_rows(file, names["encoders"], "encoders")
    _check_rows(file, scale["rows"], "embed_scale", "rows")
    _check_rows(file, file.data["rows"], "rows")
    return VocabularyTable(
        **names,
        without_tokens=without,
        scale_keys=_strings(file, scale["keys"], "embed_scale", "keys"),
        scale_when=_all_powers(file, scale["when"], "embed_scale", "when"),
        scale_rows=_all_powers(file, scale["rows"], "embed_scale", "rows"),
        init_keys=_strings(file, init["keys"], "embed_init", "keys"),
        rows={name: _row(file, table, "rows", name) for name, table in file.data["rows"].items()},
    )


def _strings(file: TomlFile, values: Any, *place: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise file.error("wanted an array of strings.", *place)
    return tuple(values)


def _check_rows(file: TomlFile, names: Any, *place: str) -> None:
    """Raise CatalogError for a name that is neither a row of architectures nor a model type."""
    architectures = architecture_table()
    for name in names:
        if name not in architectures.rows and name not in architectures.model_types:
            raise file.error(f"there is no architecture {name!r}.", *place, name)


def _all_powers(file: TomlFile, table: Mapping[str, Any], *place: str) -> dict[str, Powers]:
    return {key: _powers(file, factors, *place, key) for key, factors in table.items()}


def _powers(file: TomlFile, factors: Any, *place: str) -> Powers:
    if not isinstance(factors, dict):
        raise file.error("wanted a table of powers.", *place)
    for quantity, power in factors.items():
        if not isinstance(power, int | float) or isinstance(power, bool):
            raise file.error("wanted a power, a number.", *place, quantity)
    return factors


def _row(file: TomlFile, table: Any, *place: str) -> VocabularyRow:
    if not isinstance(table, dict):
        raise file.error("wanted a table.", *place)
    file.check(table, place, {}, _ROW_KEYS)
    for role in ("embedding_norm", "final_norm"):
        if table.get(role, "rms") not in ("rms", "layer"):
            raise file.error("wanted 'rms' or 'layer'.", *place, role)
    for key in ("init", "unembed"):
        _powers(file, table.get(key, {}), *place, key)
    for key, reason in table.get("refuse", {}).items():
        if not isinstance(reason, str):
            raise file.error("wanted a reason, a string.", *place, "refuse", key)
    return VocabularyRow(**table)
