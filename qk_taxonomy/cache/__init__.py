"""Spectra files under ``data/``, whole under their final names.

Layers that are finished before a file is whole lie in a hidden folder beside it, each a spectra
file of its own.
"""

from qk_taxonomy.cache.files import (
    DAMAGE,
    DATA_FOLDER,
    FORMAT,
    FORMAT_VERSION,
    check_header,
    checksum,
    load_metadata,
    load_spectra,
    ordered_safetensors,
    spectra_path,
    stack_table,
    write_spectra,
    write_tensors,
)
from qk_taxonomy.cache.finding import find_spectra, surveyed_families
from qk_taxonomy.cache.lacking import lacking, nothing_left
from qk_taxonomy.cache.naming import filed_as, files_of_id, files_of_model
from qk_taxonomy.cache.revisions import (
    of_each_model,
    revision_order,
    sibling_files,
    unfinished_stems,
)
from qk_taxonomy.cache.state import CacheState, cache_state, contents
from qk_taxonomy.cache.unfinished import UnfinishedSpectra, exclusive
from qk_taxonomy.cache.writing import make_folder, remove_file, write_file

__all__ = [
    "DAMAGE",
    "DATA_FOLDER",
    "FORMAT",
    "FORMAT_VERSION",
    "CacheState",
    "UnfinishedSpectra",
    "cache_state",
    "check_header",
    "checksum",
    "contents",
    "exclusive",
    "filed_as",
    "files_of_id",
    "files_of_model",
    "find_spectra",
    "lacking",
    "load_metadata",
    "load_spectra",
    "make_folder",
    "nothing_left",
    "of_each_model",
    "ordered_safetensors",
    "remove_file",
    "revision_order",
    "sibling_files",
    "spectra_path",
    "stack_table",
    "surveyed_families",
    "unfinished_stems",
    "write_file",
    "write_spectra",
    "write_tensors",
]
