"""Controls of a surveyed model: what is surveyed in its place, by the same path.

The **random twin** is the model before training: the same shapes, drawn with the architecture's own
initialiser. What its heads have, heads have without having learnt anything.

The **one-layer twin** is the first attention layer of each stack alone, with the model's own
weights: a control where depth matters, since it has what a model of one layer could have of these
heads. It is not a model of one layer that was trained as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qk_taxonomy.architectures import attention_layout, vocabulary_plan
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.checkpoints.random_twin import RandomTwin
from qk_taxonomy.errors import LayoutError, QKTaxonomyError
from qk_taxonomy.records import (
    CONTROL_KINDS,
    AttentionLayout,
    Control,
    LayerPlan,
    VocabularyPlan,
)


def make_control(kind: str, seed: int = 0) -> Control:
    """The control of that kind; ``seed``, from 0 on, is for a random twin.

    Raises QKTaxonomyError for another kind or seed.
    """
    for known in CONTROL_KINDS:
        if kind == known and seed >= 0:
            return Control(known, seed if known == "random" else 0)
    raise QKTaxonomyError(
        f"There is no control {kind!r} with seed {seed}; wanted {' or '.join(CONTROL_KINDS)}, and "
        "a seed that is not negative."
    )


def surveyed(
    checkpoint: Checkpoint, architecture: str | None, control: Control | None
) -> tuple[Checkpoint, AttentionLayout]:
    """The checkpoint to read and its layout, for a model or for a control of it.

    ``architecture`` as in :func:`attention_layout`. Raises LayoutError.
    """
    untrained = control is not None and control.kind == "random"
    layout = attention_layout(
        checkpoint.config, checkpoint.tensors, architecture, untrained=untrained
    )
    if control is None:
        return checkpoint, layout
    if control.kind == "random":
        return _random_twin(checkpoint, layout, control.seed)
    return checkpoint, _one_layer_twin(layout)


def _random_twin(
    checkpoint: Checkpoint, layout: AttentionLayout, seed: int
) -> tuple[RandomTwin, AttentionLayout]:
    twin = RandomTwin(checkpoint, layout.layers, seed, _vocabulary(checkpoint, layout))
    layers = tuple(
        replace(
            plan, tensors={role: twin.tensors[info.name] for role, info in plan.tensors.items()}
        )
        for plan in layout.layers
    )
    note = (
        f"these are not the model's weights but its random twin's, drawn with seed {seed}: gains "
        f"of norms are 1, projections normal, of standard deviation {_deviations(layout.layers)}"
    )
    return twin, replace(layout, layers=layers, notes=(note, *layout.notes))


def _vocabulary(checkpoint: Checkpoint, layout: AttentionLayout) -> VocabularyPlan | None:
    """The vocabulary of a model, to be drawn anew; None where heads are all there is of it."""
    try:
        return vocabulary_plan(checkpoint.config, checkpoint.tensors, layout, untrained=True)
    except LayoutError:
        # Whoever needs it asks the twin, and is told as of the model; the heads' twin is whole.
        return None


def _deviations(plans: Sequence[LayerPlan]) -> str:
    """Standard deviations by stack and role, those of one value together, or from least to most."""
    found: dict[str, dict[str, list[str]]] = {}
    for stack in dict.fromkeys(plan.stack for plan in plans):
        drawn = [plan.init_std for plan in plans if plan.stack == stack]
        for role in dict.fromkeys(role for deviations in drawn for role in deviations):
            values = [deviations[role] for deviations in drawn if role in deviations]
            ends = dict.fromkeys(f"{end:.4g}" for end in (min(values), max(values)))
            found.setdefault(stack, {}).setdefault(" to ".join(ends), []).append(role)
    sentences = []
    for stack, by_value in found.items():
        parts = [f"{value} for {', '.join(roles)}" for value, roles in by_value.items()]
        sentences.append(f"{stack} {'; '.join(parts)}".strip())
    return "; ".join(sentences)


def _one_layer_twin(layout: AttentionLayout) -> AttentionLayout:
    first: dict[str, LayerPlan] = {}
    for plan in layout.layers:
        first.setdefault(plan.stack, plan)
    places = ", ".join(f"{stack} layer {plan.layer}".strip() for stack, plan in first.items())
    note = f"this is the model's one-layer twin: of its layers, {places} alone"
    return replace(layout, layers=tuple(first.values()), notes=(note, *layout.notes))
