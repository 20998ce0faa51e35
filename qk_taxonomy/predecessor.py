"""Spectra that qk-spectral-analysis published, as spectra files.

That program, this one's predecessor, keeps a model in a pickle of four dicts by layer:
``singular_values`` and ``eigen_values`` (λ = σ²), each (n_heads, d_head), and the six statistics
of either. Its formula for σ is not that of W_QK, and an imported file says so; nothing of it is
taken for a survey's.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy import __version__
from qk_taxonomy.cache import FORMAT, FORMAT_VERSION, spectra_path, write_spectra
from qk_taxonomy.catalog import check_family_name, check_file_name, load_families
from qk_taxonomy.checkpoints.numpy_pickle import read_arrays
from qk_taxonomy.errors import CheckpointError, ShapeError, SpectraFileError
from qk_taxonomy.records import PREDECESSOR_FORMULA, LayerSpectra, ModelRef, ModelSpectra
from qk_taxonomy.statistics.moments import STATISTICS, describe

Spectra = dict[int, NDArray[np.float64]]

#: What the folder of an imported family adds to its name, so that a survey has its own beside it.
FOLDER = "predecessor"

_SIGMA, _LAMBDA = "singular_values", "eigen_values"
_KEYS = {_SIGMA, _LAMBDA, f"{_SIGMA}_stats", f"{_LAMBDA}_stats"}

_SUFFIXES = (".pkl", ".pickle")

# The largest real models have 126 layers, and heads of 256 to 576.
_MOST_LAYERS = 1024
_WIDEST = 1024

# The statistics of a spectra file are float32, and so is the largest λ.
_LARGEST = float(np.finfo(np.float32).max)

# λ and σ² differ by the rounding of both to float32, some 2e-7, or to a coarser dtype.
_TOLERANCE = 1e-5
_ROUNDINGS = 4

_NOTES = (
    "the predecessor's formula takes V for Vᵀ, so these are not the spectra of W_QK, and depend on "
    "arbitrary signs",
    "the circuit eigenvalues μ are not known, and NaN in the file",
)


def import_predecessor(
    path: str | Path,
    *,
    output_root: str | Path = ".",
    family_name: str | None = None,
    d_model: int | None = None,
    n_kv_heads: int | None = None,
    force: bool = False,
) -> Path:
    """Make a spectra file of a pickle that qk-spectral-analysis wrote, and return its path.

    The model is the catalogue's whose name is that of the file, and its folder is ``family_name``,
    else ``<family>-predecessor`` (``predecessor`` for a model of no family). Statistics are
    computed anew. ``d_model`` and ``n_kv_heads`` are not in the pickle: 0 in the file where they
    are not given. An existing file is kept unless ``force``. The pickle is read as data, and
    nothing in it is run.

    Raises CheckpointError where it is missing, a folder, damaged or holds anything but arrays;
    SpectraFileError where these are no spectra, or the result is there already or cannot be
    written; ShapeError where ``n_kv_heads`` does not divide the heads; CatalogError where a name
    could not name a file.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder; wanted a pickle (.pkl) that {PREDECESSOR_FORMULA} wrote. Name "
            "the files in it."
        )
    ref = _reference(path, family_name)
    target = spectra_path(output_root, ref)
    if target.exists() and not force:
        raise SpectraFileError(
            f"{target} exists, and {path} would take its place. Import it under another "
            "--family-name, or replace the file with --force."
        )
    sigma = read_singular_values(path)
    n_heads, _ = next(iter(sigma.values())).shape
    _check_numbers(path, n_heads, d_model, n_kv_heads)
    metadata = _metadata(path, ref, sigma, d_model or 0, n_kv_heads or 0)
    layers = tuple(_layer(layer, sigma[layer]) for layer in sorted(sigma))
    write_spectra(target, ModelSpectra(metadata, layers))
    return target


