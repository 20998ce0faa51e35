"""The random twin of a checkpoint: the model as it was before training, but for chance."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from qk_taxonomy.checkpoints.base import Checkpoint, TokenizerDefinition
from qk_taxonomy.checkpoints.fetched import ReadRange
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.records import LayerPlan, Norm, TensorInfo, VocabularyPlan

# Rows of an embedding that are drawn together, so that a block of rows costs little more than
# itself. Another number would change what twins draw.
_CHUNK = 256

_FLOAT32 = 4


class RandomTwin(Checkpoint):
    """Another checkpoint's config, names and shapes, with weights drawn anew in float32.

    Projections are normal, of the deviations in ``LayerPlan.init_std`` of ``plans``; so are the
    embedding and the unembedding, of those in ``VocabularyPlan.init_std``, where ``vocabulary`` is
    given; gains of norms are 1. A tensor is the same whenever it is read, whole or by rows: its
    draw follows from ``seed`` and its name. Nothing of the original's weights is read, so that it
    may store them in any way. (The initialisers' zeros for padding are not imitated.)

    ``tensors`` take no bytes, but for the embedding and the unembedding: so that they can be read
    by rows, each lies alone in a file of its name that is nowhere.
    """

    left_behind: ClassVar[frozenset[str]] = Checkpoint.left_behind | {"_original"}

    def __init__(
        self,
        original: Checkpoint,
        plans: Iterable[LayerPlan],
        seed: int,
        vocabulary: VocabularyPlan | None = None,
    ) -> None:
        self.model_id = original.model_id
        self.revision = original.revision
        self.source = f"draws with seed {seed}, shaped as in {original.source}"
        self.config = original.config
        tensors = {
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
                    self._constants[info.name] = _stored_gain(norm)
                else:
                    self._deviations[info.name] = plan.init_std[role]
        if vocabulary is not None:
            for role, info in vocabulary.gains.items():
                self._constants[info.name] = _stored_gain(vocabulary.norms[role])
            tensors |= self._matrices(original, vocabulary)
        self.tensors = tensors

    def _matrices(self, original: Checkpoint, vocabulary: VocabularyPlan) -> dict[str, TensorInfo]:
        """The embedding and the unembedding, under every name that the original stores them by."""
        found = {}
        for role, info in (("embed", vocabulary.embed), ("unembed", vocabulary.unembed)):
            if info is None:
                continue
            whole = original.tensors[info.name]
            self._deviations[info.name] = vocabulary.init_std[role]
            n_bytes = _FLOAT32 * math.prod(whole.shape)
            for name, other in original.tensors.items():
                if _place(other) == _place(whole):
                    found[name] = TensorInfo(name, "F32", whole.shape, info.name, 0, n_bytes)
        return found

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
        name = info.file or info.name
        if name not in self._deviations:
            raise CheckpointError(
                f"How {info.name} of the random twin of {self.model_id} is drawn is not known: it "
                "is none of the attention's tensors, nor of the vocabulary's."
            )
        drawn = self._rows(info) if info.file else self._standard_normal(name, info.shape)
        return torch.from_numpy(drawn).mul_(self._deviations[name])

    def _rows(self, info: TensorInfo) -> NDArray[np.float32]:
        """Rows of an embedding, each from the draw of the chunk that it belongs to."""
        n_rows, width = info.shape
        first = info.start // (_FLOAT32 * width)
        rows = np.empty(info.shape, np.float32)
        for chunk in range(first // _CHUNK, -(-(first + n_rows) // _CHUNK)):
            drawn = self._standard_normal(info.file, (_CHUNK, width), chunk)
            begin, end = max(first, chunk * _CHUNK), min(first + n_rows, (chunk + 1) * _CHUNK)
            rows[begin - first : end - first] = drawn[begin - chunk * _CHUNK : end - chunk * _CHUNK]
        return rows

    def _standard_normal(
        self, name: str, shape: tuple[int, ...], *chunk: int
    ) -> NDArray[np.float32]:
        digest = hashlib.sha256(name.encode()).digest()
        seed = np.random.SeedSequence([self.seed, int.from_bytes(digest, "little"), *chunk])
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _stored_gain(norm: Norm) -> float:
    """What is stored of a gain that is 1."""
    return 1.0 - norm.offset


def _place(info: TensorInfo) -> tuple[str, int, int]:
    return info.file, info.start, info.end
