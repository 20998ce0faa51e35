"""The study's questions, each answered by numbers over seeds and a line that says them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from qk_taxonomy.studies.superposition.answers.capacity import capacity
from qk_taxonomy.studies.superposition.answers.order import order_in_training
from qk_taxonomy.studies.superposition.answers.records import Answer, mean_over_seeds
from qk_taxonomy.studies.superposition.answers.recovery import recovery
from qk_taxonomy.studies.superposition.measured import MeasuredRun

__all__ = [
    "QUESTIONS", "Answer", "answers", "capacity", "mean_over_seeds", "order_in_training",
    "recovery",
]  # fmt: skip

#: The preset that each question is asked of.
QUESTIONS: Mapping[str, Callable[[Sequence[MeasuredRun]], Answer]] = {
    "basic": recovery,
    "dynamics": order_in_training,
    "head-size": capacity,
}


def answers(runs: Mapping[str, Sequence[MeasuredRun]]) -> list[Answer]:
    """What can be answered of the questions by the runs of presets, by their names."""
    return [answer(runs[name]) for name, answer in QUESTIONS.items() if name in runs]
