"""How models and the files of their spectra are named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, unquote


@dataclass(frozen=True)
class FileStem:
    """The name of a spectra file, without its ending: ``<model>[@<revision>][~<control>]``.

    ``revision``: the one asked for, as the user gave it, percent-encoded in the stem; None for
    none. ``control``: the label of a twin, "random-0" or "one-layer"; "" for the model itself. No
    model's name has an @ or a ~ in it.
    """

    model: str
    revision: str | None = None
    control: str = ""

    @classmethod
    def parse(cls, stem: str) -> Self:
        """What a stem tells; any text has a reading.

        >>> FileStem.parse("pythia-14m@refs%2Fpr%2F2~random-0")
        FileStem(model='pythia-14m', revision='refs/pr/2', control='random-0')
        """
        model_at_revision, _, control = stem.partition("~")
        model, at, revision = model_at_revision.partition("@")
        return cls(model, unquote(revision) if at else None, control)

    @property
    def series(self) -> tuple[str, str]:
        """What the files of all revisions share: the model's name and the control."""
        return self.model, self.control

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        return f"{self.model}{revision}{f'~{self.control}' if self.control else ''}"


def at_revision(model: str, revision: str | None) -> str:
    """A model and the revision asked for, if any, as one writes them: ``<model>[@<revision>]``."""
    return f"{model}@{revision}" if revision else model


def split_revision(ref: str) -> tuple[str, str]:
    """The model and the revision that ``<model>[@<revision>]`` refers to, "" for none."""
    model, _, revision = ref.partition("@")
    return model, revision
