"""What a transformers model computes, head by head, read off its behaviour.

Chosen vectors go into the model's layers, and its own pre-softmax scores and its own attention
output come back. No weight is looked at, and nothing here comes from qk_taxonomy's mathematics.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from tiny_base import TinyModel, TinyStack
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from qk_taxonomy.cache import load_spectra
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Circuit, Convention, LayerSpectra
from qk_taxonomy.survey import survey_model

# Vectors so long that the epsilon of a norm is lost in them, and terms of position in their scores.
LOUD = 1e6

PAIRS = [(circuit, convention) for circuit in CIRCUITS for convention in CONVENTIONS]

Heads = NDArray[np.float64]  # (n_heads, d_input, d_input)
Place = tuple[str, int]


@dataclass(frozen=True)
class Surveyed:
    """A model's spectra file, and what the model computes, by stack and layer."""

    spectra: Mapping[tuple[Circuit, Convention], Mapping[Place, LayerSpectra]]
    computed: Mapping[tuple[Circuit, Convention], Mapping[Place, Heads]]


class _SeenEnoughError(Exception):
    """The layer looked at has been run; what follows it does not matter."""


def _feed(module: nn.Module, tokens: torch.Tensor, keyword: str = "hidden_states") -> Any:
    """Make ``module`` read ``tokens`` instead of what it is given, once or several times over."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if keyword == "hidden_states" and args:
            return tuple(tokens if arg is args[0] else arg for arg in args), kwargs
        return args, {**kwargs, keyword: tokens}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _feed_memory(attention: nn.Module, tokens: torch.Tensor) -> RemovableHandle:
    """Make cross-attention look at ``tokens``, whatever it calls what it looks at."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        (name,) = {"key_value_states", "encoder_hidden_states"} & kwargs.keys()
        return args, {**kwargs, name: tokens}

    return attention.register_forward_pre_hook(hook, with_kwargs=True)


def _only_gain(module: nn.Module, args: tuple[torch.Tensor], normed: torch.Tensor) -> torch.Tensor:
    """Undo a norm's division, and a bias, and leave its gain (and centring).

    Normed queries and keys are not linear in the hidden states. What ``folded`` keeps of such a
    norm is linear, so the division alone is taken out of the model.
    """
    (x,) = args
    if "LayerNorm" in type(module).__name__ and "RMS" not in type(module).__name__:
        bias = getattr(module, "bias", None)
        centred = x - x.mean(-1, keepdim=True)
        length = centred.square().mean(-1, keepdim=True).sqrt()
        return (normed if bias is None else normed - bias) * length
    # An RMSNorm computes in float32; what it makes of a constant is its gain, without that rounding
    # of every token, which a chain of norms would pass on.
    linear = x * module.forward(torch.full_like(x, LOUD))
    length = x.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(normed * length, linear, rtol=1e-5, atol=1e-5 * float(length.max()))
    return linear


def _no_norm(module: nn.Module, args: tuple[torch.Tensor], normed: torch.Tensor) -> torch.Tensor:
    return args[0]


