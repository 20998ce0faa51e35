"""Files of full-circuit spectra: ``data/circuits/<family>/<model>[@<revision>][~<control>]``.

A safetensors file, float64, of as many layers as have been computed so far:
``[<stack>.]layers.<i>.<circuit>.<convention>.<part>`` with the parts of
:class:`~qk_taxonomy.studies.circuits.records.LayerCircuits`, eigenvalues as (n_heads, d_head, 2).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from safetensors import safe_open

from qk_taxonomy.cache import DAMAGE, check_header, spectra_path, write_tensors
from qk_taxonomy.errors import SpectraFileError
from qk_taxonomy.records import Circuit, Convention, LayerPlan, ModelRef
from qk_taxonomy.studies.circuits.records import LayerCircuits, ModelCircuits

FORMAT = "qk-taxonomy-full-circuits"
FORMAT_VERSION = "1"

_FOLDER = "circuits"
_REAL_PARTS = (
    *("singular_values", "symmetric", "antisymmetric"),
    *("centred_singular_values", "centred_symmetry"),
)
_PARTS = ("eigenvalues", *_REAL_PARTS)
_KEY = re.compile(
    r"(?:(?P<stack>\w+)\.)?layers\.(?P<layer>0|[1-9][0-9]{0,8})"
    rf"\.(?P<circuit>{'|'.join(get_args(Circuit))})"
    rf"\.(?P<convention>{'|'.join(get_args(Convention))})\.(?P<part>{'|'.join(_PARTS)})"
)

# What may differ between two runs that make the same numbers.
_INCIDENTAL = ("source", "tool_version")


def circuits_path(root: str | Path, ref: ModelRef) -> Path:
    """Where the full circuits of a model belong. Raises SpectraFileError as of spectra files."""
    path = spectra_path(root, ref)
    return path.parent.parent / _FOLDER / path.parent.name / path.name


def save_circuits(path: Path, model: ModelCircuits) -> None:
    """Write a file whole, or leave the one that is there. Raises SpectraFileError."""
    tensors = {}
    for layer in model.layers:
        stack = f"{layer.stack}." if layer.stack else ""
        key = f"{stack}layers.{layer.layer}.{layer.circuit}.{layer.convention}"
        mu = np.ascontiguousarray(layer.eigenvalues, np.complex128)
        tensors[f"{key}.eigenvalues"] = mu.view(np.float64).reshape(*mu.shape, 2)
        for part in _REAL_PARTS:
            tensors[f"{key}.{part}"] = np.ascontiguousarray(getattr(layer, part), np.float64)

    def whole(beside: Path) -> bool:
        return len(load_circuits(beside).layers) == len(model.layers)

    write_tensors(path, tensors, model.metadata, whole)


def load_circuits(path: Path) -> ModelCircuits:
    """The layers of a file, in order of stack, number, circuit and convention.

    Raises SpectraFileError where it is missing, damaged or another kind.
    """
    if not path.is_file():
        raise SpectraFileError(f"There is no file {path}. `qk-taxonomy circuits` makes it.")
    try:
        check_header(path)
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if (metadata.get("format"), metadata.get("format_version")) != (FORMAT, FORMAT_VERSION):
                raise SpectraFileError(
                    f"{path} is no file of full circuits of format {FORMAT_VERSION}, which "
                    "`qk-taxonomy circuits` makes under data/circuits/."
                )
            return ModelCircuits(metadata, tuple(_layers(file, metadata)))
    except DAMAGE as err:
        raise SpectraFileError(
            f"{path} is damaged ({err}). Remove it and give `qk-taxonomy circuits` again."
        ) from err


def layer_table(layers: Iterable[LayerPlan]) -> str:
    """What a file's metadata says of a model's layers, as JSON: stack, number and its heads."""
    return json.dumps(
        [
            [plan.stack, plan.layer, plan.geometry.n_heads, plan.geometry.n_kv_heads]
            for plan in layers
        ]
    )


def _layers(file: Any, metadata: Mapping[str, str]) -> Iterable[LayerCircuits]:
    known = {
        (str(stack), int(layer)): (int(n_heads), int(n_kv_heads))
        for stack, layer, n_heads, n_kv_heads in json.loads(metadata["layers"])
    }
    groups: dict[tuple[str, int, Circuit, Convention], dict[str, Any]] = {}
    for key in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
        match = _KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"it holds an unknown tensor {key[:120]}")
        place = (match["stack"] or "", int(match["layer"]), match["circuit"], match["convention"])
        groups.setdefault(place, {})[match["part"]] = file.get_tensor(key)  # type: ignore[arg-type]
    for (stack, layer, circuit, convention), parts in sorted(groups.items()):
        n_heads, n_kv_heads = known[stack, layer]
        e = parts["singular_values"].shape[-1]
        shapes = {part: array.shape for part, array in parts.items()}
        wanted = {
            "singular_values": (n_heads, e),
            "eigenvalues": (n_heads, e, 2),
            "symmetric": (n_heads, 2 * e),
            "antisymmetric": (n_heads, e),
            "centred_singular_values": (n_heads, e),
            "centred_symmetry": (n_heads,),
        }
        sound = shapes == wanted and all(
            array.dtype == np.float64 and np.isfinite(array).all() for array in parts.values()
        )
        if not sound or n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ValueError(f"layer {layer} {circuit} {convention} has not what it should have")
        yield LayerCircuits(
            layer=layer,
            stack=stack,
            n_kv_heads=n_kv_heads,
            circuit=circuit,
            convention=convention,
            eigenvalues=parts["eigenvalues"].view(np.complex128)[..., 0],
            **{part: parts[part] for part in _REAL_PARTS},
        )


def same_model(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two files' metadata speak of the same weights, read alike."""
    kept = [{k: v for k, v in x.items() if k not in _INCIDENTAL} for x in (one, other)]
    return kept[0] == kept[1]