def _check_numbers(path: Path, n_heads: int, d_model: int | None, n_kv_heads: int | None) -> None:
    """Raises ShapeError where the numbers that a user gives cannot be those of the model."""
    for what, number in (("d_model", d_model), ("n_kv_heads", n_kv_heads)):
        if number is not None and number < 1:
            raise ShapeError(f"Wanted a positive {what}, found {number}.")
    if n_kv_heads is not None and n_heads % n_kv_heads:
        raise ShapeError(
            f"{path} has {n_heads} heads a layer, which {n_kv_heads} key-value heads cannot share "
            "evenly. Correct --kv-heads, or leave it out."
        )


def _metadata(
    path: Path, ref: ModelRef, sigma: Spectra, d_model: int, n_kv_heads: int
) -> dict[str, str]:
    n_heads, d_head = next(iter(sigma.values())).shape
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_id": ref.ref,
        "family": ref.family,
        "revision": "unknown",
        "architecture": "unknown",
        "n_layers": str(len(sigma)),
        "n_heads": str(n_heads),
        "n_kv_heads": str(n_kv_heads),
        "d_head": str(d_head),
        "d_model": str(d_model),
        "weights_dtype": "unknown",
        "source": f"{PREDECESSOR_FORMULA} pickle {path.name}",
        "statistics": ",".join(STATISTICS),
        "tool_version": __version__,
        "provenance": _provenance(path),
    }


def _reference(path: Path, family_name: str | None) -> ModelRef:
    """The model that a pickle is named after, and where its spectra go."""
    stem = path.stem if path.suffix.casefold() in _SUFFIXES else path.name
    models = ((family, model) for family in load_families() for model in family.models)
    found = next(((f, m) for f, m in models if m.name.casefold() == stem.casefold()), None)
    folder = family_name or (f"{found[0].name}-{FOLDER}" if found else FOLDER)
    return ModelRef(
        ref=found[1].id if found else stem,
        family=check_family_name(folder),
        name=check_file_name(found[1].name if found else stem, "model name"),
    )


def _provenance(path: Path) -> str:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return json.dumps(
        {
            "circuits": ["qk"],
            "conventions": ["raw"],
            "formula": PREDECESSOR_FORMULA,
            "notes": _NOTES,
            "pickle_sha256": digest,
            "versions": {"numpy": np.__version__, "python": platform.python_version()},
        },
        sort_keys=True,
    )


def _layer(layer: int, sigma: NDArray[np.float64]) -> LayerSpectra:
    return LayerSpectra(
        layer=layer,
        circuit="qk",
        convention="raw",
        singular_values=sigma.astype(np.float32),
        eigenvalues=np.full(sigma.shape, complex(np.nan, np.nan), dtype=np.complex64),
        statistics=describe(sigma**2),
    )


def read_singular_values(path: str | Path) -> Spectra:
    """σ by layer (n_heads, d_head), float64 and descending, of a pickle of the predecessor's.

    They are its ``singular_values``, or where it has none the roots of its ``eigen_values``.
    Raises CheckpointError where the file is no pickle of arrays, and SpectraFileError where these
    are not what the predecessor writes: σ and λ = σ² that agree, finite and not negative, of as
    many heads and values in every layer.
    """
    tables = read_arrays(path)
    if type(tables) is not dict or not {_SIGMA, _LAMBDA} & tables.keys():
        raise SpectraFileError(
            f"{path} holds no {_SIGMA} or {_LAMBDA}, of which one is wanted. Found: "
            f"{_listed(tables) if type(tables) is dict else f'a {type(tables).__name__}'}."
        )
    if not tables.keys() <= _KEYS:
        raise SpectraFileError(
            f"{path} holds {_listed(tables.keys() - _KEYS)} beside what {PREDECESSOR_FORMULA} "
            f"writes ({_listed(_KEYS)}). Is it another program's?"
        )
    if _SIGMA not in tables:
        lam = _spectra(tables[_LAMBDA], f"{path}, {_LAMBDA}", _LARGEST)
        return {layer: np.sqrt(values) for layer, values in lam.items()}
    sigma = _spectra(tables[_SIGMA], f"{path}, {_SIGMA}", _LARGEST**0.5)
    if _LAMBDA in tables:
        lam = _spectra(tables[_LAMBDA], f"{path}, {_LAMBDA}", _LARGEST)
        dtypes = {array.dtype for name in (_SIGMA, _LAMBDA) for array in tables[name].values()}
        _check_squares(sigma, lam, dtypes, path)
    return sigma


