"""Two surveyed models compared: found by name, matched head by head, and told apart."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from qk_taxonomy.cache import filed_as, files_of_id, find_spectra
from qk_taxonomy.errors import HypothesisError
from qk_taxonomy.hypotheses.contrast import (
    check_comparable,
    overall_shifts,
    refused_contrast,
    shift_rows,
    two_shapes,
)
from qk_taxonomy.hypotheses.heads import HeadSet, load_heads, untrained_like
from qk_taxonomy.hypotheses.pairs import named_heads, shared_stacks, unknown_model
from qk_taxonomy.hypotheses.table import corrected
from qk_taxonomy.records import N_BINS, Circuit, Convention, Match
from qk_taxonomy.statistics.densities import histogram_densities, mean_normalised, pool_edges
from qk_taxonomy.statistics.findings import benjamini_hochberg
from qk_taxonomy.statistics.moves import MOVES, HeadMoves, head_moves
from qk_taxonomy.studies.differences.matching import (
    Matched,
    depth_agreement,
    matched_by_place,
    matched_by_spectra,
)
from qk_taxonomy.studies.differences.records import ModelDifference, StackDifference


def diff_models(
    first: str,
    second: str,
    data_root: str | Path = ".",
    *,
    circuit: Circuit = "qk",
    convention: Convention = "raw",
    match: Match = "auto",
    seed: int = 0,
    include_imported: bool = False,
) -> ModelDifference:
    """What differs between two surveyed models, head by head.

    first, second: spectra files, or ``family/stem``, stem or id of models under ``data_root``.
    match: "place", head by head of two models of one shape; "spectra", the best matches; "auto", by
    place where architecture and shape are one. Differences are second less first. Raises
    SpectraFileError where a file cannot be read, HypothesisError where a name fits no model or
    several, or the two cannot be compared: of different conventions, formulas or d_head.
    """
    sides = [_named(ref, data_root, circuit, convention) for ref in (first, second)]
    before, after = sides
    if before[0].path.resolve() == after[0].path.resolve():
        raise HypothesisError(
            f"{first} and {second} are one file, {before[0].path}: wanted two models, or two "
            "revisions of one. `qk-taxonomy show` tells what is in a file."
        )
    pairs = shared_stacks(before, after)
    if not pairs:
        stacks = [", ".join(heads.stack or "a single one" for heads in side) for side in sides]
        raise HypothesisError(
            f"{first} and {second} share no stack: the first has {stacks[0]}, the second "
            f"{stacks[1]}. Heads of stacks of one name are compared."
        )
    twins = [twin for side in sides for twin in _twins(side[0].path, circuit, convention)]
    shared = {one.stack for one, _ in pairs}
    alone = [heads.name for side in sides for heads in side if heads.stack not in shared]
    return ModelDifference(
        tuple(
            diff_heads(
                one,
                other,
                match=match,
                twins=twins,
                seed=seed,
                include_imported=include_imported,
            )
            for one, other in pairs
        ),
        tuple(f"{name} has no counterpart in the other model" for name in alone),
    )


def diff_heads(
    first: HeadSet,
    second: HeadSet,
    *,
    match: Match = "auto",
    twins: Iterable[HeadSet] = (),
    seed: int = 0,
    include_imported: bool = False,
) -> StackDifference:
    """What differs between one stack of two models; :func:`diff_models` has the rest.

    twins: heads of random twins of the first model, for architectures whose untrained heads have no
    law of their shape alone. Raises HypothesisError where the two cannot be compared.
    """
    check_comparable((first, second), include_imported=include_imported)
    _check_widths(first, second)
    matched = _matched(first, second, match)
    before, after = first.lam[matched.first], second.lam[matched.second]
    untrained = untrained_like(first, twins, include_imported=include_imported)
    layers, groups = first.layer[matched.first], first.groups[matched.first]
    moves = head_moves(before, after, layers, groups, untrained.lam, seed=seed)
    table = _head_table(first, second, matched, moves)
    farthest = np.nan_to_num(moves.in_units, nan=-1.0).max(-1)
    order = np.argsort(-farthest, kind="stable")
    normalised = [mean_normalised(lam)[order] for lam in (before, after)]
    edges = pool_edges(np.concatenate(normalised), N_BINS)
    depth = None
    if matched.how == "spectra":
        depth = depth_agreement(
            first.depth[matched.first],
            second.layer[matched.second],
            second.depth[matched.second],
            seed=seed,
        )
    return StackDifference(
        first=first,
        second=second,
        matching=matched.how,
        heads=table.iloc[order].reset_index(drop=True),
        shifts=_shifts(first, second, matched, seed),
        usual=dict(zip(MOVES, moves.usual.tolist(), strict=True)),
        histograms=np.stack([histogram_densities(x, edges) for x in normalised]),
        edges=edges,
        depth=depth,
        notes=tuple(_notes(first, second, matched, untrained.limit(len(before)))),
    )


def _named(
    ref: str, data_root: str | Path, circuit: Circuit, convention: Convention
) -> list[HeadSet]:
    """The stacks of the model that ``ref`` names. Raises for one that has no such spectra."""
    if ref.endswith(".safetensors"):
        paths = [Path(ref)]
    else:
        known = find_spectra(data_root, controls=True)
        paths = [path for path in known if ref in (path.stem, filed_as(path))]
        paths = paths or files_of_id(ref, known)
        if not paths:
            raise unknown_model(ref, known)
    found = load_heads(paths, circuit, convention)
    if found.failures:
        raise next(iter(found.failures.values()))
    if not found.sets:
        raise next(iter(found.without.values()))
    return named_heads(ref, found.sets)


def _twins(path: Path, circuit: Circuit, convention: Convention) -> tuple[HeadSet, ...]:
    """The heads of the random twins that are filed beside a model."""
    names = path.parent.glob("*~random-*.safetensors")
    beside = [twin for twin in sorted(names) if twin.name.startswith(f"{path.stem}~random-")]
    return load_heads(beside, circuit, convention).sets


def _check_widths(first: HeadSet, second: HeadSet) -> None:
    for heads in (first, second):
        if len(heads.widths) > 1:
            raise HypothesisError(f"{heads.name}: {heads.differing_widths}.")
    if first.widths != second.widths:
        raise HypothesisError(
            f"{first.name} has heads of d_head {first.widths[0]}, {second.name} of "
            f"{second.widths[0]}: spectra of different numbers of λ are not compared head by head. "
            "Classes of both kinds of heads are: `qk-taxonomy cluster --joint`."
        )


def _matched(first: HeadSet, second: HeadSet, match: Match) -> Matched:
    if match == "spectra" or (match == "auto" and not _one_design(first, second)):
        return matched_by_spectra(first, second)
    differ = two_shapes(first, second)
    if differ:
        raise HypothesisError(
            f"{differ}: heads cannot be matched by their place. Match them by their spectra: "
            "--match spectra."
        )
    return matched_by_place(len(first.lam))


def _one_design(first: HeadSet, second: HeadSet) -> bool:
    """Whether heads in one place are taken for counterparts."""
    architectures = {heads.spectra.metadata["architecture"] for heads in (first, second)}
    return first.shape == second.shape and len(architectures) == 1


def _head_table(
    first: HeadSet, second: HeadSet, matched: Matched, moves: HeadMoves
) -> pd.DataFrame:
    sizes = moves.in_units
    columns = {
        "layer": first.layer[matched.first],
        "head": first.table["head"].to_numpy()[matched.first],
        "layer_b": second.layer[matched.second],
        "head_b": second.table["head"].to_numpy()[matched.second],
    }
    for column, name in enumerate(MOVES):
        columns[name] = moves.moves[:, column]
        columns[f"{name}_units"] = sizes[:, column]
    columns["jensen_shannon"] = moves.divergences
    # Heads that were matched because their shapes are near cannot be tested for being far.
    p_values = moves.p_untrained if matched.how == "place" else np.full(len(sizes), np.nan)
    columns["p_untrained"] = p_values
    columns["q_untrained"] = benjamini_hochberg(p_values)
    known = np.nan_to_num(sizes, nan=0.0)
    names = np.array(MOVES)[known.argmax(-1)]
    columns["moved"] = np.where(known.max(-1) > 0, names, "")
    return pd.DataFrame(columns)


def _shifts(first: HeadSet, second: HeadSet, matched: Matched, seed: int) -> pd.DataFrame:
    """Whether all heads together moved, by statistic: what ``test`` tells of the two models."""
    if matched.how == "spectra":
        return refused_contrast(second, first, "heads are matched by their spectra")
    shifts = overall_shifts(shift_rows(second, first, seed=seed), first)
    return corrected(shifts, ["method"]).reset_index(drop=True)


def _notes(first: HeadSet, second: HeadSet, matched: Matched, limit: str) -> list[str]:
    if matched.how == "place":
        return [limit] if limit else []
    notes = []
    alone = [
        f"{len(heads.table) - len(matched.first)} heads of {heads.name}"
        for heads in (first, second)
        if len(heads.table) > len(matched.first)
    ]
    if alone:
        notes.append(f"without a match: {', '.join(alone)}")
    notes.append(
        "heads are matched by their spectra, each with a near one: pairs chosen so cannot be "
        "tested for having moved (no p- or q-values), and a small distance does not make them one "
        "head"
    )
    return notes
