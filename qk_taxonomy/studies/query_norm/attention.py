"""Looking on while a model attends: its attention computed here, in blocks, as its own would.

transformers lets a model's attention be replaced by a registered function
(``AttentionInterface``). The one here computes what the model's own eager function does, in
float32 or better and for a block of queries at a time, and shows every block to an observer;
the forward pass goes on with the result. No more than one block's probabilities exist at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from qk_taxonomy.errors import StudyError
from qk_taxonomy.studies.query_norm.own_attention import watching_own_attention
from qk_taxonomy.studies.query_norm.scores import ScoreBlock
from qk_taxonomy.studies.query_norm.watch import (
    NO_SCALING,
    AttentionLayer,
    Observer,
    Scaling,
    Watch,
    attends_by_interface,
    attention_implementation,
    blocks,
    same_for_all_heads,
    span,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "qk_taxonomy_observed"

# Arguments of attention functions that change no score, or tell again what the mask holds already.
_HARMLESS = {
    *("sliding_window", "is_causal", "position_ids", "position_embeddings", "cache_position"),
    *("cache", "past_key_values", "use_cache", "output_attentions", "output_hidden_states"),
    *("return_dict", "deterministic", "target_dtype", "implementation", "num_items_in_batch"),
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "output_router_logits"),
}

_watch: ContextVar[Watch] = ContextVar("qk_taxonomy_attention_watch")


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
    enters the score, and counts, as a scale does that the model folds into the query (OPT, XGLM).
    Models that do not attend through transformers' attention interface are watched in their own
    attention (:mod:`.own_attention`). Raises StudyError, from the forward pass, where the attention
    is of a kind that is not known here.
    """
    watch = Watch(model, observer, scaling)
    with ExitStack() as stack:
        if not after_rope:
            stack.enter_context(watch.rotations())
        by_interface = attends_by_interface(model)
        stack.enter_context(_replaced(watch) if by_interface else watching_own_attention(watch))
        yield


@contextmanager
def _replaced(watch: Watch) -> Iterator[None]:
    """While this lasts, the model attends by the function here."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(_NAME, _observed_attention)
    AttentionMaskInterface.register(_NAME, eager_mask)
    token = _watch.set(watch)
    try:
        with attention_implementation(watch.model, _NAME):
            yield
    finally:
        _watch.reset(token)


def _observed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls.

    query: (1, H, T, d_head), key and value: (1, n_kv_heads, T, d), attention_mask: additive, or
    None. Returns the output, (1, T, H, d_value), in the dtype of the values.
    """
    watch = _watch.get()
    place = watch.place(module)
    where = str(place)
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
    q, k, norms = watch.scaled(q, k, watch.norms(q, where), place.number)
    layer = AttentionLayer(place, len(q), len(k), norms)
    k, v = (tensor.repeat_interleave(len(q) // len(tensor), dim=0) for tensor in (k, v))
    watch.observer.begin(layer)
    output = value.new_empty(n_tokens, len(q), v.shape[-1])
    q = q * scale
    positions = torch.arange(n_tokens, device=q.device)
    for rows in blocks(len(q), n_tokens, q):
        allowed, added = _mask_block(attention_mask, bias, rows, n_tokens, q, where)
        keys = span(allowed)
        block = ScoreBlock(
            q[:, rows] @ k[:, keys].mT,
            None if added is None else added[..., keys],
            allowed[:, keys],
            softcap,
            sink if sink is None else sink.to(dtype),
            positions[rows],
            positions[keys],
        )
        p = watch.show(layer, block).probabilities
        output[rows] = (p @ v[:, keys]).transpose(0, 1)
    return output[None], None


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
    return same_for_all_heads(every, where), added
