"""Products of powers, as the table writes the attention scale and an initialiser's deviations."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from qk_taxonomy.architectures.geometry import matrix_shape
from qk_taxonomy.architectures.table import Stack, lookup
from qk_taxonomy.errors import LayoutError
from qk_taxonomy.records import HeadGeometry, TensorInfo


def attention_scale(
    name: str, stack: Stack, config: Mapping[str, Any], layer: int, geometry: HeadGeometry
) -> float:
    """What a layer of the row ``name`` multiplies scores by.

    Raises LayoutError where the config lacks what it takes.
    """
    known = {
        "d_head": geometry.d_head,
        "d_query": geometry.d_head + geometry.d_rotary,
        "layer_number": layer + 1,
    }
    return product_of_powers(f"The attention scale of {name}", stack.scale, config, known)


def initial_deviations(
    name: str,
    stack: Stack,
    config: Mapping[str, Any],
    n_layers: int,
    geometry: HeadGeometry,
    tensors: Mapping[str, TensorInfo],
) -> dict[str, float]:
    """Standard deviation of each stored projection, by role, in an untrained layer of a row.

    The form of the distribution (normal, uniform, cut) is not told: the law that spectra approach
    as projections grow does not depend on it. Raises LayoutError where the config lacks what it
    takes.
    """
    deviations = {}
    for role in stack.tensors:
        rows, columns = matrix_shape(tensors[role], transposed=stack.transposed)
        known = {
            "d_head": geometry.d_head,
            "d_model": geometry.d_model,
            "n_layers": n_layers,
            "fan_in": columns,
            "fan_mean": (rows + columns) / 2,
        }
        what = f"The initialiser of {name}"
        deviations[role] = math.prod(
            product_of_powers(what, stack.init.get(part, {}), config, known)
            for part in ("all", role)
        )
    return deviations


def product_of_powers(
    what: str,
    powers: Mapping[str, float],
    config: Mapping[str, Any],
    known: Mapping[str, float],
) -> float:
    """Quantities raised to ``powers``, multiplied.

    A quantity is one of the ``known``, one worked out from the config, a number, or a config key.
    Raises LayoutError, beginning with ``what``, where the config lacks it.
    """
    product = 1.0
    for quantity, power in powers.items():
        value: Any
        if quantity in known:
            value = known[quantity]
        elif quantity in _DERIVED:
            value = _DERIVED[quantity](config)
        else:
            value = float(quantity) if _NUMBER.fullmatch(quantity) else lookup(config, quantity)
        if not _is_number(value) or not 1e-9 < value < 1e9:
            raise LayoutError(
                f"{what} needs {quantity}, a positive number; the config has {value!r:.60}."
            )
        product *= float(value) ** power
    return product


def _is_number(value: Any) -> bool:
    """Whether a config's value is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _yarn_temperature(config: Mapping[str, Any], key: str) -> float:
    """0.1 · ``key`` · ln(factor) + 1, where a config extends its positions by YaRN; else 1.

    Peng et al. (2023), https://arxiv.org/abs/2309.00071, equation 22, as transformers applies it.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    try:
        kind = rope.get("rope_type") or rope.get("type") or "default"
        weight, factor = rope.get(key), rope.get("factor", 1.0)
        if kind == "default" or weight in (None, 0):
            return 1.0
        if not _is_number(weight) or not _is_number(factor) or not 0 < factor < 1e9:
            raise ValueError(f"{key} and factor are no positive numbers")
        if factor <= 1:
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


def _cut_normal(config: Mapping[str, Any]) -> float:
    """Standard deviation of a standard normal distribution cut at ± ``initializer_cutoff_factor``.

    √(1 − 2cφ(c) / erf(c/√2)), with φ the normal density.
    """
    cut = lookup(config, "initializer_cutoff_factor")
    if not _is_number(cut) or not 1e-3 < cut < 1e3:
        raise LayoutError(
            f"The config says initializer_cutoff_factor = {cut!r:.60}; a positive number is wanted."
        )
    density = math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(1 - 2 * cut * density / math.erf(cut / math.sqrt(2)))


_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")

#: Quantities that are worked out from a config.
_DERIVED: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "yarn_temperature": functools.partial(_yarn_temperature, key="mscale_all_dim"),
    "score_terms": _position_terms,
    "cut_normal": _cut_normal,
}
