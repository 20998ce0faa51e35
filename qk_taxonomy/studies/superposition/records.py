"""What a training of the superposition study hands to measures, tables and figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.studies.superposition.config import Phase, SuperpositionConfig, Target


@dataclass(frozen=True, eq=False)
class Instances:
    """The instances trained side by side, in their order: by seed, then as the probabilities are.

    probability: (I,), that a feature is not 0. seed: (I,). Instances of one seed start alike, and
    see the same draws.
    """

    probability: NDArray[np.float64]
    seed: NDArray[np.int64]

    @classmethod
    def of(cls, config: SuperpositionConfig) -> Instances:
        probabilities = np.array(config.probabilities, dtype=np.float64)
        seeds = np.arange(config.n_seeds, dtype=np.int64)
        return cls(np.tile(probabilities, len(seeds)), np.repeat(seeds, len(probabilities)))


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All instances after so many steps; float32.

    phase: that the step belongs to; of step 0, that the training begins with. w: (I, m, n).
    bias: (I, n). a, b: (I, r, m).
    """

    step: int
    phase: Phase
    w: NDArray[np.float32]
    bias: NDArray[np.float32]
    a: NDArray[np.float32]
    b: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SuperpositionRun:
    """A finished training.

    steps: (T,), ascending, counted over all phases. reconstruction_loss: (T, I), L₁, the mean over
    the batches since the step before. pair_loss: (T, I), L₂ likewise; in the phase
    "representations" that of untrained heads, nan where their targets are not chosen yet.
    snapshots: the first untrained, the last final. targets: of each instance; none for one whose
    representations offer no such pairs. notes: sentences that a reader must know.
    """

    config: SuperpositionConfig
    instances: Instances
    steps: NDArray[np.int64]
    reconstruction_loss: NDArray[np.float64]
    pair_loss: NDArray[np.float64]
    snapshots: tuple[Snapshot, ...]
    targets: tuple[tuple[Target, ...], ...]
    notes: tuple[str, ...]
