"""Surveyed spectra against the bilinear forms that the models themselves compute.

The expected values are read off a model's behaviour: chosen vectors go into its layers, and its
own pre-softmax scores and its own attention output come back. No weight is looked at.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from tiny_models import BASE_MODELS, TINY_MODELS, VARIANTS, TinyModel
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from qk_taxonomy.architectures import architecture_table
from qk_taxonomy.cache import load_spectra
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.circuits.conventions import Factor, circuit_factors
from qk_taxonomy.records import (
    CIRCUITS,
    CONVENTIONS,
    Circuit,
    Convention,
    LayerPlan,
    LayerSpectra,
    Norm,
)
from qk_taxonomy.survey import survey_model

# Worst errors of σ and μ, relative to a head's largest. The survey's file is float32, and so is
# part of what models compute: every RMSNorm, and the scores of GPT-Neo and GPT-J, whose rounding
# the eigenvalues of a non-normal matrix enlarge.
TOLERANCES = np.array([1e-6, 1e-4])

# Into a layer that begins with a norm go vectors so long that the norm's epsilon is lost in them.
LOUD = 1e6

PAIRS = [(circuit, convention) for circuit in CIRCUITS for convention in CONVENTIONS]

Heads = NDArray[np.float64]  # (n_heads, d_model, d_model)


@dataclass(frozen=True)
class Surveyed:
    """A model's spectra file, and what the model computes: one entry a layer."""

    spectra: Mapping[tuple[Circuit, Convention], tuple[LayerSpectra, ...]]
    computed: Mapping[tuple[Circuit, Convention], tuple[Heads, ...]]


def feed(module: nn.Module, tokens: torch.Tensor) -> RemovableHandle:
    """Make ``module`` read ``tokens`` instead of the hidden states it is given."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (tokens, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": tokens}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def only_gain(module: nn.Module, args: tuple[torch.Tensor], normed: torch.Tensor) -> torch.Tensor:
    """Undo a norm's division and leave its gain.

    Normed queries and keys are not linear in the hidden states. What ``folded`` keeps of such a
    norm is its gain, so the division alone is taken out of the model.
    """
    return normed * args[0].square().mean(-1, keepdim=True).sqrt()


def no_norm(module: nn.Module, args: tuple[torch.Tensor], normed: torch.Tensor) -> torch.Tensor:
    return args[0]


def observe(
    model: PreTrainedModel, tiny: TinyModel, index: int, convention: Convention
) -> dict[Circuit, Heads]:
    """One layer's circuits, head by head, as the model computes them on basis vectors.

    ``raw`` enters at the attention module, ``folded`` at the layer, before its norm if it has one.
    The tokens are zero and the basis, twice over: under a causal mask each of the second half
    sees all of the first. Differences from the zero token take out every bias, and position 0 for
    all tokens makes rotations cancel.
    """
    text = model.config.get_text_config()
    n_heads, d_model = text.num_attention_heads, text.hidden_size
    layer = tiny.layers_of(model)[index]
    attention = layer.get_submodule(tiny.attention)
    entrance = layer if convention == "folded" else attention
    normed = tiny.norm if convention == "folded" else None
    basis = torch.cat([torch.zeros(1, d_model), torch.eye(d_model)]).double()
    tokens = (LOUD if normed else 1.0) * basis.repeat(n_heads, 2, 1)
    n_tokens = tokens.shape[1]
    # A normed basis vector is this many times itself, or for a LayerNorm times itself centred.
    length = {None: 1.0, "rms": d_model**0.5, "layer": d_model / (d_model - 1) ** 0.5}[normed]

    scores, written = [], []
    forward = attention.forward

    def softmax(logits: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Keep the scores, and let each sequence of the batch have one head, looking at itself."""
        scores.append(logits[0].double())
        weights = torch.zeros(logits.shape, dtype=torch.float64)
        heads = torch.arange(n_heads)
        weights[heads, heads] = torch.eye(n_tokens, dtype=torch.float64)
        return weights

    def watched(*args: Any, **kwargs: Any) -> Any:
        with patch.object(nn.functional, "softmax", softmax):
            return forward(*args, **kwargs)

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        written.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as stack:
        stack.enter_context(feed(entrance, tokens))
        writer = layer.get_submodule(tiny.writer or tiny.attention)
        stack.enter_context(writer.register_forward_hook(keep))
        for name in tiny.qk_norms:
            hook = only_gain if convention == "folded" else no_norm
            stack.enter_context(attention.get_submodule(name).register_forward_hook(hook))
        stack.enter_context(patch.object(attention, "forward", watched))
        stack.enter_context(torch.no_grad())
        ids = torch.zeros(n_heads, n_tokens, dtype=torch.long)
        positions = {"position_ids": ids} if tiny.rotary else {}
        model(input_ids=ids, attention_mask=torch.ones_like(ids), **positions)

    (score,), (output,) = scores, written
    half = d_model + 1
    score = score[:, half:, :half]
    score = (score - score[:, :1] - score[:, :, :1] + score[:, :1, :1])[:, 1:, 1:]
    if convention == "raw":
        score = score / tiny.scaling(attention)
    output = (output - output[:, :1])[:, 1:half]
    return {
        "qk": (score / length**2).numpy(),
        "ov": (output.mT / length).numpy(),
    }


