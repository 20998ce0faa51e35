"""Runs of the superposition study that were planted, not trained: what they hold is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qk_taxonomy.studies.superposition.config import SuperpositionConfig, Target, Training
from qk_taxonomy.studies.superposition.records import Instances, Snapshot, SuperpositionRun

TARGETS = (Target(2, 4, 1.0), Target(5, 8, 2.0))


def superposition_run(
    probabilities: Sequence[float],
    *,
    n: int = 30,
    m: int = 15,
    r: int = 10,
    n_seeds: int = 1,
    targets: tuple[Target, ...] = TARGETS,
    training: Training = "joint",
    name: str = "planted",
    steps: int = 1000,
) -> SuperpositionRun:
    """A run at whose end the first m features are orthonormal, others are antipodes of those.

    The denser, the fewer others there are: at p = 1 none, below p = ½ as many as there can be.
    Ω is the sum of the first r targets' weight · W_i W_jᵀ, and noise of a thousandth.
    """
    config = SuperpositionConfig(
        name, "", tuple(probabilities), targets, n_features=n, d_hidden=m, d_head=r,
        n_seeds=n_seeds, training=training, steps=steps, snapshots=9,
    )  # fmt: skip
    instances = Instances.of(config)
    rng = np.random.default_rng(0)
    n_instances = len(instances.seed)
    w = np.zeros((n_instances, m, n))
    a, b = (1e-3 * rng.standard_normal((n_instances, r, m)) for _ in range(2))
    for number, p in enumerate(instances.probability):
        q = np.linalg.qr(rng.standard_normal((m, m)))[0]
        n_others = round(min(n - m, m) * min(1.0, 2 * (1 - p)))
        w[number, :, :m] = q
        w[number, :, m : m + n_others] = -q[:, ::-1][:, :n_others]
        for row, target in enumerate(targets[:r]):
            a[number, row] = target.weight * w[number, :, target.i]
            b[number, row] = w[number, :, target.j]
    bias = np.where(np.linalg.norm(w, axis=1) > 0, 0.0, instances.probability[:, None] / 2)
    starts = [0.3 * rng.standard_normal(one.shape) for one in (w, a, b)]
    snapshots, start = [], 0
    for phase, n_steps in config.phases:
        for step in (one for one in config.snapshot_steps if start <= one <= start + n_steps):
            done = np.log1p(step - start) / np.log1p(n_steps)
            of_w = done if phase != "heads" else 1.0
            of_head = done if phase != "representations" else 0.0
            shares = (of_w, of_head, of_head)
            ends = [
                (share * end + (1 - share) * begin).astype(np.float32)
                for share, end, begin in zip(shares, (w, a, b), starts, strict=True)
            ]
            if not snapshots or snapshots[-1].step < step:
                snapshots.append(
                    Snapshot(step, phase, ends[0], (of_w * bias).astype(np.float32), *ends[1:])
                )
        start += n_steps
    marks = np.array(config.marks, dtype=np.int64)
    noise = np.exp(0.2 * rng.standard_normal((2, len(marks), n_instances)))
    losses = 0.05 * instances.probability / (1.0 + marks[:, None] / 50) * noise
    return SuperpositionRun(
        config, instances, marks, losses[0], losses[1] ** 1.3, tuple(snapshots),
        (targets,) * n_instances, (),
    )  # fmt: skip
