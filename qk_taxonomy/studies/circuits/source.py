"""A model opened for its full circuits: its heads, and its vocabulary in coordinates."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from qk_taxonomy.architectures import restrict, rows_of, token_blocks, vocabulary_plan
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.checkpoints.open import open_checkpoint
from qk_taxonomy.checkpoints.stopping import stoppable_threads
from qk_taxonomy.circuits.conventions import circuit_factors
from qk_taxonomy.circuits.factors import FactorPair
from qk_taxonomy.circuits.vocabulary import Reading, Vocabulary, VocabularyGram
from qk_taxonomy.controls import surveyed
from qk_taxonomy.errors import LayoutError, SpectrumError
from qk_taxonomy.progress import Progress, Silent
from qk_taxonomy.records import (
    AttentionLayout,
    Circuit,
    Convention,
    LayerPlan,
    ModelRef,
    TensorInfo,
    VocabularyPlan,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: Bytes of rows of tokens that are read at a time.
BLOCK = 32 * 1000**2


@dataclass(frozen=True, eq=False)
class CircuitSource:
    """A checkpoint whose heads read tokens: ``layers`` those of the residual stream that
    ``tokens``, the plan of its embeddings, lead into and out of.
    """

    ref: ModelRef
    checkpoint: Checkpoint
    layout: AttentionLayout
    plan: VocabularyPlan
    progress: Progress

    @classmethod
    def open(
        cls, ref: ModelRef, api: HfApi | None = None, progress: Progress | None = None
    ) -> CircuitSource:
        """Open a model, or the control of it that ``ref`` names.

        Raises CheckpointError, and LayoutError where it has no heads or no tokens.
        """
        opened = open_checkpoint(ref.ref, ref.revision, package=ref.package, hub=ref.hub, api=api)
        checkpoint, layout = surveyed(opened, ref.architecture, ref.control)
        tokens = vocabulary_plan(checkpoint.config, checkpoint.tensors, layout)
        source = cls(ref, checkpoint, layout, tokens, progress or Silent())
        if not source.layers:
            raise LayoutError(
                f"None of the layers of {ref.ref} reads a stream of {tokens.d_model}, which its "
                "embeddings have, so there are no circuits from tokens to tokens."
            )
        return source

    @property
    def layers(self) -> list[LayerPlan]:
        """The layers that read and write the stream which tokens are embedded in."""
        width = self.plan.d_model
        return [
            plan
            for plan in self.layout.layers
            if plan.stack in self.plan.stacks
            and plan.geometry.d_model == plan.geometry.d_input == width
        ]

    def read(self, infos: Mapping[str, TensorInfo]) -> dict[str, torch.Tensor]:
        """The weights of some tensors.

        Raises CheckpointError, and SpectrumError naming those that are not finite.
        """
        tensors = self.checkpoint.read_all(infos)
        broken = [role for role, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        if broken:
            raise SpectrumError(
                f"{' and '.join(infos[role].name for role in broken)} of {self.ref.ref} holds "
                "values that are not finite (NaN or infinity). The file may be damaged: compare it "
                "with the original.",
                broken[0],
            )
        return tensors

    def factors(
        self, plan: LayerPlan, circuits: Sequence[Circuit], conventions: Sequence[Convention]
    ) -> dict[tuple[Circuit, Convention], FactorPair]:
        """Read a layer's heads, under each convention. Raises as :meth:`read`."""
        wanted = restrict(plan, circuits)
        tensors = self.read(wanted.tensors)
        self.progress.advance(wanted.n_bytes)
        return {
            (circuit, convention): pair
            for circuit in circuits
            for convention, pair in zip(
                conventions, circuit_factors(wanted, tensors, circuit, conventions), strict=True
            )
        }

    @property
    def embedding_bytes(self) -> int:
        """Bytes of W_E, and of W_U unless it is the same."""
        unembed = self.plan.unembed
        return self.plan.embed.n_bytes + (0 if unembed is None else unembed.n_bytes)

    @property
    def vocabulary_bytes(self) -> int:
        """Bytes that :meth:`vocabulary` reads at its next call: none once it was called."""
        return 0 if "_vocabulary" in self.__dict__ else self.embedding_bytes

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        gram = VocabularyGram(self.plan.d_model, tied=self.plan.unembed is None)
        for _, embed, unembed in self.token_rows():
            gram.add(embed, unembed)
        return gram.vocabulary()

    def vocabulary(self, convention: Convention) -> Vocabulary:
        """The vocabulary in coordinates; read at the first call. Raises as :meth:`read`."""
        return self._vocabulary if convention == "raw" else self._folded

    @functools.cached_property
    def _folded(self) -> Vocabulary:
        gains = self.read(self.plan.gains)
        return self._vocabulary.folded(
            self._reading("embed_norm", gains, factor=self.plan.embed_scale),
            self._reading("final_norm", gains, gain_first=True),
        )

    def _reading(
        self,
        role: str,
        gains: dict[str, torch.Tensor],
        *,
        gain_first: bool = False,
        factor: float = 1.0,
    ) -> Reading:
        norm = self.plan.norms.get(role)
        if norm is None:
            return Reading(factor=factor)
        gain = gains[role].double() + norm.offset if role in gains else None
        return Reading(gain, norm.kind == "layer", gain_first, factor)

    def token_rows(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
        """Blocks of rows of W_E, and of W_U unless it is the same, each with its first token.

        Raises as :meth:`read`.
        """
        first = 0
        for embed, unembed in ahead(self._read_tokens, token_blocks(self.plan, BLOCK)):
            yield first, embed, unembed
            first += len(embed)
            self.progress.advance(self.embedding_bytes * len(embed) // self.plan.n_tokens)

    def _read_tokens(
        self, block: tuple[TensorInfo, TensorInfo | None]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        embed, unembed = block
        both = {"embed": embed} | ({} if unembed is None else {"unembed": unembed})
        read = self.read(both)
        return read["embed"], read.get("unembed")

    def rows_of(self, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of some tokens in W_E and in W_U, in the order of ``ids``.

        Raises as :meth:`read`.
        """
        embed = self._rows_of(self.plan.embed, ids)
        unembed = self.plan.unembed
        return embed, embed if unembed is None else self._rows_of(unembed, ids)

    def _rows_of(self, info: TensorInfo, ids: Sequence[int]) -> torch.Tensor:
        cut = {str(token): rows_of(info, token, token + 1) for token in ids}
        alone = {token: row for token, row in cut.items() if row is not None}
        if len(alone) < len(cut):
            return self.read({"all": info})["all"][list(ids)]
        read = self.read(alone)
        return torch.cat([read[str(token)] for token in ids])


def ahead(read: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """``map(read, items)``, with the next item being read while one is worked with.

    What is being read when nobody wants more, as after an error or Ctrl-C, is not waited for.
    """
    stop = threading.Event()
    reader = stoppable_threads(1, "qk-reading", stop)
    coming: Future[_Result] | None = None
    try:
        for item in items:
            following = reader.submit(read, item)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()
    finally:
        stop.set()
        reader.shutdown(wait=False, cancel_futures=True)
