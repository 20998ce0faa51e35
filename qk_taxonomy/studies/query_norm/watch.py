"""Who watches a model attend, and what is common to the ways of watching it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch

from qk_taxonomy.errors import StudyError
from qk_taxonomy.studies.query_norm.scores import AttentionBlock, ScoreBlock, attend

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Scores of a block. Some ten arrays of this size are in use at a time, and a small one stays near
# the processor.
_BLOCK_BYTES = 8 << 20
_BLOCK_BYTES_CUDA = 256 << 20

# Mean squared norms before and after a rotation differ by less than this in bfloat16; the least
# factor of YaRN in use makes 0.08.
_ROTATION_ERROR = 1e-3


class Place(NamedTuple):
    """Where a model attends.

    stack: what the layer's name has before the layers' own part, "" for nothing. number: its own.
    """

    stack: str
    number: int

    def __str__(self) -> str:
        return f"layer {self.number}" + (f" of {self.stack}" if self.stack else "")


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """One call of a model's attention, on one text.

    n_heads: of queries. n_key_heads: each of them is that of a group of as many queries' heads,
    which follow each other. query_norm: (H, T), ‖q‖₂ of what enters the score.
    """

    place: Place
    n_heads: int
    n_key_heads: int
    query_norm: torch.Tensor


class Observer(Protocol):
    """Who is shown what a model attends to."""

    def begin(self, layer: AttentionLayer) -> None:
        """A layer's attention begins; its blocks follow."""

    def see(self, layer: AttentionLayer, scores: ScoreBlock, attention: AttentionBlock) -> None:
        """A block of the layer's queries; blocks come in the order of queries."""


@dataclass(frozen=True)
class Scaling:
    """Factors of queries or keys of some heads, by (layer, head); of keys, head counts key heads.

    Other layers see what becomes of it. Of a model of one stack: in a second, the forward pass
    raises StudyError.
    """

    factors: Mapping[tuple[int, int], float]
    of: Literal["query", "key"] = "query"


NO_SCALING = Scaling({})


