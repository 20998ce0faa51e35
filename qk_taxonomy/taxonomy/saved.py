"""The taxonomy file: what it takes to sort heads of other models into the same classes.

A small safetensors file of format ``qk-taxonomy-taxonomy``: tensors ``centres`` (k, bins),
``edges`` (bins + 1,), ``radii`` (k,), all float64, and ``n_heads`` (k,), int64; the rest of
:class:`SavedTaxonomy` is metadata. The same taxonomy gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy import __version__
from qk_taxonomy.cache import DAMAGE, check_header, ordered_safetensors
from qk_taxonomy.errors import TaxonomyError
from qk_taxonomy.records import (
    CIRCUITS,
    CONVENTIONS,
    DISTANCES,
    FORMULAS,
    Circuit,
    Convention,
    Distance,
    Formula,
    ModelSpectra,
)

Array = NDArray[np.float64]

FORMAT = "qk-taxonomy-taxonomy"
FORMAT_VERSION = "1"

_TENSORS = {"centres": np.float64, "edges": np.float64, "radii": np.float64, "n_heads": np.int64}
_METADATA = (
    *("format", "format_version", "circuit", "convention", "distance", "seed", "narrowest"),
    *("models", "formula", "tool_version"),
)


@dataclass(frozen=True)
class Source:
    """A model that a taxonomy was made of; ``formula``: that of its spectra."""

    family: str
    model_id: str
    revision: str
    formula: Formula


@dataclass(frozen=True, eq=False)
class SavedTaxonomy:
    """A taxonomy without its heads.

    ``centres`` (k, bins): density histograms, of which the nearest says a head's class; ``edges``
    (bins + 1,) of all histograms, in units of the head's mean λ; ``radii`` (k,): distances from the
    centres within which 99 % of a class's own heads lie; ``n_heads`` (k,). ``narrowest``: the
    smallest d_head among its heads. ``models`` is empty where the taxonomy was made of layers
    whose model is not known.
    """

    centres: Array
    edges: Array
    radii: Array
    n_heads: NDArray[np.int64]
    circuit: Circuit
    convention: Convention
    distance: Distance
    seed: int
    narrowest: int
    models: tuple[Source, ...] = ()
    tool_version: str = __version__

    @property
    def n_clusters(self) -> int:
        """Number of classes."""
        return len(self.centres)

    @property
    def formulas(self) -> tuple[Formula, ...]:
        """The formulas of the spectra it was made of, in alphabetical order."""
        return tuple(sorted({model.formula for model in self.models}))


def source_of(spectra: ModelSpectra) -> Source:
    """A model as a taxonomy names it."""
    revision = spectra.metadata["revision"]
    return Source(spectra.family, spectra.model_id, revision, spectra.formula)


def taxonomy_bytes(taxonomy: SavedTaxonomy) -> bytes:
    """The content of a taxonomy's file."""
    tensors = {
        name: np.ascontiguousarray(getattr(taxonomy, name), dtype)
        for name, dtype in _TENSORS.items()
    }
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "circuit": taxonomy.circuit,
        "convention": taxonomy.convention,
        "distance": taxonomy.distance,
        "seed": str(taxonomy.seed),
        "narrowest": str(taxonomy.narrowest),
        "models": json.dumps([asdict(model) for model in taxonomy.models], ensure_ascii=False),
        "formula": ",".join(taxonomy.formulas),
        "tool_version": taxonomy.tool_version,
    }
    return b"".join(ordered_safetensors(tensors, metadata))


def load_taxonomy(path: str | Path) -> SavedTaxonomy:
    """Load a taxonomy file, as `qk-taxonomy cluster` writes it.

    Raises TaxonomyError where it is missing, damaged, of another format version or another kind.
    """
    from safetensors import safe_open

    path = Path(path)
    advice = "`qk-taxonomy cluster` writes taxonomies, as ESDs/.../NAME.taxonomy.safetensors."
    if not path.is_file():
        raise TaxonomyError(f"There is no taxonomy file {path}. {advice}")
    try:
        check_header(path)
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            _check_kind(metadata, path, advice)
            names = file.keys()  # a safetensors file is no mapping
            return _from_parts({name: file.get_tensor(name) for name in names}, metadata)
    except TaxonomyError:
        raise
    except DAMAGE as err:
        raise TaxonomyError(
            f"{path} is damaged, or no taxonomy file ({str(err)[:200]}). {advice}"
        ) from err


def _check_kind(metadata: Mapping[str, str], path: Path, advice: str) -> None:
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "no format")[:60]
        raise TaxonomyError(
            f"{path} is not a taxonomy file: wanted format {FORMAT}, found {found}. {advice}"
        )
    version = metadata.get("format_version", "none")
    if version != FORMAT_VERSION:
        raise TaxonomyError(
            f"{path} has format version {version[:60]}, this program reads {FORMAT_VERSION}. Make "
            "the taxonomy again with `qk-taxonomy cluster`."
        )


def _from_parts(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> SavedTaxonomy:
    """A taxonomy from a file's parts. Raises ValueError and the like where they are not sound."""
    missing = [key for key in _METADATA if key not in metadata]
    if missing:
        raise ValueError(f"its metadata lacks {', '.join(missing)}")
    if tensors.keys() != _TENSORS.keys():
        raise ValueError(f"wanted tensors {', '.join(_TENSORS)}, found {', '.join(tensors)}")
    for key, known in (("circuit", CIRCUITS), ("convention", CONVENTIONS), ("distance", DISTANCES)):
        if metadata[key] not in known:
            raise ValueError(f"{key} {metadata[key]!r:.60} is none of {', '.join(known)}")
    taxonomy = SavedTaxonomy(
        **tensors,
        circuit=metadata["circuit"],  # type: ignore[arg-type]
        convention=metadata["convention"],  # type: ignore[arg-type]
        distance=metadata["distance"],  # type: ignore[arg-type]
        seed=int(metadata["seed"]),
        narrowest=int(metadata["narrowest"]),
        models=tuple(Source(**model) for model in json.loads(metadata["models"])),
        tool_version=metadata["tool_version"],
    )
    for model in taxonomy.models:
        named = (model.family, model.model_id, model.revision)
        if not all(isinstance(name, str) for name in named) or model.formula not in FORMULAS:
            raise ValueError(f"it was made of a model {model!r:.120}")
    if taxonomy.narrowest < 1:
        raise ValueError(f"its narrowest head has a d_head of {taxonomy.narrowest}")
    _check_arrays(taxonomy)
    return taxonomy


def _check_arrays(taxonomy: SavedTaxonomy) -> None:
    for name, dtype in _TENSORS.items():
        array = getattr(taxonomy, name)
        if array.dtype != dtype or not np.isfinite(array).all() or (array < 0).any():
            raise ValueError(f"{name} are not finite numbers from 0 on, of dtype {dtype.__name__}")
    edges, centres = taxonomy.edges, taxonomy.centres
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError("its edges do not ascend")
    if centres.ndim != 2 or not len(centres) or centres.shape[1] != len(edges) - 1:
        raise ValueError(f"centres {centres.shape} do not fit {len(edges) - 1} bins")
    k = len(centres)
    if taxonomy.radii.shape != (k,) or taxonomy.n_heads.shape != (k,):
        raise ValueError(f"radii and n_heads are not those of {k} classes")
