"""Architectures: from a config and tensor names to which tensors make which head.

Driven by ``catalog/architectures.toml``; an architecture is a row of that table. Nothing here
reads weights: names and shapes are enough to plan every layer, and a model that no row describes
is refused.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qk_taxonomy.errors import LayoutError
from qk_taxonomy.records import (
    PACKINGS,
    AttentionLayout,
    Circuit,
    HeadGeometry,
    LayerPlan,
    Norm,
    Packing,
    TensorInfo,
)
from qk_taxonomy.resources import TomlFile, builtin_catalog, read_toml

#: The gains and projections each circuit is made of, as roles of a plan's tensors.
_ROLES: dict[Circuit, frozenset[str]] = {
    "qk": frozenset({"q", "k", "qkv", "input_norm", "q_norm", "k_norm"}),
    "ov": frozenset({"v", "o", "qkv", "input_norm"}),
}

_ROW_KEYS = {"model_types": list, "layers": list, "packing": str, "scale": list, "tensors": dict}
_ROW_OPTIONS = {
    "transposed": bool,
    "config": dict,
    "refuse": dict,
    "input_norm": dict,
    "q_norm": dict,
    "k_norm": dict,
}
_NORM_KEYS = {"kind": str}
_NORM_OPTIONS = {"gain": str, "offset": float, "when": str, "default": bool}
_SCALE_KEYS = {"of": str, "power": float}
_SCALE_OPTIONS = {"when": str, "default": bool}
_CONFIG_KEYS = {"n_layers": list, "n_heads": list, "n_kv_heads": list, "d_head": list, "text": list}


@dataclass(frozen=True)
class Condition:
    """Whether a part applies: always, or where a config key is true (``default`` if absent)."""

    when: str | None = None
    default: bool = False

    def holds(self, config: Mapping[str, Any]) -> bool:
        return self.when is None or bool(config.get(self.when, self.default))


@dataclass(frozen=True)
class NormRow:
    """A norm of the table: its record, the name of its gain (None: no gain), and its condition."""

    norm: Norm
    gain: str | None
    condition: Condition


@dataclass(frozen=True)
class ScaleFactor:
    """One factor of the attention scale: a quantity raised to a power."""

    of: str
    power: float
    condition: Condition


@dataclass(frozen=True)
class Architecture:
    """One row of the architecture table."""

    name: str
    model_types: tuple[str, ...]
    layers: tuple[str, ...]
    packing: Packing
    transposed: bool
    scale: tuple[ScaleFactor, ...]
    tensors: Mapping[str, str]
    norms: Mapping[str, NormRow]
    config: Mapping[str, Any]
    refuse: Mapping[str, str]


@dataclass(frozen=True)
class ArchitectureTable:
    """All rows, and the config keys under which head counts are found."""

    rows: Mapping[str, Architecture]
    config_keys: Mapping[str, Sequence[str]]

    @property
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


def _condition(table: Mapping[str, Any]) -> Condition:
    return Condition(table.get("when"), table.get("default", False))


def _norm_row(file: TomlFile, table: Mapping[str, Any], *keys: str) -> NormRow:
    file.check(table, keys, _NORM_KEYS, _NORM_OPTIONS)
    if table["kind"] not in ("rms", "layer"):
        raise file.error(f"wanted 'rms' or 'layer', found {table['kind']!r}.", *keys, "kind")
    norm = Norm(table["kind"], table.get("offset", 0.0))
    return NormRow(norm, table.get("gain"), _condition(table))


def _row(file: TomlFile, name: str, tables: Mapping[str, Any]) -> Architecture:
    table = dict(tables[name])
    keys = ("architectures", name)
    seen = [name]
    while (base := table.pop("extends", None)) is not None:
        if base not in tables or base in seen:
            raise file.error(f"there is no other row {base!r}.", *keys, "extends")
        seen.append(base)
        table = _merged(tables[base], table)
    file.check(table, keys, _ROW_KEYS, _ROW_OPTIONS)
    if table["packing"] not in PACKINGS:
        raise file.error(f"wanted one of {', '.join(PACKINGS)}.", *keys, "packing")
    wanted = {"q", "k", "v", "o"} if table["packing"] == "separate" else {"qkv", "o"}
    if set(table["tensors"]) != wanted:
        raise file.error(f"wanted the names of {', '.join(sorted(wanted))}.", *keys, "tensors")
    for factor in table["scale"]:
        file.check(factor, (*keys, "scale"), _SCALE_KEYS, _SCALE_OPTIONS)
    return Architecture(
        name=name,
        model_types=tuple(table["model_types"]),
        layers=tuple(table["layers"]),
        packing=table["packing"],
        transposed=table.get("transposed", False),
        scale=tuple(ScaleFactor(f["of"], f["power"], _condition(f)) for f in table["scale"]),
        tensors=table["tensors"],
        norms={
            role: _norm_row(file, table[role], *keys, role)
            for role in ("input_norm", "q_norm", "k_norm")
            if role in table
        },
        config=table.get("config", {}),
        refuse=table.get("refuse", {}),
    )


@functools.cache
def architecture_table() -> ArchitectureTable:
    """The architecture table, read once. Raises CatalogError naming the line of a mistake."""
    file = read_toml(builtin_catalog() / "architectures.toml")
    file.check(file.data, (), {"config_keys": dict, "architectures": dict}, {})
    file.check(file.data["config_keys"], ("config_keys",), _CONFIG_KEYS, {})
    tables = file.data["architectures"]
    rows = {name: _row(file, name, tables) for name in tables}
    return ArchitectureTable(rows, file.data["config_keys"])


def _how_to_add(tensors: Mapping[str, TensorInfo]) -> str:
    attention = [name for name in tensors if re.search(r"att|query|q_proj", name)] or list(tensors)
    names = ", ".join(attention[:8]) or "none"
    return (
        f"Tensors found: {names}{', ...' if len(attention) > 8 else ''}. If it is a known "
        "architecture under another name, say which with --architecture; otherwise add a row to "
        "catalog/architectures.toml of a checkout (README, 'Adding a model, a family, an "
        "architecture')."
    )


def find_architecture(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], name: str | None = None
) -> Architecture:
    """The table's row for a config, or the row called ``name``. Raises LayoutError if none is."""
    table = architecture_table()
    known = ", ".join(sorted(table.rows))
    if name is not None:
        found = table.rows.get(name) or table.model_types.get(name)
        if found is None:
            raise LayoutError(f"There is no architecture {name!r} in the table; it has {known}.")
        return found
    model_type = config.get("model_type")
    found = table.model_types.get(model_type) if isinstance(model_type, str) else None
    if found is None:
        raise LayoutError(
            f"The architecture {model_type!r} is not in the table, so nothing was computed. "
            f"The table has {known}. {_how_to_add(tensors)}"
        )
    return found


