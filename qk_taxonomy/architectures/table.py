"""The architecture table ``catalog/architectures.toml``: its rows, read and checked.

A row describes one or more stacks of attention layers. What a config or a layer's tensors decide
is left open until they are known: :meth:`StackRow.resolve` then gives the :class:`Stack`.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qk_taxonomy.errors import CatalogError, LayoutError
from qk_taxonomy.records import PACKINGS, Norm, Packing
from qk_taxonomy.resources import TomlFile, builtin_catalog, read_toml

#: Projections that each packing is stored as.
_PROJECTIONS: dict[Packing, tuple[frozenset[str], ...]] = {
    "separate": (frozenset("qkvo"),),
    "concatenated": (frozenset({"qkv", "o"}),),
    "grouped": (frozenset({"qkv", "o"}),),
    "blocks": (frozenset({"qkv", "o"}),),
    "latent": (
        frozenset({"q", "kv_latent", "kv", "o"}),
        frozenset({"q_latent", "q", "kv_latent", "kv", "o"}),
    ),
}

#: The initialiser of a row that names none.
_INITIALISER = {"all": {"initializer_range": 1}}

NORM_ROLES = ("input_norm", "memory_norm", "q_norm", "k_norm", "q_latent_norm", "kv_latent_norm")

_NORM_OPTIONS = {"kind": str, "gain": str, "offset": float}
_MEMORY_NORM_OPTIONS = _NORM_OPTIONS | {"gain": list}
_STACK_KEYS = {"layers": list, "packing": str, "tensors": dict}
_STACK_OPTIONS = {
    "transposed": bool,
    "gated": bool,
    "cross": bool,
    "input_width": int,
    "scale": dict,
    "init": dict,
    "config": dict,
    "config_in": str,
    "keys": dict,
    "shared_by": str,
    "extra_layers": str,
    "without_attention": dict,
    "refuse": list,
    "variants": list,
    **dict.fromkeys(NORM_ROLES, dict),
}
_VARIANT_OPTIONS = {"when": dict, "has": str} | {
    key: kind
    for key, kind in (_STACK_KEYS | _STACK_OPTIONS).items()
    if key not in ("config", "config_in", "variants", "layers", "without_attention")
}
_ROW_ONLY = {"model_types": list, "extends": str, "stacks": dict, "unbuildable": str, "note": str}
_WRAPPER_KEYS = {"model_types": list, "wraps": str, "prefixes": list}
_WRAPPER_OPTIONS = {"config": dict, "left_out": dict, "note": str, "unbuildable": str}
_REFUSE_KEYS = {"key": str, "reason": str}
_CONFIG_KEYS = {"n_layers": list, "n_heads": list, "n_kv_heads": list, "d_head": list}


@dataclass(frozen=True)
class NormRow:
    """A norm of the table: its record, and names of its gain, if it has one; one must occur."""

    norm: Norm
    gains: tuple[str, ...]


@dataclass(frozen=True)
class Refusal:
    """A config key whose value, unless it is in ``unless``, means attention of another kind."""

    key: str
    unless: tuple[Any, ...]
    reason: str


@dataclass(frozen=True)
class Stack:
    """One stack of layers as one layer of one checkpoint has it. Meanings: the table's head."""

    packing: Packing
    transposed: bool
    gated: bool
    cross: bool
    input_width: int
    tensors: Mapping[str, str]
    norms: Mapping[str, NormRow]
    scale: Mapping[str, float]
    init: Mapping[str, Mapping[str, float]]
    keys: Mapping[str, Sequence[str]]
    shared_by: str | None
    extra_layers: str | None
    without_attention: Mapping[str, str]
    refuse: tuple[Refusal, ...]


def lookup(config: Mapping[str, Any], key: str) -> Any:
    """A config's value, under the key itself or, where it has dots, in nested tables; or None."""
    if key in config:
        return config[key]
    outer, _, inner = key.partition(".")
    nested = config.get(outer)
    return lookup(nested, inner) if inner and isinstance(nested, Mapping) else None


