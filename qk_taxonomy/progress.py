"""What works of minutes tell while they run; the command line draws bars from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from qk_taxonomy.records import ModelRef, ModelResult

#: Called before each piece of a work with what it is, how many are done and how many there are.
StepProgress = Callable[[str, int, int], None]

#: Called after each file with its number (from 1), or its model's, how many there are of these, and
#: its path.
FileProgress = Callable[[int, int, Path], None]

#: Called with what there is to say, a sentence or a small table.
Report = Callable[[str], None]


class Progress(Protocol):
    """What a work tells while it runs: how many steps or bytes it has, and those that are done."""

    def start(self, what: str, amount: int) -> None:
        """Something of so many steps or bytes begins, or goes on."""

    def advance(self, amount: int) -> None:
        """So many more are done; also those found done before."""


class TellingProgress(Progress, Protocol):
    """Progress of a work that tells more than how far it is."""

    def tell(self, line: str) -> None:
        """How it goes now: the losses of a training."""


class SurveyProgress(Protocol):
    """What a survey tells while it runs."""

    def start(self, ref: ModelRef, layers: int, n_bytes: int) -> None:
        """A model begins, with so many layers and bytes to do."""

    def advance(self, layers: int, n_bytes: int) -> None:
        """Layers are finished, or bytes have come and been computed with."""

    def stopping(self) -> None:
        """The survey was interrupted, and ends what is under way or lets it end."""

    def finish(self, result: ModelResult) -> None:
        """A model is done, whatever became of it."""


class Silent:
    """Progress that nobody watches, of any work."""

    def start(self, *told: Any, **named: Any) -> None: ...

    def advance(self, *told: Any, **named: Any) -> None: ...

    def tell(self, *told: Any, **named: Any) -> None: ...

    def stopping(self) -> None: ...

    def finish(self, *told: Any, **named: Any) -> None: ...
