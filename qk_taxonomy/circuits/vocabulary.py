"""A vocabulary in coordinates: embeddings of V tokens as matrices that no longer have V rows.

A full circuit ``F = W_left Aᵀ B W_rightᵀ`` (V×V) reads and writes tokens through W_E and W_U. With
``[1/√V, W_E, W_U] = Q [k₁; K_E; K_U]ᵀ``, Q of orthonormal columns, ``F = Q (A K_left)ᵀ (B K_right)
Qᵀ``: F has the singular values, the non-zero eigenvalues and the symmetric and antisymmetric parts
of a circuit whose factors have at most 2·d_model + 1 columns, whatever V is. K comes of the Gram
matrix of the tokens, summed in blocks of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from qk_taxonomy.circuits import linalg
from qk_taxonomy.circuits.threads import in_threads
from qk_taxonomy.errors import ShapeError, SpectrumError

# Columns of the Gram matrix that are summed together.
_COLUMNS = 256


@dataclass(frozen=True, eq=False)
class Reading:
    """What a norm makes of the rows of an embedding, but for dividing them by their length.

    A row ``w`` becomes ``factor · w · C · diag(gain)``, or with ``gain_first``
    ``factor · w · diag(gain) · C``, where C subtracts the mean over d_model if ``centred``.
    ``gain``: (d_model,) float64 or None.
    """

    gain: torch.Tensor | None = None
    centred: bool = False
    gain_first: bool = False
    factor: float = 1.0

    def rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (..., d_model) as they are read, float64."""
        return self._apply(rows, gain_first=self.gain_first)

    def directions(self, directions: torch.Tensor) -> torch.Tensor:
        """Directions (..., d_model): rows as stored have with these the products that rows as they
        are read have with the given ones.
        """
        return self._apply(directions, gain_first=not self.gain_first)

    def _apply(self, x: torch.Tensor, *, gain_first: bool) -> torch.Tensor:
        x = x.double() * self.factor
        if gain_first and self.gain is not None:
            x = x * self.gain
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        if not gain_first and self.gain is not None:
            x = x * self.gain
        return x


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Embedding and unembedding of ``n_tokens`` tokens: W_E = Q embedᵀ, W_U = Q unembedᵀ.

    ``embed``, ``unembed``: (d_model, rank) float64, one and the same where they are tied. The first
    coordinate is that of all tokens alike, 1/√V: ``unembed_mean`` (d_model,), the mean of W_U's
    rows, is its column over √V. ``*_reading``: what has been folded into them.
    """

    embed: torch.Tensor
    unembed: torch.Tensor
    n_tokens: int
    embed_reading: Reading = Reading()
    unembed_reading: Reading = Reading()

    @property
    def d_model(self) -> int:
        return self.embed.shape[0]

    @property
    def unembed_mean(self) -> torch.Tensor:
        """The mean over tokens of what has become of W_U's rows: (d_model,); 0 where subtracted."""
        return self.unembed[:, 0] / math.sqrt(self.n_tokens)

    def folded(self, embed: Reading, unembed: Reading) -> Vocabulary:
        """As the model reads them: norms folded in, and from W_U the mean over tokens subtracted,
        which adds the same to all logits (``center_unembed`` of TransformerLens).
        """
        read = unembed.rows(self.unembed.mT).mT
        read[:, 0] = 0.0
        return replace(
            self,
            embed=embed.rows(self.embed.mT).mT.contiguous(),
            unembed=read.contiguous(),
            embed_reading=embed,
            unembed_reading=unembed,
        )


class VocabularyGram:
    """Sums over tokens of the products of W_E, W_U and 1, from which a :class:`Vocabulary` comes.

    Taken about the mean of the first block of rows: what all tokens share is much longer than what
    tells them apart, and would cost digits of it.
    """

    def __init__(self, d_model: int, *, tied: bool) -> None:
        self.tied = tied
        self.d_model = d_model
        self.n_tokens = 0
        self._width = d_model if tied else 2 * d_model
        self._gram = torch.zeros(self._width, self._width, dtype=torch.float64)
        self._sum = torch.zeros(self._width, dtype=torch.float64)
        self._shift: torch.Tensor | None = None

    def add(self, embed: torch.Tensor, unembed: torch.Tensor | None = None) -> None:
        """Add tokens: their rows of W_E and, unless they are tied, of W_U, (tokens, d_model).

        Raises ShapeError, and SpectrumError where they are not finite.
        """
        sides = [embed] if unembed is None else [embed, unembed]
        shapes = {tuple(side.shape) for side in sides}
        if len(sides) != 2 - self.tied or shapes != {(len(embed), self.d_model)}:
            raise ShapeError(
                f"Wanted rows of {self.d_model} columns of the embedding"
                f"{'' if self.tied else ' and as many of the unembedding'}, found "
                f"{sorted(shapes)}."
            )
        rows = torch.cat([side.detach().cpu().double() for side in sides], dim=1)
        if self._shift is None:
            self._shift = rows.mean(0)
        rows -= self._shift
        # Blocks of columns, down from the diagonal: each sum is formed by one thread, in one order.
        in_threads(lambda start: self._add_columns(rows, start), range(0, self._width, _COLUMNS))
        if not torch.isfinite(self._gram.diagonal()).all():
            raise SpectrumError("The weights are not finite (NaN or infinity).", "embed")
        self._sum += rows.sum(0)
        self.n_tokens += len(embed)

    def _add_columns(self, rows: torch.Tensor, start: int) -> None:
        columns = slice(start, start + _COLUMNS)
        self._gram[start:, columns] += linalg.times(rows[:, start:].mT, rows[:, columns])

    def vocabulary(self) -> Vocabulary:
        """The vocabulary in coordinates. Raises ShapeError where no tokens were added."""
        if self._shift is None:
            raise ShapeError("Wanted the rows of a vocabulary, found none.")
        mean = self._sum / self.n_tokens
        (core,) = in_threads(_square_root, [self._gram - torch.outer(mean, self._sum)])
        along_all = (self._shift + mean) * math.sqrt(self.n_tokens)
        coordinates = torch.cat([along_all[:, None], core], dim=1)
        embed = coordinates[: self.d_model].contiguous()
        unembed = embed if self.tied else coordinates[self.d_model :].contiguous()
        return Vocabulary(embed, unembed, self.n_tokens)


def _square_root(gram: torch.Tensor) -> torch.Tensor:
    """K with K Kᵀ = gram, to rounding: Cholesky, or eigenvectors where the rank is not full.

    Of ``gram`` the lower triangle is used, by either.
    """
    try:
        return torch.from_numpy(np.linalg.cholesky(gram.numpy()))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(gram.numpy())
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        return torch.from_numpy(vectors[:, kept] * np.sqrt(values[kept]))
