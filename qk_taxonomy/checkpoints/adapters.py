"""LoRA adapters: the weights of a base with an adapter's updates merged into them.

The format is that of PEFT: ``adapter_config.json`` and, for a module of the base that is changed,
``base_model.model.<module>.lora_A.weight`` (rank, in) and ``lora_B.weight`` (out, rank); a module
that was trained as a whole stands under its own name.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from qk_taxonomy.checkpoints.base import Checkpoint, TokenizerDefinition
from qk_taxonomy.checkpoints.fetched import ReadRange
from qk_taxonomy.checkpoints.weight_files import ADAPTER_CONFIG, FolderCheckpoint
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.records import LowRankUpdate, TensorInfo

_PREFIX = "base_model.model."

# Characters of a path or hub id.
_LONGEST_REFERENCE = 1 << 13

# A stored tensor of an adapter: its module, and which of the two factors it is.
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")

# Settings of adapter_config.json under which the merged weight is not W + factor · B · A.
_UNLIKE_LORA = {
    "use_dora": "DoRA, which scales each row of the merged weights",
    "layer_replication": "a base whose layers are repeated",
    "alora_invocation_tokens": "an adapter that works from some tokens on only",
    "use_qalora": "QALoRA, which pools the inputs",
    "megatron_config": "a Megatron model, split over devices",
}

# Initialisations that take what they put into A and B out of the base's own weights.
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


class AdapterCheckpoint(Checkpoint):
    """An adapter on its base: the base's config and tensors, those it touches merged in float64.

    ``model_id`` is the adapter's; ``revision`` names both commits, and ``source`` both places.
    Raises CheckpointError where the adapter is of another kind than LoRA, or for another base.
    """

    def __init__(self, adapter: FolderCheckpoint, base: Checkpoint) -> None:
        shared = set(adapter.weight_files) & {info.file for info in base.tensors.values()}
        if shared:
            raise CheckpointError(
                f"The base {base.model_id} of the adapter {adapter.place} keeps its weights in "
                f"{min(shared)}, which is the name of an adapter's. Rename it in the base."
            )
        self.adapter = adapter
        self.base = base
        self.model_id = adapter.model_id
        self.revision = f"{adapter.revision}+{base.revision}"
        self.source = (
            f"{adapter.source}; base {base.model_id} at {base.revision} from {base.source}"
        )
        self._own_files = frozenset(adapter.weight_files)
        self.config = base.config
        self.tensors = {**base.tensors, **_merged(adapter, base)}

    def read_bytes(self, file: str, start: int, end: int) -> bytearray:
        return self._owner(file).read_bytes(file, start, end)

    def check_readable(self, infos: Iterable[TensorInfo]) -> None:
        for info in infos:
            parts = [info.update.a, info.update.b] if info.update is not None else []
            self.adapter.check_readable(parts)
            self._owner(info.file).check_readable([dataclasses.replace(info, update=None)])

    def decode(self, info: TensorInfo, read_bytes: ReadRange) -> torch.Tensor:
        """A tensor's weights: those that the adapter touches in float64, others as they are."""
        plain = dataclasses.replace(info, update=None)
        stored = self._owner(info.file).decode(plain, read_bytes)
        if info.update is None:
            return stored
        factors = (info.update.a, info.update.b)
        a, b = (self.adapter.decode(part, read_bytes).double() for part in factors)
        change = info.update.factor * (b @ a)
        return stored.double() + (change.T if info.update.transposed else change)

    def tokenizer(self) -> TokenizerDefinition | None:
        """The adapter's own, which may have tokens more, or else the base's."""
        return self.adapter.tokenizer() or self.base.tokenizer()

    def _owner(self, file: str) -> Checkpoint:
        """Whose file it is; they share no name."""
        return self.adapter if file in self._own_files else self.base


def base_reference(adapter: FolderCheckpoint) -> tuple[str, str | None]:
    """The base that an adapter's config names, and its revision. Raises CheckpointError."""
    ref, revision = (adapter.config.get(key) for key in ("base_model_name_or_path", "revision"))
    if not isinstance(ref, str) or not 0 < len(ref) <= _LONGEST_REFERENCE:
        raise CheckpointError(
            f"{ADAPTER_CONFIG} of {adapter.place} names no base_model_name_or_path: it says not "
            "to which model the adapter belongs. Put it there."
        )
    return ref, revision if isinstance(revision, str) and revision else None


