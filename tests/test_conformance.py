"""Surveyed spectra against the bilinear forms that the models themselves compute.

The expected values are read off a model's behaviour: chosen vectors go into its layers, and its
own pre-softmax scores and its own attention output come back. No weight is looked at.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qk_taxonomy.records import Circuit, Convention

CIRCUITS: tuple[Circuit, ...] = ("qk", "ov")
CONVENTIONS: tuple[Convention, ...] = ("raw", "folded")

# Of a head's largest value. The survey's file is float32, and so is part of what models compute:
# an RMSNorm everywhere, the scores of GPT-Neo and GPT-J.
TOLERANCE = 1e-5

# Where a norm comes first, its input is so large that the norm's epsilon is lost in it.
LOUD = 1e6

Matrices = NDArray[np.float64]


@dataclass
class Observed:
    """Pre-softmax scores (head, query, key) and outputs (head, token, d_model) of one layer."""

    scores: torch.Tensor | None = None
    written: torch.Tensor | None = None


@contextmanager
def hooks(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def replace_input(module: nn.Module, tokens: torch.Tensor) -> Any:
    """Make ``module`` read ``tokens`` instead of the hidden states it is given."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (tokens, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": tokens}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def only_gain(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    """Undo the division by the root mean square and leave the norm's own gain.

    A normed query is not linear in the hidden state, so the bilinear form that is compared has
    the gain of a query or key norm and not its division.
    """
    return output * args[0].square().mean(-1, keepdim=True).sqrt()


def no_norm(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    return args[0]
