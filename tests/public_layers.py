"""Attention layers of public models as they lie in a file, one tensor after the other.

Shapes of ``catalog/shapes.toml``, in every packing that has such heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from qk_taxonomy.costs import Shape, shape_table
from qk_taxonomy.records import (
    N_BLOCKS,
    BlockScale,
    HeadGeometry,
    LayerPlan,
    Packing,
    TensorInfo,
)

#: Rows and columns that share a factor in fp8 checkpoints.
BLOCK = 128


class _File:
    """Tensors put one after the other."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.end = 0

    def gain(self, role: str, size: int) -> TensorInfo:
        return self._put(role, "BF16", (size,), 2)

    def projection(self, role: str, rows: int, columns: int) -> TensorInfo:
        if self.dtype != "F8_E4M3":
            return self._put(role, self.dtype, (rows, columns), 2)
        blocks = (math.ceil(rows / BLOCK), math.ceil(columns / BLOCK))
        scale = BlockScale(self._put(f"{role}_scale_inv", "F32", blocks, 4), (BLOCK, BLOCK))
        return self._put(role, self.dtype, (rows, columns), 1, scale)

    def _put(
        self,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        width: int,
        scale: BlockScale | None = None,
    ) -> TensorInfo:
        start = self.end
        self.end += width * math.prod(shape)
        return TensorInfo(name, dtype, shape, "model", start, self.end, scale=scale)


def layer(shape: Shape, packing: Packing, dtype: str) -> LayerPlan:
    """A layer of a model's shape; latent where ``packing`` says so."""
    file = _File(dtype)
    d, e, n, n_kv = shape.d_model, shape.d_head, shape.heads, shape.kv_heads
    q_rank, kv_rank, rotary = shape.latent or (0, 0, 0)
    tensors = {"input_norm": file.gain("input_norm", d)}
    if packing == "latent":
        n_kv = n
        if q_rank:
            tensors["q_latent"] = file.projection("q_latent", q_rank, d)
            tensors["q_latent_norm"] = file.gain("q_latent_norm", q_rank)
        tensors["q"] = file.projection("q", n * (e + rotary), q_rank or d)
        tensors["kv_latent"] = file.projection("kv_latent", kv_rank + rotary, d)
        tensors["kv_latent_norm"] = file.gain("kv_latent_norm", kv_rank)
        tensors["kv"] = file.projection("kv", n * 2 * e, kv_rank)
    elif packing == "separate":
        tensors["q"] = file.projection("q", n * e, d)
        tensors["k"] = file.projection("k", n_kv * e, d)
        tensors["v"] = file.projection("v", n_kv * e, d)
    else:
        tensors["qkv"] = file.projection("qkv", (n + 2 * n_kv) * e, d)
    tensors["o"] = file.projection("o", d, n * e)
    geometry = HeadGeometry(n, n_kv, e, e, d, d, rotary)
    return LayerPlan(0, geometry, packing, 1.0, tensors)


def public_layers() -> Iterator[tuple[str, LayerPlan]]:
    """A layer of every shape, in bfloat16 and fp8 and in every packing that it can have."""
    shapes = [shape for kind in shape_table().kinds.values() for _, shape in kind.shapes]
    for shape in shapes:
        packings: list[Packing] = ["separate", "concatenated", "grouped"]
        if shape.heads == shape.kv_heads and shape.heads % N_BLOCKS == 0:
            packings.append("blocks")
        for packing in ["latent"] if shape.latent else packings:
            for dtype in ("BF16", "F8_E4M3"):
                yield f"{shape.model} {packing} {dtype}", layer(shape, packing, dtype)
