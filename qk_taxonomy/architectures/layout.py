"""Layouts: every attention layer of a checkpoint, planned from its config and its tensors' names.

Nothing here reads weights: names and shapes are enough. Where a config and the shapes disagree the
model is refused, naming both; where the config says nothing the shapes decide.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qk_taxonomy.architectures.factors import attention_scale, initial_deviations
from qk_taxonomy.architectures.geometry import check_shapes, head_geometry
from qk_taxonomy.architectures.table import (
    Architecture,
    Stack,
    StackRow,
    architecture_table,
    lookup,
    named_architecture,
)
from qk_taxonomy.errors import LayoutError
from qk_taxonomy.records import (
    AttentionLayout,
    HeadGeometry,
    LayerPlan,
    TensorInfo,
)

# The gain of a norm of queries or keys, from the module of the projections on.
_QUERY_NORM = re.compile(
    r"(?:(?<=\.)|^)(?:attn_)?(?:q|k|qk|query|key)_?(?:layer_?norm|norm|ln)\b.*\.(?:weight|gamma)$"
    r"|(?:(?<=\.)|^)(?:layer_?norm|norm|ln)_?(?:q|k|qk|query|key)\.(?:weight|gamma)$"
)

# A layer's number in the name of a tensor.
_NUMBER = r"0|[1-9][0-9]{0,8}"

# Characters of a model's type; the longest real one has 38.
_LONGEST_TYPE = 120

# Layers, heads or dimensions: a hundred times what the largest models have of any.
_LARGEST_COUNT = 10_000_000

Tensors = Mapping[str, TensorInfo]


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
            else f"no architecture of the table. {_how_to_add(tensors)}"
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
        f"The table has {len(known)} others; the README lists them.{hint} {_how_to_add(tensors)}"
    )


def _how_to_add(tensors: Tensors) -> str:
    telling = (name for name in tensors if re.search(r"att|query|q_proj", name))
    attention = list(itertools.islice(telling, 9)) or list(itertools.islice(tensors, 9))
    names = ", ".join(attention[:8]) or "none"
    return (
        f"Tensors found: {names}{', ...' if len(attention) > 8 else ''}. If it is a known "
        "architecture under another name, say which with --architecture; otherwise add a row to "
        "catalog/architectures.toml of a checkout (README, 'Adding a model, a family, an "
        "architecture')."
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
        _StackPlans(stack, stack.config(config), tensors, prefixes, untrained)
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


def _whole_number(
    config: Mapping[str, Any], keys: Iterable[str], *, of_a_list: bool = False
) -> int | None:
    """The first of ``keys`` that the config has. Raises LayoutError where it is not a count.

    ``of_a_list``: a list counts as many as it has items.
    """
    for key in keys:
        value = lookup(config, key)
        if value is None:
            continue
        if of_a_list and isinstance(value, list):
            value = len(value)
        if type(value) is not int or not 1 <= value <= _LARGEST_COUNT:
            raise LayoutError(
                f"The config says {key} = {value!r:.60}; a positive number is wanted, at most "
                f"{_LARGEST_COUNT:,}."
            )
        return value
    return None


@dataclass
class _StackPlans:
    """The layers of one stack in one checkpoint."""

    row: StackRow
    config: Mapping[str, Any]
    tensors: Tensors
    prefixes: Sequence[str]
    untrained: bool
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @functools.cached_property
    def _any(self) -> Stack:
        """The stack as the config alone decides it, whatever single layers have."""
        return self.row.resolve(self.config, lambda name: False)

    @functools.cached_property
    def _found(self) -> tuple[str, list[int]]:
        """Where the layers stand, and their numbers. Raises LayoutError where several places do."""
        patterns = dict.fromkeys(
            p + pattern for p in self.prefixes for pattern in self.row.patterns
        )
        anchor = self._any.tensors["o"]
        found = {p: _layer_numbers(p, self.tensors, anchor) for p in patterns}
        places = [(pattern, numbers) for pattern, numbers in found.items() if numbers]
        if len(places) > 1:
            raise LayoutError(
                f"The checkpoint holds layers under {' and under '.join(p for p, _ in places)}, "
                "and nothing says which of them the config describes."
            )
        return places[0] if places else ("", [])

    @property
    def numbers(self) -> list[int]:
        return self._found[1]

    def nothing(self, name: str) -> LayoutError:
        example = self.prefixes[0] + self.row.patterns[0].format(i=0) + self._any.tensors["o"]
        return LayoutError(
            f"No layer of a {name} model is in this checkpoint: wanted tensors such as {example}. "
            f"{_how_to_add(self.tensors)}"
        )

    def plans(self, name: str) -> list[LayerPlan]:
        """The stack's plans in order; fills ``notes`` and ``skipped``."""
        for refusal in self._any.refuse:
            value = lookup(self.config, refusal.key)
            if value is not None and value not in refusal.unless:
                raise LayoutError(
                    f"The config says {refusal.key} = {value!r:.60}: {refusal.reason}, which the "
                    f"table's row {name} does not describe, so nothing was computed."
                )
        plans = []
        for number in self._own_layers():
            try:
                plans.append(self._plan(name, number))
            except LayoutError as err:
                raise LayoutError(f"{self._place(number)}: {err}") from err
        first = plans[0]
        layer = self._found[0].format(i=first.layer)
        if not self.row.name and any(name.startswith(f"{layer}cross") for name in self.tensors):
            self.notes.append("its cross-attention is not surveyed")
        for plan in plans:
            heads = plan.geometry.n_heads, plan.geometry.n_kv_heads
            if heads != (first.geometry.n_heads, first.geometry.n_kv_heads):
                raise LayoutError(
                    f"{self._place(plan.layer)} has {heads[0]} query and {heads[1]} key-value "
                    f"heads, {self._place(first.layer)} {first.geometry.n_heads} and "
                    f"{first.geometry.n_kv_heads}; one number for a whole stack is wanted."
                )
        return plans

    def _place(self, number: int) -> str:
        return f"{self.row.name} layer {number}".strip()

    @functools.cached_property
    def _n_layers(self) -> int:
        """Layers as the config counts them, or as far as the checkpoint's go."""
        said = _whole_number(self.config, self._any.keys["n_layers"], of_a_list=True)
        return said or max(self.numbers) + 1

    def _own_layers(self) -> list[int]:
        """Numbers of the layers to survey. Raises LayoutError where one is missing."""
        pattern, numbers = self._found
        stack = self._any
        n_layers = self._n_layers
        if stack.shared_by is not None:
            sharing = _whole_number(self.config, [stack.shared_by]) or n_layers
            if sharing > len(numbers):
                self.notes.append(
                    f"{sharing} layers share the weights of {len(numbers)}, surveyed once"
                )
        extra = [number for number in numbers if number >= n_layers]
        allowed = _whole_number(self.config, [stack.extra_layers]) if stack.extra_layers else 0
        if extra and len(extra) <= (allowed or 0):
            self.notes.append(
                f"layers beyond {n_layers - 1}, which predict further tokens, are left out"
            )
            numbers = numbers[: -len(extra)]
        elif extra:
            raise LayoutError(
                f"The config gives {n_layers} layers and the checkpoint holds layer {extra[-1]} "
                f"({pattern.format(i=extra[-1])}). Is it the config of this model?"
            )
        own = set(numbers)
        for number in range(n_layers):
            if number not in own:
                self.skipped[self._key(number)] = self._instead(pattern, number, n_layers)
        return numbers

    def _key(self, number: int) -> str:
        return f"{self.row.name}.layers.{number}".lstrip(".")

    def _instead(self, pattern: str, number: int, n_layers: int) -> str:
        """What a layer has instead of attention. Raises LayoutError where it has nothing."""
        for part, reason in self._any.without_attention.items():
            if any(name.startswith(part) for name in self._by_layer.get(number, ())):
                return reason
        raise LayoutError(
            f"The config gives {n_layers} layers and the checkpoint holds {len(self.numbers)} of "
            f"them ({pattern}): {self._place(number)} is missing. Are all files of the model there?"
        )

    @functools.cached_property
    def _by_layer(self) -> dict[int, list[str]]:
        """What follows the layer in the names of each layer's tensors."""
        before, after = map(re.escape, self._found[0].split("{i}"))
        layer = re.compile(f"{before}({_NUMBER}){after}")
        found: dict[int, list[str]] = {}
        for name in self.tensors:
            if match := layer.match(name):
                found.setdefault(int(match[1]), []).append(name[match.end() :])
        return found

    def _plan(self, name: str, number: int) -> LayerPlan:
        prefix = self._found[0].format(i=number)
        stack = self.row.resolve(self.config, lambda tensor: prefix + tensor in self.tensors)
        names = {role: prefix + tensor for role, tensor in stack.tensors.items()}
        for role, norm in stack.norms.items():
            # The norm of what cross-attention looks at stands outside the layer.
            places = self.prefixes if role == "memory_norm" else (prefix,)
            gains = [place + gain for place in places for gain in norm.gains]
            if gains and "{h}" in gains[0]:
                names |= self._by_head(role, gains[0])
            elif gains:
                names[role] = next((gain for gain in gains if gain in self.tensors), gains[0])
        found = {role: self._tensor(tensor) for role, tensor in names.items()}
        geometry = head_geometry(
            stack,
            found,
            n_heads=_whole_number(self.config, stack.keys["n_heads"]),
            n_kv_heads=_whole_number(self.config, stack.keys["n_kv_heads"]),
            d_head=_whole_number(self.config, stack.keys["d_head"]),
        )
        plan = LayerPlan(
            layer=number,
            geometry=geometry,
            packing=stack.packing,
            scale=attention_scale(name, stack, self.config, number, geometry),
            tensors=found,
            norms={role: norm.norm for role, norm in stack.norms.items()},
            transposed=stack.transposed,
            gated=stack.gated,
            cross=stack.cross,
            stack=self.row.name,
            init_std=self._deviations(name, stack, geometry, found) if self.untrained else {},
        )
        check_shapes(plan)
        self._check_norms(plan)
        return plan

    def _deviations(
        self, name: str, stack: Stack, geometry: HeadGeometry, tensors: Tensors
    ) -> dict[str, float]:
        n_layers = self._n_layers
        return initial_deviations(name, stack, self.config, n_layers, geometry, tensors)

    @functools.cached_property
    def _query_norms(self) -> dict[str, list[str]]:
        """Gains of norms of queries and keys, by the module they belong to."""
        found: dict[str, list[str]] = {}
        for name in self.tensors:
            if match := _QUERY_NORM.search(name):
                found.setdefault(name[: match.start()], []).append(name)
        return found

    def _check_norms(self, plan: LayerPlan) -> None:
        """Raises LayoutError where queries or keys pass a norm that the row does not list."""
        used = {info.name for info in plan.tensors.values()}
        reader = next(plan.tensors[role].name for role in ("q", "qkv") if role in plan.tensors)
        module = ".".join(reader.split(".")[:-2])
        for name in self._query_norms.get(f"{module}." if module else "", ()):
            if name not in used:
                raise LayoutError(
                    f"{name} norms queries or keys, which the config does not say and the table's "
                    "row does not describe, so nothing was computed."
                )

    def _by_head(self, role: str, pattern: str) -> dict[str, str]:
        """Roles and names of the gains of a norm that every head has its own of."""
        names = (pattern.format(h=head) for head in itertools.count(1))
        others = itertools.takewhile(self.tensors.__contains__, names)
        gains = (pattern.format(h=0), *others)
        return {f"{role}.{head}": name for head, name in enumerate(gains)}

    def _tensor(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise LayoutError(f"The tensor {name} is missing from the checkpoint.")
        return self.tensors[name]


def _layer_numbers(pattern: str, tensors: Tensors, anchor: str) -> list[int]:
    before, after = pattern.split("{i}")
    ending = after + anchor
    layer = re.compile(f"{re.escape(before)}({_NUMBER}){re.escape(ending)}")
    # Comparing ends first is ten times as fast, where a model of no type is held against all rows.
    near = (name for name in tensors if name.endswith(ending) and name.startswith(before))
    return sorted(int(match[1]) for match in map(layer.fullmatch, near) if match)
