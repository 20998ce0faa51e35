"""A model to survey, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from qk_taxonomy.records.families import PackagedFolder
from qk_taxonomy.records.names import at_revision
from qk_taxonomy.records.words import ControlKind


@dataclass(frozen=True)
class Control:
    """What stands in for a model: its ``random`` twin, untrained and drawn with ``seed``, or its
    ``one-layer`` twin, the first layer of each stack alone.
    """

    kind: ControlKind
    seed: int = 0

    @property
    def label(self) -> str:
        """What a file's name and a table's row call it: "random-0", "one-layer"."""
        return f"random-{self.seed}" if self.kind == "random" else self.kind


@dataclass(frozen=True)
class ModelRef:
    """A model to survey: where its weights are and the names its results carry."""

    ref: str
    family: str
    name: str
    revision: str | None = None
    control: Control | None = None
    package: PackagedFolder | None = None
    hub: bool = True
    architecture: str | None = None

    @property
    def control_label(self) -> str:
        """The label of the control to survey; "" for the model itself."""
        return self.control.label if self.control else ""


@dataclass(frozen=True)
class ModelResult:
    """What became of one model of a survey; ``control``: which of its twins, "" for itself;
    ``revision``: the one asked for, "" for none.

    ``bytes_read`` (moved, small gaps between tensors included) of ``bytes_total`` that the
    checkpoint has at its ``source``; ``seconds`` that it took, or where it is planned, that it
    should take, None where nothing tells.
    """

    model: str
    status: Literal["computed", "present", "failed", "planned"]
    path: str | None = None
    layers: int = 0
    heads: int = 0
    bytes_read: int = 0
    bytes_total: int = 0
    n_recomputed: int = 0
    notes: tuple[str, ...] = ()
    error: str | None = None
    exception: Exception | None = field(default=None, compare=False, repr=False)
    control: str = ""
    seconds: float | None = None
    source: str = ""
    revision: str = ""

    @property
    def title(self) -> str:
        """The model, the revision asked for and, in brackets, its control."""
        model = at_revision(self.model, self.revision)
        return f"{model} ({self.control})" if self.control else model
