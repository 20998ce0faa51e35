"""A spectra file in the making: the layers finished so far, and the lock of who is making it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from qk_taxonomy.cache.files import (
    DAMAGE,
    as_stored,
    checksum,
    load_spectra,
    write_spectra,
)
from qk_taxonomy.cache.revisions import UNFINISHED
from qk_taxonomy.errors import BusyFileError, SpectraFileError
from qk_taxonomy.records import LayerSpectra, ModelSpectra


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keep other processes from making the same spectra file. Raises BusyFileError where one is.

    The lock goes with the process that holds it, however that ends.
    """
    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
        while not file.exists():  # removed by who held it until now, and nobody's any more
            lock.release()
            lock.acquire()
    except Timeout as err:
        raise BusyFileError(
            f"Another process is making {path}. Give the same command again when it is done, or "
            "choose another folder with --output-root."
        ) from err
    except OSError as err:
        raise SpectraFileError(
            f"{file} cannot be locked: {err.strerror}. Choose another folder with --output-root, "
            "on a disk that has room and can lock files."
        ) from err
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()
        lock.release()


class UnfinishedSpectra:
    """The finished layers of a model whose file is not whole yet, one small file a layer.

    Layers go into one file where they agree in ``metadata``, but for its ``source``: the same bytes
    may come from a mirror. Those that differ, of another commit or with other circuits, lie in
    another folder, and are dropped when a file of that path is whole. Arrays are held as files keep
    them, float32 and complex64.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self.path = path
        self._all = path.with_name(f".{path.stem}{UNFINISHED}")
        self.folder = self._all / _identity(metadata)
        self.metadata = dict(metadata)
        self.layers: dict[tuple[str, int], list[LayerSpectra]] = {}
        self._recomputed: dict[tuple[str, int], dict[str, int]] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            self._recover(file)

    def _recover(self, file: Path) -> None:
        try:
            spectra = load_spectra(file)
            recomputed = json.loads(spectra.metadata["recomputed_heads"])
            counts = {str(key): int(count) for key, count in recomputed.items()}
            (place,) = {layer.place for layer in spectra.layers}
            if spectra.metadata["checksum"] != checksum(spectra.layers):
                raise ValueError("the disk did not keep all of it")
        except (SpectraFileError, *DAMAGE):
            file.unlink(missing_ok=True)
            return
        self.layers[place] = list(spectra.layers)
        self._recomputed[place] = counts

    def add(self, spectra: Sequence[LayerSpectra]) -> None:
        """Keep one finished layer. Raises SpectraFileError."""
        stack, layer = place = spectra[0].place
        stored = [as_stored(s) for s in spectra]
        recomputed = {f"{s.circuit}.{s.convention}": s.n_recomputed for s in spectra}
        metadata = {
            **self.metadata,
            "recomputed_heads": json.dumps(recomputed),
            "checksum": checksum(stored),
        }
        name = f"{stack}{layer:05d}.safetensors"
        # A layer that a power cut takes has another checksum, and is computed again.
        write_spectra(self.folder / name, ModelSpectra(metadata, tuple(stored)), durable=False)
        self.layers[place] = stored
        self._recomputed[place] = recomputed

    @property
    def recomputed_heads(self) -> dict[str, int]:
        """Heads that took the slower, stable way, by circuit and convention, over all layers."""
        total: dict[str, int] = {}
        for counts in self._recomputed.values():
            for key, count in counts.items():
                total[key] = total.get(key, 0) + count
        return total

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the whole file and drop all unfinished layers. Raises SpectraFileError."""
        layers = tuple(s for place in sorted(self.layers) for s in self.layers[place])
        write_spectra(self.path, ModelSpectra(metadata, layers))
        self.discard()

    def discard(self) -> None:
        """Drop the unfinished layers, also those that another survey of the same path left."""
        shutil.rmtree(self._all, ignore_errors=True)


def _identity(metadata: Mapping[str, str]) -> str:
    """A short hash of what layers of one file agree in."""
    agreed = sorted((key, value) for key, value in metadata.items() if key != "source")
    return hashlib.blake2b(json.dumps(agreed).encode(), digest_size=8).hexdigest()
