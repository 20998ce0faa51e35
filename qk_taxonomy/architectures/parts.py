"""Parts of a layer: the tensors that some circuits need, cut by heads where they take much memory.

A head's rows lie together in a stored projection, so that the rows of some heads are byte ranges of
their own. W_O alone stores heads as columns: a block of its rows holds some columns of W_Oᵀ of all
heads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qk_taxonomy.records import (
    N_BLOCKS,
    BlockScale,
    Circuit,
    HeadGeometry,
    LayerPart,
    LayerPlan,
    TensorInfo,
)

_LATENT = frozenset({"q_latent", "kv_latent", "kv", "q_latent_norm", "kv_latent_norm"})

#: The gains and projections each circuit is made of, as roles of a plan's tensors.
_ROLES: dict[Circuit, frozenset[str]] = {
    "qk": _LATENT | {"q", "k", "qkv", "input_norm", "memory_norm", "q_norm", "k_norm"},
    "ov": (_LATENT - {"q_latent", "q_latent_norm"})
    | {"v", "o", "qkv", "input_norm", "memory_norm"},
}

# The share of a part's memory that is for a block of W_O, where that goes in blocks.
_BLOCK_SHARE = 0.25

# Bytes of a weight in memory: stored dtypes that are computed with as they are; all others are
# multiplied out to float32.
_AS_STORED = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def restrict(plan: LayerPlan, circuits: Sequence[Circuit]) -> LayerPlan:
    """The plan with only the tensors that ``circuits`` need: what crosses the network.

    Of queries, keys and values that are stored one after the other in one tensor, the rows that are
    needed.
    """
    roles = frozenset().union(*(_ROLES[circuit] for circuit in circuits))
    tensors = {role: info for role, info in plan.tensors.items() if role.partition(".")[0] in roles}
    needed = replace(plan, tensors=tensors)
    if plan.packing == "concatenated" and len(circuits) == 1:
        return _of_heads(needed, _all_heads(plan), circuits) or needed
    return needed


def memory_bytes(part: LayerPart) -> int:
    """Bytes that a part's tensors take at once when they are read."""
    block = max(map(_memory, part.o_blocks), default=0)
    return _plan_memory(part.plan) + block


def parts(
    plan: LayerPlan, circuits: Sequence[Circuit], limit: float, handy: float = math.inf
) -> list[LayerPart]:
    """The circuits of a layer in parts that take at most ``limit`` bytes of memory each: the whole
    layer, or one circuit of some of its heads.

    ``handy``: bytes of memory beyond which heads are worth going apart, so that some are computed
    while others are read. W_O goes in blocks of rows where it is too large for the limit, so that
    it is read once. A layer that cannot be cut (stored by columns, or a single head that is too
    large) is left whole.
    """
    needed = restrict(plan, circuits)
    if _plan_memory(needed) <= min(limit, handy):
        return [LayerPart(needed, tuple(circuits))]
    found = []
    for circuit in circuits:
        own = restrict(plan, [circuit])
        o = None if plan.transposed else own.tensors.get("o")
        fits = _plan_memory(own) <= limit
        if o is None:
            found += [LayerPart(part, (circuit,)) for part in _by_heads(own, circuit, limit, handy)]
        elif fits:
            found.append(LayerPart(own, (circuit,)))
        else:
            others = {role: info for role, info in own.tensors.items() if role != "o"}
            cut = _by_heads(replace(own, tensors=others), circuit, limit * (1 - _BLOCK_SHARE))
            blocks = _row_blocks(o, limit * _BLOCK_SHARE)
            found += [LayerPart(part, (circuit,), blocks) for part in cut]
    return found


def _plan_memory(plan: LayerPlan) -> int:
    return sum(_memory(info) for info in plan.tensors.values())


@dataclass(frozen=True)
class _Heads:
    """Query heads [first, last) and key-value heads [kv_first, kv_last) of a layer."""

    first: int
    last: int
    kv_first: int
    kv_last: int


def _all_heads(plan: LayerPlan) -> _Heads:
    return _Heads(0, plan.geometry.n_heads, 0, plan.geometry.n_kv_heads)