def _merged(adapter: FolderCheckpoint, base: Checkpoint) -> dict[str, TensorInfo]:
    """The base's tensors that an adapter changes, as they are with it."""
    _refuse_other_kinds(adapter)
    factors, wholes = _changes(adapter)
    targets = _targets([*wholes, *(f"{module}.weight" for module in factors)], base.tensors)
    merged: dict[str, TensorInfo] = {}
    for plain, info in wholes.items():
        # A module saved whole takes the place of the base's; one of its own (a head) has none.
        whole = targets.get(plain)
        if whole in merged:
            raise _twice(adapter, whole)
        if whole is not None:
            merged[whole] = dataclasses.replace(info, name=whole)
    ranks = _Setting(adapter, "r", "rank_pattern", factors)
    alphas = _Setting(adapter, "lora_alpha", "alpha_pattern", factors)
    for module, sides in factors.items():
        target = targets.get(f"{module}.weight")
        stored = None if target is None else base.tensors[target]
        update = None
        if stored is not None:
            update = _update(adapter, module, sides["A"], sides["B"], stored, ranks, alphas)
        if stored is None or update is None:
            found = "it has no such tensor" if stored is None else f"it has {list(stored.shape)}"
            raise CheckpointError(
                f"{adapter.place} is an adapter for another base than {base.model_id}: it changes "
                f"{module}.weight by {list(sides['B'].shape)} · {list(sides['A'].shape)}, and "
                f"{found}. Put the right base into base_model_name_or_path of {ADAPTER_CONFIG}."
            )
        if stored.name in merged:
            raise _twice(adapter, stored.name)
        merged[stored.name] = dataclasses.replace(stored, update=update)
    if not merged:
        raise CheckpointError(
            f"The adapter {adapter.place} changes no tensor of its base {base.model_id}."
        )
    return merged


def _changes(
    adapter: FolderCheckpoint,
) -> tuple[dict[str, dict[str, TensorInfo]], dict[str, TensorInfo]]:
    """An adapter's factors, "A" and "B" of each module, and what it has whole, by name."""
    factors: dict[str, dict[str, TensorInfo]] = {}
    wholes: dict[str, TensorInfo] = {}
    for name, info in adapter.tensors.items():
        plain = name.removeprefix(_PREFIX)
        match = _FACTOR.fullmatch(plain)
        if match is not None:
            sides = factors.setdefault(match["module"], {})
            if match["side"] in sides:
                raise _twice(adapter, f"lora_{match['side']} of {match['module']}")
            sides[match["side"]] = info
        elif "lora_" in plain:
            raise CheckpointError(
                f"The adapter {adapter.place} has the tensor {name}, of which it is not known how "
                "it changes the base. Merge the adapter with peft and survey the merged model."
            )
        else:
            if plain in wholes:
                raise _twice(adapter, plain)
            wholes[plain] = info
    for module, sides in factors.items():
        if set(sides) != {"A", "B"}:
            raise CheckpointError(
                f"The adapter {adapter.place} has one of lora_A and lora_B of {module}; both are "
                "needed. Fetch the file again."
            )
    return factors, wholes


def _twice(adapter: FolderCheckpoint, what: str) -> CheckpointError:
    return CheckpointError(
        f"The adapter {adapter.place} changes {what} twice, under two names, and nothing says "
        "which of them is meant. Fetch the file again."
    )


