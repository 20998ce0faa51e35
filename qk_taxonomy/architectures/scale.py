"""The scale of attention scores, from the table's powers of what a layer and its config have."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from qk_taxonomy.architectures.table import lookup
from qk_taxonomy.errors import LayoutError
from qk_taxonomy.records import HeadGeometry


def attention_scale(
    name: str,
    powers: Mapping[str, float],
    config: Mapping[str, Any],
    layer: int,
    geometry: HeadGeometry,
) -> float:
    """What a layer of the row ``name`` multiplies scores by: quantities raised to ``powers``.

    A quantity is one of the layer's, one worked out from the config, a number, or a config key.
    Raises LayoutError where the config lacks it.
    """
    known = {
        "d_head": geometry.d_head,
        "d_query": geometry.d_head + geometry.d_rotary,
        "layer_number": layer + 1,
    }
    scale = 1.0
    for quantity, power in powers.items():
        value: Any
        if quantity in known:
            value = known[quantity]
        elif quantity in _DERIVED:
            value = _DERIVED[quantity](config)
        else:
            value = float(quantity) if quantity.isdecimal() else lookup(config, quantity)
        if not isinstance(value, int | float) or not 1e-9 < value < 1e9:
            raise LayoutError(
                f"The attention scale of {name} needs {quantity}, a positive number; "
                f"the config has {value!r:.60}."
            )
        scale *= float(value) ** power
    return scale


def _yarn_temperature(config: Mapping[str, Any], key: str) -> float:
    """0.1 · ``key`` · ln(factor) + 1, where a config extends its positions by YaRN; else 1.

    Peng et al. (2023), https://arxiv.org/abs/2309.00071, equation 22, as transformers applies it.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    try:
        kind = rope.get("rope_type") or rope.get("type") or "default"
        weight, factor = rope.get(key), rope.get("factor", 1.0)
        if kind == "default" or not weight or factor <= 1:
            return 1.0
        return 0.1 * float(weight) * math.log(factor) + 1.0
    except (AttributeError, TypeError, ValueError, OverflowError) as err:
        raise LayoutError(f"The config says rope parameters {rope!r:.120}: {err}.") from err


def _position_terms(config: Mapping[str, Any]) -> float:
    """Terms of DeBERTa's score: content to content, and those of ``pos_att_type``."""
    kinds = config.get("pos_att_type") or ()
    kinds = kinds.split("|") if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list | tuple) or not all(isinstance(kind, str) for kind in kinds):
        raise LayoutError(f"The config says pos_att_type = {kinds!r:.120}; a list is wanted.")
    return 1.0 + sum(kind.strip().lower() in ("c2p", "p2c") for kind in kinds)


#: Quantities of a scale that are worked out from a config.
_DERIVED: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "yarn_temperature": functools.partial(_yarn_temperature, key="mscale_all_dim"),
    "score_terms": _position_terms,
}
