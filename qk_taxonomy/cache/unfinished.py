"""A spectra file in the making: the layers finished so far, and the lock of who is making it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from qk_taxonomy.cache.files import DAMAGE, load_spectra, write_spectra
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
        raise SpectraFileError(f"{file} cannot be locked: {err.strerror}.") from err
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()
        lock.release()


class UnfinishedSpectra:
    """The finished layers of a model whose file is not whole yet, one small file a layer.

    ``identity`` is what the layers must agree in to go into one file: layers of another commit or
    with other circuits are dropped.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self.path = path
        self.folder = path.with_name(f".{path.stem}.unfinished")
        self.identity = dict(identity)
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
        except (SpectraFileError, *DAMAGE):
            file.unlink(missing_ok=True)
            return
        if any(spectra.metadata.get(key) != value for key, value in self.identity.items()):
            file.unlink(missing_ok=True)
            return
        self.layers[place] = list(spectra.layers)
        self._recomputed[place] = counts

    def add(self, spectra: Sequence[LayerSpectra]) -> None:
        """Keep one finished layer. Raises SpectraFileError."""
        stack, layer = place = spectra[0].place
        recomputed = {f"{s.circuit}.{s.convention}": s.n_recomputed for s in spectra}
        metadata = {**self.identity, "recomputed_heads": json.dumps(recomputed)}
        name = f"{stack}{layer:05d}.safetensors"
        # A layer that a power cut takes is damaged, and computed again.
        write_spectra(self.folder / name, ModelSpectra(metadata, tuple(spectra)), durable=False)
        self.layers[place] = list(spectra)
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
        """Write the whole file and drop the unfinished layers. Raises SpectraFileError."""
        layers = tuple(s for place in sorted(self.layers) for s in self.layers[place])
        write_spectra(self.path, ModelSpectra(metadata, layers))
        self.discard()

    def discard(self) -> None:
        """Drop the unfinished layers."""
        shutil.rmtree(self.folder, ignore_errors=True)
