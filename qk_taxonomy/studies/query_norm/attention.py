"""Looking on while a model attends: its attention computed here, in blocks, as its own would.

transformers lets a model's attention be replaced by a registered function
(``AttentionInterface``). The one here computes what the model's own eager function does, in
float32 or better and for a block of queries at a time, and shows every block to an observer;
the forward pass goes on with the result. No more than one block's probabilities exist at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from qk_taxonomy.errors import StudyError
from qk_taxonomy.studies.query_norm.scores import AttentionBlock, ScoreBlock, attend

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_NAME = "qk_taxonomy_observed"

# Scores of a block. Some ten arrays of this size are in use at a time, and a small one stays near
# the processor.
_BLOCK_BYTES = 8 << 20
_BLOCK_BYTES_CUDA = 256 << 20

# Arguments of attention functions that change no score, or tell again what the mask holds already.
_HARMLESS = {
    *("sliding_window", "is_causal", "position_ids", "position_embeddings", "cache_position"),
    *("cache", "past_key_values", "use_cache", "output_attentions", "output_hidden_states"),
    *("return_dict", "deterministic", "target_dtype", "implementation", "num_items_in_batch"),
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "output_router_logits"),
}

# Mean squared norms before and after a rotation differ by less than this in bfloat16; the least
# factor of YaRN in use makes 0.08.
_ROTATION_ERROR = 1e-3


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """One call of a model's attention, on one text.

    number: the layer's own. stack: what its name has before the layers' own part, "" for nothing.
    n_heads: of queries. query_norm: (H, T), ‖q‖₂ of what enters the score.
    """

    number: int
    stack: str
    n_heads: int
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

    Other layers see what becomes of it.
    """

    factors: Mapping[tuple[int, int], float]
    of: Literal["query", "key"] = "query"


NO_SCALING = Scaling({})

_watch: ContextVar[_Watch] = ContextVar("qk_taxonomy_attention_watch")


@contextmanager
def observed(
    model: PreTrainedModel,
    observer: Observer,
    *,
    after_rope: bool = False,
    scaling: Scaling = NO_SCALING,
) -> Iterator[None]:
    """While this lasts, a forward pass of the model on one text is shown to the observer.

    Queries' norms are those before RoPE, unless ``after_rope``: the same but where RoPE is scaled
    (YaRN, LongRoPE). What comes after RoPE (a norm, a temperature) belongs to the query that
    enters the score, and counts. Raises StudyError where the model does not attend through
    transformers' attention interface, and, from the forward pass, where its attention is of a kind
    that is not known here.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(_NAME, _observed_attention)
    AttentionMaskInterface.register(_NAME, eager_mask)
    watch = _Watch(model, observer, scaling)
    with ExitStack() as stack:
        stack.enter_context(attention_implementation(model, _NAME))
        if not after_rope:
            stack.enter_context(watch.rotations())
        token = _watch.set(watch)
        stack.callback(_watch.reset, token)
        yield


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """While this lasts, the model attends by another function of transformers' interface.

    Raises StudyError where it cannot.
    """
    configs: list[Any] = [part.config for part in model.modules() if hasattr(part, "config")]
    before = [(config, _implementations(config)) for config in configs]
    model.set_attn_implementation(name)
    try:
        if model.config._attn_implementation != name:
            raise not_observable(model)
        yield
    finally:
        for config, implementations in before:
            config._attn_implementation = implementations


def _implementations(config: PreTrainedConfig) -> dict[str, Any]:
    """What a config and its parts, by name, say of how to attend, as transformers takes it."""
    parts = {part: getattr(config, part, None) for part in config.sub_configs}
    return {
        "": config._attn_implementation,
        **{part: _implementations(own) for part, own in parts.items() if own is not None},
    }


def not_observable(model: PreTrainedModel) -> StudyError:
    """Why a model's attention cannot be observed."""
    kind = type(model).__name__
    if any("attention" in type(module).__name__.lower() for module in model.modules()):
        return StudyError(
            f"{kind} attends by code of its own, not through transformers' attention interface "
            "(AttentionInterface), so that its attention cannot be captured. Wanted is a model "
            "that does, such as Llama, Qwen, Gemma, Mistral, GPT-NeoX, GPT-2, OPT or BERT; a newer "
            "transformers may have moved this one to it."
        )
    return StudyError(
        f"{kind} is a model without attention weights to capture: no module of it attends. Choose "
        "a model with softmax attention."
    )