class Watch:
    """One observation of a model, through one forward pass."""

    def __init__(self, model: PreTrainedModel, observer: Observer, scaling: Scaling) -> None:
        self.model = model
        self.observer = observer
        self._scaling = scaling
        self._names = {module: name for name, module in model.named_modules()}
        self._numbered: set[tuple[str, int]] = set()
        # Squared norms of the query before and after RoPE, since the last attention.
        self._rotated: tuple[torch.Tensor, torch.Tensor] | None = None

    def place(self, module: torch.nn.Module) -> Place:
        """A call's stack and layer. A module that is called again (ALBERT's) is a layer more."""
        parts = self._names[module].split(".")
        first = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        number = getattr(module, "layer_idx", None)
        if number is None:
            number = 0 if first is None else int(parts[first])
        stack = ".".join(parts[: max(0, first - 1)]) if first else ""
        while (stack, number) in self._numbered:
            number += 1
        self._numbered.add((stack, number))
        if self._scaling.factors:
            check_one_stack({stack for stack, _ in self._numbered})
        return Place(stack, number)

    def norms(self, q: torch.Tensor, where: str) -> torch.Tensor:
        """Norms of queries, (H, T), before a RoPE that was watched."""
        squares = q.square().sum(-1)
        rotated, self._rotated = self._rotated, None
        if rotated is None:
            return squares.sqrt()
        before, after = rotated
        if before.shape != squares.shape:
            before, after = before.mT, after.mT
        if before.shape != squares.shape:
            raise StudyError(
                f"RoPE of {where} is scaled, and what it rotates ({list(rotated[0].shape)}) is not "
                f"the layer's queries ({list(squares.shape)}: heads, tokens), so that their norms "
                "before it are not known. Take the norms after RoPE (--after-rope)."
            )
        if abs(float(after.sum() / before.sum()) - 1) > _ROTATION_ERROR:
            # Of a query rotated in part, the rest adds the same to both.
            squares = (squares - after + before).clamp_min(0)
        return squares.sqrt()

    def scaled(
        self, q: torch.Tensor, k: torch.Tensor, norms: torch.Tensor, number: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and queries' norms with this layer's factors."""
        chosen = {h: a for (layer, h), a in self._scaling.factors.items() if layer == number}
        if not chosen:
            return q, k, norms
        of_queries = self._scaling.of == "query"
        n = len(q) if of_queries else len(k)
        if not chosen.keys() <= set(range(n)):
            raise StudyError(
                f"Layer {number} has {n} heads of {'queries' if of_queries else 'keys'}, from 0; "
                f"to be scaled were {sorted(chosen)}."
            )
        factors = q.new_tensor([chosen.get(head, 1.0) for head in range(n)])[:, None]
        if of_queries:
            return q * factors[..., None], k, norms * factors.abs()
        return q, k * factors[..., None], norms

    def show(self, layer: AttentionLayer, block: ScoreBlock) -> AttentionBlock:
        """A block's attention, which the observer has seen."""
        attention = attend(block)
        if not bool(attention.entropy.isfinite().all()):
            raise StudyError(
                f"The attention of {layer.place} is not finite: its scores overflow in "
                f"{str(self.model.dtype).removeprefix('torch.')}, or the weights hold NaN. Try a "
                "wider --dtype: float32, or else float64."
            )
        self.observer.see(layer, block, attention)
        return attention

    @contextmanager
    def rotations(self) -> Iterator[None]:
        """While this lasts, RoPE functions are watched, where the model scales RoPE at all."""
        if not any(map(_scales_rotation, self._names)):
            yield
            return
        sources = {type(module).__module__ for module in self._names}
        spaces = [vars(sys.modules[source]) for source in sources if "modeling" in source]
        plain = [
            (space, name, function)
            for space in spaces
            for name, function in space.items()
            if name.startswith("apply_rotary") and callable(function)
        ]
        for space, name, function in plain:
            space[name] = self._watching(function)
        try:
            yield
        finally:
            for space, name, function in plain:
                space[name] = function

    def _watching(self, rotate: Callable[..., Any]) -> Callable[..., Any]:
        def watching(query: torch.Tensor, *others: Any, **named: Any) -> Any:
            rotated = rotate(query, *others, **named)
            if self._rotated is None:  # where keys have a call of their own, it comes second
                after = rotated[0] if isinstance(rotated, tuple) else rotated
                before, after = (t[0].float().square().sum(-1) for t in (query, after))
                self._rotated = before, after
            return rotated

        return watching


def _scales_rotation(module: torch.nn.Module) -> bool:
    """Whether a module makes cosines and sines with a factor (YaRN, LongRoPE)."""
    return any(
        name.endswith("attention_scaling") and value not in (None, 1.0)
        for name, value in vars(module).items()
    )


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """While this lasts, the model attends by another function of transformers' interface.

    A model that does not attend through it goes on by its own code.
    """
    if not attends_by_interface(model):
        yield
        return
    configs: list[Any] = [part.config for part in model.modules() if hasattr(part, "config")]
    before = [(config, _implementations(config)) for config in configs]
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        for config, implementations in before:
            config._attn_implementation = implementations


def attends_by_interface(model: PreTrainedModel) -> bool:
    """Whether a model's attention is that of transformers' interface, as transformers finds it."""
    return model._can_set_attn_implementation()


def _implementations(config: PreTrainedConfig) -> dict[str, Any]:
    """What a config and its parts, by name, say of how to attend, as transformers takes it."""
    parts = {part: getattr(config, part, None) for part in config.sub_configs}
    return {
        "": config._attn_implementation,
        **{part: _implementations(own) for part, own in parts.items() if own is not None},
    }


def check_one_stack(stacks: Collection[str]) -> None:
    """Raise StudyError for heads that are scaled where (layer, head) is not one head."""
    if len(stacks) > 1:
        raise StudyError(
            f"The model attends in {len(stacks)} stacks ({', '.join(sorted(stacks))}), so that a "
            "layer and a head do not tell which head is to be scaled. Run it without --scale and "
            "--scale-keys."
        )


def blocks(n_heads: int, n_tokens: int, like: torch.Tensor) -> Iterator[slice]:
    """Queries in blocks whose scores have about the same bytes."""
    n_bytes = _BLOCK_BYTES_CUDA if like.is_cuda else _BLOCK_BYTES
    size = max(1, n_bytes // (n_heads * n_tokens * like.element_size()))
    for start in range(0, n_tokens, size):
        yield slice(start, min(start + size, n_tokens))


def span(allowed: torch.Tensor) -> slice:
    """From the first to the last key that any query may attend to."""
    used = allowed.any(0).nonzero()
    return slice(int(used[0]), int(used[-1]) + 1)


def same_for_all_heads(every: torch.Tensor, where: str) -> torch.Tensor:
    """Which keys queries may attend to, (Q, T), from those of every head, (1 or H, Q, T)."""
    allowed = every[0]
    if not bool((every == allowed).all()) or not bool(allowed.any(-1).all()):
        raise StudyError(
            f"In {where}, heads may attend to different keys, or a query to none; wanted is one "
            "mask for all heads, in which every query has a key."
        )
    return allowed


def not_observable(model: PreTrainedModel, reason: str) -> StudyError:
    """Why a model's attention, which is not that of transformers' interface, is not captured."""
    return StudyError(
        f"{type(model).__name__} attends by code of its own, of which {reason}, so that its "
        "attention cannot be captured. Wanted is a model that attends through transformers' "
        "attention interface, such as Llama, Qwen, Gemma, Mistral, GPT-NeoX, GPT-2, OPT or BERT, "
        "or whose scores are one product of queries and keys with a scale, a bias and a mask, such "
        "as BLOOM, Falcon, GPT-Neo, MPT or XGLM."
    )


def without_attention(model: PreTrainedModel) -> StudyError:
    """Why nothing is captured of a model that was run, and nowhere attended."""
    if any(map(may_attend, model.modules())):
        return not_observable(model, "no softmax of a product of queries and keys was found")
    return StudyError(
        f"{type(model).__name__} is a model without attention weights to capture: no module of it "
        "attends. Choose a model with softmax attention."
    )


def may_attend(module: torch.nn.Module) -> bool:
    """Whether a module says by its kind's name that it attends."""
    return "attention" in type(module).__name__.lower()