def _listed(keys: Iterable[Any]) -> str:
    return ", ".join(sorted(str(key)[:40] for key in keys)[:8]) or "nothing"


def _spectra(table: Any, where: str, largest: float) -> Spectra:
    """The arrays of a dict by layer, each row descending. Raises SpectraFileError."""
    if type(table) is not dict or not 0 < len(table) <= _MOST_LAYERS:
        found = f"{len(table)} entries" if type(table) is dict else f"a {type(table).__name__}"
        raise SpectraFileError(
            f"{where}: wanted a dict of 1 to {_MOST_LAYERS} layers, found {found}."
        )
    spectra: Spectra = {}
    for layer, values in table.items():
        place = f"{where}, layer {layer!r:.40}"
        if type(layer) is not int or layer < 0:
            raise SpectraFileError(f"{place}: wanted the number of a layer.")
        spectra[layer] = _layer_spectra(values, place, largest)
        wanted = next(iter(spectra.values())).shape
        if values.shape != wanted:
            raise SpectraFileError(
                f"{place}: wanted {wanted} (n_heads, d_head) as in the first layer, found "
                f"{values.shape}."
            )
    return spectra


def _layer_spectra(values: Any, place: str, largest: float) -> NDArray[np.float64]:
    """One layer's array with each row descending. Raises SpectraFileError."""
    found = values.shape if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
    if type(found) is not tuple or len(found) != 2 or found[0] < 1 or not 2 <= found[1] <= _WIDEST:
        raise SpectraFileError(
            f"{place}: wanted an array (n_heads, d_head) with d_head from 2 to {_WIDEST}, "
            f"found {found}."
        )
    x = values.astype(np.float64)
    bad = x[~((x >= 0) & (x < largest))]  # NaN compares as false
    if bad.size:
        raise SpectraFileError(
            f"{place}: wanted values from 0 to {largest:.3g}, found {bad[0]:.4g}. The file may "
            "be damaged: compare it with the original."
        )
    return np.sort(x, axis=-1)[:, ::-1]


def _check_squares(
    sigma: Spectra, lam: Spectra, dtypes: Iterable[np.dtype[Any]], path: str | Path
) -> None:
    """Raises SpectraFileError unless λ = σ² within the rounding of the stored dtypes."""
    if sigma.keys() != lam.keys():
        raise SpectraFileError(
            f"{path} has layers {_listed(sigma.keys() ^ lam.keys())} in {_SIGMA} or {_LAMBDA} "
            "alone; wanted the same layers in both."
        )
    floats = [np.finfo(dtype) for dtype in dtypes if dtype.kind == "f"]
    relative = max([_TOLERANCE, *(_ROUNDINGS * float(limits.eps) for limits in floats)])
    underflow = max([0.0, *(float(limits.tiny) for limits in floats)])
    for layer, values in sigma.items():
        found, wanted = lam[layer], values**2
        if found.shape != wanted.shape:
            raise SpectraFileError(
                f"{path}, layer {layer}: {_SIGMA} are {wanted.shape} and {_LAMBDA} {found.shape}; "
                "wanted the same."
            )
        off = np.abs(found - wanted) > relative * wanted + underflow
        if off.any():
            raise SpectraFileError(
                f"{path}, layer {layer}: {_LAMBDA} has {found[off][0]:.6g} where the square of "
                f"{_SIGMA} is {wanted[off][0]:.6g}. Wanted λ = σ²; one of them is damaged, or of "
                "another model."
            )
