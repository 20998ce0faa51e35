"""The frozen records that travel between rooms: no I/O, no mathematics.

Names follow the design: ``d_model = d``, ``d_head = e``; query head ``h`` reads key-value head
``g = h // (n_heads / n_kv_heads)``.
"""

from qk_taxonomy.records.drawn import (
    FIGURE_FORMATS,
    FIGURE_SIZES,
    SCREEN_PNG,
    FigureFiles,
    FigureFormat,
    FigureSize,
)
from qk_taxonomy.records.families import (
    Checkpoints,
    Contrast,
    Family,
    ModelEntry,
    PackagedFolder,
)
from qk_taxonomy.records.names import FileStem, at_revision, split_revision
from qk_taxonomy.records.plans import (
    N_BLOCKS,
    AttentionLayout,
    HeadGeometry,
    LayerPart,
    LayerPlan,
    Norm,
    VocabularyPlan,
)
from qk_taxonomy.records.spectra import (
    PREDECESSOR_FORMULA,
    LayerSpectra,
    ModelSpectra,
)
from qk_taxonomy.records.surveyed import (
    Control,
    ModelRef,
    ModelResult,
)
from qk_taxonomy.records.tensors import (
    BlockScale,
    LowRankUpdate,
    TensorInfo,
    spans,
)
from qk_taxonomy.records.words import (
    CIRCUITS,
    CONTRAST_KINDS,
    CONTROL_KINDS,
    CONVENTIONS,
    DEFAULT_JOBS,
    DEFAULT_MEMORY,
    DISTANCES,
    FORMULAS,
    MATCHES,
    N_BINS,
    N_CLUSTERS,
    PACKINGS,
    Circuit,
    ContrastKind,
    ControlKind,
    Convention,
    Distance,
    Formula,
    Match,
    Packing,
)

__all__ = [
    "CIRCUITS",
    "CONTRAST_KINDS",
    "CONTROL_KINDS",
    "CONVENTIONS",
    "DEFAULT_JOBS",
    "DEFAULT_MEMORY",
    "DISTANCES",
    "FIGURE_FORMATS",
    "FIGURE_SIZES",
    "FORMULAS",
    "MATCHES",
    "N_BINS",
    "N_BLOCKS",
    "N_CLUSTERS",
    "PACKINGS",
    "PREDECESSOR_FORMULA",
    "SCREEN_PNG",
    "AttentionLayout",
    "BlockScale",
    "Checkpoints",
    "Circuit",
    "Contrast",
    "ContrastKind",
    "Control",
    "ControlKind",
    "Convention",
    "Distance",
    "Family",
    "FigureFiles",
    "FigureFormat",
    "FigureSize",
    "FileStem",
    "Formula",
    "HeadGeometry",
    "LayerPart",
    "LayerPlan",
    "LayerSpectra",
    "LowRankUpdate",
    "Match",
    "ModelEntry",
    "ModelRef",
    "ModelResult",
    "ModelSpectra",
    "Norm",
    "PackagedFolder",
    "Packing",
    "TensorInfo",
    "VocabularyPlan",
    "at_revision",
    "spans",
    "split_revision",
]
