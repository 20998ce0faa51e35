"""Progress bars: bytes, layers or steps, and time left, on a terminal only."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import click
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from qk_taxonomy.cli.options import console
from qk_taxonomy.records import ModelRef, ModelResult, at_revision
from qk_taxonomy.wording import counted


class _Bars:
    """Bars one below the other, as a context manager; none where stderr is no terminal."""

    def __init__(self, *columns: ProgressColumn) -> None:
        out = console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *columns,
            console=out,
            disable=not out.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()


class SurveyBars(_Bars):
    """A bar a model."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.fields[done]}/{task.fields[layers]} layers"),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._done = 0

    def start(self, ref: ModelRef, layers: int, n_bytes: int) -> None:
        self._done = 0
        name = at_revision(ref.name, ref.revision)
        self._task = self._bars.add_task(name, total=n_bytes, done=0, layers=layers)

    def advance(self, layers: int, n_bytes: int) -> None:
        self._done += layers
        if self._task is not None:
            self._bars.update(self._task, advance=n_bytes, done=self._done)

    def stopping(self) -> None:
        self._bars.stop()
        click.echo(
            "\nInterrupted: finished layers are kept (Ctrl-C again: ends at once).", err=True
        )

    def finish(self, result: ModelResult) -> None:
        self._task = None


class ByteBars(_Bars):
    """A bar for each thing that is read."""

    def __init__(self) -> None:
        super().__init__(DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())

    def start(self, what: str, n_bytes: int) -> None:
        self._task = self._bars.add_task(what, total=n_bytes)

    def advance(self, n_bytes: int) -> None:
        if self._task is not None:
            self._bars.advance(self._task, n_bytes)


class StepBars(_Bars):
    """A bar for each work of minutes, with what it tells; where stderr is no terminal, a line as it
    begins, and at its end a line with what it tells or, if nothing, the seconds it took.
    """

    def __init__(self) -> None:
        line = TextColumn("{task.fields[line]}")
        super().__init__(MofNCompleteColumn(), TimeRemainingColumn(), line)
        self._what, self._left, self._begun = "", 0, 0.0
        self._end = ""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._say_end()
        super().__exit__(kind, error, trace)

    def start(self, what: str, n_steps: int) -> None:
        self._say_end()
        self._task = self._bars.add_task(what, total=n_steps, line="")
        self._what, self._left, self._begun = what, n_steps, time.monotonic()
        self._say(f"{what}, {counted(n_steps, 'step')} …")

    def advance(self, n_steps: int) -> None:
        self._left -= n_steps
        if self._task is not None:
            self._bars.advance(self._task, n_steps)
        if not self._left:
            self._end = f"done in {time.monotonic() - self._begun:.0f} s"

    def tell(self, line: str) -> None:
        if self._task is not None:
            self._bars.update(self._task, line=line)
        if not self._left:
            self._end = line
            self._say_end()

    def _say_end(self) -> None:
        if self._end:
            self._say(f"{self._what}: {self._end}.")
        self._end = ""

    def _say(self, line: str) -> None:
        if self._bars.disable:
            click.echo(line, err=True)
