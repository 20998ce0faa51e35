"""Checkpoints in a local folder: config.json beside safetensors files."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path

from qk_taxonomy.checkpoints.base import Checkpoint, parse_json
from qk_taxonomy.checkpoints.safetensors_format import (
    INDEX_FILE,
    choose_files,
    read_header,
    shard_files,
)
from qk_taxonomy.errors import CheckpointError


class LocalCheckpoint(Checkpoint):
    """A folder with config.json and safetensors files. Raises CheckpointError where it has none.

    ``model_id`` defaults to the folder's name; ``revision`` to the commit in a hub cache, elsewhere
    to ``local-`` and a hash of the config and of the weight files' headers, sizes and times.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        model_id: str | None = None,
        revision: str | None = None,
        source: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        place = str(self.folder)
        try:
            names = sorted(path.name for path in self.folder.iterdir())
        except NotADirectoryError as err:
            raise CheckpointError(f"{place} is not a folder.") from err
        except OSError as err:
            raise CheckpointError(f"{place} cannot be read: {err.strerror}.") from err
        if not names:
            raise CheckpointError(f"The folder {place} is empty; wanted config.json and weights.")
        if "config.json" not in names:
            raise CheckpointError(
                f"The folder {place} has no config.json, which says how many heads there are. "
                f"Found: {', '.join(names[:8])}. Put the model's config.json beside its weights."
            )
        snapshot = re.search(r"/snapshots/([0-9a-f]{40})$", self.folder.absolute().as_posix())
        self.model_id = model_id or self.folder.resolve().name
        self.source = source or f"folder {self.folder.resolve().name}"
        self.config = parse_json(self._read_file("config.json"), f"config.json of {place}")
        files = choose_files(names, place)
        if files is None:
            index = parse_json(self._read_file(INDEX_FILE), f"{INDEX_FILE} of {place}")
            files = shard_files(index, place)
        self.tensors = {}
        identity = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for file in files:
            if file not in names:
                raise CheckpointError(f"{place} lacks {file}, which {INDEX_FILE} names.")
            try:
                status = (self.folder / file).stat()
            except OSError as err:
                raise CheckpointError(
                    f"{self.folder / file} cannot be read: {err.strerror}."
                ) from err
            identity.update(f"{file} {status.st_size} {status.st_mtime_ns}".encode())
            self.tensors |= read_header(
                functools.partial(self.read_bytes, file), file, status.st_size, place
            )
        identity.update(repr(sorted(self.tensors.items())).encode())
        commit = snapshot[1] if snapshot else f"local-{identity.hexdigest()[:16]}"
        self.revision = revision or commit

    def _read_file(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as err:
            raise CheckpointError(f"{self.folder / name} cannot be read: {err.strerror}.") from err

    def read_bytes(self, file: str, start: int, end: int) -> bytearray:
        data = bytearray(end - start)
        try:
            with (self.folder / file).open("rb") as stream:
                stream.seek(start)
                got = stream.readinto(data)
        except OSError as err:
            raise CheckpointError(f"{self.folder / file} cannot be read: {err.strerror}.") from err
        if got != end - start:
            raise CheckpointError(
                f"{self.folder / file} is cut short: wanted bytes {start} to {end}, found {got} "
                "of them. Fetch the file again."
            )
        return data
