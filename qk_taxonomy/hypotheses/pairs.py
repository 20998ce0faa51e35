"""Which surveyed models are to be compared: the catalogue's contrasts, twins, and those named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qk_taxonomy.cache import filed_as, revision_order
from qk_taxonomy.errors import HypothesisError
from qk_taxonomy.hypotheses.heads import HeadSet, is_twin_of
from qk_taxonomy.records import Contrast, FileStem, at_revision, split_revision


@dataclass(frozen=True, eq=False)
class Pair:
    """Two stacks to compare, under the ``name`` and ``kind`` of their contrast."""

    name: str
    kind: str
    treatment: HeadSet
    control: HeadSet


def named_heads(ref: str, sets: Sequence[HeadSet]) -> list[HeadSet]:
    """The stacks of the one surveyed model that ``ref`` names.

    ``ref``: a spectra file, ``family/stem``, its stem or the model's id, which @ and a revision may
    follow. Raises HypothesisError where no surveyed model or more than one answers to it.
    """
    if ref.endswith(".safetensors"):
        found = [s for s in sets if s.path.resolve() == Path(ref).resolve()]
    else:
        found = [s for s in sets if ref in (s.model, s.file)]
        found = found or [s for s in sets if _is_of_id(s, ref)]
    files = list(dict.fromkeys(s.file for s in found))
    if len(files) == 1:
        return found
    if files:
        raise HypothesisError(
            f"{ref!r} could be any of {', '.join(files)}; name one of them so, with its family."
        )
    raise unknown_model(
        ref, [s.path for s in sets], " (with spectra of this circuit and convention)"
    )


def unknown_model(ref: str, paths: Iterable[Path], which: str = "") -> HypothesisError:
    """What to raise where none of the spectra files is of ``ref``: it names those like it.

    ``which``: what they have that are meant.
    """
    stem = Path(ref).name.casefold()
    ordered = sorted(dict.fromkeys(paths), key=_in_order_of_training)
    near = [path for path in ordered if stem in path.stem.casefold()]
    known = [filed_as(path) for path in near or ordered]
    shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    return HypothesisError(
        f"No surveyed model is called {ref!r}{which}. {'Like it are' if near else 'There are'} "
        f"{shown}. `qk-taxonomy download` surveys others."
    )


def _is_of_id(heads: HeadSet, ref: str) -> bool:
    model_id, revision = split_revision(ref)
    spectra = heads.spectra
    if spectra.model_id != model_id or spectra.control:
        return False
    return not revision or heads.stem.revision == revision


def _in_order_of_training(path: Path) -> tuple[object, ...]:
    """By name; of one the weights of no named revision first, then revisions by age."""
    stem = FileStem.parse(path.stem)
    named = stem.revision is not None
    return path.parent.name, stem.series, named, revision_order(stem.revision)


def stack_pairs(
    name: str, kind: str, treatment: Iterable[HeadSet], control: Iterable[HeadSet]
) -> list[Pair]:
    """The stacks that two models share, each with its counterpart, as a contrast of that name."""
    return [Pair(name, kind, t, c) for t, c in shared_stacks(treatment, control)]


def shared_stacks(
    first: Iterable[HeadSet], second: Iterable[HeadSet]
) -> list[tuple[HeadSet, HeadSet]]:
    """The stacks of one name that two models have, in the first one's order."""
    others = {heads.stack: heads for heads in second}
    return [(heads, others[heads.stack]) for heads in first if heads.stack in others]


def catalogued_pairs(contrasts: Iterable[Contrast], sets: Sequence[HeadSet]) -> list[Pair]:
    """The contrasts of the catalogue that have both sides surveyed, by one formula.

    A treatment is compared with the control in its own family's folder, or else with the first.
    """
    pairs = []
    for contrast in contrasts:
        treatments, controls = (
            [heads for heads in sets if _is_model(heads, side)]
            for side in (contrast.treatment, contrast.control)
        )
        for treatment in treatments:
            like = [c for c in controls if c.spectra.is_imported == treatment.spectra.is_imported]
            like.sort(key=lambda heads: heads.family != treatment.family)
            of_stack = [heads for heads in like if heads.stack == treatment.stack]
            pairs += stack_pairs(contrast.name, contrast.kind, [treatment], of_stack[:1])
    return pairs


def _is_model(heads: HeadSet, model_id: str) -> bool:
    """Whether these are a model's heads, of the revision that nobody had to name."""
    own = not heads.spectra.control and heads.stem.revision is None
    return own and heads.spectra.model_id == model_id


def newest_of_each(sets: Iterable[HeadSet]) -> list[HeadSet]:
    """Each model at its newest: the weights that no revision was named for, or main, or else those
    of the last step that a revision's name tells (:func:`revision_order`).
    """
    newest: dict[tuple[str, tuple[str, str], str, bool], HeadSet] = {}
    for heads in sets:
        key = heads.family, heads.stem.series, heads.stack, heads.spectra.is_imported
        if key not in newest or _age(heads) > _age(newest[key]):
            newest[key] = heads
    return list(newest.values())


def _age(heads: HeadSet) -> tuple[object, ...]:
    return revision_order(heads.stem.revision)


def one_per_training(
    contrasts: Iterable[Contrast], sets: Sequence[HeadSet], *, revisions: bool = False
) -> tuple[list[HeadSet], list[HeadSet]]:
    """The models that are independent of each other, as far as the catalogue knows; the others.

    Models that were trained further from one another, by the catalogue's contrasts, count once:
    the one that all others go back to, or else the first of them. Revisions that were asked for by
    name are of one training run and do not count, unless ``revisions`` says that they are one of
    each model.
    """
    controls = {contrast.treatment: contrast.control for contrast in contrasts}
    origins = training_origins(contrasts)
    kept: dict[tuple[str, str, bool], HeadSet] = {}
    others = []
    for heads in sorted(sets, key=lambda s: s.spectra.model_id in controls):
        if heads.stem.revision is not None and not revisions:
            others.append(heads)
            continue
        key = (_training(heads, origins), heads.stack, heads.spectra.is_imported)
        if kept.setdefault(key, heads) is not heads:
            others.append(heads)
    chosen = set(map(id, kept.values()))
    return [heads for heads in sets if id(heads) in chosen], others


def _training(heads: HeadSet, origins: Mapping[str, str]) -> str:
    """What tells a model's training from others: its origin's id, and local weights by content."""
    model_id, revision = heads.spectra.model_id, heads.spectra.metadata["revision"]
    own = at_revision(model_id, revision) if revision.startswith("local-") else model_id
    return origins.get(model_id, own)


def training_origins(contrasts: Iterable[Contrast]) -> dict[str, str]:
    """For each model that was trained further, the one that its chain of trainings began with."""
    controls = {contrast.treatment: contrast.control for contrast in contrasts}
    origins = {}
    for model_id in controls:
        seen, origin = {model_id}, model_id
        while (before := controls.get(origin)) and before not in seen:
            seen.add(before)
            origin = before
        origins[model_id] = origin
    return origins


def twin_pairs(sets: Sequence[HeadSet]) -> list[Pair]:
    """Every model against the random twins that are filed beside it."""
    return [
        Pair(f"{heads.model}-against-{twin.spectra.control}", "random twin", heads, twin)
        for heads in sets
        for twin in sets
        if not heads.spectra.control
        and is_twin_of(twin, heads)
        and twin.path.parent == heads.path.parent
        and twin.stem == replace(heads.stem, control=twin.spectra.control)
    ]
