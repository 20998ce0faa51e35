"""The study's questions, each answered by numbers over seeds and a line that says them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from qk_taxonomy.studies.superposition.answers.capacity import capacity
from qk_taxonomy.studies.superposition.answers.factors import factors
from qk_taxonomy.studies.superposition.answers.order import order_in_training
from qk_taxonomy.studies.superposition.answers.records import (
    Answer,
    Effects,
    mean_over_seeds,
    with_interval,
)
from qk_taxonomy.studies.superposition.answers.recovery import recovery
from qk_taxonomy.studies.superposition.measured import MeasuredRun

__all__ = [
    "QUESTIONS", "Answer", "Effects", "capacity", "factors", "mean_over_seeds",
    "order_in_training", "recovery", "with_interval",
]  # fmt: skip

#: How the question of a preset is answered by all its runs, in whatever order they come.
QUESTIONS: Mapping[str, Callable[[Sequence[MeasuredRun]], Answer]] = {
    "basic": recovery,
    "indicator": recovery,
    "sparse-limit": recovery,
    "softmax": recovery,
    "dynamics": order_in_training,
    "head-size": capacity,
    "tegum": factors,
}
