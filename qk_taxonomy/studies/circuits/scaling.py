"""Word series on a model's heads: from stored rows of tokens to scores of words, and the test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qk_taxonomy.architectures import restrict
from qk_taxonomy.checkpoints.tokens import Tokens
from qk_taxonomy.circuits.full import FullHead, full_heads
from qk_taxonomy.circuits.threads import in_threads
from qk_taxonomy.errors import HypothesisError
from qk_taxonomy.records import Circuit, Convention
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.studies.circuits.series import WordSeries, known_series, series_words
from qk_taxonomy.studies.circuits.source import CircuitSource, ahead
from qk_taxonomy.studies.circuits.words import HeadScores, WordTest, head_scores, word_test

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class WordStudy:
    """What word series showed of a model's heads in one convention.

    ``table``: one row a head and circuit: stack, layer, head, circuit, and for each of ``scaling``,
    ``positive_effect``, ``negative_effect`` and ``ordering`` the effect, its interval (``_low``,
    ``_high``), and p and q (of ``scaling`` without its name before them). ``tests``: by circuit.
    ``left_out``: words that are several tokens here, or that stand in a series which lacks its
    base, a stronger word or an opposite so.
    """

    convention: Convention
    table: pd.DataFrame
    tests: dict[Circuit, WordTest]
    left_out: tuple[str, ...]

    @property
    def summary(self) -> str:
        """What was found for the whole model, a sentence a circuit."""
        sentences = []
        for circuit, test in self.tests.items():
            q, signs = test.scaling.q_values, test.signs
            sentences.append(
                f"{circuit.upper()}: {(q <= LEVEL).sum()} of {len(q)} heads scale or reverse words "
                f"(q ≤ {LEVEL}); positive μ scale and negative reverse in {signs.share:.0%} of "
                f"heads, {signs.shuffled:.0%} under shuffled words (p = {signs.p_value:.2g})"
            )
        return "\n".join(sentences)


def word_study(
    source: CircuitSource,
    tokens: Tokens,
    series: Sequence[WordSeries],
    *,
    circuits: Sequence[Circuit],
    convention: Convention,
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> WordStudy:
    """Score the words that are single tokens by every head, and test the scores.

    layers: numbers of the layers whose heads these are, all unless given.
    Raises CheckpointError, and HypothesisError where too few series are single tokens.
    """
    ids = {word: tokens.ids(word) for word in series_words(series)}
    single = {
        word: found[0]
        for word, found in ids.items()
        if len(found) == 1 and found[0] < source.plan.n_tokens
    }
    known, left_out = known_series(series, single)
    if not known:
        raise HypothesisError(
            f"None of the {len(series)} word series has a base, a stronger word and an opposite "
            f"that are single tokens of {source.ref.ref}. Give others with --words."
        )
    plans = [plan for plan in source.layers if not layers or plan.layer in layers]
    n_bytes = sum(restrict(plan, circuits).n_bytes for plan in plans)
    source.progress.start(f"{source.ref.name}: words", source.vocabulary_bytes + n_bytes)
    vocabulary = source.vocabulary(convention)
    embed, unembed = source.rows_of([single[word] for word in series_words(known)])
    columns = vocabulary.embed_reading.rows(embed).mT
    # Scores are compared between targets, where the mean over tokens of W_U has no part.
    written = vocabulary.unembed_reading.rows(unembed).mT
    places: dict[Circuit, list[tuple[str, int, int]]] = {circuit: [] for circuit in circuits}
    scores: dict[Circuit, list[HeadScores]] = {circuit: [] for circuit in circuits}
    read = ahead(lambda plan: source.factors(plan, circuits, [convention]), plans)
    for plan, pairs in zip(plans, read, strict=True):
        for circuit in circuits:
            rows = (written if circuit == "ov" else columns).numpy()

            def scored(head: FullHead, rows: Array = rows) -> HeadScores:
                a, b = head.left @ rows, head.right @ columns.numpy()
                return head_scores(a, b, head.b @ head.a.T, known)

            numbers = range(plan.geometry.n_heads)
            heads = full_heads(pairs[circuit, convention], vocabulary, circuit, numbers)
            scores[circuit] += in_threads(scored, heads)
            places[circuit] += [(*plan.place, head) for head in numbers]
    tests = {circuit: word_test(scores[circuit], known, seed=seed) for circuit in circuits}
    table = pd.concat([_rows(circuit, places[circuit], tests[circuit]) for circuit in circuits])
    return WordStudy(convention, table.reset_index(drop=True), tests, left_out)


def _rows(circuit: Circuit, places: Sequence[tuple[str, int, int]], test: WordTest) -> pd.DataFrame:
    table = pd.DataFrame(places, columns=["stack", "layer", "head"])
    table.insert(3, "circuit", circuit)
    for name, effects in (
        ("scaling", test.scaling),
        ("positive_effect", test.positive),
        ("negative_effect", test.negative),
        ("ordering", test.ordering),
    ):
        matched, prefix = effects.matched, "" if name == "scaling" else f"{name}_"
        table[name], table[f"{name}_low"], table[f"{name}_high"] = (
            matched.effect, matched.low, matched.high,
        )  # fmt: skip
        table[f"{prefix}p"], table[f"{prefix}q"] = matched.p_values, effects.q_values
    return table
