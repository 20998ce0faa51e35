"""Spectra files of one model's revisions, by their names: ``<model>[@<revision>][~<control>]``."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote


def asked_revision(stem: str) -> str | None:
    """The revision that a file's stem names, as the user gave it; None where it names none.

    >>> asked_revision("pythia-14m@step1000~random-0"), asked_revision("pythia-14m")
    ('step1000', None)
    """
    _, at, revision = stem.partition("~")[0].partition("@")
    return unquote(revision) if at else None


def sibling_files(path: Path) -> list[Path]:
    """Other revisions' files of the model and control that ``path`` is for, in order of name."""
    model = _model_and_control(path)
    return [
        other
        for other in sorted(path.parent.glob("[!.]*.safetensors"))
        if other.name != path.name and _model_and_control(other) == model
    ]


def _model_and_control(path: Path) -> tuple[str, str]:
    """No name has an @ or a ~ in it, and revisions are quoted."""
    model, _, control = path.stem.partition("~")
    return model.partition("@")[0], control
