"""Files of trainings, finished ones and checkpoints: ``superposition/<name>/training.safetensors``.

A safetensors file: ``steps`` int64 (T,); ``reconstruction_loss`` and ``pair_loss`` float64 (T, I);
``snapshots.steps`` int64 (K,); ``snapshots.w``, ``.bias``, ``.a``, ``.b`` float32 (K, I, …). A
checkpoint has besides, of each block of instances, ``blocks.<b>.representation``, ``.head``,
``.generator`` (its bytes, eight to a number) and ``.moments.<p>.<name>`` of the optimiser.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from qk_taxonomy import __version__
from qk_taxonomy.cache import DAMAGE, DATA_FOLDER, check_header, write_tensors
from qk_taxonomy.errors import SpectraFileError, StudyError
from qk_taxonomy.studies.superposition.config import SuperpositionConfig, Target
from qk_taxonomy.studies.superposition.records import Instances, Snapshot, SuperpositionRun

FORMAT = "qk-taxonomy-superposition"
FORMAT_VERSION = "1"

_PARTS = ("w", "bias", "a", "b")
_MOMENT = re.compile(r"moments\.(\d+)\.(\w+)")


@dataclass(frozen=True, eq=False)
class BlockState:
    """All that the next step of a block of instances depends on.

    moments: the optimiser's state of each tensor that it trains, none before its first step.
    generator: the state of the generator of the data, uint8.
    """

    representation: torch.Tensor
    head: torch.Tensor
    moments: list[dict[str, torch.Tensor]]
    generator: torch.Tensor


@dataclass(frozen=True, eq=False)
class Unfinished:
    """A training as far as it has come: losses (2, I) at ``steps``, snapshots, blocks' states."""

    config: SuperpositionConfig
    steps: list[int]
    losses: list[np.ndarray[Any, Any]]
    snapshots: tuple[Snapshot, ...]
    blocks: tuple[BlockState, ...]

    @property
    def step(self) -> int:
        """Steps done."""
        return self.steps[-1] if self.steps else 0


def run_path(root: str | Path, config: SuperpositionConfig) -> Path:
    """Where the training of a configuration belongs: a level below that of families' spectra."""
    return Path(root) / DATA_FOLDER / "superposition" / config.name / "training.safetensors"


def save_run(path: Path, run: SuperpositionRun) -> None:
    """Write a finished training whole, or leave the file there is. Raises SpectraFileError."""
    losses = (run.reconstruction_loss, run.pair_loss)
    tensors = _tensors(run.steps, losses, run.snapshots)
    metadata = {
        "targets": json.dumps([[asdict(target) for target in each] for each in run.targets]),
        "notes": json.dumps(run.notes),
    }
    _write(path, tensors, {**_metadata(run.config, "finished"), **metadata})


def save_unfinished(path: Path, unfinished: Unfinished) -> None:
    """Write a checkpoint, in the place of an earlier one. Raises SpectraFileError."""
    n_instances = unfinished.config.n_instances
    losses = np.array(unfinished.losses).reshape(-1, 2, n_instances)
    steps = np.array(unfinished.steps, dtype=np.int64)
    tensors = _tensors(steps, (losses[:, 0], losses[:, 1]), unfinished.snapshots)
    for number, block in enumerate(unfinished.blocks):
        key = f"blocks.{number}"
        tensors[f"{key}.representation"] = block.representation.numpy()
        tensors[f"{key}.head"] = block.head.numpy()
        tensors[f"{key}.generator"] = block.generator.numpy().view(np.int64)
        for place, moments in enumerate(block.moments):
            for name, moment in moments.items():
                tensors[f"{key}.moments.{place}.{name}"] = moment.numpy()
    _write(path, tensors, _metadata(unfinished.config, "unfinished"))


def load_run(path: str | Path) -> SuperpositionRun:
    """The training a file holds.

    Raises SpectraFileError where it is missing, damaged, unfinished or another kind.
    """
    metadata, config, tensors = _read(Path(path))
    if metadata["state"] != "finished":
        raise SpectraFileError(
            f"{path} is a training that was stopped at step {_last(tensors)} of {config.n_steps}. "
            "Give the same `qk-taxonomy superposition` again: it goes on from there."
        )
    try:
        return SuperpositionRun(
            config=config,
            instances=Instances.of(config),
            steps=tensors["steps"],
            reconstruction_loss=tensors["reconstruction_loss"],
            pair_loss=tensors["pair_loss"],
            snapshots=_snapshots(config, tensors),
            targets=tuple(
                tuple(Target(**target) for target in each)
                for each in json.loads(metadata["targets"])
            ),
            notes=tuple(json.loads(metadata["notes"])),
        )
    except DAMAGE as err:
        raise damaged(Path(path), err) from err


