"""Which spectra files are a model's: by its name, by family and name, or by its id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qk_taxonomy.cache.files import load_metadata
from qk_taxonomy.errors import SpectraFileError
from qk_taxonomy.records import FileStem, split_revision


def filed_as(path: Path) -> str:
    """Family and stem of a spectra file, ``family/stem``, which no two under a folder share."""
    return f"{path.parent.name}/{path.stem}"


def files_of_model(ref: str, paths: Sequence[Path]) -> list[Path]:
    """Those of the spectra files that are of the model ``ref``, of all its revisions and controls.

    ``ref``: a file's name, ``family/name`` or a model's id; a ``@revision`` after it is passed
    over. Files say only inside which model's id they hold, so these are read where no name fits.
    [] where nothing does; of several families where a name alone fits models of each.
    """
    model, _ = split_revision(ref)
    own = [path for path in paths if model in (FileStem.parse(path.stem).model, _place(path))]
    if own:
        return own
    places = {_place(path) for path in paths if _model_id(path) == model}
    return [path for path in paths if _place(path) in places]


def files_of_id(ref: str, paths: Sequence[Path]) -> list[Path]:
    """Those of the spectra files that hold the model of the id ``ref``, itself and no control.

    ``ref`` may have @ and a revision after it, which is then the only one. Of each file the
    metadata alone is read; one that cannot be read is no model's.
    """
    model, revision = split_revision(ref)
    return [
        path
        for path in paths
        if not (stem := FileStem.parse(path.stem)).control
        and revision in ("", stem.revision)
        and _model_id(path) == model
    ]


def _place(path: Path) -> str:
    return f"{path.parent.name}/{FileStem.parse(path.stem).model}"


def _model_id(path: Path) -> str:
    """The id in a file; "" where it cannot be read."""
    try:
        return load_metadata(path).get("model_id", "")
    except SpectraFileError:
        return ""
