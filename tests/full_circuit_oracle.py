"""Full circuits of tiny transformers models, two ways that share nothing with qk_taxonomy.

``dense_circuits``: V×V matrices of every head as explicit float64 products of whole matrices, from
the weights that a model's modules hold. ``observed``: the same circuits as the model computes them
on token ids, its own pre-softmax scores and its own logits, no weight looked at; it tells whether
the products are of the right matrices the right way round.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from oracle import LOUD, heads_apart
from scipy.optimize import linear_sum_assignment
from threadpoolctl import threadpool_limits
from tiny_base import BERT, TinyModel
from tiny_models import TINY_MODELS
from torch import nn
from transformers import PreTrainedModel

from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Circuit, Convention

Array = NDArray[Any]
Heads = Mapping[tuple[int, Circuit, Convention], Array]  # (n_heads, n_tokens, n_tokens)

# Parts of the names of tables that are added to the embedded tokens and tell something else.
_POSITIONS = ("wpe", "position", "token_type")


@dataclass(frozen=True)
class Weights:
    """One layer's heads, row convention of DESIGN: q (n_heads, d_head, d_model), k and v with
    n_kv_heads, o (n_heads, d_model, d_value); and what ``folded`` takes in, as plain arrays."""

    q: Array
    k: Array
    v: Array
    o: Array
    scale: float
    gain: Array | None = None
    centres: bool = False
    q_gain: Array | None = None
    k_gain: Array | None = None


@dataclass(frozen=True)
class FullModel:
    """A tiny model, and the names of the modules that its tokens pass on their way in and out.

    ``weights`` reads one layer. ``offset``: what a norm adds to its stored gain.
    """

    tiny: TinyModel
    weights: Callable[[nn.Module], Weights]
    embed: str
    head: str
    final_norm: str | None = None
    embed_norm: str | None = None
    centres: bool = True
    offset: float = 0.0

    def with_config(self, **config: Any) -> FullModel:
        return replace(self, tiny=self.tiny.but(**config))

    @property
    def ends(self) -> Ends:
        return Ends(self.embed, self.head, self.final_norm)

    def build(self, folder: Path) -> PreTrainedModel:
        """The model in float64, as saved in ``folder`` in float32."""
        model, _ = self.tiny.build(folder)
        return model


def _array(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy()


def _read_heads(weight: torch.Tensor, d_head: int) -> Array:
    """(heads·d_head, d_model) as (heads, d_head, d_model)."""
    array = _array(weight)
    return array.reshape(-1, d_head, array.shape[1])


def _write_heads(weight: torch.Tensor, d_head: int) -> Array:
    """(d_model, heads·d_head) as (heads, d_model, d_head)."""
    array = _array(weight)
    return array.reshape(array.shape[0], -1, d_head).swapaxes(0, 1)


def _gpt_neo(layer: Any) -> Weights:
    attention = layer.attn.attention
    e = attention.head_dim
    return Weights(
        *(_read_heads(getattr(attention, f"{r}_proj").weight, e) for r in "qkv"),
        _write_heads(attention.out_proj.weight, e),
        scale=1.0,
        gain=_array(layer.ln_1.weight),
        centres=True,
    )


def _gpt2(layer: Any) -> Weights:
    attention = layer.attn
    e = attention.head_dim
    # A Conv1D holds (in, out) and multiplies from the right.
    q, k, v = attention.c_attn.weight.T.chunk(3)
    return Weights(
        *(_read_heads(part, e) for part in (q, k, v)),
        _write_heads(attention.c_proj.weight.T, e),
        scale=e**-0.5,
        gain=_array(layer.ln_1.weight),
        centres=True,
    )


def _llama(layer: Any) -> Weights:
    attention = layer.self_attn
    e = attention.head_dim
    return Weights(
        *(_read_heads(getattr(attention, f"{r}_proj").weight, e) for r in "qkv"),
        _write_heads(attention.o_proj.weight, e),
        scale=e**-0.5,
        gain=_array(layer.input_layernorm.weight),
    )


def _gemma3(layer: Any) -> Weights:
    attention = layer.self_attn
    return replace(
        _llama(layer),
        scale=attention.config.query_pre_attn_scalar**-0.5,
        gain=1.0 + _array(layer.input_layernorm.weight),
        q_gain=1.0 + _array(attention.q_norm.weight),
        k_gain=1.0 + _array(attention.k_norm.weight),
    )


def _bert(layer: Any) -> Weights:
    attention = layer.attention.self
    e = attention.attention_head_size
    return Weights(
        *(_read_heads(getattr(attention, r).weight, e) for r in ("query", "key", "value")),
        _write_heads(layer.attention.output.dense.weight, e),
        scale=e**-0.5,
    )


def _bloom(layer: Any) -> Weights:
    attention = layer.self_attention
    e = attention.head_dim
    packed = _array(attention.query_key_value.weight)
    # Query, key and value of one head are neighbours.
    q, k, v = packed.reshape(-1, 3, e, packed.shape[1]).swapaxes(0, 1)
    return Weights(
        q,
        k,
        v,
        _write_heads(attention.dense.weight, e),
        scale=e**-0.5,
        gain=_array(layer.input_layernorm.weight),
        centres=True,
    )


_LLAMA = FullModel(
    TINY_MODELS["llama"].but(vocab_size=100),
    _llama,
    embed="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    centres=False,
)

#: By name: every way of embedding, unembedding and storing that full circuits must get right.
FULL_MODELS = {
    "gpt_neo": FullModel(
        TINY_MODELS["gpt_neo"].but(vocab_size=160),
        _gpt_neo,
        embed="transformer.wte",
        final_norm="transformer.ln_f",
        head="lm_head",
    ),
    "gpt2": FullModel(
        TINY_MODELS["gpt2"].but(vocab_size=100, n_layer=2),
        _gpt2,
        embed="transformer.wte",
        final_norm="transformer.ln_f",
        head="lm_head",
    ),
    "llama-untied": _LLAMA.with_config(tie_word_embeddings=False),
    "llama-tied": _LLAMA.with_config(tie_word_embeddings=True),
    "llama-few-tokens": _LLAMA.with_config(tie_word_embeddings=False, vocab_size=40),
    "gemma3": FullModel(
        TINY_MODELS["gemma3_text"].but(vocab_size=100),
        _gemma3,
        embed="model.embed_tokens",
        final_norm="model.norm",
        head="lm_head",
        centres=False,
        offset=1.0,
    ),
    "bert": FullModel(
        BERT.but(vocab_size=100),
        _bert,
        embed="bert.embeddings.word_embeddings",
        embed_norm="bert.embeddings.LayerNorm",
        head="cls.predictions.decoder",
    ),
    "bloom": FullModel(
        TINY_MODELS["bloom"].but(vocab_size=100),
        _bloom,
        embed="transformer.word_embeddings",
        embed_norm="transformer.word_embeddings_layernorm",
        final_norm="transformer.ln_f",
        head="lm_head",
    ),
}


def _norm_matrix(gain: Array, centres: bool) -> Array:
    """What a norm without its division and bias does to a column vector: diag(γ)·C."""
    d = len(gain)
    centre = np.eye(d) - np.full((d, d), 1.0 / d) if centres else np.eye(d)
    return np.diag(gain) @ centre


def dense_circuits(full: FullModel, model: PreTrainedModel) -> Heads:
    """Every head's QK_full and OV_full by layer, circuit and convention, float64."""
    embed = model.get_submodule(full.embed)
    w_e, w_u = _array(embed.weight), _array(model.get_submodule(full.head).weight)
    norms = {
        name: _norm_matrix(full.offset + _array(model.get_submodule(name).weight), full.centres)
        for name in (full.embed_norm, full.final_norm)
        if name is not None
    }
    # As a number, not as the buffer that takes the dtype of the weights.
    scale = float(getattr(embed, "scalar_embed_scale", 1.0))
    nothing = np.eye(w_e.shape[1])
    tokens = {
        "raw": (w_e, w_u),
        "folded": (
            scale * w_e @ norms.get(full.embed_norm or "", nothing).T,
            (w_u - w_u.mean(0)) @ norms.get(full.final_norm or "", nothing),
        ),
    }
    (stack,) = full.tiny.stacks
    circuits: dict[tuple[int, Circuit, Convention], Array] = {}
    for index, layer in enumerate(stack.layers_of(model)):
        weights = full.weights(layer)
        for convention in CONVENTIONS:
            for circuit in CIRCUITS:
                e, u = tokens[convention]
                product = partial(_dense_qk, e) if circuit == "qk" else partial(_dense_ov, e, u)
                circuits[index, circuit, convention] = np.stack(
                    [
                        product(weights, head, convention == "folded")
                        for head in range(weights.q.shape[0])
                    ]
                )
    return circuits


