"""What a survey tells while it runs."""

from __future__ import annotations

from typing import Protocol

from qk_taxonomy.records import ModelRef, ModelResult


class Progress(Protocol):
    """What a survey tells while it runs; the command line draws bars from it."""

    def start(self, ref: ModelRef, layers: int, n_bytes: int) -> None:
        """A model begins, with so many layers and bytes to do."""

    def advance(self, layers: int, n_bytes: int) -> None:
        """Layers are finished, or bytes have come and been computed with."""

    def stopping(self) -> None:
        """The survey was interrupted, and ends what is under way or lets it end."""

    def finish(self, result: ModelResult) -> None:
        """A model is done, whatever became of it."""


class Silent:
    """Progress that nobody watches."""

    def start(self, ref: ModelRef, layers: int, n_bytes: int) -> None: ...

    def advance(self, layers: int, n_bytes: int) -> None: ...

    def stopping(self) -> None: ...

    def finish(self, result: ModelResult) -> None: ...
