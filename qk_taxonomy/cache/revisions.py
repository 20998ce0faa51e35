"""Spectra files of one model's revisions, by their names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qk_taxonomy.records import FileStem
from qk_taxonomy.training_steps import training_stage, training_step

#: How the folder ends that holds layers of a file that is not whole yet.
UNFINISHED = ".unfinished"


def sibling_files(path: Path) -> list[Path]:
    """Other revisions' files of the model and control that ``path`` is for, in order of name."""
    series = FileStem.parse(path.stem).series
    return [
        other
        for other in sorted(path.parent.glob("[!.]*.safetensors"))
        if other.name != path.name and FileStem.parse(other.stem).series == series
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
    groups: dict[tuple[Path, tuple[str, str]], list[Path]] = {}
    for path in paths:
        groups.setdefault((path.parent, FileStem.parse(path.stem).series), []).append(path)
    return [sorted(group, key=_age) for group in groups.values()]


def revision_order(revision: str | None) -> tuple[int, int, int, str]:
    """What sorts a model's revisions by age; None: the one that nobody had to name."""
    if revision is None or revision == "main":
        return 2 if revision is None else 1, 0, 0, ""
    step = training_step(revision)
    return 0, training_stage(revision), -1 if step is None else step, revision


def _age(path: Path) -> tuple[int, int, int, str]:
    return revision_order(FileStem.parse(path.stem).revision)
