"""Which spectra files are a model's: by its name, by family and name, or by its id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qk_taxonomy.cache.files import load_metadata
from qk_taxonomy.cache.revisions import asked_revision
from qk_taxonomy.errors import SpectraFileError


def model_name(path: Path) -> str:
    """The name of a file's model, without revision and control.

    >>> model_name(Path("data/pythia/pythia-14m@step1000~random-0.safetensors"))
    'pythia-14m'
    """
    return path.stem.partition("~")[0].partition("@")[0]


def files_of_model(ref: str, paths: Sequence[Path]) -> list[Path]:
    """Those of the spectra files that are of the model ``ref``, of all its revisions and controls.

    ``ref``: a file's name, ``family/name`` or a model's id; a ``@revision`` after it is passed
    over. Files say only inside which model's id they hold, so these are read where no name fits.
    [] where nothing does; of several families where a name alone fits models of each.
    """
    model = ref.partition("@")[0]
    own = [path for path in paths if model in (model_name(path), _place(path))]
    if own:
        return own
    places = {_place(path) for path in paths if _model_id(path) == model}
    return [path for path in paths if _place(path) in places]


def files_of_id(ref: str, paths: Sequence[Path]) -> list[Path]:
    """Those of the spectra files that hold the model of the id ``ref``, itself and no control.

    ``ref`` may have @ and a revision after it, which is then the only one. Of each file the
    metadata alone is read; one that cannot be read is no model's.
    """
    model, _, revision = ref.partition("@")
    return [
        path
        for path in paths
        if "~" not in path.name
        and revision in ("", asked_revision(path.stem))
        and _model_id(path) == model
    ]


def _place(path: Path) -> str:
    return f"{path.parent.name}/{model_name(path)}"


def _model_id(path: Path) -> str:
    """The id in a file; "" where it cannot be read."""
    try:
        return load_metadata(path).get("model_id", "")
    except SpectraFileError:
        return ""
