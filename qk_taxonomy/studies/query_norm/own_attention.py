"""Looking on while a model attends by code of its own, which no function of ours can replace.

Older models (BLOOM, Falcon, GPT-Neo, MPT, XGLM, ...) multiply queries and keys, change the scores
in ways of their own, and take the softmax. All of that is left to them. Inside their attention
modules, calls of torch are watched: the product whose result is (..., T, T) tells the queries, its
first operand, which goes on as a dual number (forward-mode differentiation) whose tangent is
itself; what comes to the softmax is then the scores s and their tangent ∂s/∂log α for the query
times α, exact whatever scale, bias or mask lies between. No step between may be other than affine
in the scores, so that the scores at another α are s + (α − 1) · ∂s/∂log α.

The scores are in the model's own dtype, and all of a layer's, (H, T, T), exist at a time, with
their tangents, in several copies; measures are taken from them in float32 or better, in blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from qk_taxonomy.errors import StudyError
from qk_taxonomy.studies.query_norm.scores import ScoreBlock
from qk_taxonomy.studies.query_norm.watch import (
    AttentionLayer,
    Watch,
    blocks,
    may_attend,
    not_observable,
    same_for_all_heads,
    span,
)

# Operands of products, those that are multiplied last.
_OPERANDS = {
    "matmul": ("input", "other"),
    "bmm": ("input", "mat2"),
    "baddbmm": ("input", "batch1", "batch2"),
}

# Affine in the scores, where the other factor of a product is a constant, and the other side of a
# maximum the least number (XGLM); named without underscores.
_AFFINE = {
    *("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul"),
    *("div", "truediv", "itruediv", "masked_fill", "where", "max", "maximum"),
    *("view", "reshape", "flatten", "unsqueeze", "squeeze"),
    *("to", "float", "type", "type_as", "contiguous", "clone", "getitem", "get"),
}

# Of probabilities in bfloat16: 2⁻⁹ each, and what its scores' own softmax may add.
_ROUNDING = 0.01


@contextmanager
def watching_own_attention(watch: Watch) -> Iterator[None]:
    """While this lasts, a forward pass of the model on one text is shown to the watch's observer.

    The forward pass raises StudyError where a module attends in another way than one product, steps
    that are affine in it, and a softmax. Factors of keys count the heads that keys have in the
    product, where some models (Falcon) have repeated those of a group.
    """
    mode = _Mode(watch)
    with ExitStack() as stack:
        for module in filter(may_attend, watch.model.modules()):
            stack.callback(module.register_forward_pre_hook(mode.enter).remove)
            stack.callback(module.register_forward_hook(mode.leave).remove)
        stack.enter_context(forward_ad.dual_level())
        stack.enter_context(mode)
        yield


@dataclass(eq=False)
class _Call:
    """One call of an attention module, as far as it has come.

    n_products: of other than weights. layer and least: known from the product of queries and keys
    on; scores up to least are masked. done: the softmax is taken.
    """

    module: torch.nn.Module
    n_products: int = 0
    layer: AttentionLayer | None = None
    least: float = -torch.inf
    done: bool = False


class _Mode(TorchFunctionMode):
    """Sees what the innermost attention module calls of torch."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch
        self._calls: list[_Call] = []

    def enter(self, module: torch.nn.Module, *_: Any) -> None:
        self._calls.append(_Call(module))

    def leave(self, *_: Any) -> None:
        call = self._calls.pop()
        if call.layer is not None and not call.done:
            raise self._refusal(call, "takes no softmax of a product")

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        call = self._calls[-1] if self._calls else None
        if call is None:
            return func(*args, **named)
        name = getattr(func, "__name__", "").strip("_")
        if name == "scaled_dot_product_attention" and not call.done:
            with self:
                return _plain_attention(*args, **named)
        if name == "softmax":
            return self._softmax(call, func, args, named)
        if call.done:
            return func(*args, **named)
        if name in _OPERANDS:
            return self._product(call, func, name, args, named)
        call.n_products += name == "einsum"
        result = func(*args, **named)
        if call.layer is not None and _tangent(result) is not None and name not in _AFFINE:
            raise self._refusal(call, f"changes the scores by {name}")
        return result

    def _product(
        self,
        call: _Call,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Any:
        """A product; where it is that of queries and keys, of a dual number."""
        operands = dict(zip(_OPERANDS[name], args, strict=False))
        operands |= {operand: named.pop(operand) for operand in _OPERANDS[name] if operand in named}
        *added, query, key = operands.values()
        if query.ndim < 3 or key.ndim < 3:  # a projection
            return func(*added, query, key, **named)
        call.n_products += 1
        if call.layer is not None or key.shape[-1] != query.shape[-2]:
            return func(*added, query, key, **named)
        place = self._watch.place(call.module)
        # One text, so that all axes before the last two are heads.
        q, k = (operand.reshape(-1, *operand.shape[-2:]) for operand in (query, key))
        norms = self._watch.norms(q.to(torch.promote_types(q.dtype, torch.float32)), str(place))
        q, k, norms = self._watch.scaled(q, k, norms, place.number)
        call.layer = AttentionLayer(place, len(q), len(k), norms)
        dtypes = (query.dtype, self._watch.model.dtype)
        call.least = max(torch.finfo(dtype).min for dtype in dtypes) / 2  # the least stands for −∞
        query, key = q.reshape(query.shape), k.reshape(key.shape)
        return func(*added, forward_ad.make_dual(query, query), key, **named)

    def _softmax(
        self,
        call: _Call,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Any:
        """A softmax, of scores without their tangent."""
        scores, *others = args
        slopes = _tangent(scores)
        if call.layer is None or slopes is None or call.done or call.n_products != 1:
            raise self._refusal(call, "takes a softmax of something else than one product")
        primal = forward_ad.unpack_dual(scores).primal
        shape = (call.layer.n_heads, scores.shape[-1], scores.shape[-1])
        if scores.numel() != math.prod(shape):
            raise self._refusal(call, f"takes a softmax over {list(scores.shape)}")
        call.done = True
        attention = func(primal, *others, **named)
        self._show(call, *(t.reshape(shape) for t in (primal, slopes, attention)))
        return attention

    def _show(
        self, call: _Call, scores: torch.Tensor, slopes: torch.Tensor, attention: torch.Tensor
    ) -> None:
        """Show a layer's scores and their tangent in blocks; these and its attention: (H, T, T)."""
        layer = call.layer
        assert layer is not None
        dtype = torch.promote_types(scores.dtype, torch.float32)
        positions = torch.arange(scores.shape[-1], device=scores.device)
        self._watch.observer.begin(layer)
        for rows in blocks(len(scores), len(positions), scores):
            s, linear = (tensor[:, rows].to(dtype) for tensor in (scores, slopes))
            # A mask adds the least number, or puts a number in place of the score.
            every = ~(s <= call.least) & (linear != 0).any(0)
            allowed = same_for_all_heads(every, str(layer.place))
            keys = span(allowed)
            bias = (s - linear).masked_fill(~allowed, 0)
            block = ScoreBlock(
                linear[..., keys],
                bias[..., keys] if bool(bias.any()) else None,
                allowed[:, keys],
                None,
                None,
                positions[rows],
                positions[keys],
            )
            apart = self._watch.show(layer, block).probabilities - attention[:, rows, keys]
            if float(apart.abs().max()) > _ROUNDING:
                raise self._refusal(call, "makes something else of the scores than their softmax")

    def _refusal(self, call: _Call, what: str) -> StudyError:
        kind = type(call.module).__name__
        return not_observable(self._watch.model, f"{kind} {what}")


def _plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """What torch's function for it computes at once (Falcon calls that), step by step."""
    scores = torch.matmul(query, key.mT) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(functional.dropout(scores.softmax(-1), dropout_p), value)


def _tangent(value: Any) -> torch.Tensor | None:
    """The tangent of a tensor that is a dual number; None of anything else."""
    return forward_ad.unpack_dual(value).tangent if isinstance(value, torch.Tensor) else None
