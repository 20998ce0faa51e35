"""Files that are whole under their names, and the folders that they are in."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from qk_taxonomy.errors import SpectraFileError


def make_folder(folder: Path) -> Path:
    """The folder, made where it was missing and shown to be writable. Raises SpectraFileError."""
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as err:
        raise SpectraFileError(
            f"Results cannot be written to {folder}: {err.strerror}. Choose another folder with "
            "--output-root (--data-root for figures), or mend its permissions."
        ) from err
    return folder


def write_file(path: Path, data: bytes) -> Path:
    """Write a file beside its name, then rename it; a link's target, where ``path`` is a link.

    What is there and is no regular file, such as a device or a pipe, is written into. Raises
    SpectraFileError.
    """
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if not stat.S_ISREG(path.stat().st_mode):
                path.write_bytes(data)
                return path
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        beside = make_folder(target.parent) / f".{target.name}.{os.getpid()}"
        try:
            beside.write_bytes(data)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as err:
        raise SpectraFileError(f"{path} cannot be written: {err.strerror}.") from err
    return path


def remove_file(path: Path) -> None:
    """Remove a file of an earlier run, if there is one. Raises SpectraFileError."""
    try:
        path.unlink(missing_ok=True)
    except NotADirectoryError:  # so it is not there: a file is where its folder should be
        return
    except OSError as err:
        raise SpectraFileError(
            f"{path}, of an earlier run, cannot be removed: {err.strerror}. Mend the permissions "
            "of its folder, or remove it."
        ) from err
