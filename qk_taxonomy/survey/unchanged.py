"""Layers that another revision's spectra file has already: made of the same bytes, the same way."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qk_taxonomy import __version__
from qk_taxonomy.architectures import restrict
from qk_taxonomy.cache import DAMAGE, load_metadata, load_spectra, sibling_files
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.errors import SpectraFileError
from qk_taxonomy.records import CIRCUITS, Circuit, Convention, FileStem, LayerPlan, LayerSpectra
from qk_taxonomy.statistics.moments import STATISTICS
from qk_taxonomy.wording import counted

Place = tuple[str, int]


@dataclass(frozen=True)
class Unchanged:
    """Layers by place, as other revisions' files have them, and which revision each is taken of."""

    layers: Mapping[Place, list[LayerSpectra]]
    revisions: Mapping[Place, str]

    @property
    def counts(self) -> dict[str, int]:
        """How many layers are taken of each revision."""
        return dict(Counter(self.revisions.values()))

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(
            f"{counted(n, 'layer')} as at {revision}: the same files"
            for revision, n in self.counts.items()
        )


def layer_sources(checkpoint: Checkpoint, plans: Iterable[LayerPlan]) -> dict[str, str]:
    """A hash, by layer and circuit, of all that spectra come from: the contents of files, the bytes
    of them that are read, and how these make heads.

    Without those of layers in files whose contents the checkpoint cannot tell unread.
    """
    sources = {}
    for plan in plans:
        for circuit in CIRCUITS:
            needed = restrict(plan, [circuit])
            infos = [part for info in needed.tensors.values() for part in (info, *info.companions)]
            contents = {info.file: checkpoint.content_id(info.file) for info in infos}
            if None not in contents.values():
                sources[_key(plan.place, circuit)] = _hash(needed, contents)
    return sources


def _key(place: Place, circuit: Circuit) -> str:
    stack, layer = place
    return f"{stack}.layers.{layer}.{circuit}".lstrip(".")


def _hash(plan: LayerPlan, contents: Mapping[str, str | None]) -> str:
    # Files by their contents: a shard may have another name in another revision.
    def by_content(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: contents[part] if key == "file" else by_content(part)
                for key, part in value.items()
            }
        return value

    text = json.dumps(by_content(dataclasses.asdict(plan)), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def unchanged_layers(
    path: Path,
    sources: Mapping[str, str],
    plans: Sequence[LayerPlan],
    circuits: Sequence[Circuit],
    conventions: Sequence[Convention],
) -> Unchanged:
    """The layers of ``plans`` that files of other revisions beside ``path`` have from the same
    ``sources``, in all ``circuits`` and ``conventions``, made by this version of the program."""
    layers: dict[Place, list[LayerSpectra]] = {}
    revisions: dict[Place, str] = {}
    pairs = [(circuit, convention) for circuit in circuits for convention in conventions]
    for other in sibling_files(path) if sources else ():
        wanted = [plan.place for plan in plans if plan.place not in layers]
        try:
            metadata = load_metadata(other)
            places = _same(metadata, sources, wanted, circuits)
            if not places:
                continue
            spectra = {(s.place, s.circuit, s.convention): s for s in load_spectra(other).layers}
        except (SpectraFileError, *DAMAGE):
            continue  # nothing is taken of a damaged file
        revision = FileStem.parse(other.stem).revision or metadata["revision"]
        for place in places:
            found = [spectra.get((place, *pair)) for pair in pairs]
            whole = [layer for layer in found if layer is not None]
            if len(whole) == len(pairs):
                layers[place], revisions[place] = whole, revision
    return Unchanged(layers, revisions)


def _same(
    metadata: Mapping[str, str],
    sources: Mapping[str, str],
    places: Iterable[Place],
    circuits: Sequence[Circuit],
) -> list[Place]:
    """Those of ``places`` that a file has from the same sources, in numbers that mean the same."""
    made = {"tool_version": __version__, "statistics": ",".join(STATISTICS)}
    if any(metadata[key] != value for key, value in made.items()):
        return []
    theirs = json.loads(metadata.get("layer_sources", "{}"))
    keys = {place: [_key(place, circuit) for circuit in circuits] for place in places}
    return [
        place
        for place, own in keys.items()
        if all(key in sources and theirs.get(key) == sources[key] for key in own)
    ]
