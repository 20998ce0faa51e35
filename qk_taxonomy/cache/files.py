"""Spectra files: their names and their format.

A spectra file is a safetensors file (its tensors and metadata are the README's "Files"). Under
its final name a file is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from safetensors import SafetensorError, safe_open

from qk_taxonomy.cache.writing import make_folder
from qk_taxonomy.errors import SpectraFileError
from qk_taxonomy.records import Circuit, Convention, FileStem, LayerSpectra, ModelRef, ModelSpectra

FORMAT = "qk-taxonomy-spectra"
FORMAT_VERSION = "1"
DATA_FOLDER = "data"

_KEY = re.compile(
    r"(?:(?P<stack>\w+)\.)?layers\.(?P<layer>0|[1-9][0-9]{0,8})"
    rf"\.(?P<circuit>{'|'.join(get_args(Circuit))})"
    rf"\.(?P<convention>{'|'.join(get_args(Convention))})"
    r"\.(?P<part>singular_values|statistics|eigenvalues)"
)
_SUFFIX = ".safetensors"
_PLACE = (
    "Spectra files are those under data/, which `qk-taxonomy download` makes; a taxonomy, "
    "NAME.taxonomy.safetensors, is for `qk-taxonomy assign`."
)
#: What reading a damaged safetensors file of this program's may raise.
DAMAGE = (
    *(SafetensorError, OSError, ArithmeticError, AttributeError, LookupError, RecursionError),
    *(TypeError, ValueError),
)

# Of a header of spectra: 1,000 layers of all circuits and conventions have 2 MB.
_LONGEST_HEADER = 16 << 20

# Far above any model's number of layers, heads or dimensions.
_LARGEST_COUNT = 10_000_000

# Dtypes of this program's files and their names in safetensors, from low to high in its order.
_DTYPES = {"<f4": "F32", "<f8": "F64", "<i8": "I64"}

_REQUIRED_METADATA = (
    *("format", "format_version", "model_id", "family", "revision", "architecture"),
    *("n_layers", "n_heads", "n_kv_heads", "d_head", "d_model"),
    *("weights_dtype", "source", "statistics", "tool_version"),
)


def spectra_path(root: str | Path, ref: ModelRef) -> Path:
    """Where a model's spectra belong: ``<root>/data/<family>/<stem>.safetensors`` (FileStem).

    Raises SpectraFileError where the name would leave the folder.
    """
    base = Path(root) / DATA_FOLDER
    stem = FileStem(ref.name, ref.revision or None, ref.control_label)
    path = base / ref.family / f"{stem}.safetensors"
    if path.parent.parent != base or not path.resolve().is_relative_to(base.resolve()):
        raise SpectraFileError(
            f"The results of {ref.ref} would be written outside {base}, to {path}. Give another "
            "--family-name, or rename the model's folder."
        )
    return path


def as_stored(layer: LayerSpectra) -> LayerSpectra:
    """Spectra in the precision that files keep: float32, and complex64 for eigenvalues."""
    return replace(
        layer,
        singular_values=np.ascontiguousarray(layer.singular_values, np.float32),
        eigenvalues=np.ascontiguousarray(layer.eigenvalues, np.complex64),
        statistics=np.ascontiguousarray(layer.statistics, np.float32),
    )


def _tensors(layers: Iterable[LayerSpectra]) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a file, by key: views of arrays that are as they are stored already."""
    tensors = {}
    for layer in layers:
        stack = f"{layer.stack}." if layer.stack else ""
        key = f"{stack}layers.{layer.layer}.{layer.circuit}.{layer.convention}"
        stored = as_stored(layer)
        mu = stored.eigenvalues
        tensors[f"{key}.singular_values"] = stored.singular_values
        tensors[f"{key}.statistics"] = stored.statistics
        tensors[f"{key}.eigenvalues"] = mu.view(np.float32).reshape(*mu.shape, 2)
    return tensors


def checksum(layers: Iterable[LayerSpectra]) -> str:
    """A hash of the numbers of layers, as files keep them."""
    digest = hashlib.blake2b(digest_size=16)
    for key, array in sorted(_tensors(layers).items()):
        digest.update(key.encode())
        digest.update(_bytes_of(array))
    return digest.hexdigest()