def _by_heads(
    plan: LayerPlan, circuit: Circuit, limit: float, handy: float = math.inf
) -> list[LayerPlan]:
    """Plans of as many heads as fit: whole groups that share a key-value head, or where one is
    beyond the limit, parts of it.
    """
    g = plan.geometry
    group = g.group_size

    def memory(heads: _Heads) -> float:
        part = _of_heads(plan, heads, [circuit])
        return math.inf if part is None else _plan_memory(part)

    if _plan_memory(plan) <= min(limit, handy) or memory(_Heads(0, 1, 0, 1)) == math.inf:
        return [plan]
    of_a_group = memory(_Heads(0, group, 0, 1))
    if of_a_group <= limit:
        n_groups = max(1, int(min(limit, handy) // of_a_group))
        chosen = [
            _Heads(kv * group, last * group, kv, last)
            for kv in range(0, g.n_kv_heads, n_groups)
            for last in [min(kv + n_groups, g.n_kv_heads)]
        ]
    else:
        step = max(1, int(limit // memory(_Heads(0, 1, 0, 1))))
        chosen = [
            _Heads(kv * group + member, kv * group + min(member + step, group), kv, kv + 1)
            for kv in range(g.n_kv_heads)
            for member in range(0, group, step)
        ]
    found = [_of_heads(plan, heads, [circuit]) for heads in chosen]
    whole = [part for part in found if part is not None]
    return whole if len(whole) == len(found) else [plan]


def _of_heads(plan: LayerPlan, heads: _Heads, circuits: Sequence[Circuit]) -> LayerPlan | None:
    """The plan of some heads alone; None where their rows are no byte ranges of their own."""
    if plan.transposed:
        return None
    roles = frozenset().union(*(_ROLES[circuit] for circuit in circuits))
    tensors: dict[str, TensorInfo] = {}
    for role, spans in _row_spans(plan, heads).items():
        stored = plan.tensors.get(role, plan.tensors.get("qkv"))
        if stored is None or role not in roles:
            continue
        cuts = [_rows(stored, *span) for span in spans]
        for number, cut in enumerate(cuts):
            if cut is None:
                return None
            tensors[role if len(cuts) == 1 else f"{role}.{number}"] = cut
    for role, info in plan.tensors.items():
        if role in ("q", "k", "v", "kv", "qkv"):
            continue
        gain = _gain_of_heads(role, info, heads, plan.geometry)
        if gain is not None:
            tensors[role] = gain
    return replace(
        plan,
        geometry=replace(
            plan.geometry,
            n_heads=heads.last - heads.first,
            n_kv_heads=heads.kv_last - heads.kv_first,
        ),
        packing="latent" if plan.packing == "latent" else "separate",
        tensors=tensors,
        first_head=heads.first,
    )


def _row_spans(plan: LayerPlan, heads: _Heads) -> dict[str, list[tuple[int, int]]]:
    """Rows [first, last) of the heads in each stored projection, by role, in order."""
    g = plan.geometry
    e = g.d_head
    queries = range(heads.first, heads.last)
    keys = range(heads.kv_first, heads.kv_last)

    def rows(of: range, size: int, offset: int = 0) -> list[tuple[int, int]]:
        return [(offset + of.start * size, offset + of.stop * size)]

    if plan.packing == "separate":
        return {
            "q": rows(queries, 2 * e if plan.gated else e),
            "k": rows(keys, e),
            "v": rows(keys, g.d_value),
        }
    if plan.packing == "latent":
        return {"q": rows(queries, e + g.d_rotary), "kv": rows(queries, e + g.d_value)}
    if plan.packing == "concatenated":
        n_q, n_k = g.n_heads * e, g.n_kv_heads * e
        return {
            "q": rows(queries, e),
            "k": rows(keys, e, n_q),
            "v": rows(keys, e, n_q + n_k),
        }
    # Each key-value head's, or each block's, queries stand before what they go with.
    bundle = g.group_size if plan.packing == "grouped" else g.n_heads // N_BLOCKS
    order = {"k": 1, "v": 2} if plan.packing == "grouped" else {"v": 1, "k": 2}
    per_bundle = 1 if plan.packing == "grouped" else bundle
    length = (bundle + 2 * per_bundle) * e
    spans: dict[str, list[tuple[int, int]]] = {"q": [], "k": [], "v": []}
    for number, members in itertools.groupby(queries, lambda head: head // bundle):
        own = [head - number * bundle for head in members]
        start = number * length
        spans["q"].append((start + own[0] * e, start + (own[-1] + 1) * e))
    for number, members in itertools.groupby(keys, lambda head: head // per_bundle):
        own = [head - number * per_bundle for head in members]
        for role, place in order.items():
            start = number * length + (bundle + (place - 1) * per_bundle) * e
            spans[role].append((start + own[0] * e, start + (own[-1] + 1) * e))
    return spans


def _gain_of_heads(
    role: str, info: TensorInfo, heads: _Heads, g: HeadGeometry
) -> TensorInfo | None:
    """A tensor that is no projection: of a norm of every head's own, the heads' part, or None."""
    kind, _, number = role.partition(".")
    if kind not in ("q_norm", "k_norm"):
        return info
    n_heads = g.n_heads if kind == "q_norm" else g.n_kv_heads
    first, last = (heads.first, heads.last) if kind == "q_norm" else (heads.kv_first, heads.kv_last)
    if number:
        return info if first <= int(number) < last else None
    if math.prod(info.shape) == g.d_head:
        return info
    each = info.shape[0] // n_heads
    return _rows(info, first * each, last * each) or info


def _rows(info: TensorInfo, first: int, last: int) -> TensorInfo | None:
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
        b = None if update.transposed else _rows(update.b, first, last)
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
    tensor = _rows(scale.tensor, first // rows, min(-(-last // rows), n_rows))
    return None if tensor is None else replace(scale, tensor=tensor)


def _row_blocks(info: TensorInfo, limit: float) -> tuple[TensorInfo, ...]:
    """A tensor in pieces of rows that take at most ``limit`` bytes of memory each, in order.

    Whole where its rows are no byte ranges of their own.
    """
    n_rows = info.shape[0]
    step = max(1, int(limit // max(1, _memory(info) // n_rows)))
    if info.scale is not None and info.scale.block[0] < n_rows:
        step = max(info.scale.block[0], step // info.scale.block[0] * info.scale.block[0])
    cuts = [_rows(info, first, min(first + step, n_rows)) for first in range(0, n_rows, step)]
    whole = [cut for cut in cuts if cut is not None]
    return tuple(whole) if len(whole) == len(cuts) else (info,)


def _memory(info: TensorInfo) -> int:
    """Bytes a tensor takes once it is read: as stored, or beside that in float32 or float64."""
    count = math.prod(info.shape)
    if info.update is not None:
        return info.n_bytes + 2 * 8 * count
    if info.scale is None and info.dtype in _AS_STORED:
        return _AS_STORED[info.dtype] * count
    return info.n_bytes + 4 * count