def _from_config(config: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    """The first of ``keys`` that the config has. Raises LayoutError where it is not a count."""
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise LayoutError(f"config.json says {key} = {value!r}; a positive number is wanted.")
        return value
    return None


def _layer_numbers(pattern: str, tensors: Mapping[str, TensorInfo], anchor: str) -> list[int]:
    before, after = pattern.split("{i}")
    name = re.compile(re.escape(before) + r"(\d+)" + re.escape(after + anchor))
    return sorted(int(match[1]) for match in map(name.fullmatch, tensors) if match)


def _scale(row: Architecture, config: Mapping[str, Any], layer: int, d_head: int) -> float:
    known = {"d_head": d_head, "layer_number": layer + 1}
    scale = 1.0
    for factor in row.scale:
        if not factor.condition.holds(config):
            continue
        value = known.get(factor.of, config.get(factor.of))
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise LayoutError(
                f"The attention scale of {row.name} needs {factor.of}, a positive number; "
                f"config.json has {value!r}."
            )
        scale *= float(value) ** factor.power
    return scale


def _geometry(
    row: Architecture,
    config: Mapping[str, Any],
    keys: Mapping[str, Sequence[str]],
    tensors: Mapping[str, TensorInfo],
) -> HeadGeometry:
    """Head counts from the config, d_head and d_model from the shapes, checked on one another."""
    n_heads = _from_config(config, keys["n_heads"])
    if n_heads is None:
        raise LayoutError(
            "config.json names no number of attention heads (looked for "
            f"{', '.join(keys['n_heads'])})."
        )
    n_kv_heads = _from_config(config, keys["n_kv_heads"]) or n_heads
    if n_heads % n_kv_heads:
        raise LayoutError(
            f"config.json has {n_heads} query heads and {n_kv_heads} key-value heads; the first "
            "must be a multiple of the second."
        )
    rows_per_head = {"q": n_heads, "qkv": n_heads + 2 * n_kv_heads}
    role = "q" if row.packing == "separate" else "qkv"
    n_rows, d_model = _matrix_shape(tensors[role], row.transposed)
    if n_rows % rows_per_head[role]:
        raise LayoutError(
            f"{tensors[role].name} has shape {list(tensors[role].shape)}, whose {n_rows} output "
            f"rows do not divide by the {rows_per_head[role]} heads that config.json gives "
            f"({n_heads} query, {n_kv_heads} key-value)."
        )
    d_head = n_rows // rows_per_head[role]
    said = _from_config(config, keys["d_head"])
    if said is not None and said != d_head:
        raise LayoutError(
            f"config.json says d_head = {said}, but {tensors[role].name} of shape "
            f"{list(tensors[role].shape)} with {n_heads} heads makes it {d_head}."
        )
    return HeadGeometry(n_heads, n_kv_heads, d_head, d_model)


def _matrix_shape(info: TensorInfo, transposed: bool) -> tuple[int, int]:
    """(rows out, columns in) of a projection."""
    if len(info.shape) != 2 or 0 in info.shape:
        raise LayoutError(f"{info.name} has shape {list(info.shape)}; a matrix is wanted.")
    rows, columns = info.shape
    return (columns, rows) if transposed else (rows, columns)


def _check_shapes(plan: LayerPlan) -> None:
    """Every tensor of a plan has the shape its geometry gives. Raises LayoutError otherwise."""
    g = plan.geometry
    query, key = g.n_heads * g.d_head, g.n_kv_heads * g.d_head
    wanted = {
        "q": (query, g.d_model),
        "k": (key, g.d_model),
        "v": (key, g.d_model),
        "o": (g.d_model, query),
        "qkv": (query + 2 * key, g.d_model),
    }
    for role, info in plan.tensors.items():
        if role in wanted:
            shape = _matrix_shape(info, plan.transposed)
            allowed = [wanted[role]]
        else:
            shape = info.shape  # type: ignore[assignment]
            allowed = {
                "input_norm": [(g.d_model,)],
                "q_norm": [(g.d_head,), (query,)],
                "k_norm": [(g.d_head,), (key,)],
            }[role]  # type: ignore[assignment]
        if shape not in allowed:
            raise LayoutError(
                f"{info.name} has shape {list(info.shape)}; {g.n_heads} heads of d_head "
                f"{g.d_head} ({g.n_kv_heads} key-value) on d_model {g.d_model} make it "
                f"{' or '.join(str(list(a)) for a in allowed)}"
                f"{' (stored transposed)' if plan.transposed and role in wanted else ''}."
            )


def _plan(
    row: Architecture,
    config: Mapping[str, Any],
    keys: Mapping[str, Sequence[str]],
    tensors: Mapping[str, TensorInfo],
    prefix: str,
    layer: int,
) -> LayerPlan:
    norms = {role: n for role, n in row.norms.items() if n.condition.holds(config)}
    names = dict(row.tensors) | {role: n.gain for role, n in norms.items() if n.gain is not None}
    found: dict[str, TensorInfo] = {}
    for role, name in names.items():
        if prefix + name not in tensors:
            raise LayoutError(f"The tensor {prefix + name} is missing from the checkpoint.")
        found[role] = tensors[prefix + name]
    geometry = _geometry(row, config, keys, found)
    plan = LayerPlan(
        layer=layer,
        geometry=geometry,
        packing=row.packing,
        transposed=row.transposed,
        scale=_scale(row, config, layer, geometry.d_head),
        tensors=found,
        **{role: n.norm for role, n in norms.items()},
    )
    _check_shapes(plan)
    return plan


def attention_layout(
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    architecture: str | None = None,
) -> AttentionLayout:
    """Plan every attention layer of a checkpoint from its config and its tensors' names and shapes.

    ``architecture`` names a row of the table where the config does not. Raises LayoutError where
    no row describes the model, a layer or tensor is missing, or a shape contradicts the config.
    """
    row = find_architecture(config, tensors, architecture)
    keys = architecture_table().config_keys
    for text in keys["text"]:
        if isinstance(config.get(text), Mapping):
            config = {**config, **config[text]}
    config = {**row.config, **{key: value for key, value in config.items() if value is not None}}
    for key, reason in row.refuse.items():
        if config.get(key):
            raise LayoutError(
                f"config.json says {key} = {config[key]!r}: {reason}, which the table's row "
                f"{row.name} does not describe yet, so nothing was computed."
            )
    anchor = row.tensors["q" if row.packing == "separate" else "qkv"]
    layers = ((pattern, _layer_numbers(pattern, tensors, anchor)) for pattern in row.layers)
    pattern, numbers = next(((p, n) for p, n in layers if n), ("", []))
    if not numbers:
        raise LayoutError(
            f"No layer of a {row.name} model is in this checkpoint: wanted tensors such as "
            f"{row.layers[0].format(i=0)}{anchor}. {_how_to_add(tensors)}"
        )
    n_layers = _from_config(config, keys["n_layers"]) or len(numbers)
    if numbers != list(range(n_layers)):
        missing = sorted(set(range(n_layers)) - set(numbers))
        raise LayoutError(
            f"config.json gives {n_layers} layers and the checkpoint holds {len(numbers)}"
            + (f"; missing are {missing[:8]}" if missing else "")
            + ". Is a shard missing, or the config of another model?"
        )
    plans = []
    for layer in numbers:
        try:
            plans.append(_plan(row, config, keys, tensors, pattern.format(i=layer), layer))
        except LayoutError as err:
            raise LayoutError(f"layer {layer}: {err}") from err
    return AttentionLayout(row.name, str(config.get("model_type", row.name)), tuple(plans))


def restrict(plan: LayerPlan, circuits: Sequence[Circuit]) -> LayerPlan:
    """The plan with only the tensors that ``circuits`` need: what crosses the network."""
    roles = frozenset().union(*(_ROLES[circuit] for circuit in circuits))
    tensors = {role: info for role, info in plan.tensors.items() if role in roles}
    return LayerPlan(**{**vars(plan), "tensors": tensors})
