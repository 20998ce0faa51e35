"""The two sides of a circuit ``leftᵀ · right · scale``, as stored and with what is to be folded in.

Kept apart so that weights are converted to float64 in pieces and never as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch

from qk_taxonomy.errors import ShapeError


@dataclass(frozen=True, eq=False)
class Factor:
    """One side of a circuit: ``diag(rows) · C_e · weights · diag(latent_rows) · latent · … · C_d``,
    where the dots are ``diag(columns)``.

    ``weights`` (heads, d_head, d_model), or with ``latent`` (rank, d_model) (heads, d_head, rank),
    both in any floating dtype; ``columns`` (d_model,), ``rows`` (heads, d_head) and
    ``latent_rows`` (rank,) are float64 or None.
    ``centred`` and ``rows_centred``: whether ``C_d`` and ``C_e``, which subtract means over d_model
    and over d_head, apply. ``mean`` (heads, d_head) float64 is the mean over d_model that ``C_d``
    subtracts, where it is known already: a block of columns cannot tell it.
    """

    weights: torch.Tensor
    columns: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    centred: bool = False
    rows_centred: bool = False
    latent: torch.Tensor | None = None
    latent_rows: torch.Tensor | None = None
    mean: torch.Tensor | None = None

    @property
    def n_heads(self) -> int:
        return self.weights.shape[0]

    @property
    def d_head(self) -> int:
        return self.weights.shape[1]

    @property
    def d_model(self) -> int:
        return (self.weights if self.latent is None else self.latent).shape[-1]

    @property
    def plain(self) -> bool:
        """Whether its columns are the stored ones."""
        return self.columns is None and not self.centred and self.latent is None

    def select(self, heads: Sequence[int]) -> Factor:
        """The factor of some heads, one may come twice; copies of their weights."""
        return self._of(list(heads))

    def part(self, heads: slice) -> Factor:
        """Consecutive heads of the factor, as a view."""
        return self._of(heads)

    def _of(self, heads: list[int] | slice) -> Factor:
        return replace(
            self,
            weights=self.weights[heads],
            rows=None if self.rows is None else self.rows[heads],
            mean=None if self.mean is None else self.mean[heads],
        )

    def cut(self, columns: slice) -> Factor:
        """Some columns of the factor, as a view.

        Raises ShapeError where the factor is centred and does not know its ``mean``.
        """
        if self.centred and self.mean is None:
            raise ShapeError("A centred factor needs its mean over all columns before it is cut.")
        wide = "weights" if self.latent is None else "latent"
        cut = {wide: getattr(self, wide)[..., columns]}
        return replace(self, **cut, columns=None if self.columns is None else self.columns[columns])

    def same_as(self, other: Factor) -> bool:
        """Whether two factors are one: the same tensors in memory, folded alike."""
        return all(
            _same(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)
        )


def _same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.device == b.device and a.is_set_to(b)
    return a is b


class FactorPair(NamedTuple):
    """Circuits ``leftᵀ · right · scale``; query head ``h`` is head ``h // group`` on the right."""

    left: Factor
    right: Factor
    scale: float = 1.0

    @property
    def group(self) -> int:
        """Heads on the left to one on the right."""
        return self.left.n_heads // self.right.n_heads

    def select(self, heads: Sequence[int]) -> FactorPair:
        """The circuits of some query heads, each with a right factor of its own."""
        right = self.right.select([head // self.group for head in heads])
        return FactorPair(self.left.select(heads), right, self.scale)

    def check(self) -> None:
        """Raise ShapeError unless the shapes go together."""
        left, right = self.left, self.right
        found = f"found {tuple(left.weights.shape)} and {tuple(right.weights.shape)}"
        flat = left.weights.ndim != 3 or right.weights.ndim != 3
        if flat or (left.d_head, left.d_model) != (right.d_head, right.d_model):
            raise ShapeError(
                "Wanted w_q (n_heads, d_head, d_model) and w_k (n_kv_heads, d_head, d_model), "
                f"{found}."
            )
        if 0 in (*left.weights.shape, *right.weights.shape) or left.n_heads % right.n_heads:
            raise ShapeError(
                "The number of query heads must be a positive multiple of the number of key-value "
                f"heads, {found}."
            )
