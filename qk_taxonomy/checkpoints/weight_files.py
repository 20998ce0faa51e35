"""What a folder of files holds, on disk or on the hub: which are its weights, and their tensors."""

from __future__ import annotations

import functools
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from qk_taxonomy.checkpoints.base import (
    LONGEST_JSON,
    Checkpoint,
    TokenizerDefinition,
    parse_json,
)
from qk_taxonomy.checkpoints.quantised import refuse_quantised, with_scales
from qk_taxonomy.checkpoints.safetensors_format import read_header
from qk_taxonomy.checkpoints.tensor_names import check_names
from qk_taxonomy.checkpoints.tokenizer_files import read_tokenizer
from qk_taxonomy.checkpoints.torch_format import read_torch_file
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.records import TensorInfo

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"

#: Endings of files with weights that are read one by one, by a user's own naming.
WEIGHT_SUFFIXES = (".safetensors", ".bin")

# Files that hold a model's weights, best first: a single file, or an index of several.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    re.compile(r"(?!adapter_model)[^/]+\.safetensors"),
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    re.compile(r"pytorch_model[^/]*\.bin"),
)
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

# Files whose headers are read side by side.
_CONNECTIONS = 8

# Far above any real model's: the largest have 200 files and 200,000 tensors.
_MOST_FILES = 4096
_MOST_TENSORS = 1 << 19


class FolderCheckpoint(Checkpoint):
    """A checkpoint that is a folder of files: a config beside safetensors or torch files.

    A folder with an adapter and no weights of its own has ``is_adapter``, the adapter's config as
    ``config`` and the adapter's tensors; :mod:`adapters` puts it on its base.
    """

    place: str
    names: Sequence[str]
    weight_files: tuple[str, ...]
    is_adapter: bool

    left_behind: ClassVar[frozenset[str]] = Checkpoint.left_behind | {"names", "weight_files"}

    @abstractmethod
    def read_file(self, file: str, longest: int) -> bytes:
        """The whole of a file of at most ``longest`` bytes. Raises CheckpointError."""

    @abstractmethod
    def file_size(self, file: str) -> int | None:
        """Bytes of a file; None where the hub does not say. Raises CheckpointError."""

    def _open(self, only: str | None = None, unquantised: str | None = None) -> None:
        """Read config, names and shapes; ``only``: of this file, ``unquantised``: a model to
        suggest in place of a quantised one. Raises CheckpointError."""
        chosen = [only] if only is not None else _choose(_WEIGHTS, self.names)
        adapter = _choose(_ADAPTER_WEIGHTS, self.names) if ADAPTER_CONFIG in self.names else []
        self.is_adapter = not chosen and bool(adapter)
        config = ADAPTER_CONFIG if self.is_adapter else CONFIG
        if config not in self.names:
            raise CheckpointError(
                f"{self.place} has no config.json, which says how many heads there are. Found: "
                f"{_listing(self.names)}. "
                + (
                    "A GGUF file needs none: download one and give its path."
                    if any(name.endswith(".gguf") for name in self.names)
                    else "Put the model's config.json beside its weights."
                )
            )
        self.config = self._json(config)
        if not self.is_adapter:
            refuse_quantised(self.config, (), self.place, unquantised)
        self.weight_files, where = self._weight_files(adapter if self.is_adapter else chosen)
        tensors: dict[str, TensorInfo] = {}
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for stored in pool.map(self._tensors_of, self.weight_files):
                part = {
                    n: info for n, info in stored.items() if where.get(n, info.file) == info.file
                }
                for name in tensors.keys() & part.keys():
                    raise CheckpointError(
                        f"{self.place} has two weights {name}, in {tensors[name].file} and in "
                        f"{part[name].file}, and nothing says which are the model's. Name the file "
                        "to read, or move the others away."
                    )
                tensors |= part
                if len(tensors) > _MOST_TENSORS:
                    raise CheckpointError(
                        f"The files of {self.place} describe more than {_MOST_TENSORS} tensors, "
                        "which no model has. Is this the folder of one model?"
                    )
        if not self.is_adapter:
            refuse_quantised(self.config, tensors.values(), self.place, unquantised)
        self.tensors = with_scales(tensors, self.config)

    def _weight_files(self, chosen: list[str]) -> tuple[tuple[str, ...], dict[str, str]]:
        """The files ``chosen``, or those that an index names, and by name its tensors' files."""
        if not chosen:
            raise CheckpointError(
                f"{self.place} holds no weights that are read: wanted model.safetensors, "
                f"pytorch_model.bin, or an index of several. Found: {_listing(self.names)}. Look "
                "for a revision or repository with safetensors files."
            )
        if not chosen[0].endswith(".index.json"):
            return tuple(chosen), {}
        where = _shards(self._json(chosen[0]), f"{chosen[0]} of {self.place}")
        files = tuple(sorted(set(where.values())))
        if len(files) > _MOST_FILES:
            raise CheckpointError(
                f"{chosen[0]} of {self.place} names {len(files)} files; no model has more than "
                f"{_MOST_FILES}. Fetch the index again."
            )
        absent = sorted(set(files) - set(self.names))
        if absent:
            raise CheckpointError(
                f"{self.place} lacks {absent[0][:120]}, which {chosen[0]} names"
                + (f", and {len(absent) - 1} more" if len(absent) > 1 else "")
                + ". Fetch the missing files."
            )
        return files, where

    def _tensors_of(self, file: str) -> dict[str, TensorInfo]:
        read = functools.partial(self.read_bytes, file)
        reader = read_header if file.endswith(".safetensors") else read_torch_file
        tensors = reader(read, file, self.file_size(file), self.place)
        check_names(tensors, f"{file} of {self.place}")
        return tensors

    def tokenizer(self) -> TokenizerDefinition | None:
        return read_tokenizer(self._whole, self.names, self.place)

    def _json(self, file: str) -> dict[str, Any]:
        return parse_json(self._whole(file, LONGEST_JSON), f"{file} of {self.place}")

    def _whole(self, file: str, longest: int) -> bytes:
        size = self.file_size(file)
        if size is not None and size > longest:
            raise CheckpointError(
                f"{file} of {self.place} has {size} bytes; no model's has more than "
                f"{longest}. Fetch the file again."
            )
        return self.read_file(file, longest)


def _choose(wanted: Sequence[str | re.Pattern[str]], names: Sequence[str]) -> list[str]:
    """The files that the first of ``wanted`` to match any of ``names`` matches."""
    for name in wanted:
        pattern = re.compile(re.escape(name)) if isinstance(name, str) else name
        found = sorted(filter(pattern.fullmatch, names))
        if found:
            return found
    return []


def _shards(index: Mapping[str, Any], where: str) -> dict[str, str]:
    """The file of every tensor by an index. Raises CheckpointError where it names none, or files of
    other folders."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{where} has no weight_map. Fetch the index again.")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file:
            raise CheckpointError(
                f"{where} gives {name[:120]!r} the file {file!r:.120}; a name is wanted. Fetch the "
                "index again."
            )
        if "/" in file or "\\" in file or ".." in file:
            raise CheckpointError(
                f"{where} names the file {file[:120]!r} outside it; all are wanted beside the "
                "index. Fetch the model again, from a source you trust."
            )
    return weight_map


def _listing(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:12]) or "nothing"
