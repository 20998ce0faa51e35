"""The survey of one model: planned from names and shapes, then streamed into its spectra file."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import try_to_load_from_cache

from qk_taxonomy.architectures import restrict
from qk_taxonomy.cache import UnfinishedSpectra
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.checkpoints.hub import HubCheckpoint
from qk_taxonomy.controls import surveyed
from qk_taxonomy.progress import SurveyProgress
from qk_taxonomy.records import (
    AttentionLayout,
    Circuit,
    Convention,
    LayerPlan,
    LayerSpectra,
    ModelRef,
    ModelResult,
)
from qk_taxonomy.speeds import expected_seconds, remember_speed
from qk_taxonomy.survey.metadata import provenance, spectra_metadata
from qk_taxonomy.survey.streaming import Stream, Workers
from qk_taxonomy.survey.unchanged import Unchanged, layer_sources, unchanged_layers


@dataclass(frozen=True)
class Job:
    """What is to be done for one model, and where it goes."""

    ref: ModelRef
    path: Path
    checkpoint: Checkpoint
    layout: AttentionLayout
    circuits: tuple[Circuit, ...]
    conventions: tuple[Convention, ...]
    device: str | None
    sources: Mapping[str, str]
    unchanged: Unchanged

    @classmethod
    def planned(
        cls,
        ref: ModelRef,
        path: Path,
        checkpoint: Checkpoint,
        circuits: Sequence[Circuit],
        conventions: Sequence[Convention],
        device: str | None,
        *,
        forced: bool,
    ) -> Job:
        """Plan the survey of an opened checkpoint; ``forced``: of all layers, also those that files
        of other revisions have. Raises CheckpointError and LayoutError."""
        checkpoint, layout = surveyed(checkpoint, ref.architecture, ref.control)
        plans = [restrict(plan, circuits) for plan in layout.layers]
        checkpoint.check_readable(info for plan in plans for info in plan.tensors.values())
        asked = tuple(circuits), tuple(conventions)
        sources = layer_sources(checkpoint, layout.layers)
        unchanged = unchanged_layers(path, {} if forced else sources, layout.layers, *asked)
        return cls(ref, path, checkpoint, layout, *asked, device, sources, unchanged)

    def expected(self, workers: Workers) -> ModelResult:
        """What a run would read, and how long it should take, where speeds were measured before."""
        todo = [plan for plan in self.layout.layers if plan.place not in self.unchanged.layers]
        n_bytes = self._stream(todo, workers).n_bytes
        return self._result("planned", n_bytes, expected_seconds(self.checkpoint.source, n_bytes))

    def run(self, workers: Workers, progress: SurveyProgress, *, forced: bool) -> ModelResult:
        """Stream the layers that are not finished yet, and write the file.

        Raises QKTaxonomyError; finished layers are kept for the next run.
        """
        began = time.monotonic()
        metadata = spectra_metadata(self.ref, self.checkpoint, self.layout)
        asked = {
            "circuits": ",".join(self.circuits),
            "conventions": ",".join(self.conventions),
            "forced": str(forced),
        }
        unfinished = UnfinishedSpectra(self.path, {**metadata, **asked})
        for place, layer in self.unchanged.layers.items():
            if place not in unfinished.layers:
                unfinished.add(layer)
        todo = [plan for plan in self.layout.layers if plan.place not in unfinished.layers]
        stream = self._stream(todo, workers)

        def keep(layer: list[LayerSpectra]) -> None:
            unfinished.add(layer)
            progress.advance(1, 0)

        progress.start(self.ref, len(todo), stream.n_bytes)
        stream.run(workers, keep, lambda n_bytes: progress.advance(0, n_bytes), progress.stopping)
        recomputed = unfinished.recomputed_heads
        metadata["provenance"] = provenance(
            self.layout, self.circuits, self.conventions, recomputed, self.unchanged.counts
        )
        if self.sources:
            metadata["layer_sources"] = json.dumps(self.sources, sort_keys=True)
        unfinished.finish(metadata)
        seconds = time.monotonic() - began
        if isinstance(workers.executor, ThreadPoolExecutor) and self._comes_over_the_network():
            remember_speed(self.checkpoint.source, stream.n_bytes, seconds)
        return self._result("computed", stream.n_bytes, seconds, sum(recomputed.values()))

    def _comes_over_the_network(self) -> bool:
        """Whether this is a hub's model, and none of its files in the user's hub cache."""
        checkpoint = self.checkpoint
        if not isinstance(checkpoint, HubCheckpoint):
            return False
        plans = [restrict(plan, self.circuits) for plan in self.layout.layers]
        infos = [info for plan in plans for info in plan.tensors.values()]
        files = {part.file for info in infos for part in (info, *info.companions)}
        at = {"revision": checkpoint.revision}
        found = [try_to_load_from_cache(checkpoint.model_id, file, **at) for file in files]
        return not any(isinstance(path, str) for path in found)

    def _stream(self, plans: Sequence[LayerPlan], workers: Workers) -> Stream:
        return Stream.of(
            self.checkpoint,
            plans,
            self.circuits,
            self.conventions,
            self.device,
            workers.part_memory,
        )

    def _result(
        self,
        status: Literal["computed", "planned"],
        n_bytes: int,
        seconds: float | None,
        n_recomputed: int = 0,
    ) -> ModelResult:
        return ModelResult(
            self.ref.ref,
            status,
            str(self.path),
            layers=len(self.layout.layers),
            heads=sum(plan.geometry.n_heads for plan in self.layout.layers),
            bytes_read=n_bytes,
            bytes_total=self.checkpoint.n_bytes,
            n_recomputed=n_recomputed,
            notes=(*self.layout.notes, *self.unchanged.notes),
            control=self.ref.control_label,
            revision=self.ref.revision or "",
            seconds=seconds,
            source=self.checkpoint.source,
        )
