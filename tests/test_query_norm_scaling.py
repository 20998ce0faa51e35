"""Queries and keys of some heads times a factor."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from attention_oracle import (
    CASES,
    TOKENS,
    same_samples,
    sampled,
)

from qk_taxonomy.errors import StudyError
from qk_taxonomy.studies.query_norm.capture import capture
from qk_taxonomy.studies.query_norm.models import opened
from qk_taxonomy.studies.query_norm.scaling import scale_queries

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