def _observed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls."""
    return _watch.get().attend(module, query, key, value, attention_mask, arguments), None


class _Watch:
    """One observation of a model, through one forward pass."""

    def __init__(self, model: PreTrainedModel, observer: Observer, scaling: Scaling) -> None:
        self._observer = observer
        self._scaling = scaling
        self._names = {module: name for name, module in model.named_modules()}
        self._numbered: set[tuple[str, int]] = set()
        # Squared norms of the query before and after RoPE, since the last attention.
        self._rotated: tuple[torch.Tensor, torch.Tensor] | None = None

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        arguments: dict[str, Any],
    ) -> torch.Tensor:
        """The attention's output, (1, T, H, d_value), in the dtype of the values.

        query: (1, H, T, d_head), key and value: (1, n_kv_heads, T, d), mask: additive, or None.
        """
        place = self._place(module)
        where = f"layer {place[1]}" + (f" of {place[0]}" if place[0] else "")
        n_tokens = query.shape[2]
        if len(query) != 1 or key.shape[2] != n_tokens:
            raise StudyError(
                f"The attention of {where} has {n_tokens} queries and {key.shape[2]} keys of "
                f"{len(query)} texts. Wanted is the attention of one text to itself: a model "
                "without cross-attention or compressed keys."
            )
        scale, softcap, bias, sink = _score_arguments(arguments, query.shape[-1], where)
        dtype = torch.promote_types(query.dtype, torch.float32)
        q, k, v = (tensor[0].to(dtype) for tensor in (query, key, value))
        norms = self._norms(q, where)
        q, k, norms = self._scaled(q, k, norms, place[1])
        k, v = (tensor.repeat_interleave(len(q) // len(tensor), dim=0) for tensor in (k, v))
        layer = AttentionLayer(place[1], place[0], len(q), norms)
        self._observer.begin(layer)
        output = value.new_empty(n_tokens, len(q), v.shape[-1])
        q = q * scale
        positions = torch.arange(n_tokens, device=q.device)
        for rows in _blocks(len(q), n_tokens, q):
            allowed, added = _mask_block(mask, bias, rows, n_tokens, q, where)
            keys = _span(allowed)
            block = ScoreBlock(
                q[:, rows] @ k[:, keys].mT,
                None if added is None else added[..., keys],
                allowed[:, keys],
                softcap,
                sink if sink is None else sink.to(dtype),
                positions[rows],
                positions[keys],
            )
            attention = attend(block)
            if not bool(attention.entropy.isfinite().all()):
                raise StudyError(
                    f"The attention of {where} is not finite: its scores overflow in "
                    f"{query.dtype}, or the weights hold NaN. Try --dtype float32."
                )
            self._observer.see(layer, block, attention)
            output[rows] = (attention.probabilities @ v[:, keys]).transpose(0, 1)
        return output[None]

    def _place(self, module: torch.nn.Module) -> tuple[str, int]:
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
        return stack, number

    def _norms(self, q: torch.Tensor, where: str) -> torch.Tensor:
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

    def _scaled(
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


def _score_arguments(
    arguments: dict[str, Any], d_head: int, where: str
) -> tuple[float, float | None, torch.Tensor | None, torch.Tensor | None]:
    """Scale, softcap, relative bias (1 or H, T, T) and sinks (H,) of attention arguments."""
    given = {name: value for name, value in arguments.items() if value is not None}
    scale = float(given.pop("scaling", d_head**-0.5))
    softcap = given.pop("softcap", None)
    bias, sink = given.pop("position_bias", None), given.pop("s_aux", None)
    if given.pop("dropout", 0.0):
        raise StudyError(f"Dropout is on in {where}: call model.eval() first.")
    unknown = sorted(given.keys() - _HARMLESS)
    if unknown:
        raise StudyError(
            f"The attention of {where} is called with {', '.join(unknown)}, of which it is not "
            "known here what it does to the scores. Choose another model, or ask for support of "
            "this one."
        )
    return (
        scale,
        None if softcap is None else float(softcap),
        None if bias is None else bias[0],
        None if sink is None else sink.reshape(-1),
    )


def _blocks(n_heads: int, n_tokens: int, like: torch.Tensor) -> Iterator[slice]:
    """Queries in blocks whose scores have about the same bytes."""
    n_bytes = _BLOCK_BYTES_CUDA if like.is_cuda else _BLOCK_BYTES
    size = max(1, n_bytes // (n_heads * n_tokens * like.element_size()))
    for start in range(0, n_tokens, size):
        yield slice(start, min(start + size, n_tokens))


def _mask_block(
    mask: torch.Tensor | None,
    bias: torch.Tensor | None,
    rows: slice,
    n_tokens: int,
    like: torch.Tensor,
    where: str,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Which keys a block's queries may attend to, (Q, T), and what is added, (1 or H, Q, T)."""
    added = None if bias is None else bias[:, rows].to(like)
    if mask is None:
        allowed = torch.ones(rows.stop - rows.start, n_tokens, dtype=torch.bool, device=like.device)
        return allowed, added
    if mask.ndim != 4 or mask.shape[-1] < n_tokens:
        raise StudyError(
            f"The attention mask of {where} has the shape {list(mask.shape)}; wanted is "
            f"(text, heads, {n_tokens}, {n_tokens})."
        )
    block = mask[0, :, rows, :n_tokens]
    if block.dtype == torch.bool:
        every = block
    else:
        every = block > torch.finfo(block.dtype).min / 2  # the least number stands for −∞
        relative = block.to(like.dtype).masked_fill(~every, 0)
        if bool(relative.any()):  # a bias of positions comes as part of the mask in some models
            added = relative if added is None else added + relative
    allowed = every[0]
    if not bool((every == allowed).all()) or not bool(allowed.any(-1).all()):
        raise StudyError(
            f"In {where}, heads may attend to different keys, or a query to none; wanted is one "
            "mask for all heads, in which every query has a key."
        )
    return allowed, added


def _span(allowed: torch.Tensor) -> slice:
    """From the first to the last key that any query may attend to."""
    used = allowed.any(0).nonzero()
    return slice(int(used[0]), int(used[-1]) + 1)
