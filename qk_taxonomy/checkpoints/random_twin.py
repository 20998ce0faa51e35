"""The random twin of a checkpoint: the model as it was before training, but for chance."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import torch

from qk_taxonomy.checkpoints.base import Checkpoint, TokenizerDefinition
from qk_taxonomy.checkpoints.fetched import ReadRange
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.records import LayerPlan, TensorInfo


class RandomTwin(Checkpoint):
    """Another checkpoint's config, names and shapes, with weights drawn anew in float32.

    Projections are normal, of the deviations in ``LayerPlan.init_std`` of ``plans``; gains of norms
    are 1. A tensor is the same whenever it is read: its draw follows from ``seed`` and its name.
    Nothing of the original's weights is read, so that it may store them in any way.
    """

    left_behind: ClassVar[frozenset[str]] = Checkpoint.left_behind | {"_original"}

    def __init__(self, original: Checkpoint, plans: Iterable[LayerPlan], seed: int) -> None:
        self.model_id = original.model_id
        self.revision = original.revision
        self.source = f"draws with seed {seed}, shaped as in {original.source}"
        self.config = original.config
        self.tensors = {
            name: TensorInfo(name, "F32", info.shape, file="", start=0, end=0)
            for name, info in original.tensors.items()
        }
        self.seed = seed
        self._original = original
        self._original_bytes = original.n_bytes
        self._deviations: dict[str, float] = {}
        self._constants: dict[str, float] = {}
        for plan in plans:
            for role, info in plan.tensors.items():
                norm = plan.norms.get(role.partition(".")[0])
                if norm is not None:
                    self._constants[info.name] = 1.0 - norm.offset
                else:
                    self._deviations[info.name] = plan.init_std[role]

    @property
    def n_bytes(self) -> int:
        """Bytes of the original's tensors; the twin's own take none."""
        return self._original_bytes

    def tokenizer(self) -> TokenizerDefinition | None:
        return self._original.tokenizer()

    def read_bytes(self, file: str, start: int, end: int) -> bytearray:
        raise CheckpointError(f"The random twin of {self.model_id} is stored in no file.")

    def decode(self, info: TensorInfo, read_bytes: ReadRange) -> torch.Tensor:
        """A tensor as it is drawn. Raises CheckpointError for one that no plan names."""
        if info.name in self._constants:
            return torch.full(info.shape, self._constants[info.name])
        if info.name not in self._deviations:
            raise CheckpointError(
                f"How {info.name} of the random twin of {self.model_id} is drawn is not known: it "
                "is none of the attention's tensors."
            )
        digest = hashlib.sha256(info.name.encode()).digest()
        seed = np.random.SeedSequence([self.seed, int.from_bytes(digest, "little")])
        drawn = np.random.default_rng(seed).standard_normal(info.shape, dtype=np.float32)
        return torch.from_numpy(drawn).mul_(self._deviations[info.name])
