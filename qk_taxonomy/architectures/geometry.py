"""Head counts and dimensions of a layer from its tensors' shapes, checked on the config."""

from __future__ import annotations

import math
from collections.abc import Mapping

from qk_taxonomy.architectures.table import Stack
from qk_taxonomy.errors import LayoutError
from qk_taxonomy.records import N_BLOCKS, HeadGeometry, LayerPlan, TensorInfo

Tensors = Mapping[str, TensorInfo]


def head_geometry(
    stack: Stack,
    tensors: Tensors,
    *,
    n_heads: int | None,
    n_kv_heads: int | None,
    d_head: int | None,
) -> HeadGeometry:
    """The geometry of a layer; what the config says of it is given, None where it is silent.

    Shapes decide. Raises LayoutError where they contradict the config or leave the question open.
    """
    shapes = {
        role: matrix_shape(tensors[role], transposed=stack.transposed) for role in stack.tensors
    }
    if n_heads is None:
        n_heads = _count_heads(stack, tensors, shapes, d_head)
    if stack.packing == "separate":
        found = _separate(stack, tensors, shapes, n_heads)
    elif stack.packing == "latent":
        found = _latent(tensors, shapes, n_heads)
    else:
        found = _fused(stack, tensors, shapes, n_heads)
    o = tensors["o"]
    if found.d_input != stack.input_width * found.d_model:
        raise LayoutError(
            f"{o.name} of shape {list(o.shape)} writes to {found.d_model} dimensions and the "
            f"projections read {found.d_input}, which are not the same residual stream."
        )
    if stack.packing == "latent":
        return found
    if d_head is not None and d_head != found.d_head:
        role = "q" if stack.packing == "separate" else "qkv"
        raise LayoutError(
            f"The config says d_head = {d_head}, but {tensors[role].name} of shape "
            f"{list(tensors[role].shape)} with {n_heads} heads ({found.n_kv_heads} key-value) "
            f"makes it {found.d_head}."
        )
    if n_kv_heads is not None and n_kv_heads != found.n_kv_heads:
        role = "k" if stack.packing == "separate" else "qkv"
        raise LayoutError(
            f"The config says {n_heads} query and {n_kv_heads} key-value heads, but "
            f"{tensors[role].name} of shape {list(tensors[role].shape)} and {o.name} of shape "
            f"{list(o.shape)} make it {found.n_kv_heads} key-value heads of d_head {found.d_head}."
        )
    return found


def matrix_shape(info: TensorInfo, *, transposed: bool) -> tuple[int, int]:
    """(rows out, columns in) of a projection."""
    if len(info.shape) != 2 or 0 in info.shape:
        raise LayoutError(f"{info.name} has shape {list(info.shape)}; a matrix is wanted.")
    rows, columns = info.shape
    return (columns, rows) if transposed else (rows, columns)


def _count_heads(
    stack: Stack, tensors: Tensors, shapes: Mapping[str, tuple[int, int]], d_head: int | None
) -> int:
    """The number of query heads where the config is silent: from d_head, or a norm of one head."""
    if d_head is None and "q_norm" in tensors and "q" in shapes:
        width = math.prod(tensors["q_norm"].shape)
        d_head = width if 0 < width < shapes["q"][0] else None
    if d_head is not None:
        return _divide(tensors["o"], shapes["o"][1], d_head, f"a d_head of {d_head}")
    raise LayoutError(
        "The config names no number of attention heads (looked for "
        f"{', '.join(stack.keys['n_heads'])}), no d_head, and the shapes do not tell: "
        f"{tensors['o'].name} is {list(tensors['o'].shape)}."
    )


def _divide(info: TensorInfo, size: int, by: int, what: str) -> int:
    if size % by or size < by:
        raise LayoutError(
            f"{info.name} has shape {list(info.shape)}, whose {size} rows or columns do not divide "
            f"by {what}."
        )
    return size // by


def _heads(n_heads: int) -> str:
    return f"the {n_heads} query heads of the config"


def _separate(
    stack: Stack, tensors: Tensors, shapes: Mapping[str, tuple[int, int]], n_heads: int
) -> HeadGeometry:
    rows, d_input = shapes["q"]
    per_head = 2 * n_heads if stack.gated else n_heads
    d_head = _divide(tensors["q"], rows, per_head, _heads(n_heads))
    made = f"the d_head of {d_head} that {tensors['q'].name} of {list(tensors['q'].shape)} makes"
    n_kv_heads = _divide(tensors["k"], shapes["k"][0], d_head, made)
    d_model, columns = shapes["o"]
    d_value = _divide(tensors["o"], columns, n_heads, _heads(n_heads))
    return _grouped(HeadGeometry(n_heads, n_kv_heads, d_head, d_value, d_model, d_input), tensors)