@dataclass(frozen=True)
class StackRow:
    """One stack of a row, before a config and tensors have chosen among its variants."""

    name: str
    table: Mapping[str, Any]
    parse: Callable[[Mapping[str, Any]], Stack]

    @property
    def patterns(self) -> tuple[str, ...]:
        return tuple(self.table["layers"])

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a config that describes this stack, over the values it may leave out."""
        place = self.table.get("config_in", "")
        # What transformers puts in the place of the other, where a config has both.
        nested = config.get(f"{place}_dict") or config.get(place)
        said = {**config, **nested} if isinstance(nested, Mapping) else config
        known = {key: value for key, value in said.items() if value is not None}
        return {**self.table.get("config", {}), **known}

    def resolve(self, config: Mapping[str, Any], has: Callable[[str], bool]) -> Stack:
        """The stack with every variant merged whose condition holds, in order.

        ``has`` tells whether a layer has a tensor of that name.
        """
        table = dict(self.table)
        for variant in table.pop("variants", ()):
            wanted = variant.get("when", {}).items()
            if all(lookup(config, key) == value for key, value in wanted) and (
                "has" not in variant or has(variant["has"])
            ):
                table = _merged(table, variant)
        return self.parse(table)


@dataclass(frozen=True)
class Architecture:
    """One row of the architecture table.

    ``wraps`` names the nested config of a model that holds another one, whose tensors then stand
    behind one of ``prefixes``; such a row has no stacks of its own. ``left_out``: values that the
    nested config may leave out, by its model type.
    """

    name: str
    model_types: tuple[str, ...]
    stacks: tuple[StackRow, ...] = ()
    wraps: str | None = None
    prefixes: tuple[str, ...] = ("",)
    config: Mapping[str, Any] | None = None
    left_out: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    note: str | None = None
    unbuildable: str | None = None


@dataclass(frozen=True)
class ArchitectureTable:
    """All rows, and why the model types that have no attention are refused."""

    rows: Mapping[str, Architecture]
    without_attention: Mapping[str, str]

    @functools.cached_property
    def model_types(self) -> dict[str, Architecture]:
        return {name: row for row in self.rows.values() for name in row.model_types}


def _merged(base: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """``row`` over ``base``: tables merge, anything else is replaced."""
    out = dict(base)
    for key, value in row.items():
        old = out.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        out[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return out


class _Reader:
    """Rows from the table's file, with errors that name the line."""

    def __init__(self, file: TomlFile) -> None:
        self.file = file
        self.tables: dict[str, Any] = file.data["architectures"]
        self.keys: dict[str, Any] = file.data["config_keys"]
        self.defaults: dict[str, Any] = file.data["config_defaults"]

    def row(self, name: str) -> Architecture:
        place = ("architectures", name)
        table = self._extended(name)
        types = table.get("model_types", [])
        if "wraps" in table:
            self.file.check(table, place, _WRAPPER_KEYS, _WRAPPER_OPTIONS)
            return Architecture(
                name,
                tuple(types),
                wraps=table["wraps"],
                prefixes=tuple(table["prefixes"]),
                config=table.get("config", {}),
                left_out=table.get("left_out", {}),
                note=table.get("note"),
                unbuildable=table.get("unbuildable"),
            )
        self.file.check(
            table, place, {"model_types": list}, _STACK_KEYS | _STACK_OPTIONS | _ROW_ONLY
        )
        common = {key: value for key, value in table.items() if key not in _ROW_ONLY}
        named = table.get("stacks", {"": {}})
        stacks = [
            self._stack(stack, _merged(common, own), (*place, "stacks", stack) if stack else place)
            for stack, own in named.items()
        ]
        return Architecture(
            name,
            tuple(types),
            tuple(stacks),
            note=table.get("note"),
            unbuildable=table.get("unbuildable"),
        )

    def _extended(self, name: str) -> dict[str, Any]:
        table = dict(self.tables[name])
        seen = [name]
        while (base := table.pop("extends", None)) is not None:
            if base not in self.tables or base in seen:
                raise self.file.error(
                    f"there is no other row {base!r}.", "architectures", name, "extends"
                )
            seen.append(base)
            parent = {
                k: v for k, v in self.tables[base].items() if k not in ("note", "unbuildable")
            }
            table = _merged(parent, table)
        return table

    def _stack(self, name: str, table: Mapping[str, Any], place: tuple[str, ...]) -> StackRow:
        self.file.check(table, place, _STACK_KEYS, _STACK_OPTIONS)
        for pattern in table["layers"]:
            if not isinstance(pattern, str) or pattern.count("{i}") != 1:
                raise self.file.error("wanted names with one {i}.", *place, "layers")
        for index, variant in enumerate(table.get("variants", ())):
            self.file.check(variant, (*place, "variants", index), {}, _VARIANT_OPTIONS)
        table = {**table, "config": {**self.defaults, **table.get("config", {})}}
        parse = functools.partial(self._parse, place)
        row = StackRow(name, table, parse)
        plain = {key: value for key, value in table.items() if key != "variants"}
        parse(plain)
        for variant in table.get("variants", ()):
            parse(_merged(plain, variant))
        return row

    def _parse(self, place: tuple[str, ...], table: Mapping[str, Any]) -> Stack:
        packing = table["packing"]
        if packing not in PACKINGS:
            raise self.file.error(f"wanted one of {', '.join(PACKINGS)}.", *place, "packing")
        if frozenset(table["tensors"]) not in _PROJECTIONS[packing]:
            wanted = " or ".join(", ".join(sorted(roles)) for roles in _PROJECTIONS[packing])
            raise self.file.error(f"wanted the names of {wanted}.", *place, "tensors")
        return Stack(
            packing=packing,
            transposed=table.get("transposed", False),
            gated=table.get("gated", False),
            cross=table.get("cross", False),
            input_width=table.get("input_width", 1),
            tensors=table["tensors"],
            norms=self._norms(table, place),
            scale=self._powers(table.get("scale", {}), (*place, "scale")),
            init=self._initialiser(table, (*place, "init")),
            keys=self.keys | table.get("keys", {}),
            shared_by=table.get("shared_by"),
            extra_layers=table.get("extra_layers"),
            without_attention=table.get("without_attention", {}),
            refuse=self._refusals(table, place),
        )

    def _powers(self, factors: Mapping[str, Any], place: tuple[str, ...]) -> Mapping[str, float]:
        for quantity, power in factors.items():
            if not isinstance(power, int | float):
                raise self.file.error("wanted a power, a number.", *place, quantity)
        return factors

    def _initialiser(
        self, table: Mapping[str, Any], place: tuple[str, ...]
    ) -> dict[str, Mapping[str, float]]:
        init = _INITIALISER | table.get("init", {})
        self.file.check(init, place, {}, dict.fromkeys(("all", *table["tensors"]), dict))
        return {part: self._powers(factors, (*place, part)) for part, factors in init.items()}

    def _norms(self, table: Mapping[str, Any], place: tuple[str, ...]) -> dict[str, NormRow]:
        norms = {}
        for role in NORM_ROLES:
            entry = table.get(role, {"kind": "none"})
            options = _MEMORY_NORM_OPTIONS if role == "memory_norm" else _NORM_OPTIONS
            self.file.check(entry, (*place, role), {"kind": str}, options)
            kind = entry["kind"]
            if kind not in ("rms", "layer", "none"):
                raise self.file.error("wanted 'rms', 'layer' or 'none'.", *place, role, "kind")
            if kind != "none":
                gain = entry.get("gain", ())
                gains = (gain,) if isinstance(gain, str) else tuple(gain)
                norms[role] = NormRow(Norm(kind, entry.get("offset", 0.0)), gains)
        return norms

    def _refusals(self, table: Mapping[str, Any], place: tuple[str, ...]) -> tuple[Refusal, ...]:
        refusals = []
        for entry in table.get("refuse", ()):
            self.file.check(entry, (*place, "refuse"), _REFUSE_KEYS, {"unless": object})
            unless = entry.get("unless", [])
            values = unless if isinstance(unless, list) else [unless]
            refusals.append(Refusal(entry["key"], tuple(values), entry["reason"]))
        return tuple(refusals)


