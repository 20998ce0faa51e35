"""Queries and keys of some heads times a factor."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from attention_oracle import CASES, TOKENS, same_samples, sampled
from tiny_base import randomise
from tiny_models import TINY_MODELS

from qk_taxonomy.errors import StudyError
from qk_taxonomy.studies.query_norm.capture import capture
from qk_taxonomy.studies.query_norm.models import opened
from qk_taxonomy.studies.query_norm.scaling import ScaledHead, scale_heads

pytestmark = pytest.mark.usefixtures("small_blocks")


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
        same_samples(found, wanted)

    def test_a_scaled_key_changes_its_group(self) -> None:
        case = CASES["llama"]
        model = case.build()
        open_ = opened(model, None, name="llama")
        found = capture(open_, TOKENS, name="text", scale={(0, 1): 0.5}, scaled="key")
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.layers[0].self_attn.k_proj.weight[6:] *= 0.5
        same_samples(found, capture(opened(changed, None, name="llama"), TOKENS, name="text"))
        plain = capture(open_, TOKENS, name="text").layers[0].values["entropy"]
        apart = np.nanmax(np.abs(found.layers[0].values["entropy"] - plain), axis=1) > 1e-3
        assert apart.tolist() == [False, False, True, True]

    def test_heads_that_are_not_there(self) -> None:
        with pytest.raises(StudyError, match=r"Layer 0 has 4 heads of queries.*\[7\]"):
            sampled("llama", scale={(0, 7): 2.0})
        with pytest.raises(StudyError, match=r"Layer 0 has 2 heads of keys.*\[3\]"):
            sampled("llama", scale={(0, 3): 2.0}, scaled="key")
        with pytest.raises(StudyError, match="no attention in layer 9"):
            sampled("llama", scale={(9, 0): 2.0})

    @pytest.mark.parametrize("name", CASES)
    def test_the_identity_of_slopes_and_gains(self, name: str) -> None:
        open_ = opened(CASES[name].build().to(CASES[name].exact), None, name=name)
        heads = [ScaledHead(0, 1), ScaledHead(1, 0), ScaledHead(1, 3)]
        result = scale_heads(open_, TOKENS, heads)
        assert result.heads == tuple(heads)
        assert result.deviation.max() < 1e-3
        # All scores do not grow with the query where there is a cap, a sink or a bias.
        if name not in ("gemma2", "gpt_oss") and not CASES[name].biased:
            assert (np.diff(result.entropy, axis=1) < 0).all()
        plain = capture(open_, TOKENS, name="text")
        one = int(np.flatnonzero(result.alphas == 1.0)[0])
        for row, (layer, head, _) in enumerate(heads):
            values = plain.layers[layer].values
            assert result.entropy[row, one] == pytest.approx(np.nanmean(values["entropy"][head]))
            assert result.predicted[row, one] == pytest.approx(-np.nanmean(values["gain"][head]))

    @pytest.mark.parametrize("name", ["gemma2", "mpt"])
    def test_entropies_are_those_of_scaled_queries(self, name: str) -> None:
        open_ = opened(CASES[name].build(), None, name=name)
        result = scale_heads(open_, TOKENS, [ScaledHead(0, 2)], alphas=[0.5, 1.0, 1.5])
        for column, alpha in enumerate(result.alphas):
            sample = capture(open_, TOKENS, name="text", scale={(0, 2): float(alpha)})
            wanted = np.nanmean(sample.layers[0].values["entropy"][2])
            assert result.entropy[0, column] == pytest.approx(wanted, rel=1e-5)

    @pytest.mark.parametrize(
        ("name", "group"), [("llama", [2, 3]), ("gpt_neo", [1]), ("bloom", [1])]
    )
    def test_entropies_are_those_of_scaled_keys(self, name: str, group: list[int]) -> None:
        """Of all heads whose queries meet them, in the mean; and each as its query's."""
        open_ = opened(CASES[name].build(), None, name=name)
        alphas = [0.5, 1.0, 1.5]
        keys = scale_heads(open_, TOKENS, [ScaledHead(0, 1, "keys")], alphas=alphas)
        for column, alpha in enumerate(keys.alphas):
            scaled = {(0, 1): float(alpha)}
            sample = capture(open_, TOKENS, name="text", scale=scaled, scaled="key")
            wanted = np.nanmean(sample.layers[0].values["entropy"][group])
            assert keys.entropy[0, column] == pytest.approx(wanted, rel=1e-5)
        queries = [ScaledHead(0, head) for head in group]
        own = scale_heads(open_, TOKENS, queries, alphas=alphas)
        for measured in ("entropy", "slope", "predicted"):
            of_keys, of_queries = getattr(keys, measured), getattr(own, measured)
            np.testing.assert_allclose(of_keys[0], of_queries.mean(axis=0), rtol=1e-12)
        assert keys.deviation.max() < 1e-5

    def test_heads_of_keys_that_are_not_there(self) -> None:
        open_ = opened(CASES["llama"].build(), None, name="llama")
        with pytest.raises(StudyError, match=r"Layer 0 has 2 heads of keys.*\[2\]"):
            scale_heads(open_, TOKENS, [ScaledHead(0, 2, "keys"), ScaledHead(0, 3)])


class _TwoStacks(transformers.LlamaPreTrainedModel):
    """Two Llamas one after the other."""

    def __init__(self, config: transformers.LlamaConfig) -> None:
        super().__init__(config)
        self.lower = transformers.LlamaModel(config)
        self.upper = transformers.LlamaModel(config)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, **named: Any) -> Any:
        below = self.lower(input_ids=input_ids, **named)[0]
        return self.upper(inputs_embeds=below, **named)


def test_a_layer_and_a_head_do_not_tell_a_head_of_several_stacks() -> None:
    model = _TwoStacks(TINY_MODELS["llama"].transformers_config())
    randomise(model)
    open_ = opened(model, None, name="two")
    sample = capture(open_, TOKENS, name="text")
    assert [layer.stack for layer in sample.layers[::2]] == ["lower", "upper"]
    with pytest.raises(StudyError, match=r"attends in 2 stacks \(lower, upper\)"):
        capture(open_, TOKENS, name="text", scale={(0, 1): 2.0})
    with pytest.raises(StudyError, match=r"attends in 2 stacks \(lower, upper\)"):
        scale_heads(open_, TOKENS, [ScaledHead(0, 1)])
