"""Samples on disk: one Parquet file each, so that a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qk_taxonomy.cache import DATA_FOLDER, spectra_path, write_file
from qk_taxonomy.errors import StudyError
from qk_taxonomy.records import ModelRef
from qk_taxonomy.studies.query_norm.records import MEASURES, LayerMeasures, Sample

if TYPE_CHECKING:
    import pyarrow as pa

#: Where samples are, below the folder of data.
SAMPLES_FOLDER = "query-norm"

# The version is raised when a file of the same release would mean something else; releases are
# among the settings of a fingerprint.
_FORMAT = "qk-taxonomy-query-norm"
_VERSION = "2"
_KEY = b"qk_taxonomy"

# Of a window's name, its end, in a file's: file systems take 255 bytes, and a letter up to four.
_LONGEST_NAME = 48


def samples_folder(root: str | Path, ref: ModelRef, context: int) -> Path:
    """Where a model's samples of so many tokens are:
    ``<root>/data/query-norm/<family>/<model>[@<revision>]/<context>/``.
    """
    folder = Path(root) / DATA_FOLDER / SAMPLES_FOLDER / ref.family
    return folder / spectra_path(root, ref).stem / str(context)


def sample_path(folder: Path, name: str, mark: str) -> Path:
    """A sample's file, by its name and fingerprint: what was run otherwise lies beside it, and
    stays.
    """
    plain = re.sub(r"[^\w.]+", "-", name)[-_LONGEST_NAME:].strip("-.")
    return folder / f"{plain}-{mark[:16]}.parquet"


def fingerprint(settings: Mapping[str, str], tokens: np.ndarray) -> str:
    """Of what a sample depends on: the model and how it is run, and the tokens."""
    text = json.dumps([_FORMAT, _VERSION, *sorted(settings.items())])
    return hashlib.sha256(text.encode() + tokens.astype("<i8").tobytes()).hexdigest()


def write_sample(path: Path, sample: Sample, settings: Mapping[str, str]) -> Path:
    """Write a sample with its settings and fingerprint, one row a layer, head and token.

    Columns: stack, layer, head, position (0 the first token), token (its id), n_keys, and
    :data:`~qk_taxonomy.studies.query_norm.records.MEASURES`. Raises SpectraFileError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    n_tokens = len(sample.tokens)
    tables = []
    for layer in sample.layers:
        size = layer.n_heads * n_tokens
        columns = {
            "stack": pa.DictionaryArray.from_arrays(np.zeros(size, np.int32), [layer.stack]),
            "layer": np.full(size, layer.layer, np.int32),
            "head": np.repeat(np.arange(layer.n_heads, dtype=np.int32), n_tokens),
            "position": np.tile(np.arange(n_tokens, dtype=np.int32), layer.n_heads),
            "token": np.tile(sample.tokens, layer.n_heads),
            "n_keys": np.tile(layer.n_keys.astype(np.int32), layer.n_heads),
            **{name: layer.values[name].ravel() for name in MEASURES},
        }
        tables.append(pa.table(columns))
    told = {
        "name": sample.name,
        "causal": sample.causal,
        "settings": dict(settings),
        "fingerprint": fingerprint(settings, sample.tokens),
    }
    table = pa.concat_tables(tables, promote_options="permissive")
    table = table.replace_schema_metadata({_KEY: json.dumps(told)})
    buffer = io.BytesIO()
    # One row group a layer; float32 noise compresses little, ids and positions to nothing.
    pq.write_table(
        table, buffer, compression="zstd", row_group_size=len(tables[0]), write_page_checksum=True
    )
    return write_file(path, buffer.getvalue())


def read_sample(path: Path, mark: str) -> Sample | None:
    """A sample; None where there is none, or one of another fingerprint.

    Raises StudyError for a file that is no sample.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return None
    try:
        table = pq.read_table(path, partitioning=None, page_checksum_verification=True)
        told = json.loads(table.schema.metadata[_KEY])
        name, causal, found = told["name"], told["causal"], told["fingerprint"]
        sample = _sample(table, name, causal)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as err:
        raise StudyError(
            f"{path} is no sample of this study, or is damaged ({err}). Delete it, and give the "
            "command again: the other samples are kept."
        ) from err
    return sample if mark == found else None


def _sample(table: pa.Table, name: str, causal: bool) -> Sample:
    frame = table.to_pandas()
    layers = []
    tokens = np.array([], dtype=np.int64)
    for (stack, layer), rows in frame.groupby(["stack", "layer"], sort=False, observed=True):
        n_heads = int(rows["head"].max()) + 1
        shape = (n_heads, len(rows) // n_heads)
        values = {measure: rows[measure].to_numpy().reshape(shape) for measure in MEASURES}
        n_keys = rows["n_keys"].to_numpy().reshape(shape)[0].astype(np.int64)
        tokens = rows["token"].to_numpy().reshape(shape)[0].astype(np.int64)
        layers.append(LayerMeasures(int(layer), str(stack), n_keys, values))
    return Sample(name, tokens, causal, tuple(layers))
