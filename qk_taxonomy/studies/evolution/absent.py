"""Checkpoints that a model has in the catalogue or on the way, and that are not surveyed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from qk_taxonomy.records import Family
from qk_taxonomy.training_steps import choose_checkpoints
from qk_taxonomy.wording import some

# Checkpoints that a sentence names.
_MOST_NAMED = 5

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
    a choice lacks that was all but taken, and which were begun.

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
    if missing:
        said.append(
            f"begun and not whole: {some(missing, _MOST_NAMED)}; the command that began them goes "
            "on with them"
        )
    return said
