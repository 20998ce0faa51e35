"""Checkpoints on disk: a folder of config.json and weights, or one file of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from qk_taxonomy.checkpoints.base import local_revision, read_range
from qk_taxonomy.checkpoints.weight_files import WEIGHT_SUFFIXES, FolderCheckpoint
from qk_taxonomy.errors import CheckpointError


class LocalCheckpoint(FolderCheckpoint):
    """A folder with config.json and weights, or one of its weight files, to be read alone.

    ``model_id`` defaults to the folder's name; ``revision`` to the commit in a hub cache, elsewhere
    to ``local-`` and a hash of the config and of the beginnings of all tensors.
    Raises CheckpointError where config or weights are missing or cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        model_id: str | None = None,
        revision: str | None = None,
        source: str | None = None,
    ) -> None:
        path = Path(path)
        only = path.name if path.is_file() else None
        if only is not None and path.suffix not in WEIGHT_SUFFIXES:
            raise CheckpointError(
                f"{path} is not a folder, and no file of weights "
                f"(.gguf, {', '.join(WEIGHT_SUFFIXES)})."
            )
        self.folder = path.parent if only is not None else path
        self.place = str(self.folder)
        try:
            self.names = sorted(entry.name for entry in self.folder.iterdir())
        except OSError as err:
            raise CheckpointError(f"{self.place} cannot be read: {err.strerror}.") from err
        if not self.names:
            raise CheckpointError(
                f"The folder {self.place} is empty; wanted config.json and weights."
            )
        name = self.folder.resolve().name
        self.model_id = model_id or name
        self.source = source or f"folder {name}"
        self._open(only)
        self.revision = revision or self._identity()

    def _identity(self) -> str:
        snapshot = re.search(r"/snapshots/([0-9a-f]{40})$", self.folder.absolute().as_posix())
        if snapshot:
            return snapshot[1]
        description = json.dumps(self.config, sort_keys=True)
        return local_revision(description, self.folder, self.tensors.values())

    def __getstate__(self) -> dict[str, Any]:
        # Another process may have another working directory.
        return super().__getstate__() | {"folder": self.folder.absolute()}

    def read_file(self, file: str, longest: int) -> bytes:
        return read_whole(self.folder / file, longest)

    def file_size(self, file: str) -> int:
        try:
            return (self.folder / file).stat().st_size
        except OSError as err:
            raise CheckpointError(f"{self.folder / file} cannot be read: {err.strerror}.") from err

    def read_bytes(self, file: str, start: int, end: int) -> bytearray:
        return read_range(self.folder / file, start, end)


def read_whole(path: Path, longest: int) -> bytes:
    """All of a file on disk, of ``longest`` bytes at most. Raises CheckpointError where it cannot
    be had."""
    try:
        with path.open("rb") as stream:
            data = stream.read(longest + 1)
    except OSError as err:
        raise CheckpointError(f"{path} cannot be read: {err.strerror}.") from err
    if len(data) > longest:
        raise CheckpointError(
            f"{path} has more than {longest} bytes, which no model's has. Fetch the file again."
        )
    return data
