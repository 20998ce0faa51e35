"""Configurations of the superposition study in TOML: the built-in ones, and one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import product
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np

from qk_taxonomy.errors import CatalogError, StudyError
from qk_taxonomy.resources import TomlFile, builtin_catalog, read_toml
from qk_taxonomy.studies.superposition.config import SuperpositionConfig, Target

_REQUIRED = {"question": str, "probabilities": object, "targets": object}
_OPTIONAL = {
    **dict.fromkeys(("target_form", "training"), str),
    **dict.fromkeys(("importance_decay", "pair_weight", "head_scale"), float),
    **dict.fromkeys(("learning_rate", "weight_decay"), float),
    **dict.fromkeys(("n_features", "d_hidden", "n_seeds", "n_keys", "steps", "head_steps"), int),
    **dict.fromkeys(("batch_size", "snapshots"), int),
    "d_head": object,
    "groups": list,
    "target_weights": list,
}


def presets() -> tuple[str, ...]:
    """Names of the built-in configurations, those of ``catalog/superposition.toml``."""
    return tuple(_presets().data)


def load_config(name_or_path: str | Path) -> tuple[SuperpositionConfig, ...]:
    """The configurations of a preset, or of all tables of a TOML file; see :func:`load_tables`."""
    return tuple(config for table in load_tables(name_or_path).values() for config in table)


def load_tables(name_or_path: str | Path) -> dict[str, tuple[SuperpositionConfig, ...]]:
    """The configurations of a preset, or of a TOML file of the same form, by table.

    Several of a table where targets are an array of choices, target_weights one of pairs, or d_head
    one of numbers: one for each combination, named after what varies, in full
    ``<table>-within-w2-1-r10``. Raises CatalogError, with file, line and key, and StudyError for
    what cannot be trained.
    """
    name = str(name_or_path)
    if name in presets():
        return {name: _configs(_presets(), name)}
    path = Path(name_or_path)
    if path.suffix != ".toml" and not path.exists():
        raise CatalogError(
            f"There is no preset {name!r}. Presets are {', '.join(presets())}; a file of one's own "
            "ends in .toml and has the form of catalog/superposition.toml."
        )
    file = read_toml(path)
    if not file.data:
        raise CatalogError(f"{path} has no configuration: wanted a table [name] for each.")
    return {table: _configs(file, table) for table in file.data}


def adjusted(
    config: SuperpositionConfig, n_seeds: int | None = None, steps: int | None = None
) -> SuperpositionConfig:
    """The configuration with other numbers of seeds, and of steps of each phase, if any are given,
    which its name then tells. Raises StudyError.
    """
    if n_seeds is not None:
        config = replace(config, name=f"{config.name}-{n_seeds}-seeds", n_seeds=n_seeds)
    if steps is not None:
        name = f"{config.name}-{steps}-steps"
        config = replace(config, name=name, steps=steps, head_steps=None)
    return config


def _presets() -> TomlFile:
    return read_toml(builtin_catalog() / "superposition.toml")


def _configs(file: TomlFile, name: str) -> tuple[SuperpositionConfig, ...]:
    table = file.data[name]
    if not isinstance(table, dict):
        raise file.error(f"wanted a table of a configuration, found {table!r}.", name)
    file.check(table, (name,), _REQUIRED, _OPTIONAL)
    values = dict(table)
    values["probabilities"] = _probabilities(file, name)
    values["groups"] = tuple(
        _whole_numbers(file, group, name, "groups") for group in table.get("groups", ())
    )
    variants = [_of_targets(file, name), _of_weights(file, name), _of_heads(file, name)]
    try:
        return tuple(
            SuperpositionConfig(
                name=name + "".join(suffix for suffix, _ in chosen),
                **reduce(or_, (change for _, change in chosen), values),
            )
            for chosen in product(*variants)
        )
    except StudyError as err:
        raise StudyError(f"{file.path}, {name}: {err}") from err


# What a key of a table may be: an end of the configuration's name, empty for the only one, and the
# values that go with it.
_Variants = list[tuple[str, dict[str, Any]]]


def _of_targets(file: TomlFile, name: str) -> _Variants:
    found = file.data[name]["targets"]
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found) or not found:
        return [("", {"targets": _targets(file, name)})]
    _demand_once(file, found, name, "targets")
    return [(f"-{choice}", {"targets": choice}) for choice in found]


def _of_weights(file: TomlFile, name: str) -> _Variants:
    key = "target_weights"
    found = file.data[name].get(key)
    if found is None:
        return [("", {})]
    pairs = found if any(isinstance(one, list) for one in found) else [found]
    for pair in pairs:
        numbers = isinstance(pair, list) and [type(weight) in (int, float) for weight in pair]
        if numbers != [True, True]:
            raise file.error(
                f"wanted two weights, or an array of such pairs, found {pair!r}.", *(name, key)
            )
    weights = [(float(first), float(second)) for first, second in pairs]
    _demand_once(file, weights, name, key)
    if pairs is not found:
        return [("", {key: weights[0]})]
    return [(f"-w{first:g}-{second:g}", {key: (first, second)}) for first, second in weights]


def _of_heads(file: TomlFile, name: str) -> _Variants:
    key = "d_head"
    found = file.data[name].get(key)
    if found is None:
        return [("", {})]
    if not isinstance(found, list):
        file.check({key: found}, (name,), {key: int}, {})
        return [("", {key: found})]
    heads = _whole_numbers(file, found, name, key)
    _demand_once(file, heads, name, key)
    return [(f"-r{head}", {key: head}) for head in heads]


def _demand_once(file: TomlFile, values: Sequence[object], *keys: str) -> None:
    if len(set(values)) < len(values):
        raise file.error(
            f"wanted each value once, a training for each, found {list(values)!r}.", *keys
        )


def _whole_numbers(file: TomlFile, found: Any, *keys: str) -> tuple[int, ...]:
    if not isinstance(found, list) or not found or any(type(number) is not int for number in found):
        raise file.error(f"wanted an array of whole numbers, found {found!r}.", *keys)
    return tuple(found)


def _probabilities(file: TomlFile, name: str) -> tuple[float, ...]:
    """An array, or a table of the highest and lowest of so many that are evenly spaced in log p."""
    found, key = file.data[name]["probabilities"], "probabilities"
    if isinstance(found, dict):
        file.check(found, (name, key), {"highest": float, "lowest": float, "count": int}, {})
        if not (0 < found["lowest"] < found["highest"] <= 1 and found["count"] > 1):
            raise file.error(
                f"wanted 0 < lowest < highest ≤ 1 and a count above 1, found {found!r}.", name, key
            )
        ratio = found["lowest"] / found["highest"]
        steps = np.linspace(0, 1, found["count"])
        return tuple(float(found["highest"] * ratio**step) for step in steps)
    if not isinstance(found, list) or any(type(p) not in (int, float) for p in found):
        raise file.error(
            f"wanted numbers, or a table of highest, lowest, count, found {found!r}.",
            *(name, key),
        )
    return tuple(float(p) for p in found)


def _targets(file: TomlFile, name: str) -> tuple[Target, ...] | Any:
    found = file.data[name]["targets"]
    if isinstance(found, str):
        return found
    targets = []
    for row in found if isinstance(found, list) else [found]:
        numbers = isinstance(row, list) and [type(value) for value in row]
        if (
            not numbers
            or len(numbers) != 3
            or numbers[:2] != [int, int]
            or (numbers[2] not in (int, float))
        ):
            raise file.error(
                f'wanted targets as arrays [i, j, weight], or "apart" or "within" or an array of '
                f"both, found {row!r}.",
                *(name, "targets"),
            )
        targets.append(Target(row[0], row[1], float(row[2])))
    return tuple(targets)