def _silence(part: slice) -> Callable[..., torch.Tensor]:
    def hook(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[..., part] = 0.0
        return output

    return hook


def _open(gate: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(gate)


@contextmanager
def heads_apart(
    stack: TinyStack, attention: nn.Module, n_tokens: int, scores: list[torch.Tensor]
) -> Iterator[None]:
    """Within, sequence i of the batch gets head i of the attention alone, looking at itself.

    What the module's softmax is given goes to ``scores``: (n_heads, n_tokens, keys), float64.
    """
    forward = attention.forward

    def softmax(logits: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shape = logits.shape
        logits = logits.reshape(stack.n_heads, stack.n_heads, n_tokens, -1)
        scores.append(logits[0].double())
        weights = torch.zeros(logits.shape, dtype=torch.float64)
        heads = torch.arange(stack.n_heads)
        weights[heads, heads, :, :n_tokens] = torch.eye(n_tokens, dtype=torch.float64)
        return weights.reshape(shape)

    def watched(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as patches:
            patches.enter_context(patch.object(nn.functional, "softmax", softmax))
            patches.enter_context(patch.object(torch, "softmax", softmax))
            if stack.gated:
                patches.enter_context(patch.object(torch, "sigmoid", _open))
                patches.enter_context(patch.object(torch.Tensor, "sigmoid", _open))
            return forward(*args, **kwargs)

    with patch.object(attention, "forward", watched):
        yield


def _length(norm: str | None, width: int) -> float:
    """How much longer a loud basis vector, once normed, is than one of length 1 (once centred)."""
    return {None: LOUD, "rms": width**0.5, "layer": width / (width - 1) ** 0.5}[norm]


def observe(
    model: PreTrainedModel, tiny: TinyModel, stack: TinyStack, index: int, convention: Convention
) -> dict[Circuit, Heads]:
    """One layer's circuits, head by head, as the model computes them on basis vectors.

    ``raw`` enters at the attention module, ``folded`` at the layer, before its norm if it has one.
    The tokens are zero and the basis, twice over: under a causal mask each of the second half
    sees all of the first. Differences from the zero token take out every bias, and position 0 for
    all tokens makes rotations cancel.
    """
    width = stack.d_input
    layer = stack.layers_of(model)[index]
    attention = layer.get_submodule(stack.attention)
    folded = convention == "folded"
    norm = stack.norm if folded and index not in stack.unnormed else None
    memory_norm = stack.memory_norm if folded else None
    basis = torch.cat([torch.zeros(1, width), torch.eye(width)]).double()
    basis = basis.repeat(stack.n_heads, 2, 1)
    tokens = LOUD * basis
    n_tokens = tokens.shape[1]

    scores: list[torch.Tensor] = []
    written = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        written.append(output[0] if isinstance(output, tuple | list) else output)
        raise _SeenEnoughError

    with ExitStack() as hooks:
        entrance = layer.get_submodule(stack.entrance) if folded else attention
        hooks.enter_context(_feed(entrance, tokens))
        if stack.cross and folded and stack.memory is not None:
            hooks.enter_context(_feed(model.base_model.get_submodule(stack.memory), tokens))
        elif stack.cross:
            hooks.enter_context(_feed_memory(attention, tokens))
        for name in stack.qk_norms:
            hook = _only_gain if folded else _no_norm
            hooks.enter_context(attention.get_submodule(name).register_forward_hook(hook))
        for name, part in stack.silent.items():
            module = attention.get_submodule(name)
            hooks.enter_context(module.register_forward_hook(_silence(part)))
        writer = layer.get_submodule(stack.writer or stack.attention)
        hooks.enter_context(heads_apart(stack, attention, n_tokens, scores))
        hooks.enter_context(writer.register_forward_hook(keep))
        hooks.enter_context(torch.no_grad())
        # Constants that a model makes on its way are of the default dtype.
        hooks.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        with suppress(_SeenEnoughError):
            model(**tiny.inputs(stack.n_heads, n_tokens))

    (score,), (output,) = scores, written
    half = width + 1
    score = score[:, half:, :half]
    score = (score - score[:, :1] - score[:, :, :1] + score[:, :1, :1])[:, 1:, 1:]
    if not folded:
        score = score / stack.scaling(attention)
    output = output.reshape(stack.n_heads, n_tokens, -1).double()
    d_model = min(width, output.shape[-1])
    output = (output - output[:, :1])[:, 1 : d_model + 1]
    reads_q = _length(norm, width)
    reads_k = _length(memory_norm if stack.cross else norm, width)
    return {
        "qk": (score / (reads_q * reads_k)).numpy(),
        "ov": (output.mT / reads_k).numpy(),
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
    """Build a tiny model, survey what it saved through the public path, and observe it."""
    model, saved = tiny.build(folder / "model")
    ref = model_ref(
        str(saved), family_name="tiny", families=(), architecture=tiny.said_architecture
    )
    result = survey_model(ref, output_root=folder, circuits=CIRCUITS, conventions=CONVENTIONS)
    assert result.path is not None
    spectra = load_spectra(result.path)
    places = [(stack, index) for stack in tiny.stacks for index in stack.numbers(model)]
    observed = {
        convention: {
            (stack.name, index): observe(model, tiny, stack, index, convention)
            for stack, index in places
        }
        for convention in CONVENTIONS
    }
    return Surveyed(
        spectra={pair: {s.place: s for s in spectra.select(*pair)} for pair in PAIRS},
        computed={
            (circuit, convention): {
                place: layer[circuit] for place, layer in observed[convention].items()
            }
            for circuit, convention in PAIRS
        },
    )


def deviation(surveyed: Surveyed, circuit: Circuit, convention: Convention) -> NDArray[np.float64]:
    """Worst errors (of σ, of μ) over all layers, which must be those the model has."""
    layers = surveyed.spectra[circuit, convention]
    computed = surveyed.computed[circuit, convention]
    assert layers.keys() == computed.keys()
    errors = [worst_errors(computed[place], layers[place]) for place in layers]
    worst: NDArray[np.float64] = np.max(errors, axis=0)
    return worst