def _refuse_other_kinds(adapter: FolderCheckpoint) -> None:
    config = adapter.config
    kind = config.get("peft_type")
    reasons = [reason for key, reason in _UNLIKE_LORA.items() if config.get(key)]
    if kind != "LORA":
        reasons.insert(0, f"an adapter of the type {kind!s:.60}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING):
        reasons.append(f"an initialisation ({start[:60]}) that changes the base's own weights")
    if reasons:
        raise CheckpointError(
            f"{ADAPTER_CONFIG} of {adapter.place} describes {reasons[0]}; plain LoRA is read. "
            "Merge the adapter into its base with peft (merge_and_unload) and survey that."
        )


def _targets(names: Sequence[str], tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """The base's names of an adapter's tensors, where it has them: one of the two may have leading
    parts that the other has not."""
    found: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        # A module and its weight are left at the least, or everything would end in "weight".
        shorter = (".".join(parts[cut:]) for cut in range(max(1, len(parts) - 2)))
        match = next((part for part in shorter if part in tensors), None)
        if match is not None:
            found[name] = match
    missing = set(names) - found.keys()
    longer: dict[str, list[str]] = {}
    for stored in tensors:
        _, _, ending = stored.partition(".")
        while ending:
            if ending in missing:
                longer.setdefault(ending, []).append(stored)
            _, _, ending = ending.partition(".")
    return found | {name: many[0] for name, many in longer.items() if len(many) == 1}


def _update(
    adapter: FolderCheckpoint,
    module: str,
    a: TensorInfo,
    b: TensorInfo,
    stored: TensorInfo,
    ranks: _Setting,
    alphas: _Setting,
) -> LowRankUpdate | None:
    """The update of a stored tensor; None where it does not fit the tensor's shape."""
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        return None
    rank, alpha = ranks.of(module), alphas.of(module)
    if rank != a.shape[0]:
        raise CheckpointError(
            f"{ADAPTER_CONFIG} of {adapter.place} gives {module} the rank {rank:g}, and its lora_A "
            f"has {a.shape[0]} rows. Are config and weights of one adapter?"
        )
    factor = alpha / (math.sqrt(rank) if adapter.config.get("use_rslora") else rank)
    change = (b.shape[0], a.shape[1])
    straight, turned = stored.shape == change, stored.shape == change[::-1]
    if not straight and not turned:
        return None
    # A square tensor tells nothing; GPT-2's, stored (in, out), have fan_in_fan_out set.
    embedding = "lora_embedding" in a.name
    transposed = turned and (
        not straight or embedding or bool(adapter.config.get("fan_in_fan_out"))
    )
    return LowRankUpdate(a, b, factor, transposed)


# Wildcards in the pattern of a rank: more make some patterns take for ever.
_MOST_QUANTIFIERS = 2

_LONGEST_PATTERN = 256

# Characters that all patterns look at, at most; 900 modules of 40 with as many plain patterns of
# their own make 30 million.
_MOST_LOOKS = 500_000_000


class _Setting:
    """A module's rank or alpha: of the first pattern that its name ends with, else the config's."""

    def __init__(
        self, adapter: FolderCheckpoint, key: str, patterns: str, modules: Iterable[str]
    ) -> None:
        """Raises CheckpointError where the config's patterns are none, or take too long."""
        self._adapter, self._key = adapter, key
        self._patterns: list[tuple[re.Pattern[str], Any]] = []
        where = f"{patterns} in {ADAPTER_CONFIG} of {adapter.place}"
        said = adapter.config.get(patterns) or {}
        if not isinstance(said, Mapping):
            raise CheckpointError(f"{where} is {said!r:.120}; a table of patterns is wanted.")
        lengths = Counter(map(len, modules))
        looks = 0
        for pattern, own in said.items():
            n_quantifiers = len(re.findall(r"[*+?{]", pattern))
            plain = len(pattern) <= _LONGEST_PATTERN and n_quantifiers <= _MOST_QUANTIFIERS
            if "(" in pattern or not plain:
                raise CheckpointError(
                    f"{where}: {pattern[:120]!r} is more than the name of modules."
                )
            looks += sum(n * length ** (1 + n_quantifiers) for length, n in lengths.items())
            if looks > _MOST_LOOKS:
                raise CheckpointError(
                    f"{where} holds {len(said)} patterns for {lengths.total()} modules, which "
                    "would take too long to compare. Name the modules without wildcards."
                )
            try:
                with warnings.catch_warnings(action="error"):
                    compiled = re.compile(rf"(.*\.)?({pattern})")
            except (re.error, OverflowError, Warning) as err:
                raise CheckpointError(f"{where}: {pattern[:120]!r} is no pattern ({err}).") from err
            self._patterns.append((compiled, own))

    def of(self, module: str) -> float:
        """Raises CheckpointError where it is no positive number."""
        own = (value for pattern, value in self._patterns if pattern.fullmatch(module))
        value = next(own, self._adapter.config.get(self._key))
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e9:
            raise CheckpointError(
                f"{ADAPTER_CONFIG} of {self._adapter.place} says {self._key} = {value!r:.60} for "
                f"{module}; a positive number is wanted."
            )
        return float(value)
