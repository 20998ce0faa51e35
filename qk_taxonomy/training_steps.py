"""Training steps that names of revisions tell, and the choice of some checkpoints among many."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

from qk_taxonomy.errors import QKTaxonomyError

#: How many of a model's checkpoints to take: all, about one a doubling of the steps, or a number.
CheckpointChoice = Literal["all", "log"] | int

_NUMBER = r"(\d{1,15}(?:\.\d{1,3}(?=[kmbt]))?)([kmbt]?)"

# "step1000", "global_step1000", "checkpoint-500", "ckpt_003", "iter_0001000", "step-50K": a number
# with a word for it, which no word or number goes on with.
_STEP = re.compile(
    r"(?<![a-z])(?:(?:global)?steps?|checkpoint|ckpt|iter(?:ation)?)[-_]?"
    rf"{_NUMBER}(?![a-z0-9]|\.\d)",
    re.IGNORECASE,
)
_TOKENS = re.compile(
    rf"(?<![a-z])tokens?[-_]?{_NUMBER}(?![a-z0-9]|\.\d)|"
    rf"(?<![a-z0-9.]){_NUMBER}[-_]?tokens?(?![a-z0-9])",
    re.IGNORECASE,
)
_STAGE = re.compile(r"(?<![a-z])stage[-_]?(\d{1,9})(?!\d)", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}

# What a table's Int64 holds; no training has as many steps or tokens.
_LARGEST = 2**63 - 1


def training_step(revision: str) -> int | None:
    """The training step that a revision's name tells; None where it tells none, as "main" does.

    Names of published checkpoints are read: ``step1000``, ``global_step1000``, ``checkpoint-500``,
    ``ckpt_003`` (the number of the checkpoint then), ``iter_0001000``, ``step-50K``. A name that
    tells only tokens, such as ``tokens2B``, has these for its step. Where training went in stages
    (:func:`training_stage`), a step is the stage's own.

    >>> training_step("step1000-tokens2B"), training_step("stage2-step500"), training_step("main")
    (1000, 500, None)
    """
    found = _STEP.search(revision) or _TOKENS.search(revision)
    if found is None:
        return None
    number, unit = (part for part in found.groups() if part is not None)
    step = int(Decimal(number) * _UNITS[unit.lower()])
    return step if step <= _LARGEST else None


def training_stage(revision: str) -> int:
    """The stage of training that a revision's name tells, as ``stage2-step500`` does; 0 for none.

    Some models count steps anew in each stage: (stage, step) is in order of training for all.
    """
    found = _STAGE.search(revision)
    return int(found[1]) if found else 0


def choose_checkpoints(revisions: Sequence[str], how: CheckpointChoice) -> list[str]:
    """Some of a model's checkpoints, which are given and returned in order of training.

    "all": every one. "log": the first, the last, and those nearest to powers of two of the step,
    each once. A number N >= 2: so many, as evenly in log(step + 1) as they come, the first and the
    last among them; all where there are no more. Steps that begin anew in a later stage count on
    from the last one's end; where a name tells no step, places in the list stand for steps. Raises
    QKTaxonomyError for N < 2.
    """
    steps = steps_so_far(revisions)
    if how == "all" or not steps:
        return list(revisions)
    chosen = _nearest_to_doublings(steps) if how == "log" else _evenly(steps, how)
    return [revisions[i] for i in chosen]


def steps_so_far(revisions: Sequence[str]) -> list[int]:
    """Steps since training began, which do not fall, of checkpoints in order of training; their
    places in the list where a name tells no step.
    """
    steps = [training_step(name) for name in revisions]
    total: list[int] = []
    before = previous = 0
    for step in steps:
        if step is None:
            return list(range(len(revisions)))
        if step < previous:
            before += previous
        total.append(before + step)
        previous = step
    return total


def _nearest_to_doublings(steps: Sequence[int]) -> list[int]:
    untrained = steps.count(0)
    logs = [math.log2(step) for step in steps[untrained:]]
    powers = range(math.ceil(logs[0]), math.floor(logs[-1]) + 1) if logs else ()
    nearest = {untrained + _nearest(logs, power) for power in powers}
    return sorted({0, *nearest, len(steps) - 1})


def _evenly(steps: Sequence[int], n: int) -> list[int]:
    """``n`` places: each the nearest to its share, among those that leave enough for the rest.
    Raises QKTaxonomyError for fewer than two."""
    if n < 2:
        raise QKTaxonomyError(
            f"At least 2 checkpoints are wanted, the first and the last, not {n}."
        )
    n = min(n, len(steps))
    logs = [math.log1p(step) for step in steps]
    chosen = [0]
    for i in range(1, n):
        wanted = logs[0] + (logs[-1] - logs[0]) * i / (n - 1)
        first, end = chosen[-1] + 1, len(steps) - (n - 1 - i)
        chosen.append(first + _nearest(logs[first:end], wanted))
    return chosen


def _nearest(rising: Sequence[float], wanted: float) -> int:
    """The place of the number nearest to ``wanted``, the earlier of two as near."""
    above = bisect_left(rising, wanted)
    near = [i for i in (above - 1, above) if 0 <= i < len(rising)]
    return min(near, key=lambda i: abs(rising[i] - wanted))