def _fused(
    stack: Stack, tensors: Tensors, shapes: Mapping[str, tuple[int, int]], n_heads: int
) -> HeadGeometry:
    rows, d_input = shapes["qkv"]
    d_model, columns = shapes["o"]
    d_head = _divide(tensors["o"], columns, n_heads, _heads(n_heads))
    keys_and_values = rows // d_head - n_heads
    if rows % d_head or keys_and_values < 2 or keys_and_values % 2:
        raise LayoutError(
            f"{tensors['qkv'].name} has shape {list(tensors['qkv'].shape)}, whose {rows} output "
            f"rows are not those of {n_heads} query heads of d_head {d_head} and as many keys as "
            "values."
        )
    geometry = HeadGeometry(n_heads, keys_and_values // 2, d_head, d_head, d_model, d_input)
    if stack.packing == "blocks" and (n_heads % N_BLOCKS or geometry.n_kv_heads != n_heads):
        raise LayoutError(
            f"{tensors['qkv'].name} of {list(tensors['qkv'].shape)} with {n_heads} heads is not in "
            f"{N_BLOCKS} blocks of as many queries, keys and values."
        )
    return _grouped(geometry, tensors)


def _latent(tensors: Tensors, shapes: Mapping[str, tuple[int, int]], n_heads: int) -> HeadGeometry:
    """Multi-head latent attention: keys and values of every head from one latent vector.

    DeepSeek-AI (2024), https://arxiv.org/abs/2405.04434, section 2.1.
    """
    latent_rows, d_input = shapes["kv_latent"]
    rows, rank = shapes["kv"]
    d_rotary = latent_rows - rank
    d_query = _divide(tensors["q"], shapes["q"][0], n_heads, _heads(n_heads))
    d_model, columns = shapes["o"]
    d_value = _divide(tensors["o"], columns, n_heads, _heads(n_heads))
    d_head = _divide(tensors["kv"], rows, n_heads, _heads(n_heads)) - d_value
    if d_rotary < 0 or d_head < 1 or d_query != d_head + d_rotary:
        raise LayoutError(
            f"{tensors['q'].name} gives each of {n_heads} heads {d_query} rows, "
            f"{tensors['kv'].name} {d_head} of the key besides {d_value} of the value, and "
            f"{tensors['kv_latent'].name} {d_rotary} rows for positions, which do not agree."
        )
    return HeadGeometry(n_heads, n_heads, d_head, d_value, d_model, d_input, d_rotary)


def _grouped(g: HeadGeometry, tensors: Tensors) -> HeadGeometry:
    if g.n_heads % g.n_kv_heads:
        raise LayoutError(
            f"{g.n_heads} query heads of the config and {g.n_kv_heads} key-value heads of "
            f"{tensors['k' if 'k' in tensors else 'qkv'].name}: the first must be a multiple of "
            "the second."
        )
    return g


def check_shapes(plan: LayerPlan) -> None:
    """Every tensor of a plan has the shape its geometry gives. Raises LayoutError otherwise."""
    g = plan.geometry
    query, key, value = g.n_heads * g.d_head, g.n_kv_heads * g.d_head, g.n_kv_heads * g.d_value
    ranks = {role: plan.tensors[role].shape[0] for role in ("q_latent",) if role in plan.tensors}
    q_input = ranks.get("q_latent", g.d_input)
    wanted: dict[str, list[tuple[int, ...]]] = {
        "q": [(query * (2 if plan.gated else 1) + g.n_heads * g.d_rotary, q_input)],
        "k": [(key, g.d_input)],
        "v": [(value, g.d_input)],
        "o": [(g.d_model, g.n_heads * g.d_value)],
        "qkv": [(query + key + value, g.d_input)],
        "input_norm": [(g.d_input,)],
        "memory_norm": [(g.d_input,)],
        "q_norm": [(g.d_head,), (query,), (g.n_heads, g.d_head)],
        "k_norm": [(g.d_head,), (key,), (g.n_kv_heads, g.d_head)],
        "q_latent_norm": [(q_input,)],
    }
    for role, heads in (("q_norm", g.n_heads), ("k_norm", g.n_kv_heads)):
        if f"{role}.0" in plan.tensors:
            found = sum(name.startswith(f"{role}.") for name in plan.tensors)
            if found != heads:
                raise LayoutError(
                    f"{plan.tensors[f'{role}.0'].name} and the like are the norms of {found} "
                    f"heads, where {heads} are wanted."
                )
            wanted |= {f"{role}.{head}": [(g.d_head,)] for head in range(heads)}
    if "kv_latent" in plan.tensors:
        rank = plan.tensors["kv_latent"].shape[0] - g.d_rotary
        wanted["kv_latent_norm"] = [(rank,)]
    for role, allowed in wanted.items():
        if role not in plan.tensors:
            continue
        info = plan.tensors[role]
        turned = plan.transposed and len(info.shape) == 2 and "_norm" not in role
        shape = info.shape[::-1] if turned else info.shape
        if shape not in allowed:
            raise LayoutError(
                f"{info.name} has shape {list(info.shape)}; {g.n_heads} heads of d_head "
                f"{g.d_head} ({g.n_kv_heads} key-value) on d_model {g.d_model} make it "
                f"{' or '.join(str(list(a)) for a in allowed)}"
                f"{' (stored transposed)' if turned else ''}."
            )
    for role, norm in plan.norms.items():
        if role in ("q_norm", "k_norm") and norm.kind == "layer" and role in plan.tensors:
            heads = g.n_heads if role == "q_norm" else g.n_kv_heads
            if plan.tensors[role].shape == (heads * g.d_head,) and heads > 1:
                raise LayoutError(
                    f"{plan.tensors[role].name} norms all heads together with a LayerNorm, which "
                    "mixes them; there are no circuits of single heads."
                )
