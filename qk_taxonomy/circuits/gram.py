"""Gram and cross products of a layer's factors: the only place that touches d_model.

Weights are converted to float64 in pieces that fit the processor's cache, once for all conventions
they are read under. The work is cut into tasks by the shapes alone, and a task's sums are formed in
one order: the same weights give the same bits however many threads there are.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from qk_taxonomy.circuits import linalg
from qk_taxonomy.circuits.factors import Factor, FactorPair
from qk_taxonomy.circuits.latent import fold_latent
from qk_taxonomy.errors import ShapeError

# Numbers of a float64 piece: 8 MB of them on a CPU, few enough to stay in its cache.
_PIECE = 1 << 20
_PIECE_ELSEWHERE = 1 << 24

# Multiplications of a task, below which it is not worth a thread (some milliseconds); and how many
# tasks a layer of few key-value heads is cut into, each with its key-value head's own products
# to form anew.
_WORTH_A_TASK = 200_000_000
_TASKS = 2

# Left heads of one key-value head that are worked on together, for the sake of memory.
_MOST_MEMBERS = 8

# Each thread's memory for pieces, kept: the first touch of fresh memory costs more than the
# products of a small layer.
_SCRATCH = threading.local()


@dataclass(frozen=True)
class Task:
    """Key-value heads, and the members of each one's group, that are worked on together."""

    kv_heads: slice
    members: slice
    group: int

    @property
    def n_kv(self) -> int:
        return self.kv_heads.stop - self.kv_heads.start

    @property
    def n_members(self) -> int:
        return self.members.stop - self.members.start

    @property
    def heads(self) -> slice:
        """The left heads, which follow each other: whole groups, or a part of one."""
        start = self.kv_heads.start * self.group + self.members.start
        return slice(start, start + self.n_kv * self.n_members)


