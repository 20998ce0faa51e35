"""The tokens at both ends of a head's leading vectors: what it looks for and what it writes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from qk_taxonomy.architectures import restrict
from qk_taxonomy.circuits.full import Vectors, full_heads, leading_vectors
from qk_taxonomy.circuits.vocabulary import Vocabulary
from qk_taxonomy.records import Circuit, Convention
from qk_taxonomy.studies.circuits.chosen import Head
from qk_taxonomy.studies.circuits.records import Side, TokenEnds
from qk_taxonomy.studies.circuits.source import CircuitSource

_SIDES: tuple[Side, ...] = ("rows", "columns")

VECTORS: tuple[Vectors, ...] = ("eigenvector", "singular vector")


@dataclass(frozen=True, eq=False)
class _Direction:
    """Whose tokens are wanted, and the product with stored rows, less ``offset``, that says."""

    ends: TokenEnds
    unembed: bool
    direction: NDArray[np.float64]
    offset: float


def token_ends(
    source: CircuitSource,
    text: Callable[[int], str],
    heads: Iterable[Head],
    *,
    circuits: Sequence[Circuit],
    convention: Convention,
    kinds: Sequence[Vectors] = VECTORS,
    n_vectors: int = 2,
    n_tokens: int = 10,
) -> list[TokenEnds]:
    """Both ends of the leading vectors of some heads: ``n_tokens`` tokens each, by ``text``.

    Left vectors are over the rows of F and right ones over its columns; scores are entries of
    vectors of length 1. Reads the embeddings once more. Raises CheckpointError.
    """
    numbers: dict[tuple[str, int], list[int]] = {}
    for place in heads:
        numbers.setdefault((place.stack, place.layer), []).append(place.head)
    plans = [plan for plan in source.layers if plan.place in numbers]
    n_bytes = sum(restrict(plan, circuits).n_bytes for plan in plans)
    n_bytes += source.vocabulary_bytes + source.embedding_bytes
    source.progress.start(f"{source.ref.name}: tokens", n_bytes)
    vocabulary = source.vocabulary(convention)
    raw_mean = source.vocabulary("raw").unembed_mean.numpy()
    wanted: list[_Direction] = []
    for plan in plans:
        pairs = source.factors(plan, circuits, [convention])
        chosen = numbers[plan.place]
        for circuit in circuits:
            found = full_heads(pairs[circuit, convention], vocabulary, circuit, chosen)
            for (head, one), kind in itertools.product(zip(chosen, found, strict=True), kinds):
                leading = leading_vectors(one, kind, n_vectors)
                for i, value in enumerate(leading.values):
                    for side in _SIDES:
                        ends = TokenEnds(
                            layer=plan.layer,
                            stack=plan.stack,
                            head=head,
                            circuit=circuit,
                            convention=convention,
                            kind=kind,
                            number=i + 1,
                            value=complex(value),
                            side=side,
                            top=(),
                            bottom=(),
                        )
                        direction = (leading.left if side == "rows" else leading.right)[i]
                        wanted.append(_as_stored(ends, direction, vocabulary, raw_mean))
    return _filled(source, text, wanted, n_tokens)


def _as_stored(
    ends: TokenEnds,
    direction: NDArray[np.float64],
    vocabulary: Vocabulary,
    raw_mean: NDArray[np.float64],
) -> _Direction:
    """A direction over tokens as they are read, as one over rows as they are stored."""
    unembed = ends.circuit == "ov" and ends.side == "rows"
    reading = vocabulary.unembed_reading if unembed else vocabulary.embed_reading
    stored = reading.directions(torch.from_numpy(direction)).numpy()
    centred = unembed and ends.convention == "folded"
    return _Direction(ends, unembed, stored, float(raw_mean @ stored) if centred else 0.0)


class _Extremes:
    """The highest and lowest scores of tokens in some directions (d_model, n), block by block."""

    def __init__(self, directions: NDArray[np.float64], n_tokens: int) -> None:
        self._directions = torch.from_numpy(np.concatenate([directions, -directions], axis=1))
        self._n_tokens = n_tokens
        self._scores = torch.empty(0, self._directions.shape[1], dtype=torch.float64)
        self._ids = torch.empty(self._scores.shape, dtype=torch.int64)

    def add(self, first: int, rows: torch.Tensor) -> None:
        scores = rows.double() @ self._directions
        ids = torch.arange(first, first + len(rows))[:, None].expand(scores.shape)
        scores, ids = torch.cat([self._scores, scores]), torch.cat([self._ids, ids])
        self._scores, order = scores.topk(min(self._n_tokens, len(scores)), dim=0)
        self._ids = ids.gather(0, order)

    def ends(self, column: int) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
        """Tokens and scores in one direction: the highest, descending, and the lowest."""
        half = self._scores.shape[1] // 2
        top, bottom = (
            list(zip(self._ids[:, at].tolist(), self._scores[:, at].tolist(), strict=True))
            for at in (column, half + column)
        )
        return top, [(token, -score) for token, score in bottom]


def _filled(
    source: CircuitSource, text: Callable[[int], str], wanted: Sequence[_Direction], n: int
) -> list[TokenEnds]:
    """The records with the tokens of the highest and of the lowest scores, in one pass."""
    sides = {unembed: [x for x in wanted if x.unembed == unembed] for unembed in (False, True)}
    extremes = {
        unembed: _Extremes(np.stack([x.direction for x in side], axis=1), n)
        for unembed, side in sides.items()
        if side
    }
    for first, embed, unembed_rows in source.token_rows():
        for unembed, of_side in extremes.items():
            of_side.add(first, unembed_rows if unembed and unembed_rows is not None else embed)
    filled = []
    for x in wanted:
        ends = extremes[x.unembed].ends(sides[x.unembed].index(x))
        top, bottom = (
            tuple((text(token), score - x.offset) for token, score in end) for end in ends
        )
        filled.append(replace(x.ends, top=top, bottom=bottom))
    return filled
