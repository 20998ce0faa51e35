"""Captured attention against transformers' own, on tiny models of many architectures."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from attention_oracle import (
    CASES,
    N_HEADS,
    N_TOKENS,
    ROWS,
    TOKENS,
    Case,
    Tensor,
    eager,
    entropies,
    hooked,
    naive,
    same,
)
from numpy.typing import NDArray
from tiny_base import randomise
from tiny_models import TINY_MODELS

from qk_taxonomy.errors import StudyError
from qk_taxonomy.studies.query_norm import watch as watch_module
from qk_taxonomy.studies.query_norm.attention import observed
from qk_taxonomy.studies.query_norm.capture import capture
from qk_taxonomy.studies.query_norm.models import opened, run

pytestmark = pytest.mark.usefixtures("small_blocks")


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


class TestRefusals:
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
