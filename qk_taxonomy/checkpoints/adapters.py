"""LoRA adapters: the weights of a base with an adapter's updates merged into them.

The format is that of PEFT: ``adapter_config.json`` and, for a module of the base that is changed,
``base_model.model.<module>.lora_A.weight`` (rank, in) and ``lora_B.weight`` (out, rank); a module
that was trained as a whole stands under its own name.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.checkpoints.fetched import ReadRange
from qk_taxonomy.checkpoints.pickling import reading_state
from qk_taxonomy.checkpoints.weight_files import ADAPTER_CONFIG, FolderCheckpoint
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.records import LowRankUpdate, TensorInfo

_PREFIX = "base_model.model."

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

    def __getstate__(self) -> dict[str, Any]:
        return reading_state(self)

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

    def _owner(self, file: str) -> Checkpoint:
        """Whose file it is; no base has weights in a file of an adapter's name."""
        return self.adapter if file in self._own_files else self.base


def base_reference(adapter: FolderCheckpoint) -> tuple[str, str | None]:
    """The base that an adapter's config names, and its revision. Raises CheckpointError."""
    ref, revision = (adapter.config.get(key) for key in ("base_model_name_or_path", "revision"))
    if not isinstance(ref, str) or not ref:
        raise CheckpointError(
            f"{ADAPTER_CONFIG} of {adapter.place} names no base_model_name_or_path: it says not "
            "to which model the adapter belongs. Put it there."
        )
    return ref, revision if isinstance(revision, str) and revision else None


def _merged(adapter: FolderCheckpoint, base: Checkpoint) -> dict[str, TensorInfo]:
    """The base's tensors that an adapter changes, as they are with it."""
    _refuse_other_kinds(adapter)
    factors: dict[str, dict[str, TensorInfo]] = {}
    merged: dict[str, TensorInfo] = {}
    for name, info in adapter.tensors.items():
        plain = name.removeprefix(_PREFIX)
        match = _FACTOR.fullmatch(plain)
        if match is not None:
            factors.setdefault(match["module"], {})[match["side"]] = info
        elif "lora_" in plain:
            raise CheckpointError(
                f"The adapter {adapter.place} has the tensor {name}, of which it is not known how "
                "it changes the base. Merge the adapter with peft and survey the merged model."
            )
        else:
            # A module saved whole takes the place of the base's; one of its own (a head) has none.
            whole = _find(plain, base.tensors)
            if whole is not None:
                merged[whole] = dataclasses.replace(info, name=whole)
    for module, sides in factors.items():
        target = _find(f"{module}.weight", base.tensors)
        stored = None if target is None else base.tensors[target]
        if set(sides) != {"A", "B"}:
            raise CheckpointError(
                f"The adapter {adapter.place} has one of lora_A and lora_B of {module}; both are "
                "needed. Fetch the file again."
            )
        update = _update(adapter.config, module, sides["A"], sides["B"], stored, adapter.place)
        if stored is None or update is None:
            found = "it has no such tensor" if stored is None else f"it has {list(stored.shape)}"
            raise CheckpointError(
                f"{adapter.place} is an adapter for another base than {base.model_id}: it changes "
                f"{module}.weight by {list(sides['B'].shape)} · {list(sides['A'].shape)}, and "
                f"{found}. Put the right base into base_model_name_or_path of {ADAPTER_CONFIG}."
            )
        merged[stored.name] = dataclasses.replace(stored, update=update)
    if not merged:
        raise CheckpointError(
            f"The adapter {adapter.place} changes no tensor of its base {base.model_id}."
        )
    return merged


def _refuse_other_kinds(adapter: FolderCheckpoint) -> None:
    config = adapter.config
    kind = config.get("peft_type")
    reasons = [reason for key, reason in _UNLIKE_LORA.items() if config.get(key)]
    if kind != "LORA":
        reasons.insert(0, f"an adapter of the type {kind}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING):
        reasons.append(f"an initialisation ({start}) that changes the base's own weights")
    if reasons:
        raise CheckpointError(
            f"{ADAPTER_CONFIG} of {adapter.place} describes {reasons[0]}; plain LoRA is read. "
            "Merge the adapter into its base with peft (merge_and_unload) and survey that."
        )


def _find(name: str, tensors: Mapping[str, TensorInfo]) -> str | None:
    """The base's name of a tensor: one of them may have leading parts that the other has not."""
    parts = name.split(".")
    # A module and its weight are left at the least, or everything would end in "weight".
    for cut in range(max(1, len(parts) - 2)):
        shorter = ".".join(parts[cut:])
        if shorter in tensors:
            return shorter
    longer = [found for found in tensors if found.endswith(f".{name}")]
    return longer[0] if len(longer) == 1 else None


def _update(
    config: Mapping[str, Any],
    module: str,
    a: TensorInfo,
    b: TensorInfo,
    stored: TensorInfo | None,
    place: str,
) -> LowRankUpdate | None:
    """The update of a stored tensor; None where it does not fit the tensor's shape."""
    if stored is None or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        return None
    rank = _setting(config, "r", "rank_pattern", module, place)
    alpha = _setting(config, "lora_alpha", "alpha_pattern", module, place)
    if rank != a.shape[0]:
        raise CheckpointError(
            f"{ADAPTER_CONFIG} of {place} gives {module} the rank {rank:g}, and its lora_A has "
            f"{a.shape[0]} rows. Are config and weights of one adapter?"
        )
    factor = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    change = (b.shape[0], a.shape[1])
    straight, turned = stored.shape == change, stored.shape == change[::-1]
    if not straight and not turned:
        return None
    # A square tensor tells nothing; GPT-2's, stored (in, out), have fan_in_fan_out set.
    embedding = "lora_embedding" in a.name
    transposed = turned and (not straight or embedding or bool(config.get("fan_in_fan_out")))
    return LowRankUpdate(a, b, factor, transposed)


# Wildcards in the pattern of a rank: more make some patterns take for ever.
_MOST_QUANTIFIERS = 2


def _setting(config: Mapping[str, Any], key: str, patterns: str, module: str, place: str) -> float:
    """A module's rank or alpha: of the first pattern that its name ends with, else the config's."""
    value = config.get(key)
    try:
        for pattern, own in (config.get(patterns) or {}).items():
            if "(" in pattern or len(re.findall(r"[*+?{]", pattern)) > _MOST_QUANTIFIERS:
                raise re.error(f"{pattern[:120]!r} is more than the name of modules")
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                value = own
                break
    except (AttributeError, TypeError, re.error) as err:
        raise CheckpointError(f"{patterns} in {ADAPTER_CONFIG} of {place}: {err}.") from err
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e9:
        raise CheckpointError(
            f"{ADAPTER_CONFIG} of {place} says {key} = {value!r:.60} for {module}; a positive "
            "number is wanted."
        )
    return float(value)