def ordered_safetensors(
    tensors: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, piece by piece, for contiguous arrays.

    Written here since the library writes metadata in a random order, and holds two copies of all
    tensors; tensors are in its order: by dtype, those of eight bytes first, then by name.
    """
    names = sorted(tensors, key=lambda name: (-_rank(tensors[name]), name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        array, start = tensors[name], end
        end += array.nbytes
        header[name] = {
            "dtype": _DTYPES[array.dtype.str],
            "shape": array.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of eight bytes
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield _bytes_of(tensors[name])


def _rank(array: np.ndarray[Any, Any]) -> int:
    return list(_DTYPES).index(array.dtype.str)


def _bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of a contiguous array, not copied."""
    return array.reshape(-1).view(np.uint8).data


def write_spectra(path: Path, spectra: ModelSpectra, *, durable: bool = True) -> None:
    """Write a spectra file: beside its name first, read back, then renamed.

    ``durable``: wait until the disk has it. Raises SpectraFileError; a file of that name stays as
    it was.
    """
    tensors = _tensors(spectra.layers)

    def whole(beside: Path) -> bool:
        return _keys_alike(beside, tensors) == tensors.keys()

    write_tensors(path, tensors, spectra.metadata, whole, durable=durable)


def write_tensors(
    path: Path,
    tensors: Mapping[str, np.ndarray[Any, Any]],
    metadata: Mapping[str, str],
    whole: Callable[[Path], bool],
    *,
    durable: bool = True,
) -> None:
    """Write a safetensors file beside its name, and rename it if it is ``whole`` when read back.

    Raises SpectraFileError; a file of that name stays as it was.
    """
    make_folder(path.parent)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as stream:
            for piece in ordered_safetensors(tensors, metadata):
                stream.write(piece)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        if not whole(beside):
            raise SpectraFileError(f"{path} was not written as it should be; is the disk sound?")
        beside.replace(path)
    except (OSError, SafetensorError) as err:
        raise SpectraFileError(
            f"{path} cannot be written: {err}. Free some space on its disk, or mend what else "
            "keeps it from being written, then give the same command again: finished layers are "
            "kept."
        ) from err
    finally:
        beside.unlink(missing_ok=True)


def _keys_alike(path: Path, tensors: Mapping[str, np.ndarray[Any, Any]]) -> set[str]:
    """Keys under which a spectra file has what ``tensors`` have, read one layer at a time."""
    with _opened(path) as (_, layers):
        return {
            key
            for layer in layers
            for key, array in _tensors([layer]).items()
            if key in tensors and np.array_equal(array, tensors[key], equal_nan=True)
        }


def check_header(path: Path) -> None:
    """Raises ValueError where a safetensors file claims a longer header than any of this program's,
    which its reader would hold in memory many times over."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"its header claims {length} bytes")


def load_spectra(path: str | Path) -> ModelSpectra:
    """Load a spectra file. Raises SpectraFileError where it is missing, damaged or another kind.

    Each layer's arrays: singular_values (n_heads, d_head) float32, descending; eigenvalues
    (n_heads, d_head) complex64; statistics (n_heads, n_statistics) float32, in the order of the
    metadata's ``statistics``.
    """
    with _opened(Path(path)) as (metadata, layers):
        return ModelSpectra(metadata, tuple(layers))


def load_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a spectra file alone. Raises SpectraFileError as :func:`load_spectra`."""
    with _opened(Path(path)) as (metadata, _):
        return metadata


@contextmanager
def _opened(path: Path) -> Iterator[tuple[dict[str, str], Iterator[LayerSpectra]]]:
    """The metadata of a spectra file, and its layers as they are read. Raises SpectraFileError."""
    if not path.is_file():
        raise SpectraFileError(f"There is no spectra file {path}. `qk-taxonomy download` makes it.")
    try:
        check_header(path)
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            if metadata.get("format") != FORMAT:
                found = metadata.get("format", "no format")[:60]
                raise SpectraFileError(
                    f"{path} is not a spectra file: wanted format {FORMAT}, found {found}. {_PLACE}"
                )
            missing = [key for key in _REQUIRED_METADATA if key not in metadata]
            if missing:
                raise ValueError(f"its metadata lacks {', '.join(missing)}")
            if metadata["format_version"] != FORMAT_VERSION:
                raise SpectraFileError(
                    f"{path} has format version {metadata['format_version'][:60]}, this program "
                    f"reads {FORMAT_VERSION}. Make it again with `qk-taxonomy download --force`."
                )
            _ = ModelSpectra(metadata, ()).formula  # reads the provenance, which may be damaged
            yield metadata, _layers(file, metadata, path)
    except DAMAGE as err:
        if _SUFFIX not in path.suffixes:
            raise SpectraFileError(
                f"{path} is not a spectra file: wanted one that ends in {_SUFFIX}. {_PLACE}"
            ) from err
        raise SpectraFileError(
            f"{path} is damaged ({str(err)[:200]}). Make it again with "
            "`qk-taxonomy download --force`."
        ) from err


def stack_table(metadata: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Numbers of layers, heads and dimensions of each stack, by its name ("" where there is one).

    ``n_layers`` counts the layers surveyed; ``n_kv_heads`` and ``d_model`` are 0 where they are not
    known, as in an imported file. A file that tells of no stacks has one. Raises ValueError and the
    like where the table is not sound.
    """
    keys = ("n_layers", "n_heads", "n_kv_heads", "d_head", "d_model")
    own = {"": {key: metadata[key] for key in keys}}
    stacks = json.loads(metadata["stacks"]) if "stacks" in metadata else own
    tables = {
        name: {key: int(value) for key, value in table.items()} for name, table in stacks.items()
    }
    if not all(table.keys() >= set(keys) for table in tables.values()):
        raise ValueError(f"its stacks lack one of {', '.join(keys)}")
    if not all(0 <= n <= _LARGEST_COUNT for table in tables.values() for n in table.values()):
        raise ValueError("the numbers of its stacks are those of no model")
    return tables


def _layers(file: Any, metadata: Mapping[str, str], path: Path) -> Iterator[LayerSpectra]:
    """The layers of a file, stack by stack, each in order of number, circuit and convention."""
    table = stack_table(metadata)
    stacks = list(table)
    n_statistics = len(metadata["statistics"].split(","))
    groups: dict[tuple[int, int, Circuit, Convention], dict[str, str]] = {}
    for key in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
        match = _KEY.fullmatch(key)
        if match is None:
            raise SpectraFileError(f"{path} holds an unknown tensor {key[:120]}.")
        if (match["stack"] or "") not in stacks:
            raise SpectraFileError(f"{path} holds an unknown stack {str(match['stack'])[:60]}.")
        stack = stacks.index(match["stack"] or "")
        group = (stack, int(match["layer"]), match["circuit"], match["convention"])
        groups.setdefault(group, {})[match["part"]] = key  # type: ignore[arg-type]
    for (stack, layer, circuit, convention), keys in sorted(groups.items()):
        place = f"{stacks[stack]} layer {layer} {circuit} {convention}".strip()
        if len(keys) != 3:
            raise SpectraFileError(f"{path}, {place}: incomplete.")
        parts = {part: file.get_tensor(key) for part, key in keys.items()}
        wanted = table[stacks[stack]]["n_heads"], n_statistics
        if problem := _contradiction(*wanted, **parts):
            raise ValueError(f"{place}: {problem}")
        yield LayerSpectra(
            layer=layer,
            circuit=circuit,
            convention=convention,
            singular_values=parts["singular_values"],
            eigenvalues=parts["eigenvalues"].view(np.complex64)[..., 0],
            statistics=parts["statistics"],
            stack=stacks[stack],
        )


def _contradiction(
    n_heads: int,
    n_statistics: int,
    singular_values: np.ndarray[Any, Any],
    eigenvalues: np.ndarray[Any, Any],
    statistics: np.ndarray[Any, Any],
) -> str | None:
    """What is wrong with the arrays of a layer, if anything is."""
    arrays = (singular_values, eigenvalues, statistics)
    d_head = singular_values.shape[-1] if singular_values.ndim == 2 else 0
    wanted = ((n_heads, d_head), (n_heads, d_head, 2), (n_heads, n_statistics))
    if any(array.dtype != np.float32 for array in arrays) or not d_head:
        return "its spectra are no float32 of shape (n_heads, d_head)"
    if tuple(array.shape for array in arrays) != wanted:
        found = ", ".join(str(array.shape) for array in arrays)
        return f"its arrays have the shapes {found}, which do not agree on {n_heads} heads"
    if not np.isfinite(singular_values).all() or (singular_values < 0).any():
        return "its singular values are not finite numbers from 0 on"
    if (np.diff(singular_values) > 0).any():
        return "its singular values do not descend"
    return None
