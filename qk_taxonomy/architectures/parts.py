"""Parts of a layer: the tensors that some circuits need, cut by heads where they take much memory.

A head's rows lie together in a stored projection, so that the rows of some heads are a byte range
of their own. W_O alone stores heads as columns: a block of its rows holds some columns of W_Oᵀ of
all heads. What several parts need (latent projections, keys and values that are stored together)
would be read again by each of them: where that is more than a trifle a layer is cut less, or not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from qk_taxonomy.records import (
    CONVENTIONS,
    BlockScale,
    Circuit,
    LayerPart,
    LayerPlan,
    TensorInfo,
    spans,
)

_LATENT = frozenset({"q_latent", "kv_latent", "kv", "q_latent_norm", "kv_latent_norm"})

#: The gains and projections each circuit is made of, as roles of a plan's tensors.
_ROLES: dict[Circuit, frozenset[str]] = {
    "qk": _LATENT | {"q", "k", "qkv", "input_norm", "memory_norm", "q_norm", "k_norm"},
    "ov": (_LATENT - {"q_latent", "q_latent_norm"})
    | {"v", "o", "qkv", "input_norm", "memory_norm"},
}

# What the parts of a layer may read beyond what the layer does, as a share of it. Gains, which
# every part needs, do not count.
_READ_AGAIN = 0.02

# The least that a block of W_O takes of a part's memory, and how many are held at a time: the
# first, which the others are compared with, the one computed with and the one that is read.
_BLOCK_SHARE = 0.2
_BLOCKS_HELD = 3

# Bytes of a weight in memory: stored dtypes that are computed with as they are; all others are
# multiplied out to float32.
_AS_STORED = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

_FLOAT64 = 8


def restrict(plan: LayerPlan, circuits: Sequence[Circuit]) -> LayerPlan:
    """The plan with only the tensors that ``circuits`` need: what crosses the network.

    Of queries, keys and values that are stored one after the other in one tensor, the rows that are
    needed.
    """
    roles = frozenset().union(*(_ROLES[circuit] for circuit in circuits))
    tensors = {role: info for role, info in plan.tensors.items() if _kind(role) in roles}
    needed = replace(plan, tensors=tensors)
    if plan.packing == "concatenated" and len(circuits) == 1:
        return _taken_apart(needed, roles) or needed
    return needed


def memory_bytes(part: LayerPart) -> int:
    """Bytes that a part holds at once: its tensors as they are read, latent projections in float64
    under each convention, and where W_O goes in blocks some of those and the products of all heads.
    """
    held = _memory(part.plan.tensors.values()) + _latent_memory(part.plan)
    if part.o_blocks:
        held += _products_memory(part.plan)
        held += min(_BLOCKS_HELD, len(part.o_blocks)) * max(_memory([b]) for b in part.o_blocks)
    return held


def parts(
    plan: LayerPlan, circuits: Sequence[Circuit], limit: float, handy: float = math.inf
) -> list[LayerPart]:
    """The circuits of a layer in parts that take at most ``limit`` bytes of memory each, as far as
    that reads little of it twice: the whole layer, or one circuit, or QK of some of its heads.

    ``handy``: bytes of memory beyond which heads are worth going apart, so that some are computed
    while others are read. W_O goes in blocks of rows where it is too large for the limit, with all
    heads, so that it is read once. Parts read at most 2 % more than the layer does, gains apart:
    they may be larger than the limit where heads share much of what is stored (latent projections,
    one key for many queries), or cannot be told apart (stored by columns).
    """
    needed = restrict(plan, circuits)
    if memory_bytes(LayerPart(needed, tuple(circuits))) <= min(limit, handy):
        return [LayerPart(needed, tuple(circuits))]
    apart = {circuit: restrict(plan, [circuit]) for circuit in circuits}
    most = (1 + _READ_AGAIN) * _total(_projections(needed))
    if sum(_total(_projections(own)) for own in apart.values()) > most:
        return [_of_all_heads(needed, circuits, limit)]
    found = []
    for circuit, own in apart.items():
        if "o" in own.tensors:
            found.append(_of_all_heads(own, [circuit], limit))
        else:
            found += [LayerPart(part, (circuit,)) for part in _by_heads(own, limit, handy)]
    return found


def _of_all_heads(plan: LayerPlan, circuits: Sequence[Circuit], limit: float) -> LayerPart:
    """Circuits of all heads, with W_O in blocks where it can be cut and is too large."""
    whole = LayerPart(plan, tuple(circuits))
    others = {role: info for role, info in plan.tensors.items() if role != "o"}
    if plan.transposed or len(others) == len(plan.tensors) or memory_bytes(whole) <= limit:
        return whole
    rest = LayerPart(replace(plan, tensors=others), tuple(circuits))
    left = limit - memory_bytes(rest) - _products_memory(plan)
    blocks = row_blocks(plan.tensors["o"], max(left / _BLOCKS_HELD, limit * _BLOCK_SHARE))
    return replace(rest, o_blocks=blocks) if len(blocks) > 1 else whole


def _by_heads(plan: LayerPlan, limit: float, handy: float) -> list[LayerPlan]:
    """Plans of as many key-value heads, with their queries, as fit; alike in size."""
    n_kv = plan.geometry.n_kv_heads
    # The fewest heads whose rows end where those of others can begin (quantised ones: in a block).
    steps = (n for n in range(1, n_kv) if _of_heads(plan, n, min(2 * n, n_kv)) is not None)
    unit = next(steps, n_kv)
    one = _of_heads(plan, 0, unit)
    if one is None or unit == n_kv:
        return [plan]
    common = {role: info for role, info in one.tensors.items() if info == plan.tensors[role]}
    fixed = _plan_memory(replace(plan, tensors=common))
    n_fit = max(1, int((min(limit, handy) - fixed) // (_plan_memory(one) - fixed)))
    read_again = _total(_projections(plan) & _projections(one))
    n_units = math.ceil(n_kv / unit)
    n_parts = min(math.ceil(n_units / n_fit), _most_parts(_total(_projections(plan)), read_again))
    step = math.ceil(n_units / n_parts) * unit
    cuts = [_of_heads(plan, kv, min(kv + step, n_kv)) for kv in range(0, n_kv, step)]
    found = [part for part in cuts if part is not None]
    return found if len(found) == len(cuts) else [plan]


def _most_parts(whole: int, read_again: int) -> float:
    """Parts of ``whole`` bytes, of which each reads ``read_again``, that are not too many."""
    return 1 + whole * _READ_AGAIN // read_again if read_again else math.inf


def _taken_apart(plan: LayerPlan, roles: Collection[str]) -> LayerPlan | None:
    """Of concatenated queries, keys and values those of ``roles``, each as a tensor; None where
    their rows are no byte ranges of their own.
    """
    if plan.transposed:
        return None
    g = plan.geometry
    tensors = dict(plan.tensors)
    fused = tensors.pop("qkv")
    start = 0
    for role, n_heads in (("q", g.n_heads), ("k", g.n_kv_heads), ("v", g.n_kv_heads)):
        first, start = start, start + n_heads * g.d_head
        if role in roles:
            rows = rows_of(fused, first, start)
            if rows is None:
                return None
            tensors[role] = rows
    return replace(plan, packing="separate", tensors=tensors)


def _of_heads(plan: LayerPlan, first: int, last: int) -> LayerPlan | None:
    """The plan of key-value heads [first, last) and their queries alone; None where their rows are
    no byte ranges of their own.
    """
    g = plan.geometry
    n_blocks = plan.n_blocks
    rows = _rows_of_a_head(plan)
    if plan.transposed or rows is None:
        return None
    if plan.packing == "blocks":
        in_a_block = g.n_heads // n_blocks
        if first % in_a_block or last % in_a_block:
            return None
        n_blocks = (last - first) // in_a_block
    tensors: dict[str, TensorInfo] = {}
    for role, info in plan.tensors.items():
        each = rows.get(role) or _gains_of_a_head(role, info, plan)
        number = role.partition(".")[2]
        if number:
            group = g.group_size if _kind(role) == "q_norm" else 1
            if not first * group <= int(number) < last * group:
                continue
        cut = rows_of(info, first * each, last * each) if each else info
        if cut is None:
            return None
        tensors[role] = cut
    part = replace(g, n_heads=(last - first) * g.group_size, n_kv_heads=last - first)
    return replace(plan, geometry=part, tensors=tensors, n_blocks=n_blocks)


def _rows_of_a_head(plan: LayerPlan) -> dict[str, int] | None:
    """Rows of one key-value head, its queries' included, in each stored projection; None where they
    lie apart.
    """
    g = plan.geometry
    e = g.d_head
    if plan.packing == "separate":
        return {"q": g.group_size * (2 * e if plan.gated else e), "k": e}
    if plan.packing == "latent":
        return {"q": e + g.d_rotary, "kv": e + g.d_value}
    if plan.packing in ("grouped", "blocks"):
        return {"qkv": (g.group_size + 2) * e}
    return None


def _gains_of_a_head(role: str, info: TensorInfo, plan: LayerPlan) -> int:
    """Entries, or rows, that one key-value head has in a norm's gain; 0 where all heads share it,
    or each has a tensor of its own.
    """
    g = plan.geometry
    if role not in ("q_norm", "k_norm") or math.prod(info.shape) == g.d_head:
        return 0
    return info.shape[0] // g.n_kv_heads


def _kind(role: str) -> str:
    """A role without the number of the head whose it is."""
    return role.partition(".")[0]


def _projections(plan: LayerPlan) -> set[tuple[str, int, int]]:
    """The byte ranges (file, start, end) of all stored tensors that are no gains of norms."""
    return {
        (stored.file, stored.start, stored.end)
        for role, info in plan.tensors.items()
        if not _kind(role).endswith("_norm")
        for stored in (info, *info.companions)
    }


def _total(ranges: Iterable[tuple[str, int, int]]) -> int:
    return sum(end - start for _, start, end in ranges)


def rows_of(info: TensorInfo, first: int, last: int) -> TensorInfo | None:
    """Rows [first, last) of a stored tensor; None where they are no byte range of their own."""
    n_rows = info.shape[0]
    if (first, last) == (0, n_rows):
        return info
    n_bytes = info.end - info.start
    if info.stride is not None or n_bytes == 0 or n_bytes % n_rows:
        return None
    each = n_bytes // n_rows
    scale, update = info.scale, info.update
    if scale is not None:
        scale = _scale_rows(scale, first, last)
        if scale is None:
            return None
    if update is not None:
        b = None if update.transposed else rows_of(update.b, first, last)
        if b is None:
            return None
        update = replace(update, b=b)
    return replace(
        info,
        shape=(last - first, *info.shape[1:]),
        start=info.start + first * each,
        end=info.start + last * each,
        scale=scale,
        update=update,
    )


def _scale_rows(scale: BlockScale, first: int, last: int) -> BlockScale | None:
    """The factors of rows [first, last); None where a block begins before them."""
    rows, n_rows = scale.block[0], scale.tensor.shape[0] if scale.tensor.shape else 1
    if n_rows == 1:
        return scale
    if first % rows:
        return None
    tensor = rows_of(scale.tensor, first // rows, min(-(-last // rows), n_rows))
    return None if tensor is None else replace(scale, tensor=tensor)


def row_blocks(info: TensorInfo, limit: float) -> tuple[TensorInfo, ...]:
    """A tensor in pieces of rows that take at most ``limit`` bytes of memory each, in order.

    Larger where each of them reads much of what belongs to the tensor, and whole where its rows are
    no byte ranges of their own.
    """
    n_rows = info.shape[0]
    read_again = 0 if info.update is None else info.update.a.n_bytes
    step = max(
        1,
        int(limit // max(1, _memory([info]) // n_rows)),
        math.ceil(n_rows / _most_parts(info.n_bytes, read_again)),
    )
    if info.scale is not None and info.scale.block[0] < n_rows:
        step = max(info.scale.block[0], step // info.scale.block[0] * info.scale.block[0])
    cuts = [rows_of(info, first, min(first + step, n_rows)) for first in range(0, n_rows, step)]
    whole = [cut for cut in cuts if cut is not None]
    return tuple(whole) if len(whole) == len(cuts) else (info,)


def _plan_memory(plan: LayerPlan) -> int:
    return _memory(plan.tensors.values()) + _latent_memory(plan)


def _memory(infos: Collection[TensorInfo]) -> int:
    """Bytes that tensors take once they are read: what is fetched, and what is made of it."""
    return _total(spans(infos)) + sum(map(_made, infos))


def _made(info: TensorInfo) -> int:
    """Bytes that a tensor takes beside what is fetched of it: in float32 where it was multiplied
    out, in float64 with an update, and as drawn where nothing is stored.
    """
    count = math.prod(info.shape)
    if info.update is not None:
        return 2 * _FLOAT64 * count
    if info.scale is not None or info.dtype not in _AS_STORED:
        return 4 * count
    return _AS_STORED[info.dtype] * count if info.start == info.end else 0


def _latent_memory(plan: LayerPlan) -> int:
    """Bytes of a plan's latent projections as they are folded, in float64 under each convention;
    of two of them the triangle that stands for both besides.
    """
    shapes = [
        plan.tensors[role].shape for role in ("q_latent", "kv_latent") if role in plan.tensors
    ]
    count = sum(map(math.prod, shapes))
    if len(shapes) == 2:
        count += sum(shape[0] for shape in shapes) ** 2
    return len(CONVENTIONS) * _FLOAT64 * count


def _products_memory(plan: LayerPlan) -> int:
    """Bytes of the products of all heads that blocks of W_O are added up in: of W_Oᵀ, and of W_V
    and both together under each convention.
    """
    g = plan.geometry
    heads = g.n_heads + len(CONVENTIONS) * (g.n_heads + g.n_kv_heads)
    return _FLOAT64 * heads * g.d_value**2
