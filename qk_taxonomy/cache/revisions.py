"""Spectra files of one model's revisions, by their names: ``<model>[@<revision>][~<control>]``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from qk_taxonomy.training_steps import training_stage, training_step

#: How the folder ends that holds layers of a file that is not whole yet.
UNFINISHED = ".unfinished"


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


def unfinished_stems(folder: Path) -> list[str]:
    """Stems of the spectra files in ``folder`` that were begun and are not whole, in order."""
    found = (path.name[1:].removesuffix(UNFINISHED) for path in folder.glob(f".*{UNFINISHED}"))
    return sorted(stem for stem in found if not (folder / f"{stem}.safetensors").exists())


def of_each_model(paths: Iterable[Path]) -> list[list[Path]]:
    """Files in groups, one a model and control, each with its last revision last.

    The last is the file of no named revision, or else of main; before it, revisions are in order
    of stage and step, and those whose names tell of no step come first, by name.
    """
    groups: dict[tuple[Path, str, str], list[Path]] = {}
    for path in paths:
        groups.setdefault((path.parent, *_model_and_control(path)), []).append(path)
    return [sorted(group, key=lambda path: revision_order(path.stem)) for group in groups.values()]


def revision_order(stem: str) -> tuple[int, int, int, str]:
    """What sorts the files of a model's revisions by age, from their stems."""
    name = asked_revision(stem)
    if name is None or name == "main":
        return 2 if name is None else 1, 0, 0, ""
    step = training_step(name)
    return 0, training_stage(name), -1 if step is None else step, name


def _model_and_control(path: Path) -> tuple[str, str]:
    """No name has an @ or a ~ in it, and revisions are quoted."""
    model, _, control = path.stem.partition("~")
    return model.partition("@")[0], control
