"""Windows through a model: captured, or as an earlier run has kept them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from qk_taxonomy.cache import exclusive, make_folder
from qk_taxonomy.progress import Progress
from qk_taxonomy.records import ModelRef
from qk_taxonomy.studies.query_norm.capture import capture
from qk_taxonomy.studies.query_norm.machine import versions
from qk_taxonomy.studies.query_norm.models import OpenModel
from qk_taxonomy.studies.query_norm.records import Sample
from qk_taxonomy.studies.query_norm.store import (
    fingerprint,
    read_sample,
    sample_path,
    samples_folder,
    write_sample,
)
from qk_taxonomy.studies.query_norm.texts import Window

#: Measures that correlations and figures need token by token.
KEPT = ("query_norm", "entropy")


@dataclass(eq=False)
class Capturing:
    """The capture of some windows, one after the other, by a model that is open.

    context: tokens of a window. force: capture what lies there, too. control: what the model is
    instead of ``ref``, or "". kept: of the windows that are done, the measures of :data:`KEPT`: all
    of them, of all windows of a large model, would not go into memory. n_before: how many of these
    had been captured before. seconds: of forward passes.
    """

    ref: ModelRef
    model: OpenModel
    shown: Sequence[Window]
    context: int
    after_rope: bool
    output_root: str | Path
    force: bool
    progress: Progress
    control: str = ""
    n_before: int = 0
    seconds: float = 0.0
    kept: list[Sample] = field(default_factory=list)

    @contextmanager
    def samples(self) -> Iterator[Iterator[Sample]]:
        """Each window's sample, with all measures, while no other process captures such samples.

        Raises QKTaxonomyError as :func:`~qk_taxonomy.studies.query_norm.capture.capture` does, for
        files that are no samples, and BusyFileError where another process captures samples of the
        model and context.
        """
        folder = make_folder(samples_folder(self.output_root, self.ref, self.context))
        with exclusive(folder):  # all of it: a later run would stop the first half-way
            yield self._samples(folder)

    def _samples(self, folder: Path) -> Iterator[Sample]:
        settings = self._settings()
        what = ", ".join(filter(None, (self.ref.name, self.control)))
        self.progress.start(f"Capture of {what}, {self.context} tokens a window", len(self.shown))
        for window in self.shown:
            sample = self._sample(folder, window, {**settings, "name": window.name})
            self.kept.append(sample.only(*KEPT))
            self.progress.advance(1)
            yield sample

    def _settings(self) -> dict[str, str]:
        """What samples depend on but for the window."""
        found = {
            "model": self.ref.name,
            "revision": self.model.revision,
            "dtype": self.model.dtype,
            "device": self.model.model.device.type,
            "after_rope": str(self.after_rope),
            **versions(),
        }
        return {**found, "control": self.control} if self.control else found

    def _sample(self, folder: Path, window: Window, settings: Mapping[str, str]) -> Sample:
        mark = fingerprint(settings, window.tokens)
        path = sample_path(folder, ", ".join(filter(None, (window.name, self.control))), mark)
        before = None if self.force else read_sample(path, mark)
        if before is not None:
            self.n_before += 1
            return before
        begun = time.perf_counter()
        sample = capture(
            self.model, window.tokens, name=window.name, after_rope=self.after_rope
        )  # fmt: skip
        self.seconds += time.perf_counter() - begun
        write_sample(path, sample, settings)
        return sample

    def told(self) -> str:
        """How long it took, and what of it had been done before."""
        n, before = len(self.shown), self.n_before
        if before == n:
            return f"no time: all {n} windows had been captured before"
        kept = f"; {before} of {n} windows had been captured before" if before else ""
        return f"{self.seconds:.1f} s of forward passes{kept}"
