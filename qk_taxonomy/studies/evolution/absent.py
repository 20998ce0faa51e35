"""Checkpoints that a model has in the catalogue or on the way, and that are not surveyed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import Literal

from qk_taxonomy.records import Family
from qk_taxonomy.training_steps import choose_checkpoints, training_stage, training_step
from qk_taxonomy.wording import some

# Checkpoints that a sentence names.
_MOST_NAMED = 5

# Fewer steps may be even by chance.
_FEWEST_STEPS = 4

_CHOICES: tuple[Literal["all", "log"], ...] = ("all", "log")


def published_checkpoints(model_ids: Collection[str], families: Iterable[Family]) -> list[str]:
    """The revisions that the catalogue lists for the first of its models that is one of these, or
    whose checkpoints are in a repository that is; [] for none."""
    for family in families:
        for entry in family.models:
            checkpoints = entry.checkpoints
            if checkpoints and {entry.id, checkpoints.repository} & set(model_ids):
                return list(checkpoints.revisions)
    return []


def absence(surveyed: Collection[str], published: Sequence[str], begun: Sequence[str]) -> list[str]:
    """Sentences on revisions that are not there: how many of the published ones are, which of them
    a choice lacks that was all but taken, and which were begun; where none are published, which
    steps of a regular grid are absent.

    A choice of some checkpoints is no lack: single ones are named only where more than half of all,
    or of those that ``--checkpoints log`` takes, are there.
    """
    said = []
    there = [name for name in published if name in surveyed]
    if there and len(there) < len(published):
        told = f"{len(there)} of the {len(published)} published checkpoints are surveyed"
        for how in _CHOICES:
            chosen = choose_checkpoints(published, how)
            lacking = [name for name in chosen if name not in surveyed]
            if 0 < len(lacking) < len(chosen) / 2:
                told += f"; --checkpoints {how} would add {some(lacking, _MOST_NAMED)}"
                break
            if not lacking:
                break
        said.append(told)
    missing = [name for name in begun if name not in surveyed]
    if not published:
        said += _off_the_grid(surveyed, missing)
    if missing:
        said.append(
            f"begun and not whole: {some(missing, _MOST_NAMED)}; the command that began them goes "
            "on with them"
        )
    return said


def _off_the_grid(surveyed: Iterable[str], begun: Iterable[str]) -> list[str]:
    """A sentence on steps that are absent from a grid, where it is unmistakable: of four steps or
    more, whose gaps are multiples of the smallest and mostly equal to it, most of them there.

    A smallest gap of one makes any steps a grid, and powers of two begin like an even one.
    """
    names = list(surveyed)
    steps = sorted({step for name in names if (step := training_step(name)) is not None})
    gaps = [after - before for before, after in pairwise(steps)]
    if len(steps) < _FEWEST_STEPS or any(map(training_stage, names)):
        return []
    width = min(gaps)
    is_even = all(gap % width == 0 for gap in gaps) and 2 * gaps.count(width) > len(gaps)
    if width == 1 or not is_even or all(step.bit_count() < 2 for step in steps):
        return []
    if (steps[-1] - steps[0]) // width >= 2 * len(steps):
        return []
    known = {*steps, *map(training_step, begun)}
    absent = [step for step in range(steps[0], steps[-1], width) if step not in known]
    if not absent:
        return []
    named = some([str(step) for step in absent], _MOST_NAMED)
    are = "is" if len(absent) == 1 else "are"
    return [f"the surveyed steps look like every {width} from {steps[0]} on: {named} {are} absent"]
