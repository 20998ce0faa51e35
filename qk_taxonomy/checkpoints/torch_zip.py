"""The zip container of ``torch.save``: where its pickle and its storages lie."""

from __future__ import annotations

import io
import itertools
import struct
import zipfile
from dataclasses import dataclass
from typing import Self

from qk_taxonomy.checkpoints.inert_pickle import read_pickle
from qk_taxonomy.checkpoints.range_file import RangeFile
from qk_taxonomy.checkpoints.torch_tensors import (
    BIG_ENDIAN,
    WEIGHTS,
    TorchTensor,
    described_tensors,
)
from qk_taxonomy.errors import CheckpointError

# 35,000 tensors; the largest files of real models describe some thousands.
_LONGEST_PICKLE = 16 << 20

# What of a zip is fetched at first: the directory of some hundred records is at its end.
_ZIP_TAIL = 1 << 15

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ALIGNMENT = 64


def read_zip(
    stream: RangeFile, directory: RangeFile, where: str
) -> tuple[dict[str, TorchTensor], dict[str, int]]:
    """The tensors of a zip file, and where the storages they need begin, by key.

    ``directory`` is read for the directory at the file's end, ``stream`` for all else. Raises
    CheckpointError.
    """
    records = _Records.of(stream, directory, where)
    folder = records.folder
    pickled = read_pickle(io.BytesIO(records.content(f"{folder}data.pkl")), WEIGHTS, where)
    if f"{folder}byteorder" in records.infos and records.content(f"{folder}byteorder") != b"little":
        raise CheckpointError(BIG_ENDIAN.format(where))
    tensors = described_tensors(pickled.value, where)
    needed: dict[str, int] = {}
    for tensor in tensors.values():
        storage = tensor.storage
        whole = (storage.offset + storage.n_elements) * storage.itemsize
        needed[storage.key] = max(needed.get(storage.key, 0), whole)
    offsets = {key: records.begin(f"{folder}data/{key}", n) for key, n in needed.items()}
    end = 0
    for start, n_bytes, key in sorted((offsets[key], n, key) for key, n in needed.items()):
        if start < end and n_bytes:
            raise CheckpointError(
                f"{where} is damaged: the storage {key[:120]} shares bytes with another. Fetch the "
                "file again."
            )
        end = max(end, start + n_bytes)
    return tensors, offsets


@dataclass(frozen=True)
class _Records:
    """The records of a zip file by name, and for each place of one where the next begins.

    ``folder``: the one of data.pkl, with its slash; "" for none.
    """

    stream: RangeFile
    where: str
    infos: dict[str, zipfile.ZipInfo]
    following: dict[int, int]
    folder: str

    @classmethod
    def of(cls, stream: RangeFile, directory: RangeFile, where: str) -> Self:
        """Of a file that torch.save wrote of tensors. Raises CheckpointError for any other."""
        directory.fetch(max(0, stream.size - _ZIP_TAIL), stream.size)
        try:
            archive = zipfile.ZipFile(directory)
        except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError) as err:
            raise CheckpointError(
                f"{where} is damaged or cut short: the directory at its end cannot be read "
                f"({err}). Fetch the file again."
            ) from err
        infos = {info.filename: info for info in archive.infolist()}
        if len(infos) != len(archive.infolist()):
            raise CheckpointError(f"{where} is damaged: it has two records of one name.")
        pickles = [name for name in infos if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(
                f"{where} is a zip file that torch.save did not write: it has {len(pickles)} "
                "records data.pkl. Found: "
                f"{', '.join(name[:40] for name in list(infos)[:8]) or 'nothing'}."
            )
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in infos:
            raise CheckpointError(
                f"{where} is a TorchScript program, which is not run; wanted weights alone. Look "
                "for a revision or repository with safetensors files."
            )
        starts = sorted([*(info.header_offset for info in infos.values()), archive.start_dir])
        return cls(stream, where, infos, dict(itertools.pairwise(starts)), folder)

    def begin(self, name: str, n_bytes: int) -> int:
        """Where a record's data begin; so many bytes are needed of it. Raises CheckpointError."""
        if name not in self.infos:
            raise CheckpointError(f"{self.where} is damaged: it lacks the record {name[:120]}.")
        info = self.infos[name]
        stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        if not stored or info.flag_bits & 1:
            raise CheckpointError(
                f"{self.where} is a compressed zip, of which no part can be read; torch.save "
                "writes none such. Load it with torch.load(weights_only=True) and save it again."
            )
        following = self.following.get(info.header_offset, 0)
        start = _record_data(info, following, self.stream, self.where)
        if n_bytes > info.file_size or not 0 <= start <= self.stream.size - n_bytes:
            raise CheckpointError(
                f"{self.where} is cut short: the record {name[:120]} holds less than its tensors. "
                "Fetch the file again."
            )
        return start

    def content(self, name: str) -> bytes:
        """A record's bytes, of one that is short. Raises CheckpointError."""
        size = self.infos[name].file_size
        if size > _LONGEST_PICKLE:
            raise CheckpointError(f"{self.where} is damaged: {name} has {size} bytes.")
        self.stream.seek(self.begin(name, size))
        return self.stream.read(size)


def _record_data(info: zipfile.ZipInfo, following: int, stream: RangeFile, where: str) -> int:
    """Where a stored record's data begins.

    The local header, which alone says it, stands before the data: on the hub a request for every
    storage. But torch aligns data to 64 bytes by the shortest padding, and the data ends, but for
    a descriptor of known sizes, where the next record begins. Where both give the same place, it
    is that; elsewhere (files that another program has packed again) the local header is read.
    """
    named = info.header_offset + 30 + len(info.orig_filename.encode())
    for descriptor in (12, 16, 20, 24) if info.flag_bits & 8 else (0,):
        start = following - descriptor - info.file_size
        # The padding has a head of 4 bytes, beside at most 28 of the sizes of large files.
        if start % _ALIGNMENT == 0 and 4 <= start - named < 4 + 28 + _ALIGNMENT:
            return start
    end = info.header_offset + _LOCAL_HEADER.size
    header = b""
    if info.header_offset >= 0 and end <= stream.size:
        header = stream.fetch(info.header_offset, end)
    if not header.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{where} is damaged: {info.filename[:120]} is not where it claims.")
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    return int(end + name_length + extra_length)
