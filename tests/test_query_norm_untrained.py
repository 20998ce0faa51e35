"""The untrained twin of a model: of its shape, and of nothing that it has learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from tiny_base import randomise
from tiny_models import TINY_MODELS
from torch import nn

from qk_taxonomy.studies.query_norm.capture import capture
from qk_taxonomy.studies.query_norm.models import OpenModel, opened, untrained

TOKENS = np.random.default_rng(3).integers(3, 40, size=24)


def own(model_type: str, dtype: torch.dtype = torch.float32) -> OpenModel:
    config = TINY_MODELS[model_type].transformers_config()
    model = transformers.AutoModel.from_config(config)
    randomise(model)
    return opened(model.to(dtype), None, name=model_type, revision="1" * 40)


def weights(model: OpenModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.model.named_parameters()}


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bert", "gemma3_text", "falcon", "jamba"])
def test_it_has_the_shape_of_the_model_and_the_weights_that_training_begins_with(
    model_type: str,
) -> None:
    model = own(model_type)
    before, state = weights(model), torch.get_rng_state()
    twin = untrained(model)
    assert type(twin.model) is type(model.model)
    assert (twin.name, twin.revision) == (f"an untrained {model_type}", "1" * 40)
    assert (twin.causal, twin.longest) == (model.causal, model.longest)
    found = weights(twin)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in before.items()}
    spread = model.model.config.initializer_range
    for name, module in twin.model.named_modules():
        if isinstance(module, nn.Linear) and "in_proj" not in name:
            assert module.weight.std().item() == pytest.approx(spread, rel=0.35), name
    # The model is as it was, and so is chance for all else.
    for name, value in weights(model).items():
        assert torch.equal(value, before[name])
    assert torch.equal(torch.get_rng_state(), state)
    sample = capture(twin, TOKENS, name="text")
    assert [layer.n_heads for layer in sample.layers] == [
        layer.n_heads for layer in capture(model, TOKENS, name="text").layers
    ]


def test_its_weights_hang_on_the_seed_alone() -> None:
    model = own("llama", torch.bfloat16)
    first, again, other = (weights(untrained(model, seed=seed)) for seed in (0, 0, 1))
    assert {value.dtype for value in first.values()} == {torch.bfloat16}
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "layers.0.self_attn.q_proj.weight"
    assert not torch.equal(first[name], other[name])
    torch.manual_seed(5)
    assert torch.equal(weights(untrained(model))[name], first[name])


def test_it_attends_nearly_evenly() -> None:
    """As nothing tells keys apart yet: entropy is that of the number of keys."""
    sample = capture(untrained(own("llama")), TOKENS, name="text")
    for layer in sample.layers:
        assert np.nanmin(layer.values["normalised_entropy"]) > 0.999
