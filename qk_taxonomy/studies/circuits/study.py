"""The study of one model's full circuits: spectra beside a control's, the table, tokens, words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from qk_taxonomy.checkpoints.tokens import Tokens, open_tokens
from qk_taxonomy.errors import CheckpointError, HypothesisError
from qk_taxonomy.progress import Progress
from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Control, Convention, ModelRef
from qk_taxonomy.studies.circuits.chosen import Head, asked_heads, chosen_heads
from qk_taxonomy.studies.circuits.compute import circuits_of
from qk_taxonomy.studies.circuits.ends import token_ends
from qk_taxonomy.studies.circuits.records import ModelCircuits, TokenEnds
from qk_taxonomy.studies.circuits.scaling import WordStudy, word_study
from qk_taxonomy.studies.circuits.series import WordSeries, read_word_series
from qk_taxonomy.studies.circuits.source import CircuitSource
from qk_taxonomy.studies.circuits.table import circuit_table, control_limits

if TYPE_CHECKING:
    from huggingface_hub import HfApi


# Heads of each kind whose tokens are told unless some are asked for.
_N_TOLD = 2


@dataclass(frozen=True, eq=False)
class CircuitStudy:
    """What a study of full circuits found of one model.

    ``table``: one row a head and convention (:func:`~qk_taxonomy.studies.circuits.table.
    circuit_table`). ``heads``: those that were asked for; none: those that the table tells of are
    shown. ``ends``: the tokens at both ends of the shown heads' leading vectors. ``words``: None
    where the checkpoint has no tokenizer, or too few of the words. ``convention``: of ``ends`` and
    ``words``. ``notes``: sentences that a reader must know.
    """

    ref: ModelRef
    model: ModelCircuits
    control: ModelCircuits | None
    table: pd.DataFrame
    convention: Convention
    heads: tuple[Head, ...]
    ends: tuple[TokenEnds, ...]
    words: WordStudy | None
    notes: tuple[str, ...]


def study_circuits(
    ref: ModelRef,
    *,
    control: Control | None = None,
    output_root: str | Path = ".",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    conventions: Sequence[Convention] = CONVENTIONS,
    n_tokens: int = 10,
    series: Sequence[WordSeries] | None = None,
    force: bool = False,
    api: HfApi | None = None,
    progress: Progress | None = None,
) -> CircuitStudy:
    """Study the full circuits of a model, beside those of its ``control``.

    layers: to compute and to score words by, all unless given; heads: to show, of those. n_tokens:
    tokens at each end of a vector. series: words whose scaling and reversal is tested, the built-in
    ones unless given. Tokens and words are told under the last of ``conventions``. What was
    computed before is taken from its file under ``output_root`` unless ``force``. progress: is told
    of the bytes that are read. Raises QKTaxonomyError.
    """
    source = CircuitSource.open(ref, api, progress)
    asked = asked_heads(source.layers, layers, heads) if heads else ()
    options = {"output_root": output_root, "conventions": conventions, "force": force}
    model = circuits_of(source, layers=layers, **options)  # type: ignore[arg-type]
    beside = None
    if control is not None:
        twin = CircuitSource.open(replace(ref, control=control), api, progress)
        beside = circuits_of(twin, **options)  # type: ignore[arg-type]
    table = circuit_table(model, beside)
    convention = conventions[-1]
    told = table[table["convention"] == convention]
    if layers:
        told = told[told["layer"].isin(layers)]
    shown = asked or tuple(head for group in chosen_heads(told, _N_TOLD) for head in group.heads)
    notes = [*source.layout.notes, *source.plan.notes]
    if beside is not None:
        limits = dict.fromkeys(control_limits(model, beside, convention))
        notes.extend(f"unusual heads: {limit}" for limit in limits)
    tokens = _tokens(source, notes)
    ends = token_ends(
        source,
        tokens.text if tokens else str,
        shown,
        circuits=CIRCUITS,
        convention=convention,
        n_tokens=n_tokens,
    )
    words = None
    if tokens is not None:
        words = _words(source, tokens, series or read_word_series(), convention, layers, notes)
    return CircuitStudy(
        ref, model, beside, table, convention, asked, tuple(ends), words, tuple(notes)
    )


def _tokens(source: CircuitSource, notes: list[str]) -> Tokens | None:
    """The model's tokenizer; a note where there is none that can be used."""
    try:
        tokens = open_tokens(source.checkpoint)
    except CheckpointError as err:
        notes.append(f"tokens are given by number, and words are not scored: {err}".rstrip("."))
        return None
    if tokens is None:
        notes.append("it has no tokenizer: tokens are given by number, and words are not scored")
    return tokens


def _words(
    source: CircuitSource,
    tokens: Tokens,
    series: Sequence[WordSeries],
    convention: Convention,
    layers: Sequence[int] | None,
    notes: list[str],
) -> WordStudy | None:
    try:
        words = word_study(
            source, tokens, series, circuits=CIRCUITS, convention=convention, layers=layers
        )
    except HypothesisError as err:
        notes.append(f"words are not scored: {err}".rstrip("."))
        return None
    limits = [(circuit.upper(), test.note) for circuit, test in words.tests.items() if test.note]
    notes.extend(f"words, {circuit}: {note}" for circuit, note in limits)
    if words.left_out:
        notes.append(
            f"{len(words.left_out)} words of the series are several tokens here, or stand in a "
            f"series that lacks others so: {', '.join(words.left_out)}"
        )
    return words