def worst_errors(heads: Heads, spectra: LayerSpectra) -> NDArray[np.float64]:
    """The largest deviations (of σ, of μ) in a layer, relative to each head's largest value.

    Eigenvalues are matched as multisets. Of the d_model singular values of a circuit d_head are
    surveyed; the others must vanish.
    """
    d_head = spectra.singular_values.shape[1]
    errors = []
    for head, sigma, mu in zip(heads, spectra.singular_values, spectra.eigenvalues, strict=True):
        wanted_sigma = np.linalg.svd(head, compute_uv=False)
        found_sigma = np.pad(sigma.astype(np.float64), (0, len(wanted_sigma) - d_head))
        wanted_mu = np.linalg.eigvals(head)
        wanted_mu = wanted_mu[np.argsort(-np.abs(wanted_mu))]
        distance = np.abs(wanted_mu[:d_head, None] - mu.astype(np.complex128))
        matched = distance[linear_sum_assignment(distance)]
        errors.append(
            [
                np.abs(found_sigma - wanted_sigma).max() / wanted_sigma[0],
                matched.max() / np.abs(wanted_mu[0]),
            ]
        )
    worst: NDArray[np.float64] = np.max(errors, axis=0)
    return worst


def survey_tiny(tiny: TinyModel, folder: Path) -> Surveyed:
    model = tiny.build(folder / "model")
    ref = model_ref(str(folder / "model"), family_name="tiny", families=())
    result = survey_model(ref, output_root=folder, circuits=CIRCUITS, conventions=CONVENTIONS)
    assert result.path is not None
    spectra = load_spectra(result.path)
    layers = range(len(tiny.layers_of(model)))
    observed = {
        convention: [observe(model, tiny, layer, convention) for layer in layers]
        for convention in CONVENTIONS
    }
    return Surveyed(
        spectra={pair: spectra.select(*pair) for pair in PAIRS},
        computed={
            (circuit, convention): tuple(layer[circuit] for layer in observed[convention])
            for circuit, convention in PAIRS
        },
    )


def assert_agreement(surveyed: Surveyed, circuit: Circuit, convention: Convention) -> None:
    layers = surveyed.spectra[circuit, convention]
    computed = surveyed.computed[circuit, convention]
    assert [layer.layer for layer in layers] == list(range(len(computed)))
    errors = np.array([worst_errors(*pair) for pair in zip(computed, layers, strict=True)])
    assert (errors <= TOLERANCES).all(), f"worst errors of σ and μ, by layer: {errors.tolist()}"


# Model types of GGUF files have tests of their own (test_gguf.py).
MODEL_TYPES = sorted(t for t in architecture_table().model_types if not t.startswith("gguf-"))


@pytest.fixture(scope="module", params=[*MODEL_TYPES, *VARIANTS, *BASE_MODELS])
def surveyed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Surveyed:
    models = TINY_MODELS | VARIANTS | BASE_MODELS
    if request.param not in models:
        pytest.fail(f"tests/tiny_models.py builds no {request.param} model.")
    return survey_tiny(models[request.param], tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(("circuit", "convention"), PAIRS)
def test_spectra_are_of_what_the_model_computes(
    surveyed: Surveyed, circuit: Circuit, convention: Convention
) -> None:
    assert_agreement(surveyed, circuit, convention)


@pytest.mark.parametrize(
    ("model_type", "mistake", "circuit", "convention"),
    [
        pytest.param("gpt_neox", {"packing": "concatenated"}, "qk", "raw", id="packing-of-q-and-k"),
        pytest.param("gpt_neox", {"packing": "concatenated"}, "ov", "raw", id="packing-of-v"),
        pytest.param("gptj", {"transposed": True}, "qk", "raw", id="axes-of-q-and-k"),
        pytest.param("gptj", {"transposed": True}, "ov", "raw", id="axes-of-v-and-o"),
        pytest.param("gpt_neox", {"input_norm": Norm("rms")}, "qk", "folded", id="centring"),
        pytest.param("gemma", {"input_norm": Norm("rms")}, "ov", "folded", id="offset-of-a-gain"),
        pytest.param("qwen3", {"k_norm": None}, "qk", "folded", id="gain-of-a-key-norm"),
        pytest.param("llama", {"scale": 1.0}, "qk", "folded", id="scale"),
    ],
)
def test_a_wrong_reading_of_the_weights_is_noticed(
    model_type: str,
    mistake: dict[str, Any],
    circuit: Circuit,
    convention: Convention,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def mistaken(plan: LayerPlan, *args: Any) -> tuple[Factor, Factor, float]:
        return circuit_factors(replace(plan, **mistake), *args)

    monkeypatch.setattr("qk_taxonomy.survey.circuit_factors", mistaken)
    surveyed = survey_tiny(TINY_MODELS[model_type], tmp_path)
    with pytest.raises(AssertionError, match="worst errors"):
        assert_agreement(surveyed, circuit, convention)