@functools.cache
def architecture_table() -> ArchitectureTable:
    """The architecture table, read once. Raises CatalogError naming the line of a mistake."""
    file = read_toml(builtin_catalog() / "architectures.toml")
    top = {
        "config_keys": dict,
        "config_defaults": dict,
        "without_attention": dict,
        "architectures": dict,
    }
    file.check(file.data, (), top, {})
    file.check(file.data["config_keys"], ("config_keys",), _CONFIG_KEYS, {})
    reader = _Reader(file)
    rows = {name: reader.row(name) for name in reader.tables}
    owners: dict[str, str] = {}
    for row in rows.values():
        for model_type in row.model_types:
            if owners.setdefault(model_type, row.name) != row.name:
                raise CatalogError(
                    f"{file.path}: the rows {owners[model_type]} and {row.name} both describe "
                    f"{model_type}."
                )
    without = {
        model_type: reason
        for reason, model_types in file.data["without_attention"].items()
        for model_type in model_types
    }
    return ArchitectureTable(rows, without)


def named_architecture(name: str) -> Architecture:
    """The row of that name, or that describes that ``model_type``. Raises LayoutError if none."""
    table = architecture_table()
    found = table.rows.get(name) or table.model_types.get(name)
    if found is None:
        near = difflib.get_close_matches(name, {*table.rows, *table.model_types}, n=3)
        raise LayoutError(
            f"There is no architecture {name!r} in the table"
            + (f"; near it are {', '.join(near)}." if near else ".")
            + " catalog/README.md lists all of them."
        )
    return found
