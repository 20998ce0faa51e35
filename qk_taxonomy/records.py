"""The frozen records that travel between rooms: no I/O, no mathematics.

Names follow the design: ``d_model = d``, ``d_head = e``; query head ``h`` reads key-value head
``g = h // (n_heads / n_kv_heads)``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Circuit = Literal["qk", "ov"]
Convention = Literal["raw", "folded"]
Packing = Literal["separate", "concatenated", "grouped", "blocks", "latent"]

ContrastKind = Literal["reasoning", "instruct", "base-tuned"]
ControlKind = Literal["random", "one-layer"]
Distance = Literal["euclidean", "jensen-shannon"]
Formula = Literal["exact", "predecessor"]
FigureFormat = Literal["png", "pdf", "svg"]
FigureSize = Literal["screen", "one-column", "two-column"]

CIRCUITS: tuple[Circuit, ...] = get_args(Circuit)
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
PACKINGS: tuple[Packing, ...] = get_args(Packing)
CONTRAST_KINDS: tuple[ContrastKind, ...] = get_args(ContrastKind)
CONTROL_KINDS: tuple[ControlKind, ...] = get_args(ControlKind)
DISTANCES: tuple[Distance, ...] = get_args(Distance)
FORMULAS: tuple[Formula, ...] = get_args(Formula)
FIGURE_FORMATS: tuple[FigureFormat, ...] = get_args(FigureFormat)
FIGURE_SIZES: tuple[FigureSize, ...] = get_args(FigureSize)

#: Number of classes, and of bins of a head's histogram, unless told otherwise.
N_CLUSTERS = 6
N_BINS = 24

#: Layers read side by side unless told otherwise: reads wait more than they work.
DEFAULT_JOBS = 4

#: Bytes that a survey's weights and products may take at once unless told otherwise.
DEFAULT_MEMORY = 256 * 1000**2

#: How the provenance of imported spectra names their formula, which is not that of W_QK.
PREDECESSOR_FORMULA = "qk-spectral-analysis"

#: CodeGen's fused projection is in four blocks, one a core of the TPU it was trained on.
N_BLOCKS = 4

# Bytes between two ranges of a file that cost less than a request of their own: about what its
# headers take, or a 64th of what the request moves.
_SMALL_GAP = 1 << 12
_GAP_SHARE = 64


@dataclass(frozen=True)
class FigureFiles:
    """The files that a figure is written to: one a format, all of one size.

    size: of a screen, or as wide as one column of a paper (3.5 inches) or two (7.2 inches).
    """

    formats: tuple[FigureFormat, ...] = ("png",)
    size: FigureSize = "screen"


#: What figures are written to unless told otherwise.
SCREEN_PNG = FigureFiles()


@dataclass(frozen=True)
class PackagedFolder:
    """A checkpoint folder (or file) that an installable Python distribution carries."""

    distribution: str
    module: str
    folder: str


@dataclass(frozen=True)
class Checkpoints:
    """Training checkpoints that a model's authors publish as revisions of a hub repository.

    ``revisions`` are in order of training; ``repository`` is None where they are revisions of the
    model's own; ``note`` says what the list leaves out.
    """

    revisions: tuple[str, ...]
    repository: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class ModelEntry:
    """One model of the catalogue. ``parameters`` counts all weights of the model.

    ``hub`` is False for a model that only its ``package`` carries; ``architecture`` names the row
    of the architecture table where the checkpoint itself does not say.
    """

    id: str
    parameters: int
    license: str
    gated: bool = False
    hub: bool = True
    package: PackagedFolder | None = None
    architecture: str | None = None
    checkpoints: Checkpoints | None = None

    @property
    def name(self) -> str:
        """The hub id without its organisation: the stem of the model's files."""
        return self.id.rpartition("/")[2]


@dataclass(frozen=True)
class Family:
    """A model family of the catalogue, models in order of size."""

    name: str
    title: str
    description: str
    license: str
    models: tuple[ModelEntry, ...]
    aliases: tuple[str, ...] = ()
    gated: bool = False
    url: str | None = None


@dataclass(frozen=True)
class Contrast:
    """Two models of one architecture that differ by training: ``treatment`` came from ``control``,
    or both from one base. Both are ids of the catalogue.
    """

    name: str
    kind: ContrastKind
    treatment: str
    control: str
    note: str | None = None


@dataclass(frozen=True)
class Control:
    """What stands in for a model: its ``random`` twin, untrained and drawn with ``seed``, or its
    ``one-layer`` twin, the first layer of each stack alone.
    """

    kind: ControlKind
    seed: int = 0

    @property
    def label(self) -> str:
        """What a file's name and a table's row call it: "random-0", "one-layer"."""
        return f"random-{self.seed}" if self.kind == "random" else self.kind


@dataclass(frozen=True)
class ModelRef:
    """A model to survey: where its weights are and the names its results carry."""

    ref: str
    family: str
    name: str
    revision: str | None = None
    control: Control | None = None
    package: PackagedFolder | None = None
    hub: bool = True
    architecture: str | None = None

    @property
    def control_label(self) -> str:
        """The label of the control to survey; "" for the model itself."""
        return self.control.label if self.control else ""


