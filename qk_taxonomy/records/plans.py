"""Plans: which stored tensors make the heads of a layer, of a checkpoint, and its vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qk_taxonomy.records.tensors import TensorInfo, spans
from qk_taxonomy.records.words import Circuit, Packing

#: CodeGen's fused projection is in four blocks, one a core of the TPU it was trained on.
N_BLOCKS = 4


@dataclass(frozen=True)
class Norm:
    """A normalisation whose gain is ``offset + stored gain``; ``layer`` subtracts the mean too."""

    kind: Literal["rms", "layer"]
    offset: float = 0.0


@dataclass(frozen=True)
class HeadGeometry:
    """Numbers of heads and their dimensions in one attention layer.

    ``d_head``: of queries and keys; ``d_value``: of values. ``d_input``: of what the projections
    read, which is ``d_model`` unless a layer reads more than the residual stream. ``d_rotary``: the
    part of queries and keys that only tells positions, apart from ``d_head``.
    """

    n_heads: int
    n_kv_heads: int
    d_head: int
    d_value: int
    d_model: int
    d_input: int
    d_rotary: int = 0

    @property
    def group_size(self) -> int:
        """Query heads that share one key-value head."""
        return self.n_heads // self.n_kv_heads


@dataclass(frozen=True)
class LayerPlan:
    """One attention layer to survey: small, picklable, the unit of work, progress and resuming.

    ``tensors`` maps roles to stored tensors: the projections ``q``, ``k``, ``v``, ``o``, fused
    ``qkv`` or ``kv``, the latent ones ``q_latent`` and ``kv_latent``, and the gains of ``norms``
    under the same names: ``input_norm``, ``memory_norm`` (of what cross-attention looks at),
    ``q_norm``, ``k_norm``, ``q_latent_norm``, ``kv_latent_norm`` (``q_norm.0``, ``q_norm.1``, ...
    where every head has its own). ``scale`` multiplies the
    attention score. ``gated``: each query head is followed by as many rows that gate its output.
    ``cross``: keys and values read another stack's output. ``stack`` tells layers of one number
    apart (encoder, decoder, ...); "" where a model has one stack. ``init_std``: standard deviation
    of each projection, by role, before training; empty where nobody asked for it.

    ``n_blocks``: those of the packing "blocks".

    A plan of some heads of a layer alone names the rows that are theirs in the projections' places,
    and never ``o``, whose columns are the heads'.
    """

    layer: int
    geometry: HeadGeometry
    packing: Packing
    scale: float
    tensors: Mapping[str, TensorInfo]
    norms: Mapping[str, Norm] = field(default_factory=dict)
    transposed: bool = False
    gated: bool = False
    cross: bool = False
    stack: str = ""
    init_std: Mapping[str, float] = field(default_factory=dict)
    n_blocks: int = N_BLOCKS

    @property
    def place(self) -> tuple[str, int]:
        """Stack and number, which no two layers of a model share."""
        return self.stack, self.layer

    @property
    def n_bytes(self) -> int:
        """Bytes of all stored tensors the plan names."""
        return sum(info.n_bytes for info in self.tensors.values())


@dataclass(frozen=True)
class LayerPart:
    """What is read and computed at a time: circuits of a layer, or of some of its heads.

    ``o_blocks``: W_O in blocks of rows, to be read one after the other, where ``plan`` goes without
    it.
    """

    plan: LayerPlan
    circuits: tuple[Circuit, ...]
    o_blocks: tuple[TensorInfo, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Bytes that reading the part moves."""
        ranges = spans(self.plan.tensors.values())
        blocks = sum(block.n_bytes for block in self.o_blocks)
        return sum(end - start for _, start, end in ranges) + blocks


@dataclass(frozen=True)
class AttentionLayout:
    """All attention layers of a checkpoint, as read from its config and tensor names.

    ``skipped`` maps places, such as ``layers.3``, that have no attention of their own to what they
    have instead; ``notes`` are sentences on what else a reader of the spectra must know;
    ``configs``: what the config says of each stack, over what it may leave out.
    """

    architecture: str
    model_type: str
    layers: tuple[LayerPlan, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)

    @property
    def stacks(self) -> dict[str, HeadGeometry]:
        """The geometry of each stack, in the order of the architecture's row."""
        found: dict[str, HeadGeometry] = {}
        for plan in self.layers:
            found.setdefault(plan.stack, plan.geometry)
        return found

    @property
    def weights_dtype(self) -> str:
        """The stored dtypes of the projections, the queries' first."""
        roles = ("q", "qkv", "k", "kv", "v", "o")
        found = [p.tensors[role].dtype for role in roles for p in self.layers if role in p.tensors]
        return ",".join(dict.fromkeys(found))


@dataclass(frozen=True)
class VocabularyPlan:
    """How a checkpoint's tokens enter the residual stream and are read off it again.

    ``embed`` W_E and ``unembed`` W_U are (n_tokens, d_model); ``unembed`` is None where W_U is W_E:
    tied to it, or not there, and ``notes`` say which. ``norms``, by role: ``embed_norm``, between
    the embedding and the first layer, and ``final_norm``, between the last layer and the
    unembedding, as far as the model has them; ``gains``: their stored gains by the same roles,
    which a norm may lack. ``embed_scale`` multiplies embeddings. ``stacks``: those that read these
    tokens, whose queries, keys and values all do; ``is_encoder``: whether the last of them predicts
    no next token. ``init_std``: standard deviations of ``embed``
    and ``unembed`` before training, by these names; empty where nobody asked for them.
    """

    embed: TensorInfo
    unembed: TensorInfo | None
    norms: Mapping[str, Norm]
    gains: Mapping[str, TensorInfo]
    embed_scale: float
    notes: tuple[str, ...]
    stacks: tuple[str, ...] = ("",)
    is_encoder: bool = False
    init_std: Mapping[str, float] = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        return self.embed.shape[0]

    @property
    def d_model(self) -> int:
        return self.embed.shape[1]