def layer_tasks(pair: FactorPair) -> list[Task]:
    """The tasks of a layer, in the order of its heads. They depend on shapes alone."""
    left, n_kv, group = pair.left, pair.right.n_heads, pair.group
    # A product costs e²·d, and eigenvalues as much as some forty of e³.
    e, d = left.d_head, left.d_model
    heads_a_task = max(1, _WORTH_A_TASK // (e * e * (d + 40 * e)))
    if heads_a_task < group:
        parts = max(_TASKS // n_kv, math.ceil(group / _MOST_MEMBERS))
        step = max(heads_a_task, math.ceil(group / parts))
        kv_step = 1
    else:
        parts = math.ceil(n_kv * group / heads_a_task)
        # An even number of them, so that two threads end together.
        kv_step = math.ceil(n_kv / (parts + parts % 2 if parts > 1 else 1))
        step = group
    return [
        Task(slice(kv, min(kv + kv_step, n_kv)), slice(member, min(member + step, group)), group)
        for kv in range(0, n_kv, kv_step)
        for member in range(0, group, step)
    ]


@dataclass(frozen=True, eq=False)
class Sides:
    """The factors of several pairs, each once: what is folded alike need not be formed twice.

    ``lefts``, ``rights``: distinct factors. ``of``: the left and the right one of every pair.
    """

    lefts: tuple[Factor, ...]
    rights: tuple[Factor, ...]
    of: tuple[tuple[int, int], ...]

    @classmethod
    def of_pairs(cls, pairs: Sequence[FactorPair]) -> Sides:
        """Raises ShapeError where the factors do not go together."""
        lefts: list[Factor] = []
        rights: list[Factor] = []
        of = []
        for pair in pairs:
            pair.check()
            of.append((_index(lefts, pair.left), _index(rights, pair.right)))
        shapes = {(p.left.n_heads, p.right.n_heads, p.left.d_head, p.left.d_model) for p in pairs}
        if len(shapes) != 1:
            raise ShapeError(f"Wanted pairs of factors of one shape, found {sorted(shapes)}.")
        return cls(tuple(lefts), tuple(rights), tuple(of))

    @property
    def heads(self) -> tuple[int, int, int]:
        """n_heads, n_kv_heads and d_head."""
        return self.lefts[0].n_heads, self.rights[0].n_heads, self.lefts[0].d_head

    @property
    def distinct(self) -> list[tuple[int, int]]:
        return sorted(set(self.of))

    def part(self, task: Task) -> Sides:
        """The heads of a task."""
        return replace(
            self,
            lefts=tuple(with_mean(factor.part(task.heads)) for factor in self.lefts),
            rights=tuple(with_mean(factor.part(task.kv_heads)) for factor in self.rights),
        )


def _index(known: list[Factor], factor: Factor) -> int:
    """Where a factor is among those that are known, at the end if it is new."""
    for index, other in enumerate(known):
        if factor.same_as(other):
            return index
    known.append(factor)
    return len(known) - 1


def with_mean(factor: Factor) -> Factor:
    """The factor with the mean over its columns known, so that blocks of them can be cut out."""
    factor = fold_latent(factor)
    if not factor.centred or factor.mean is not None:
        return factor
    weights, columns = factor.weights.detach(), factor.columns
    if columns is None:
        columns = torch.ones(factor.d_model, dtype=torch.float64, device=weights.device)
    width = _width(factor.n_heads * factor.d_head, factor)
    total = torch.zeros(*weights.shape[:2], 1, dtype=torch.float64, device=weights.device)
    for start in range(0, factor.d_model, width):
        stored = weights[..., start : start + width]
        piece = _as_stored("mean", stored.shape, stored).copy_(stored)
        total += linalg.times(piece, columns[start : start + width, None])
    return replace(factor, mean=total[..., 0] / factor.d_model)


def _width(rows: int, factor: Factor) -> int:
    """Columns of a piece that has so many rows: pieces are alike, and whole vectors wide."""
    numbers = _PIECE if linalg.on_cpu(factor.weights.device) else _PIECE_ELSEWHERE
    n_pieces = math.ceil(factor.d_model * rows / numbers)
    return min(factor.d_model, 8 * math.ceil(factor.d_model / n_pieces / 8))


def _scratch(name: str, shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """A float64 tensor in this thread's memory for pieces, holding anything."""
    n = math.prod(shape)
    if not linalg.on_cpu(device):
        return torch.empty(*shape, dtype=torch.float64, device=device)
    held = _SCRATCH.__dict__
    if name not in held or held[name].numel() < n:
        # A tensor made in a caller's inference mode could not be written to outside it.
        with torch.inference_mode(False):
            held[name] = torch.empty(n, dtype=torch.float64)
    return held[name][:n].view(*shape)


def _is_transposed(weights: torch.Tensor) -> bool:
    """Whether the columns of a stored tensor are not next to each other, as those of W_Oᵀ."""
    return weights.stride(-1) != 1


def _as_stored(name: str, shape: Sequence[int], weights: torch.Tensor) -> torch.Tensor:
    """Memory for a piece, in the order that weights are stored in.

    BLAS takes either order, while converting and transposing at once is ten times as slow.
    """
    if _is_transposed(weights):
        turned = _scratch(name, (shape[-1], *shape[:-1]), weights.device)
        return turned.movedim(0, -1)
    return _scratch(name, shape, weights.device)


class _Side:
    """A factor of a task in float64 pieces: columns folded in, rows left for the end."""

    def __init__(self, factor: Factor, n_kv: int, home: int, others: Sequence[Factor]) -> None:
        # Detached, so that a Parameter leaves no graph behind in the scratch.
        weights = factor.weights.detach().unflatten(0, (n_kv, -1))
        self.weights = weights if factor.latent is None else weights.double()
        self.latent, self.columns, self.home = factor.latent, factor.columns, home
        self.transposed = factor.latent is None and _is_transposed(weights)
        self.mean = None if factor.mean is None else factor.mean.view(*weights.shape[:3], 1)
        #: Which of the others has the same weights as they are stored, for this one to scale.
        self.stored = None if factor.plain else _stored(factor, others)

    def room(self, name: str, in_pair: torch.Tensor) -> torch.Tensor:
        """Where its pieces are written: in those of its pair, or as they are stored."""
        if self.transposed:
            return _as_stored(name, in_pair.shape, self.weights)
        return in_pair

    def fill(self, home: torch.Tensor, start: int, stored: torch.Tensor | None) -> None:
        """Write the columns from ``start`` on that ``home`` has room for."""
        columns = slice(start, start + home.shape[-1])
        if self.latent is not None:
            latent = self.latent[:, columns]
            # A latent that comes of QR is triangular: what is zero above is left out.
            used = latent.any(-1).nonzero().flatten().tolist()
            first = used[0] if used else len(latent)
            home.copy_(linalg.times(self.weights[..., first:], latent[first:]))
            return
        source = home.copy_(self.weights[..., columns]) if stored is None else stored
        if self.columns is not None:
            source = torch.mul(source, self.columns[columns], out=home)
        if self.mean is not None:
            torch.sub(source, self.mean, out=home)


def _stored(factor: Factor, others: Sequence[Factor]) -> int | None:
    for index, other in enumerate(others):
        if other.plain and factor.latent is None and factor.weights.is_set_to(other.weights):
            return index
    return None


@dataclass(frozen=True, eq=False)
class Products:
    """Products of a task's left factors A and right factors B, float64, by distinct factor.

    ``left`` (heads, e, e) = A Aᵀ; ``right`` (kv_heads, e, e) = B Bᵀ; ``cross`` (heads, e, e) =
    B Aᵀ by distinct pair, or empty.
    """

    left: tuple[torch.Tensor, ...]
    right: tuple[torch.Tensor, ...]
    cross: dict[tuple[int, int], torch.Tensor]

    @classmethod
    def zeros(cls, sides: Sides, task: Task, *, cross: bool) -> Products:
        def zeros(heads: int) -> torch.Tensor:
            # Not of a caller's inference mode: other threads add to them.
            with torch.inference_mode(False):
                return torch.zeros(heads, e, e, dtype=torch.float64, device=device)

        e, device = sides.lefts[0].d_head, sides.lefts[0].weights.device
        n_left = task.n_kv * task.n_members
        return cls(
            tuple(zeros(n_left) for _ in sides.lefts),
            tuple(zeros(task.n_kv) for _ in sides.rights),
            {pair: zeros(n_left) for pair in sides.distinct} if cross else {},
        )

    def add(self, sides: Sides, task: Task) -> None:
        """Add the products over the columns of a task's ``sides``.

        A right and a left factor that first meet in the same pair lie one above the other in their
        piece, (kv_heads, 1 + members, e, columns).
        """
        homes = sides.distinct
        lefts = [
            _Side(factor, task.n_kv, [a for a, _ in homes].index(i), sides.lefts)
            for i, factor in enumerate(sides.lefts)
        ]
        rights = [
            _Side(factor, task.n_kv, [b for _, b in homes].index(i), sides.rights)
            for i, factor in enumerate(sides.rights)
        ]
        first = sides.lefts[0]
        rows = (task.n_kv, 1 + task.n_members, first.d_head)
        width = _width(math.prod(rows), first)
        device = first.weights.device
        stacked = [
            (i, j)
            for home, (i, j) in enumerate(homes)
            if self.cross and task.n_members == 1
            if lefts[i].home == rights[j].home == home
            if not lefts[i].transposed and not rights[j].transposed
        ]
        for start in range(0, first.d_model, width):
            shape = (*rows, min(width, first.d_model - start))
            pieces = [_scratch(f"pair{i}", shape, device) for i in range(len(homes))]

            a = [side.room(f"left{i}", pieces[side.home][:, 1:]) for i, side in enumerate(lefts)]
            b = [side.room(f"right{j}", pieces[side.home][:, :1]) for j, side in enumerate(rights)]
            _fill(lefts, a, start)
            _fill(rights, b, start)
            together = {pair: pieces[homes.index(pair)].flatten(1, 2) for pair in stacked}
            self._add_pieces(a, b, together)

    def _add_pieces(
        self,
        a: Sequence[torch.Tensor],
        b: Sequence[torch.Tensor],
        together: Mapping[tuple[int, int], torch.Tensor],
    ) -> None:
        """Add the products of pieces; ``together``: pairs as one matrix a head, B above A."""
        e = a[0].shape[2]
        for (i, j), both in together.items():
            # One symmetric update is cheaper than two and a product.
            full = linalg.gram(both)
            self.right[j].add_(full[:, :e, :e])
            self.left[i].add_(full[:, e:, e:])
            self.cross[i, j].add_(full[:, :e, e:])
        for i in {*range(len(a))} - {i for i, _ in together}:
            self.left[i].add_(linalg.gram(a[i]).flatten(0, 1))
        for j in {*range(len(b))} - {j for _, j in together}:
            self.right[j].add_(linalg.gram(b[j]).flatten(0, 1))
        for i, j in self.cross.keys() - together.keys():
            # B times all members of its group at once.
            product = linalg.times(b[j][:, 0], a[i].flatten(1, 2).mT)
            by_member = product.unflatten(2, (-1, e)).transpose(1, 2)
            self.cross[i, j].view(by_member.shape).add_(by_member)

    def fold_rows(self, sides: Sides, task: Task) -> Products:
        """The products on the CPU, rows folded in, which is cheap at the end."""
        lefts = [functools.partial(_fold_rows, factor) for factor in sides.lefts]
        rights = [functools.partial(_fold_rows, factor) for factor in sides.rights]
        return Products(
            tuple(fold(fold(x).mT).cpu() for fold, x in zip(lefts, self.left, strict=True)),
            tuple(fold(fold(x).mT).cpu() for fold, x in zip(rights, self.right, strict=True)),
            {
                (i, j): rights[j](lefts[i](x.mT).mT, members=task.n_members).cpu()
                for (i, j), x in self.cross.items()
            },
        )


def _fill(sides: Sequence[_Side], homes: Sequence[torch.Tensor], start: int) -> None:
    """Write the pieces of the sides to their homes, those first that others are made of."""
    for side, home in sorted(zip(sides, homes, strict=True), key=lambda x: x[0].stored is not None):
        side.fill(home, start, None if side.stored is None else homes[side.stored])


def _fold_rows(factor: Factor, product: torch.Tensor, members: int = 1) -> torch.Tensor:
    """``diag(rows) · C_e · product``, each head repeated for its group's ``members``."""
    if factor.rows_centred:
        e = product.shape[-2]
        product = product - linalg.times(product.new_full((1, e), 1 / e), product)
    if factor.rows is not None:
        product = product * factor.rows.repeat_interleave(members, dim=0)[..., None]
    return product


def dense(factor: Factor) -> torch.Tensor:
    """A factor with everything folded in: (heads, d_head, d_model) float64, on the CPU."""
    factor = with_mean(factor)
    heads, e, d = factor.n_heads, factor.d_head, factor.d_model
    rows = factor.weights.new_empty((heads, 1, e, d), dtype=torch.float64)
    _Side(factor, heads, 0, ()).fill(rows, 0, None)
    return _fold_rows(factor, rows[:, 0]).cpu()