def load_run_of(path: Path, config: SuperpositionConfig) -> SuperpositionRun | None:
    """The finished training of ``config`` in a file; None where there is no finished one.

    Raises SpectraFileError as :func:`load_run`, and StudyError where the file is of another
    configuration.
    """
    if not path.exists():
        return None
    metadata, found, _ = _read(path)
    differences = config.differences(found)
    if differences:
        raise StudyError(
            f"{path} holds a training of another configuration: {'; '.join(differences)}. Give "
            "this one another name or folder, or remove the file."
        )
    return load_run(path) if metadata["state"] == "finished" else None


def load_unfinished(path: Path, config: SuperpositionConfig) -> Unfinished | None:
    """The checkpoint of ``config`` in a file; None where there is no file.

    Raises SpectraFileError where it is damaged.
    """
    if not path.exists():
        return None
    _, _, tensors = _read(path)
    try:
        losses = np.stack([tensors["reconstruction_loss"], tensors["pair_loss"]], axis=1)
        groups: dict[int, dict[str, torch.Tensor]] = {}
        for key, array in tensors.items():
            if key.startswith("blocks."):
                _, number, part = key.split(".", 2)
                groups.setdefault(int(number), {})[part] = torch.from_numpy(array)
        return Unfinished(
            config,
            tensors["steps"].tolist(),
            list(losses),
            _snapshots(config, tensors),
            tuple(_block(groups[number]) for number in range(len(groups))),
        )
    except DAMAGE as err:
        raise damaged(path, err) from err


def _block(parts: Mapping[str, torch.Tensor]) -> BlockState:
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in parts.items():
        if match := _MOMENT.fullmatch(name):
            moments.setdefault(int(match[1]), {})[match[2]] = tensor
    return BlockState(
        parts["representation"],
        parts["head"],
        [moments[place] for place in sorted(moments)],
        parts["generator"].view(torch.uint8),
    )


def _metadata(config: SuperpositionConfig, state: str) -> dict[str, str]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tool_version": __version__,
        "config": json.dumps(config.to_json()),
        "state": state,
    }


def _tensors(
    steps: np.ndarray[Any, Any],
    losses: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]],
    snapshots: tuple[Snapshot, ...],
) -> dict[str, np.ndarray[Any, Any]]:
    return {
        "steps": steps,
        "reconstruction_loss": np.ascontiguousarray(losses[0], np.float64),
        "pair_loss": np.ascontiguousarray(losses[1], np.float64),
        "snapshots.steps": np.array([snapshot.step for snapshot in snapshots], dtype=np.int64),
        **{
            f"snapshots.{part}": np.stack([getattr(snapshot, part) for snapshot in snapshots])
            for part in _PARTS
        },
    }


def _snapshots(
    config: SuperpositionConfig, tensors: Mapping[str, np.ndarray[Any, Any]]
) -> tuple[Snapshot, ...]:
    """Raises ValueError where they are not those of the configuration."""
    n, m, r = config.n_features, config.d_hidden, config.d_head
    steps = tensors["snapshots.steps"].tolist()
    parts = [tensors[f"snapshots.{part}"] for part in _PARTS]
    shapes = [part.shape for part in parts]
    wanted = [(len(steps), config.n_instances, *each) for each in ((m, n), (n,), (r, m), (r, m))]
    history = {tensors[key].shape for key in ("reconstruction_loss", "pair_loss")}
    if shapes != wanted or history != {(len(tensors["steps"]), config.n_instances)}:
        raise ValueError("its tensors are not those of its configuration")
    return tuple(
        Snapshot(step, config.phase_of(step), *arrays)
        for step, *arrays in zip(steps, *parts, strict=True)
    )


def _last(tensors: Mapping[str, np.ndarray[Any, Any]]) -> int:
    return max(tensors["steps"].tolist(), default=0)


def _write(
    path: Path, tensors: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, str]
) -> None:
    def whole(beside: Path) -> bool:
        found = _read(beside)[2]
        return found.keys() == tensors.keys() and all(
            np.array_equal(found[key], array, equal_nan=array.dtype.kind == "f")
            for key, array in tensors.items()
        )

    write_tensors(path, tensors, metadata, whole)


def _read(
    path: Path,
) -> tuple[dict[str, str], SuperpositionConfig, dict[str, np.ndarray[Any, Any]]]:
    if not path.is_file():
        raise SpectraFileError(
            f"There is no training {path}. `qk-taxonomy superposition` makes it."
        )
    try:
        check_header(path)
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            if (metadata.get("format"), metadata.get("format_version")) != (FORMAT, FORMAT_VERSION):
                raise SpectraFileError(
                    f"{path} is no training of format {FORMAT_VERSION}, which `qk-taxonomy "
                    "superposition` makes under data/superposition/."
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = SuperpositionConfig.from_json(json.loads(metadata["config"]))
        if metadata["state"] not in ("finished", "unfinished"):
            raise ValueError(f"its state is {metadata['state'][:60]!r}")
    except DAMAGE as err:
        raise damaged(path, err) from err
    return metadata, config, tensors


def damaged(path: Path, err: Exception) -> SpectraFileError:
    """What to raise for a file that cannot be what it claims to be."""
    return SpectraFileError(
        f"{path} is damaged ({err}). Remove it and give `qk-taxonomy superposition` again."
    )
