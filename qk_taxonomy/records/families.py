"""What the catalogue lists: families, their models, and contrasts between these."""

from __future__ import annotations

from dataclasses import dataclass

from qk_taxonomy.records.words import ContrastKind


@dataclass(frozen=True)
class PackagedFolder:
    """A checkpoint folder (or file) that an installable Python distribution carries."""

    distribution: str
    module: str
    folder: str


@dataclass(frozen=True)
class Checkpoints:
    """Training checkpoints that a model's authors publish as revisions of a hub repository.

    ``revisions`` are in order of training; ``repository`` is None where they are revisions of the
    model's own; ``note`` says what the list leaves out.
    """

    revisions: tuple[str, ...]
    repository: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class ModelEntry:
    """One model of the catalogue. ``parameters`` counts all weights of the model.

    ``hub`` is False for a model that only its ``package`` carries; ``architecture`` names the row
    of the architecture table where the checkpoint itself does not say.
    """

    id: str
    parameters: int
    license: str
    gated: bool = False
    hub: bool = True
    package: PackagedFolder | None = None
    architecture: str | None = None
    checkpoints: Checkpoints | None = None

    @property
    def name(self) -> str:
        """The hub id without its organisation: the stem of the model's files."""
        return self.id.rpartition("/")[2]


@dataclass(frozen=True)
class Family:
    """A model family of the catalogue, models in order of size."""

    name: str
    title: str
    description: str
    license: str
    models: tuple[ModelEntry, ...]
    aliases: tuple[str, ...] = ()
    gated: bool = False
    url: str | None = None


@dataclass(frozen=True)
class Contrast:
    """Two models of one architecture that differ by training: ``treatment`` came from ``control``,
    or both from one base. Both are ids of the catalogue.
    """

    name: str
    kind: ContrastKind
    treatment: str
    control: str
    note: str | None = None
