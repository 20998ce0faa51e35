"""Words that options, files and tables share, and values that hold unless told otherwise."""

from __future__ import annotations

from typing import Literal, get_args

Circuit = Literal["qk", "ov"]
Convention = Literal["raw", "folded"]
Packing = Literal["separate", "concatenated", "grouped", "blocks", "latent"]

ContrastKind = Literal["reasoning", "instruct", "base-tuned"]
ControlKind = Literal["random", "one-layer"]
Distance = Literal["euclidean", "jensen-shannon"]
Match = Literal["auto", "place", "spectra"]
Formula = Literal["exact", "predecessor"]

CIRCUITS: tuple[Circuit, ...] = get_args(Circuit)
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
PACKINGS: tuple[Packing, ...] = get_args(Packing)
CONTRAST_KINDS: tuple[ContrastKind, ...] = get_args(ContrastKind)
CONTROL_KINDS: tuple[ControlKind, ...] = get_args(ControlKind)
DISTANCES: tuple[Distance, ...] = get_args(Distance)
FORMULAS: tuple[Formula, ...] = get_args(Formula)
MATCHES: tuple[Match, ...] = get_args(Match)

#: Number of classes, and of bins of a head's histogram, unless told otherwise.
N_CLUSTERS = 6
N_BINS = 24

#: Layers read side by side unless told otherwise: reads wait more than they work.
DEFAULT_JOBS = 4

#: Bytes that a survey's weights and products may take at once unless told otherwise.
DEFAULT_MEMORY = 256 * 1000**2