@dataclass(frozen=True)
class TensorInfo:
    """A stored tensor: safetensors dtype, shape, and its bytes ``[start, end)`` in a file.

    ``stride`` counts elements; None where they lie in order, without gaps. ``scale`` and ``update``
    are what the stored numbers are multiplied by, and what is then added to them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int
    stride: tuple[int, ...] | None = None
    scale: BlockScale | None = None
    update: LowRankUpdate | None = None

    @property
    def companions(self) -> tuple[TensorInfo, ...]:
        """Other stored tensors that this one is made with."""
        scale = (self.scale.tensor,) if self.scale else ()
        return (*scale, self.update.a, self.update.b) if self.update else scale

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor and its companions."""
        return self.end - self.start + sum(other.n_bytes for other in self.companions)


@dataclass(frozen=True)
class BlockScale:
    """Factors of a quantised tensor: entry i, j of ``tensor`` multiplies block i, j of it.

    ``block``: entries a block has along each axis; the last one of an axis may be cut.
    """

    tensor: TensorInfo
    block: tuple[int, ...]


@dataclass(frozen=True)
class LowRankUpdate:
    """A LoRA update ``factor · B · A``, with A (rank, in) and B (out, rank).

    ``transposed``: the tensor it is added to is stored (in, out).
    """

    a: TensorInfo
    b: TensorInfo
    factor: float
    transposed: bool


def spans(infos: Iterable[TensorInfo]) -> list[tuple[str, int, int]]:
    """Ranges (file, start, end) that hold the bytes of tensors and of their companions.

    Each is worth a request of its own: neighbours share one.
    """
    wanted = sorted(
        {
            (part.file, part.start, part.end)
            for info in infos
            for part in (info, *info.companions)
            if part.end > part.start
        }
    )
    joined: list[tuple[str, int, int]] = []
    for file, start, end in wanted:
        if joined and joined[-1][0] == file:
            _, first, last = joined[-1]
            if start - last <= max(_SMALL_GAP, (last - first + end - start) // _GAP_SHARE):
                joined[-1] = (file, first, max(last, end))
                continue
        joined.append((file, start, end))
    return joined


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


@dataclass(frozen=True, eq=False)
class LayerSpectra:
    """Spectra of one circuit in one convention, for every head of one layer of a stack.

    ``singular_values`` (n_heads, d_head), descending; ``eigenvalues`` (n_heads, d_head), complex;
    ``statistics`` (n_heads, n_statistics). ``n_recomputed`` counts the heads whose factors needed
    the slower, more stable way.
    """

    layer: int
    circuit: Circuit
    convention: Convention
    singular_values: NDArray[np.floating] = field(repr=False)
    eigenvalues: NDArray[np.complexfloating] = field(repr=False)
    statistics: NDArray[np.floating] = field(repr=False)
    n_recomputed: int = 0
    stack: str = ""

    @property
    def place(self) -> tuple[str, int]:
        """Stack and number, which no two layers of a model share."""
        return self.stack, self.layer


@dataclass(frozen=True, eq=False)
class ModelSpectra:
    """The content of one spectra file: layers in order, and the file's metadata."""

    metadata: Mapping[str, str]
    layers: tuple[LayerSpectra, ...] = field(repr=False)

    @property
    def family(self) -> str:
        return self.metadata["family"]

    @property
    def model_id(self) -> str:
        return self.metadata["model_id"]

    @property
    def control(self) -> str:
        """The label of the :class:`Control` whose spectra these are; "" for the model's own."""
        return self.metadata.get("control", "")

    @property
    def is_random_twin(self) -> bool:
        return self.control.startswith("random")

    @property
    def formula(self) -> Formula:
        """Whose formula the numbers are by: the exact one, or the predecessor's."""
        provenance = json.loads(self.metadata.get("provenance", "{}"))
        imported = str(provenance.get("formula", "")) == PREDECESSOR_FORMULA
        return "predecessor" if imported else "exact"

    @property
    def is_imported(self) -> bool:
        """Whether these are the predecessor's numbers, by its formula."""
        return self.formula == "predecessor"

    @property
    def stacks(self) -> tuple[str, ...]:
        """Names of the model's stacks, in order; "" where it has one."""
        return tuple(dict.fromkeys(layer.stack for layer in self.layers))

    def select(
        self, circuit: Circuit, convention: Convention, stack: str | None = None
    ) -> tuple[LayerSpectra, ...]:
        """The layers of one circuit in one convention, in order; of one stack, or None: of all."""
        return tuple(
            layer
            for layer in self.layers
            if layer.circuit == circuit
            and layer.convention == convention
            and stack in (None, layer.stack)
        )


@dataclass(frozen=True)
class ModelResult:
    """What became of one model of a survey; ``control``: which of its twins, "" for itself;
    ``revision``: the one asked for, "" for none.

    ``bytes_read`` (moved, small gaps between tensors included) of ``bytes_total`` that the
    checkpoint has at its ``source``; ``seconds`` that it took, or where it is planned, that it
    should take, None where nothing tells.
    """

    model: str
    status: Literal["computed", "present", "failed", "planned"]
    path: str | None = None
    layers: int = 0
    heads: int = 0
    bytes_read: int = 0
    bytes_total: int = 0
    n_recomputed: int = 0
    notes: tuple[str, ...] = ()
    error: str | None = None
    exception: Exception | None = field(default=None, compare=False, repr=False)
    control: str = ""
    seconds: float | None = None
    source: str = ""
    revision: str = ""

    @property
    def title(self) -> str:
        """The model, the revision asked for and, in brackets, its control."""
        model = f"{self.model}@{self.revision}" if self.revision else self.model
        return f"{model} ({self.control})" if self.control else model
