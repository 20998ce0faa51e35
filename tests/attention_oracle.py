"""Tiny models of many architectures, and their attention as transformers itself computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tiny_base import randomise
from tiny_models import TINY_MODELS
from torch import nn
from torch.nn import functional

from qk_taxonomy.studies.query_norm.capture import capture
from qk_taxonomy.studies.query_norm.models import opened
from qk_taxonomy.studies.query_norm.records import Sample

N_TOKENS = 24
N_HEADS = 4
TOKENS = np.random.default_rng(3).integers(3, 40, size=N_TOKENS)
ROWS = np.arange(N_TOKENS)

Tensor = torch.Tensor


def _flat(output: Tensor) -> Tensor:
    """(1, T, H · d) by heads: (H, T, d)."""
    return output[0].unflatten(-1, (N_HEADS, -1)).transpose(0, 1)


@dataclass(frozen=True)
class Case:
    """A model, and where its queries are, as its own code names them.

    ``query``: the module of a layer whose output holds the queries after any norm of them;
    ``heads``: (H, T, d) of that output, which the model multiplies by ``times``. ``window``: keys
    that a query of layer i sees. ``biased``: the scores have a part that no query makes.
    ``exact``: the most exact dtype that transformers has it in.
    """

    model_type: str
    layer: str
    query: str
    config: Mapping[str, Any] = field(default_factory=dict)
    heads: Callable[[Tensor], Tensor] = _flat
    window: Callable[[int], int] = lambda i: N_TOKENS
    causal: bool = True
    times: float = 1.0
    biased: bool = False
    exact: torch.dtype = torch.float64

    def build(self) -> transformers.PreTrainedModel:
        config = TINY_MODELS[self.model_type].but(**self.config).transformers_config()
        model = transformers.AutoModel.from_config(config)
        randomise(model)
        return model.eval()

    def module(self, model: nn.Module, layer: int) -> nn.Module:
        return model.get_submodule(f"{self.layer.format(layer)}.{self.query}")


_SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}


def _every_other(layer: int) -> int:
    return 8 if layer == 0 else N_TOKENS


def _first_third(output: Tensor) -> Tensor:
    return _flat(output[..., : output.shape[-1] // 3])


def _first_of_each_head(output: Tensor) -> Tensor:
    by_head = _flat(output)
    return by_head[..., : by_head.shape[-1] // 3]


CASES = {
    "llama": Case("llama", "layers.{}", "self_attn.q_proj"),
    "mistral": Case(
        "mistral", "layers.{}", "self_attn.q_proj", {"sliding_window": 8}, window=lambda i: 8
    ),
    "qwen3": Case(
        "qwen3", "layers.{}", "self_attn.q_norm", heads=lambda output: output[0].transpose(0, 1)
    ),
    "olmo2": Case("olmo2", "layers.{}", "self_attn.q_norm"),
    "gemma2": Case(
        "gemma2",
        "layers.{}",
        "self_attn.q_proj",
        {"attn_logit_softcapping": 2.0, **_SLIDING},
        window=_every_other,
    ),
    "gpt_oss": Case("gpt_oss", "layers.{}", "self_attn.q_proj", _SLIDING, window=_every_other),
    "gpt_neox": Case(
        "gpt_neox", "layers.{}", "attention.query_key_value", heads=_first_of_each_head
    ),
    "gpt2": Case("gpt2", "h.{}", "attn.c_attn", heads=_first_third),
    "opt": Case("opt", "decoder.layers.{}", "self_attn.q_proj", times=(32 / N_HEADS) ** -0.5),
    "bert": Case("bert", "encoder.layer.{}", "attention.self.query", causal=False),
    # By code of their own.
    "bloom": Case(
        "bloom", "h.{}", "self_attention.query_key_value", heads=_first_of_each_head, biased=True
    ),
    "falcon": Case(
        "falcon",
        "h.{}",
        "self_attention.query_key_value",
        heads=lambda output: _flat(output[..., :32]),
    ),
    "falcon-alibi": Case(
        "falcon",
        "h.{}",
        "self_attention.query_key_value",
        {"alibi": True, "multi_query": False, "parallel_attn": False},
        heads=_first_of_each_head,
        biased=True,
    ),
    "gpt_neo": Case(
        "gpt_neo",
        "h.{}",
        "attn.attention.q_proj",
        {"window_size": 8},
        window=lambda i: N_TOKENS if i == 0 else 8,
    ),
    "mpt": Case(
        "mpt",
        "blocks.{}",
        "attn.Wqkv",
        {"attn_config": {"clip_qkv": 8.0}},
        heads=_first_third,
        biased=True,
    ),
    "xglm": Case(
        "xglm", "layers.{}", "self_attn.q_proj", times=(32 / N_HEADS) ** -0.5, exact=torch.float32
    ),
    "openai-gpt": Case("openai-gpt", "h.{}", "attn.c_attn", heads=_first_third),
    "rembert": Case("rembert", "encoder.layer.{}", "attention.self.query", causal=False),
    "mpnet": Case("mpnet", "encoder.layer.{}", "attention.attn.q", causal=False, biased=True),
}


@contextmanager
def hooked(module: nn.Module, hook: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _, __, output: hook(output))
    try:
        yield
    finally:
        handle.remove()


def eager(model: transformers.PreTrainedModel) -> list[NDArray[np.float64]]:
    """(H, T, T) a layer: the probabilities of keys, by transformers' own eager attention."""
    if isinstance(model, transformers.FalconModel):
        return _given_to_torch(model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(torch.from_numpy(TOKENS)[None], use_cache=False, output_attentions=True)
    return [p[0].double().numpy() for p in output.attentions]


def _given_to_torch(model: transformers.PreTrainedModel) -> list[NDArray[np.float64]]:
    """The same from what torch's own attention is called with.

    Falcon's eager attention adds ALiBi a second time, and its output_attentions drop the mask.
    """
    found: list[NDArray[np.float64]] = []
    own = functional.scaled_dot_product_attention

    def record(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor, **named: Any) -> Tensor:
        mask = attn_mask.double()
        if attn_mask.dtype == torch.bool:
            mask = torch.zeros_like(mask).masked_fill(~attn_mask, -torch.inf)
        scores = q.double() @ k.double().mT / np.sqrt(q.shape[-1]) + mask
        found.append(scores.softmax(-1)[0].numpy())
        return own(q, k, v, attn_mask=attn_mask, **named)

    with mock.patch.object(functional, "scaled_dot_product_attention", record), torch.no_grad():
        model(torch.from_numpy(TOKENS)[None], use_cache=False)
    return found


def entropies(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """In nats; what keys lack to 1 is the sink's."""
    rest = np.clip(1 - p.sum(-1, keepdims=True), 0, None)
    p = np.concatenate([p, np.where(rest > 1e-9, rest, 0)], axis=-1)
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)


def naive(p: NDArray[np.float64], allowed: NDArray[np.bool_], sink: bool) -> dict[str, Any]:
    """The measures of one layer but norm and gain, one query at a time."""
    names = ("entropy", "normalised_entropy", "max_attention", "k_eff")
    measures = {
        name: np.full(p.shape[:2], np.nan)
        for name in (*names, "distance", "previous_token", "first_token")
    }
    for head in range(len(p)):
        for i in range(N_TOKENS):
            keys = np.flatnonzero(allowed[i])
            if len(keys) < 3:
                continue
            row = p[head, i]
            entropy = entropies(row[None])[0]
            held = np.cumsum(np.sort(row)[::-1])
            found = {
                "entropy": entropy,
                "normalised_entropy": entropy / np.log(len(keys) + sink),
                "max_attention": row.max(),
                "k_eff": 1 + np.flatnonzero(held >= 0.9 * row.sum())[0],
                "distance": sum(row[j] * abs(i - j) for j in keys) / row.sum(),
                "previous_token": row[i - 1] if i else np.nan,
                "first_token": row[0],
            }
            for name, value in found.items():
                measures[name][head, i] = value
    return measures


def same(found: NDArray[np.float32], wanted: NDArray[np.float64], name: str) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4, err_msg=name)


def sampled(model_type: str, **changes: Any) -> Sample:
    case = CASES[model_type]
    return capture(opened(case.build(), None, name=model_type), TOKENS, name="text", **changes)


def same_samples(found: Sample, wanted: Sample) -> None:
    for one, other in zip(found.layers, wanted.layers, strict=True):
        for measure, values in one.values.items():
            same(values, other.values[measure].astype(np.float64), measure)
