"""The layers of one stack in a checkpoint: found by the names of tensors, planned one by one."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qk_taxonomy.architectures.factors import attention_scale, initial_deviations
from qk_taxonomy.architectures.geometry import check_shapes, head_geometry
from qk_taxonomy.architectures.table import Stack, StackRow, lookup
from qk_taxonomy.errors import LayoutError
from qk_taxonomy.records import HeadGeometry, LayerPlan, TensorInfo

# The gain of a norm of queries or keys, from the module of the projections on.
_QUERY_NORM = re.compile(
    r"(?:(?<=\.)|^)(?:attn_)?(?:q|k|qk|query|key)_?(?:layer_?norm|norm|ln)\b.*\.(?:weight|gamma)$"
    r"|(?:(?<=\.)|^)(?:layer_?norm|norm|ln)_?(?:q|k|qk|query|key)\.(?:weight|gamma)$"
)

# A layer's number in the name of a tensor.
_NUMBER = r"0|[1-9][0-9]{0,8}"

# Layers, heads or dimensions: a hundred times what the largest models have of any.
_LARGEST_COUNT = 10_000_000

Tensors = Mapping[str, TensorInfo]


@dataclass
class StackPlans:
    """The layers of one stack in one checkpoint.

    ``prefixes``: what may stand before the row's patterns in names of tensors. ``untrained``: also
    work out deviations before training. ``notes`` and ``skipped``: as of an AttentionLayout, filled
    by :meth:`plans`.
    """

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
        """Numbers of the layers that the checkpoint has, ascending."""
        return self._found[1]

    def nothing(self, name: str) -> LayoutError:
        """What is said where the checkpoint has no layer; ``name``: of the architecture."""
        example = self.prefixes[0] + self.row.patterns[0].format(i=0) + self._any.tensors["o"]
        return LayoutError(
            f"No layer of a {name} model is in this checkpoint: wanted tensors such as {example}. "
            f"{how_to_add(self.tensors)}"
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


def how_to_add(tensors: Tensors) -> str:
    """What to do where no row describes a checkpoint, with its attention's tensors by name."""
    telling = (name for name in tensors if re.search(r"att|query|q_proj", name))
    attention = list(itertools.islice(telling, 9)) or list(itertools.islice(tensors, 9))
    names = ", ".join(attention[:8]) or "none"
    return (
        f"Tensors found: {names}{', ...' if len(attention) > 8 else ''}. If it is a known "
        "architecture under another name, say which with --architecture; otherwise add a row to "
        "catalog/architectures.toml of a checkout, as catalog/README.md says."
    )
