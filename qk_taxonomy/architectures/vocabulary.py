"""Vocabularies: which stored tensors are a model's embedding, unembedding and norms beside them.

Like a layout, a plan is made of names and shapes alone. The names are those of
``catalog/vocabulary.toml``, looked for beside the layers and further out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from qk_taxonomy.architectures.factors import product_of_powers
from qk_taxonomy.architectures.parts import row_blocks, rows_of
from qk_taxonomy.architectures.table import architecture_table
from qk_taxonomy.architectures.vocabulary_table import VocabularyRow, vocabulary_table
from qk_taxonomy.errors import LayoutError
from qk_taxonomy.records import AttentionLayout, LayerPlan, Norm, TensorInfo, VocabularyPlan

Tensors = Mapping[str, TensorInfo]
Rule = TypeVar("Rule")


def vocabulary_plan(
    config: Mapping[str, Any],
    tensors: Tensors,
    layout: AttentionLayout,
    *,
    untrained: bool = False,
) -> VocabularyPlan:
    """Plan a checkpoint's vocabulary from its config, its tensors' names and shapes, its layout.

    Where stacks read tokens by embeddings of their own, or norm them in their own ways, the plan is
    that of the last, which unembeds. ``untrained``: also work out how the architecture's
    initialiser draws both matrices (``VocabularyPlan.init_std``). Raises LayoutError where the
    model reads no tokens, the checkpoint lacks their embedding, tokens are no vectors of the
    residual stream, or a shape or the config contradicts the table.
    """
    first: dict[str, LayerPlan] = {}
    for plan in layout.layers:
        if not plan.cross:
            first.setdefault(plan.stack, plan)
    stacks = {name: _StackVocabulary(plan, tensors) for name, plan in first.items()}
    reading = [name for name, stack in stacks.items() if stack.embed is not None]
    if not reading:
        raise _nothing(tensors, layout, next(iter(stacks.values())))
    return _Vocabulary(config, layout, stacks, stacks[reading[-1]]).plan(untrained)


def token_blocks(plan: VocabularyPlan, limit: float) -> list[tuple[TensorInfo, TensorInfo | None]]:
    """The embeddings and unembeddings of the same tokens, a block of rows each, in order.

    A block takes about ``limit`` bytes of memory, its unembeddings included. Everything is one
    block where the rows of either matrix are no byte ranges of their own. The second of a pair is
    None where ``plan.unembed`` is.
    """
    if plan.unembed is None:
        return [(block, None) for block in row_blocks(plan.embed, limit)]
    pair = (plan.embed, plan.unembed)
    # Blocks of the one need not be blocks of the other, where rows share factors.
    for cut, other in (pair, pair[::-1]):
        blocks = row_blocks(cut, limit / 2)
        ends = list(itertools.accumulate((block.shape[0] for block in blocks), initial=0))
        others = [rows_of(other, first, last) for first, last in itertools.pairwise(ends)]
        if None not in others:
            pairs = zip(blocks, others, strict=True)
            return [(a, b) if cut is plan.embed else (b, a) for a, b in pairs]  # type: ignore[misc]
    return [pair]


def _nothing(tensors: Tensors, layout: AttentionLayout, stack: _StackVocabulary) -> LayoutError:
    what = vocabulary_table().without_tokens.get(layout.architecture)
    if what is not None:
        return LayoutError(
            f"A {layout.model_type} model reads {what}, not tokens, so it has no vocabulary to see "
            "its heads in. Their spectra are there all the same: qk-taxonomy download."
        )
    wide = [
        f"{name} {list(info.shape)}"
        for name, info in tensors.items()
        if len(info.shape) == 2 and not any(part.isdigit() for part in name.split("."))
    ]
    place = stack.places[-2] if len(stack.places) > 1 else ""
    wanted = [place + name for name in _EXAMPLES]
    return LayoutError(
        f"The checkpoint holds no embedding of tokens: wanted a tensor such as "
        f"{' or '.join(wanted)}, found outside the layers {', '.join(wide[:6]) or 'no matrix'}"
        f"{', ...' if len(wide) > 6 else ''}. Name a checkpoint of the whole model; if one of "
        "these is its embedding, add the name to catalog/vocabulary.toml of a checkout."
    )


_EXAMPLES = ("embed_tokens.weight", "embeddings.word_embeddings.weight")


def _first(tensors: Tensors, names: Iterable[str]) -> TensorInfo | None:
    return next((tensors[name] for name in names if name in tensors), None)


def _place(info: TensorInfo | None) -> tuple[str, int, int] | None:
    """Where a tensor's bytes are, which tensors stored once under several names share; by its name
    where none are stored (a twin's).
    """
    return None if info is None else (info.file or info.name, info.start, info.end)


class _StackVocabulary:
    """What stands around one stack of layers, whatever uses it."""

    def __init__(self, plan: LayerPlan, tensors: Tensors) -> None:
        self.layer = plan
        self.tensors = tensors
        name = next(iter(plan.tensors.values())).name
        outer = list(itertools.takewhile(lambda part: not part.isdigit(), name.split(".")))[:-1]
        #: What names may begin with, from the layers' neighbours outwards.
        self.places = ["".join(f"{p}." for p in outer[:n]) for n in range(len(outer), -1, -1)]
        table = vocabulary_table()
        self.embed = self._by_preference(table.embedding)
        self.unembed = self._by_preference(table.unembedding)
        self.embed_norm = self._nearest(table.embedding_norm)
        self.final_norm = self._nearest(table.final_norm)
        self.transforms = self._by_preference(table.head_transform) is not None
        biases = [name.removesuffix("weight") + "bias" for name in table.unembedding]
        #: Whether it has a head that tells tokens, be its matrix stored or tied.
        self.has_head = self.transforms or self._by_preference(biases) is not None

    def _by_preference(self, names: Sequence[str]) -> TensorInfo | None:
        return _first(self.tensors, (place + name for name in names for place in self.places))

    def _nearest(self, modules: Sequence[str]) -> TensorInfo | None:
        gains = vocabulary_table().gains
        found = itertools.product(self.places, modules, gains)
        return _first(self.tensors, map("".join, found))

    def reads_like(self, other: _StackVocabulary) -> bool:
        """Whether two stacks read the same vectors for the same tokens."""
        return (
            self.embed is not None
            and _place(self.embed) == _place(other.embed)
            and _place(self.embed_norm) == _place(other.embed_norm)
        )


class _Vocabulary:
    """The plan of one stack's vocabulary in the making."""

    def __init__(
        self,
        config: Mapping[str, Any],
        layout: AttentionLayout,
        stacks: Mapping[str, _StackVocabulary],
        stack: _StackVocabulary,
    ) -> None:
        self.config = config
        self.layout = layout
        self.stacks = stacks
        self.stack = stack
        self.own_config = layout.configs.get(stack.layer.stack, config)
        self.d_model = stack.layer.geometry.d_model
        self.layers = [p for p in layout.layers if p.stack == stack.layer.stack]
        self.row: VocabularyRow = self._rule(vocabulary_table().rows) or VocabularyRow()
        self.notes = [self.row.note] if self.row.note else []

    def plan(self, untrained: bool) -> VocabularyPlan:
        self._refuse()
        embed = self._matrix(self.stack.embed)
        unembed = self._unembedding(embed)
        if unembed is not None:
            embed, unembed = self._common_rows(embed, unembed)
        norms, gains = self._norms()
        stacks = self._reading_stacks()
        return VocabularyPlan(
            embed=embed,
            unembed=unembed,
            norms=norms,
            gains=gains,
            embed_scale=self._embed_scale(),
            notes=tuple(self.notes),
            is_encoder=self._is_encoder,
            stacks=stacks,
            init_std=self._deviations(unembed is not None) if untrained else {},
        )

    def _refuse(self) -> None:
        """Raises LayoutError where tokens are no vectors that the layers read."""
        g = self.stack.layer.geometry
        why = [why for key, why in self.row.refuse.items() if self.own_config.get(key) is True]
        if g.d_input != g.d_model:
            why.append(
                f"attention reads {g.d_input} numbers, the embeddings beside the residual stream "
                f"of {g.d_model}"
            )
        if why:
            raise LayoutError(
                f"Circuits of a {self.layout.model_type} model are no forms of its tokens alone: "
                f"{why[0]}. The spectra of its heads are there all the same: qk-taxonomy download."
            )

    def _matrix(self, info: TensorInfo | None) -> TensorInfo:
        """A matrix of tokens. Raises LayoutError where these are no vectors of the stream."""
        assert info is not None
        if len(info.shape) == 2 and info.shape[1] == self.d_model and info.shape[0] > 0:
            return info
        raise LayoutError(
            f"{info.name} is of shape {list(info.shape)}, and the residual stream of this "
            f"{self.layout.model_type} model {self.d_model} wide; rows of that width are wanted. "
            "Where a projection lies between the embeddings and the stream (ALBERT, ELECTRA, "
            "OPT-350m), tokens are no vectors of the stream, and circuits over the vocabulary are "
            "not computed; the spectra of the heads are: qk-taxonomy download."
        )

    def _unembedding(self, embed: TensorInfo) -> TensorInfo | None:
        """W_U, where it is another matrix than W_E; notes what it is otherwise."""
        found = self.stack.unembed
        if self.stack.transforms:
            self.notes.append(
                "the head transforms the residual stream before it unembeds it (a dense layer, its "
                "activation and its norm), which is left out"
            )
        tied = self.config.get("tie_word_embeddings")
        said = self.own_config.get("tie_word_embeddings") if tied is None else tied
        if found is not None and said is not True and _place(found) != _place(embed):
            return self._matrix(found)
        if found is not None or self.stack.has_head or not self._is_encoder:
            self.notes.append(
                "config.json says that the unembedding is not tied to the embedding, but the "
                "checkpoint holds none: OV is read against the embedding"
                if found is None and tied is False
                else "the unembedding is the embedding (tied)"
            )
        else:
            self.notes.append(
                "there is no unembedding (an encoder): OV is read against the embedding"
            )
        return None

    def _rule(self, rules: Mapping[str, Rule]) -> Rule | None:
        """What holds for the model's type or, where nothing is said of that, for its row."""
        return rules.get(self.layout.model_type) or rules.get(self.layout.architecture)

    @property
    def _is_encoder(self) -> bool:
        names = {self.layout.architecture, self.layout.model_type}
        encoders = vocabulary_table().encoders
        return not names.isdisjoint(encoders) or self.stack.layer.stack == "encoder"

    def _common_rows(self, embed: TensorInfo, unembed: TensorInfo) -> tuple[TensorInfo, TensorInfo]:
        counts = embed.shape[0], unembed.shape[0]
        if counts[0] == counts[1]:
            return embed, unembed
        n_tokens = min(counts)
        cut = [rows_of(info, 0, n_tokens) for info in (embed, unembed)]
        if cut[0] is None or cut[1] is None:
            raise LayoutError(
                f"{embed.name} has {counts[0]} rows and {unembed.name} {counts[1]}; the first "
                f"{n_tokens} of both are wanted, but are no byte range of their own. Save the "
                "model anew as safetensors."
            )
        self.notes.append(
            f"of {counts[0]} embeddings and {counts[1]} unembeddings the first {n_tokens} are "
            "tokens of both, and the others left out"
        )
        return cut[0], cut[1]

    def _norms(self) -> tuple[dict[str, Norm], dict[str, TensorInfo]]:
        norms: dict[str, Norm] = {}
        gains = {"embed_norm": self.stack.embed_norm, "final_norm": self.stack.final_norm}
        if gains["embed_norm"] is not None or self.row.embedding_norm:
            norms["embed_norm"] = Norm(self.row.embedding_norm or "layer")
        final = self._final_norm()
        if final is not None:
            norms["final_norm"] = final
        found = {role: info for role, info in gains.items() if info is not None}
        for info in found.values():
            if info.shape != (self.d_model,):
                raise LayoutError(
                    f"{info.name} is of shape {list(info.shape)}; a gain of {self.d_model} numbers "
                    "is wanted."
                )
        return norms, found

    def _final_norm(self) -> Norm | None:
        """The norm of what the last layer leaves: of the kind and offset of the layers' own."""
        gain = self.stack.final_norm
        pre_norm = next((plan for plan in self.layers if "input_norm" in plan.norms), None)
        norm = pre_norm.norms["input_norm"] if pre_norm else None
        if self.row.final_norm is not None:
            norm = Norm(self.row.final_norm)
        if norm is None and gain is not None:
            raise LayoutError(
                f"{gain.name} norms what the last layer leaves, and of which kind it is neither "
                f"the table's row {self.layout.architecture} nor catalog/vocabulary.toml says."
            )
        if gain is not None or (pre_norm and "input_norm" not in pre_norm.tensors):
            return norm
        self.notes.append(
            "no norm is folded into the unembedding: "
            + ("the checkpoint holds none after the last layer" if norm else "norms follow layers")
        )
        return None

    def _reading_stacks(self) -> tuple[str, ...]:
        """Stacks that read the same vectors; cross-attention where all others do."""
        reading = [name for name, s in self.stacks.items() if s.reads_like(self.stack)]
        cross = {plan.stack for plan in self.layout.layers if plan.cross}
        all_read = len(reading) == len(self.stacks)
        found = tuple(n for n in self.layout.stacks if n in reading or (n in cross and all_read))
        if "encoder" in found[:-1]:
            self.notes.append(
                "what the encoder writes reaches the unembedding through the decoder alone; its OV "
                "is read as if it did so at once"
            )
        others = [name for name in self.layout.stacks if name not in found]
        if others:
            self.notes.append(
                f"this is the vocabulary of {' and '.join(found)}; {' and '.join(others)} read "
                "other vectors, or the same ones normed otherwise, and are left out"
            )
        return found

    def _embed_scale(self) -> float:
        table = vocabulary_table()
        powers = [self._rule(table.scale_rows) or {}]
        powers += [{key: 1} for key in table.scale_keys if self.own_config.get(key) is not None]
        powers += [p for key, p in table.scale_when.items() if self.own_config.get(key) is True]
        product = 1.0
        for factors in powers:
            product *= self._factor("The multiplier of embeddings", factors)
        return product

    def _deviations(self, untied: bool) -> dict[str, float]:
        table = vocabulary_table()
        keys = [key for key in table.init_keys if self.own_config.get(key) is not None]
        powers = {keys[0]: 1.0} if keys else self.row.init
        if powers is None:
            stacks = architecture_table().rows[self.layout.architecture].stacks
            named = next(s for s in stacks if s.name == self.stack.layer.stack)
            powers = named.resolve(self.own_config, lambda name: False).init["all"]
        embed = self._factor("The initialiser of embeddings", powers)
        further = self._factor("The initialiser of the unembedding", self.row.unembed)
        return {"embed": embed} | ({"unembed": embed * further} if untied else {})

    def _factor(self, what: str, powers: Mapping[str, float]) -> float:
        known = {
            "d_model": self.d_model,
            "n_layers": max(plan.layer for plan in self.layers) + 1,
            "n_tokens": self._matrix(self.stack.embed).shape[0],
        }
        what = f"{what} of {self.layout.architecture}"
        return product_of_powers(what, powers, self.own_config, known)
