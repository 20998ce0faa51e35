"""Models in training whose heads' paths are planted: weights that drift, some their own way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from planted import layer_of, model_of
from untrained import Shape

from qk_taxonomy.cache import write_spectra
from qk_taxonomy.hypotheses.heads import HeadSet
from qk_taxonomy.records import ModelSpectra
from qk_taxonomy.studies.evolution import Revisions

Array = NDArray[np.float64]

SHAPE = Shape(layers=6, heads=8, kv_heads=8, d_head=16, d_model=128)
STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)


def drifting(
    rng: np.random.Generator,
    shape: Shape = SHAPE,
    steps: Sequence[int] = STEPS,
    *,
    growth: float = 1.0,
    odd: Sequence[int] = (),
) -> Array:
    """λ (steps, heads, d_head) of heads that begin untrained and grow a few directions.

    Each adds a product of rank 3 to its Gaussian queries and keys, ``growth`` (of a random size a
    head) times the spectral norm of what is there at the last step, less in proportion to
    log(1 + step) before; 0: no head ever changes. Heads in ``odd`` grow all of it, tenfold, by the
    second step.
    """
    e, d = shape.d_head, shape.d_model
    w_q, w_k = rng.standard_normal((2, shape.n, e, d))
    a_q, a_k = (np.linalg.qr(rng.standard_normal((shape.n, e, 3)))[0] for _ in range(2))
    b = np.linalg.qr(rng.standard_normal((shape.n, d, 3)))[0]
    times = np.log1p(steps) / np.log1p(steps[-1])
    size = growth * np.exp(0.3 * rng.standard_normal(shape.n)) * (np.sqrt(d) + np.sqrt(e))
    speed = np.exp(0.2 * rng.standard_normal(shape.n))
    found = []
    for time in times:
        scale = size * time**speed
        for head in odd:
            scale[head] = 10 * size[head] * (time > 0)
        q = w_q + scale[:, None, None] * (a_q @ b.mT)
        k = w_k + scale[:, None, None] * (a_k @ b.mT)
        r_q, r_k = (np.linalg.qr(w.mT, mode="r") for w in (q, k))
        found.append(np.linalg.svd(r_q @ r_k.mT, compute_uv=False) ** 2)
    return np.stack(found)


def untrained_steps(rng: np.random.Generator, n_steps: int, shape: Shape = SHAPE) -> Array:
    """λ (steps, heads, d_head) of models that are untrained at every step, each drawn anew."""
    w_q, w_k = rng.standard_normal((2, n_steps * shape.n, shape.d_head, shape.d_model))
    r_q, r_k = (np.linalg.qr(w.mT, mode="r") for w in (w_q, w_k))
    sigma = np.linalg.svd(r_q @ r_k.mT, compute_uv=False)
    return np.asarray(np.square(sigma).reshape(n_steps, shape.n, shape.d_head))


def models_of(lam: Array, shape: Shape = SHAPE) -> list[ModelSpectra]:
    """A model a step of λ (steps, heads, d_head); d_model is 8 d_head, as ``planted`` says."""
    assert shape.d_model == 8 * shape.d_head
    by_layer = lam.reshape(len(lam), shape.layers, shape.heads, shape.d_head)
    return [model_of([layer_of(x, i) for i, x in enumerate(step)]) for step in by_layer]


def revisions_of(lam: Array, steps: Sequence[int] = STEPS, shape: Shape = SHAPE) -> Revisions:
    """Those models as :func:`load_revisions` would find them."""
    sets = tuple(
        HeadSet(
            path=Path(f"data/mine/model@step{step}.safetensors"),
            stack="",
            circuit="qk",
            convention="raw",
            spectra=model,
            layers=model.layers,
        )
        for step, model in zip(steps, models_of(lam, shape), strict=True)
    )
    return Revisions("", sets, tuple(f"step{step}" for step in steps), tuple(steps))


def write_revisions(
    root: Path, lam: Array, names: Sequence[str], *, model: str = "model", shape: Shape = SHAPE
) -> None:
    """Their spectra files: ``<root>/data/mine/<model>@<name>``, or without @ where it is ""."""
    folder = root / "data" / "mine"
    for name, spectra in zip(names, models_of(lam, shape), strict=True):
        stem = f"{model}@{name}" if name else model
        write_spectra(folder / f"{stem}.safetensors", spectra)