def _input_norm(weights: Weights, folded: bool) -> Array:
    d = weights.q.shape[2]
    if not folded or weights.gain is None:
        return np.eye(d)
    return _norm_matrix(weights.gain, weights.centres)


def _dense_qk(w_e: Array, weights: Weights, head: int, folded: bool) -> Array:
    """F[i, j]: how token i, looking, scores token j, looked at."""
    group = len(weights.q) // len(weights.k)
    norm = _input_norm(weights, folded)
    w_q, w_k = weights.q[head] @ norm, weights.k[head // group] @ norm
    if folded:
        w_q = w_q if weights.q_gain is None else np.diag(weights.q_gain) @ w_q
        w_k = w_k if weights.k_gain is None else np.diag(weights.k_gain) @ w_k
    return (weights.scale if folded else 1.0) * w_e @ (w_q.T @ w_k) @ w_e.T


def _dense_ov(w_e: Array, w_u: Array, weights: Weights, head: int, folded: bool) -> Array:
    """F[i, j]: what the head adds to the logit of token i where it looks at token j."""
    group = len(weights.q) // len(weights.v)
    w_v = weights.v[head // group] @ _input_norm(weights, folded)
    return w_u @ (weights.o[head] @ w_v) @ w_e.T


@dataclass(frozen=True)
class Ends:
    """Names of the modules by which tokens come into a model and leave it."""

    embed: str
    head: str
    final_norm: str | None


def ends(tiny: TinyModel, model: PreTrainedModel) -> Ends:
    """A model's ends as it is seen to run: its final norm, if it has one, is the one in no layer
    whose output is that of the base model.
    """
    names = {module: name for name, module in model.named_modules()}
    (stack,) = tiny.stacks
    base = model.base_model
    inside = set(stack.layers_of(model).modules())
    norms = [module for module in base.modules() if _is_norm(module) and module not in inside]
    seen: dict[nn.Module, torch.Tensor] = {}

    def keep(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        seen[module] = output

    with ExitStack() as hooks, torch.no_grad():
        for module in norms:
            hooks.enter_context(module.register_forward_hook(keep))
        last = base(**{**tiny.inputs(1, 5), "input_ids": torch.arange(3, 8)[None]})[0]
    final = [module for module in norms if module in seen and torch.equal(seen[module], last)]
    assert len(final) <= 1
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    return Ends(names[embed], names[head], names[final[0]] if final else None)


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and next(module.children(), None) is None


def _undivided(module: nn.Module, args: tuple[Any, ...], normed: torch.Tensor) -> torch.Tensor:
    """A norm without its division; whether it centres is seen from what it does, not its name."""
    if len(args) != 1:
        return normed
    (x,) = args
    probe = LOUD * torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(0)).double()
    probe = probe.expand_as(x)
    centres = torch.allclose(module.forward(probe + 3 * LOUD), module.forward(probe), atol=1e-3)
    spread = x - x.mean(-1, keepdim=True) if centres else x
    return module.forward(LOUD * x).double() * spread.square().mean(-1, keepdim=True).sqrt()


def _identity(module: nn.Module, args: tuple[Any, ...], normed: torch.Tensor) -> torch.Tensor:
    return args[0] if len(args) == 1 else normed


def observed(
    tiny: TinyModel,
    model: PreTrainedModel,
    places: Ends,
    index: int,
    convention: Convention,
    tokens: Array,
) -> dict[Circuit, Array]:
    """One layer's circuits as the model computes them on token ids, for all its heads.

    "qk" (n_heads, tokens, tokens), "ov" (n_heads, n_tokens, tokens). Biases are zeroed, norms lose
    their division (``raw``: are taken out), the layer reads the embedded tokens themselves, as
    stored or as they reach the first layer, and what one head writes is what the final norm and,
    next to it, the unembedding read. Tokens are so loud that terms of position are lost in their
    scores.
    """
    (stack,) = tiny.stacks
    n = len(tokens)
    model = copy.deepcopy(model)
    folded = convention == "folded"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or any(part in name for part in _POSITIONS):
                parameter.zero_()
    layers = stack.layers_of(model)
    attention = layers[index].get_submodule(stack.attention)
    ids = torch.as_tensor(tokens).repeat(stack.n_heads, 2)
    stored: torch.Tensor = model.get_submodule(places.embed).weight.detach()
    stream = [] if folded else [LOUD * stored[ids]]
    scores: list[torch.Tensor] = []
    written: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []

    def feed(source: list[torch.Tensor], module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (source[0], *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": source[0]}

    def keep_stream(module: nn.Module, args: Any, kwargs: Any) -> None:
        stream.append(LOUD * (args[0] if args else kwargs["hidden_states"]))

    def keep(into: list[torch.Tensor], module: nn.Module, args: Any, output: Any) -> None:
        into.append(output[0] if isinstance(output, tuple | list) else output)

    def silence(part: slice, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[..., part] = 0.0
        return output

    for module in model.modules():
        if _is_norm(module):
            module.register_forward_hook(_undivided if folded else _identity)
    for name, part in stack.silent.items():
        attention.get_submodule(name).register_forward_hook(partial(silence, part))
    layers[0].register_forward_pre_hook(keep_stream, with_kwargs=True)
    entrance = layers[index].get_submodule(stack.entrance)
    entrance.register_forward_pre_hook(partial(feed, stream), with_kwargs=True)
    writer = layers[index].get_submodule(stack.writer or stack.attention)
    writer.register_forward_hook(partial(keep, written))
    head = model.get_submodule(places.head)
    leaving = written
    if places.final_norm is not None:
        leaving = []
        final_norm = model.get_submodule(places.final_norm)
        final_norm.register_forward_pre_hook(partial(feed, written), with_kwargs=True)
        final_norm.register_forward_hook(partial(keep, leaving))
    head.register_forward_pre_hook(partial(feed, leaving), with_kwargs=True)
    head.register_forward_hook(partial(keep, logits))

    with ExitStack() as patches:
        patches.enter_context(heads_apart(stack, attention, 2 * n, scores))
        patches.enter_context(torch.no_grad())
        # Constants that a model makes on its way are of the default dtype.
        patches.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        model(**{**tiny.inputs(stack.n_heads, 2 * n), "input_ids": ids})
    # Under a causal mask each of the second half sees all of the first.
    score, logit = scores[0][:, n:, :n] / LOUD**2, logits[0].double()[:, n:] / LOUD
    if not folded:
        score = score / stack.scaling(attention)
    else:  # softmax does not see what all logits share
        logit = logit - logit.mean(-1, keepdim=True)
    return {"qk": score.numpy(), "ov": logit.mT.numpy()}


def singular_values(circuits: Array) -> Array:
    """(n_heads, n_tokens), descending."""
    return np.linalg.svd(circuits, compute_uv=False)


def eigenvalues(circuits: Array) -> Array:
    """(n_heads, n_tokens) complex, in no order."""
    with threadpool_limits(1):  # LAPACK's threads wait for each other on matrices this small
        return np.linalg.eigvals(circuits).astype(np.complex128)


def symmetric(circuits: Array) -> Array:
    """(n_heads, n_tokens): eigenvalues of ½(F + Fᵀ), ascending."""
    return np.linalg.eigvalsh(0.5 * (circuits + circuits.swapaxes(1, 2)))


def antisymmetric(circuits: Array) -> Array:
    """(n_heads, n_tokens): θ of the eigenvalues iθ of ½(F − Fᵀ), ascending, of both signs."""
    return np.linalg.eigvalsh(0.5j * (circuits - circuits.swapaxes(1, 2)))


def set_error(found: Array, wanted: Array, largest: Array | None = None) -> float:
    """Largest distance of matched values, head by head, relative to the largest wanted modulus,
    or to ``largest`` (n_heads,).

    Both (n_heads, any number of values), real or complex, in any order; what one side has more
    must be matched by zeros.
    """
    width = max(found.shape[1], wanted.shape[1])
    found, wanted = (np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in (found, wanted))
    if largest is None:
        largest = np.abs(wanted).max(axis=1)
    errors = []
    for one, other, scale in zip(found, wanted, largest, strict=True):
        distance = np.abs(one[:, None] - other[None, :])
        errors.append(distance[linear_sum_assignment(distance)].max() / (scale or 1.0))
    return float(max(errors))
