"""Layouts: every attention layer of a checkpoint, planned from its config and its tensors' names.

Nothing here reads weights: names and shapes are enough. Where a config and the shapes disagree the
model is refused, naming both; where the config says nothing the shapes decide.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qk_taxonomy.architectures.stack import StackPlans, Tensors, how_to_add
from qk_taxonomy.architectures.table import Architecture, architecture_table, named_architecture
from qk_taxonomy.errors import LayoutError
from qk_taxonomy.records import AttentionLayout

# Characters of a model's type; the longest real one has 38.
_LONGEST_TYPE = 120


def attention_layout(
    config: Mapping[str, Any],
    tensors: Tensors,
    architecture: str | None = None,
    *,
    untrained: bool = False,
) -> AttentionLayout:
    """Plan every attention layer of a checkpoint from its config and its tensors' names and shapes.

    ``architecture`` names a row of the table where the config does not. ``untrained``: also work
    out how the architecture's initialiser draws the projections (``LayerPlan.init_std``). Raises
    LayoutError where no row describes the model, a layer or tensor is missing, a shape contradicts
    the config, or the config lacks what the initialiser takes.
    """
    if architecture is not None:
        return _layout(named_architecture(architecture), config, tensors, untrained)
    model_type = config.get("model_type")
    if model_type is None:
        return _recognised(config, tensors, untrained)
    table = architecture_table()
    if isinstance(model_type, str) and model_type in table.without_attention:
        raise LayoutError(
            f"A {model_type} model has no attention heads ({table.without_attention[model_type]}), "
            "so there is nothing to survey."
        )
    row = table.model_types.get(model_type) if isinstance(model_type, str) else None
    if row is None:
        raise _unknown(model_type, config, tensors)
    return _layout(row, config, tensors, untrained)


def _recognised(config: Mapping[str, Any], tensors: Tensors, untrained: bool) -> AttentionLayout:
    """The layout of a config without a ``model_type``, where all rows that fit agree on it."""
    found = []
    for row in architecture_table().rows.values():
        if row.model_types and not row.wraps:
            try:
                found.append(_layout(row, config, tensors, untrained))
            except LayoutError:
                continue
    if found and all(layout.layers == found[0].layers for layout in found):
        note = f"config.json names no model_type; the tensors are those of {found[0].architecture}"
        return replace(found[0], notes=(note, *found[0].notes))
    raise LayoutError(
        "config.json names no model_type, and the names and shapes of the tensors fit "
        + (
            f"several architectures ({', '.join(layout.architecture for layout in found)}), which "
            "compute different things. Say which one it is with --architecture."
            if found
            else f"no architecture of the table. {how_to_add(tensors)}"
        )
    )


def _unknown(model_type: Any, config: Mapping[str, Any], tensors: Tensors) -> LayoutError:
    known = architecture_table().model_types
    shown = f"{model_type!r:.60}"
    near = difflib.get_close_matches(f"{model_type!s:.60}", known, n=3)
    hint = f" Near it: {', '.join(near)}." if near else ""
    code = (
        " (config.json names code of its own under auto_map, which is never run)"
        if "auto_map" in config
        else ""
    )
    return LayoutError(
        f"The architecture {shown} is not in the table{code}, so nothing was computed. "
        f"The table has {len(known)} others, listed in catalog/README.md.{hint} "
        f"{how_to_add(tensors)}"
    )


def _layout(
    row: Architecture, config: Mapping[str, Any], tensors: Tensors, untrained: bool
) -> AttentionLayout:
    said = config.get("model_type")
    model_type = said if isinstance(said, str) and len(said) <= _LONGEST_TYPE else row.name
    notes = [row.note] if row.note else []
    prefixes: Sequence[str] = ("",)
    if row.wraps is not None:
        prefixes = row.prefixes
        row, config = _held(row, row.wraps, config)
        notes += [row.note] if row.note else []
    stacks = [
        StackPlans(stack, stack.config(config), tensors, prefixes, untrained)
        for stack in row.stacks
    ]
    found = [stack for stack in stacks if stack.numbers]
    if not found:
        raise stacks[0].nothing(row.name)
    plans = [plan for stack in found for plan in stack.plans(row.name)]
    notes += [note for stack in found for note in stack.notes]
    notes += [
        f"there is no {s.row.name} stack in this checkpoint" for s in stacks if s not in found
    ]
    skipped = {place: why for stack in found for place, why in stack.skipped.items()}
    return AttentionLayout(
        row.name,
        model_type,
        tuple(plans),
        skipped,
        (*notes, *_summary(skipped)),
        {stack.row.name: stack.config for stack in found},
    )


def _held(
    row: Architecture, wraps: str, config: Mapping[str, Any]
) -> tuple[Architecture, Mapping[str, Any]]:
    """The row of the model that another one holds, and its config."""
    nested = config.get(wraps)
    if not isinstance(nested, Mapping):  # earlier versions said it all in one table
        nested = {key: value for key, value in config.items() if key != "model_type"}
    config = {**(row.config or {}), **nested}
    inner = config.get("model_type")
    held = architecture_table().model_types.get(inner) if isinstance(inner, str) else None
    if held is None or held.wraps is not None:
        raise LayoutError(
            f"A {row.name} model holds another under {wraps} of config.json, whose "
            f"architecture {inner!r:.60} is not in the table, so nothing was computed."
        )
    return held, {**row.left_out.get(str(inner), {}), **config}


def _summary(skipped: Mapping[str, str]) -> list[str]:
    """One sentence a reason, naming the places that share it."""
    reasons: dict[str, list[str]] = {}
    for place, reason in skipped.items():
        reasons.setdefault(reason, []).append(place)
    return [
        f"{len(places)} without attention of their own ({reason}): {', '.join(places)}"
        for reason, places in reasons.items()
    ]
