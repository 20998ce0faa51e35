"""Models that attend by code of their own, looked on."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from attention_oracle import (
    CASES,
    TOKENS,
    Tensor,
    same_samples,
    sampled,
)
from tiny_models import TINY_MODELS
from torch.nn import functional

from qk_taxonomy.errors import StudyError
from qk_taxonomy.studies.query_norm.capture import capture
from qk_taxonomy.studies.query_norm.models import opened

pytestmark = pytest.mark.usefixtures("small_blocks")


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


class TestScaledKeys:
    def test_a_scaled_key_of_a_model_that_attends_by_itself(self) -> None:
        model = CASES["gpt_neo"].build()
        open_ = opened(model, None, name="gpt_neo")
        found = capture(open_, TOKENS, name="text", scale={(1, 3): 0.5}, scaled="key")
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.h[1].attn.attention.k_proj.weight[3 * 8 :] *= 0.5
        same_samples(found, capture(opened(changed, None, name="gpt_neo"), TOKENS, name="text"))

    def test_keys_count_as_they_enter_the_product(self) -> None:
        """Falcon has one head of keys, or repeats those of its groups."""
        with pytest.raises(StudyError, match=r"has 1 heads of keys"):
            sampled("falcon", scale={(0, 1): 2.0}, scaled="key")
        config = TINY_MODELS["falcon"].but(new_decoder_architecture=True, num_kv_heads=2)
        model = transformers.AutoModel.from_config(config.transformers_config())
        open_ = opened(model, None, name="falcon")
        with pytest.raises(StudyError, match=r"has 4 heads of keys"):
            capture(open_, TOKENS, name="text", scale={(0, 4): 2.0}, scaled="key")


class TestRefusals:
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
