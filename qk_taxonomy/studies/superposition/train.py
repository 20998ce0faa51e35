"""Training: many instances side by side, to be stopped and taken up again at any step."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from qk_taxonomy.cache import exclusive, make_folder
from qk_taxonomy.circuits.threads import in_threads
from qk_taxonomy.errors import StudyError
from qk_taxonomy.progress import Silent, TellingProgress
from qk_taxonomy.studies.superposition.choice import WANTED, choose_targets
from qk_taxonomy.studies.superposition.config import Phase, SuperpositionConfig, Target
from qk_taxonomy.studies.superposition.model import (
    Batches,
    Objective,
    Parameters,
    TargetPairs,
    initialise,
)
from qk_taxonomy.studies.superposition.records import Instances, Snapshot, SuperpositionRun
from qk_taxonomy.studies.superposition.store import (
    BlockState,
    Unfinished,
    damaged,
    load_run_of,
    load_unfinished,
    save_run,
    save_unfinished,
)
from qk_taxonomy.wording import counted

# So many instances of a seed are trained by one thread as one batch of matrices. A batch of their
# data stays in a core's cache, and a single seed of seven probabilities still makes work for two.
# It is no matter of the machine: the same blocks have the same bits anywhere.
_BLOCK = 4

# Seconds between checkpoints.
_CHECKPOINT_EVERY = 30.0

_TRAINED: dict[Phase, tuple[str, ...]] = {
    "joint": ("representation", "head"),
    "representations": ("representation",),
    "heads": ("head",),
}


def train(
    config: SuperpositionConfig,
    *,
    progress: TellingProgress | None = None,
    checkpoint: Path | None = None,
) -> SuperpositionRun:
    """Train all instances of a configuration on the CPU, in as many threads as torch has.

    The same configuration gives the same bits on one machine, also where training was stopped in
    between. checkpoint: a file that is kept up to date while training runs, on Ctrl-C and on errors
    too, and holds the run at the end; what it holds of this configuration is not trained again.
    Raises StudyError where the losses are no numbers any more and where the file is of another
    configuration, and SpectraFileError where it cannot be used.
    """
    progress = progress or Silent()
    if checkpoint is None:
        return _Training(config).finish(progress, None)
    make_folder(checkpoint.parent)
    with exclusive(checkpoint):
        found = load_run_of(checkpoint, config)
        if found is None:
            unfinished = load_unfinished(checkpoint, config)
            try:
                training = _Training(config, unfinished)
            except (ValueError, RuntimeError) as err:
                raise damaged(checkpoint, err) from err
            try:
                found = training.finish(progress, checkpoint)
                save_run(checkpoint, found)
            except BaseException:
                save_unfinished(checkpoint, training.kept)
                raise
        return found


class _Block:
    """A few instances of one seed, with their own data, gradients and optimiser."""

    def __init__(self, config: SuperpositionConfig, probabilities: list[float], seed: int) -> None:
        self.config = config
        self.n_instances = len(probabilities)
        self.batches = Batches(config, probabilities, seed)
        self.parameters = Parameters.zeros(config, self.n_instances)
        initialise(self.parameters, config.head_scale, seed)
        self._gradients = Parameters.zeros(config, self.n_instances)
        self._objective = Objective(config, self.n_instances)
        self.targets: tuple[tuple[Target, ...], ...] | None = None
        self._pairs: TargetPairs | None = None

    def begin(self, phase: Phase) -> None:
        """Make ready to train what the phase trains; by then, targets are known or chosen."""
        self.phase = phase
        chosen = self.config.targets
        if not isinstance(chosen, str):
            self.targets = (chosen,) * self.n_instances
        elif phase == "heads":
            weights = self.config.target_weights
            self.targets = tuple(
                choose_targets(w, chosen, weights) for w in self.parameters.w.numpy()
            )
        self._pairs = None if self.targets is None else TargetPairs.of(self.targets)
        for part in ("representation", "head"):
            getattr(self.parameters, part).grad = getattr(self._gradients, part)
        self._optimiser = torch.optim.AdamW(
            [getattr(self.parameters, part) for part in _TRAINED[phase]],
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )

    def advance(self, n_steps: int) -> torch.Tensor:
        """Train for so many steps; the losses of each batch before its step, (steps, 2, I)."""
        losses = torch.empty(n_steps, 2, self.n_instances)
        for step in range(n_steps):
            losses[step] = self._objective(
                self.parameters, self._gradients, self.batches.draw(), self._pairs, self.phase
            )
            self._optimiser.step()
        return losses

    def state(self) -> BlockState:
        """Copies of all that the next step depends on."""
        moments = self._optimiser.state_dict()["state"]
        return BlockState(
            representation=self.parameters.representation.clone(),
            head=self.parameters.head.clone(),
            moments=[
                {name: torch.as_tensor(value).clone() for name, value in moments[place].items()}
                for place in sorted(moments)
            ],
            generator=self.batches.generator.get_state(),
        )

    def restore(self, state: BlockState, phase: Phase) -> None:
        self.parameters.representation.copy_(state.representation)
        self.parameters.head.copy_(state.head)
        self.batches.generator.set_state(state.generator)
        self.begin(phase)
        if state.moments:
            groups = self._optimiser.state_dict()["param_groups"]
            self._optimiser.load_state_dict(
                {"state": dict(enumerate(state.moments)), "param_groups": groups}
            )


class _Training:
    """All blocks of a configuration, and what has been kept of their training."""

    def __init__(self, config: SuperpositionConfig, found: Unfinished | None = None) -> None:
        self.config = config
        self.instances = Instances.of(config)
        probabilities = list(config.probabilities)
        self._blocks = [
            _Block(config, probabilities[first : first + _BLOCK], seed)
            for seed in range(config.n_seeds)
            for first in range(0, len(probabilities), _BLOCK)
        ]
        if found is None:
            for block in self._blocks:
                block.begin(config.phases[0][0])
            self.kept = Unfinished(config, [], [], (self._snapshot(0),), self._states())
        else:
            phase = config.phase_of(min(found.step + 1, config.n_steps))
            for block, state in zip(self._blocks, found.blocks, strict=True):
                block.restore(state, phase)
            self.kept = found

    def finish(self, progress: TellingProgress, checkpoint: Path | None) -> SuperpositionRun:
        """Train to the end. ``kept`` is replaced as a whole, so that it is whole at any time."""
        n_instances = len(self.instances.seed)
        what = f"Training {self.config.name}: {counted(n_instances, 'instance')}"
        progress.start(what, self.config.n_steps)
        progress.advance(self.kept.step)
        saved = time.monotonic()
        for mark in [mark for mark in self.config.marks if mark > self.kept.step]:
            n_steps = mark - self.kept.step
            advance = partial(_Block.advance, n_steps=n_steps)
            losses = torch.cat(in_threads(advance, self._blocks), dim=-1)
            self._demand_numbers(losses)
            self.kept = self._after(mark, losses)
            progress.advance(n_steps)
            progress.tell(self._line())
            if checkpoint is not None and time.monotonic() - saved > _CHECKPOINT_EVERY:
                save_unfinished(checkpoint, self.kept)
                saved = time.monotonic()
        return self._run()

    def _demand_numbers(self, losses: torch.Tensor) -> None:
        """losses: (steps, 2, I). Raises StudyError where one is no number."""
        # There is no pair loss while targets are not chosen.
        known = losses if self._blocks[0].targets is not None else losses[:, :1]
        wrong = (~torch.isfinite(known)).any(1).nonzero()
        if len(wrong):
            step, instance = wrong[0].tolist()
            raise StudyError(
                f"{self.config.name}: wanted losses that are finite, found one that is not at step "
                f"{self.kept.step + step + 1}, of the instance with p = "
                f"{self.instances.probability[instance]:.4g} and seed "
                f"{self.instances.seed[instance]}. Training diverges at learning_rate "
                f"{self.config.learning_rate:g}; try {self.config.learning_rate / 10:g}, under "
                "another name or without the checkpoint."
            )

    def _after(self, mark: int, losses: torch.Tensor) -> Unfinished:
        """What is kept once the blocks have come to a mark, which may be a phase's end."""
        kept, snapshots = self.kept, self.kept.snapshots
        if mark in self.config.snapshot_steps:
            snapshots = (*snapshots, self._snapshot(mark))
        following = self.config.phase_of(min(mark + 1, self.config.n_steps))
        if following != self.config.phase_of(mark):
            for block in self._blocks:
                block.begin(following)
        mean = losses.double().mean(0).numpy()
        return Unfinished(
            self.config, [*kept.steps, mark], [*kept.losses, mean], snapshots, self._states()
        )

    def _states(self) -> tuple[BlockState, ...]:
        return tuple(block.state() for block in self._blocks)

    def _snapshot(self, step: int) -> Snapshot:
        w, bias, a, b = (
            torch.cat([getattr(block.parameters, part) for block in self._blocks]).numpy()
            for part in ("w", "bias", "a", "b")
        )
        return Snapshot(step, self.config.phase_of(step), w, bias, a, b)

    def _line(self) -> str:
        """The means over instances, for the one who watches."""
        reconstruction, pairs = self.kept.losses[-1].mean(-1)
        line = f"reconstruction loss {reconstruction:.5f}"
        return line if np.isnan(pairs) else f"{line}, pair loss {pairs:.5f}"

    def _run(self) -> SuperpositionRun:
        targets = tuple(targets for block in self._blocks for targets in block.targets or ())
        chosen = self.config.targets
        without = sum(not each for each in targets)
        notes = self.config.notes
        if without and isinstance(chosen, str):
            notes = (
                *notes,
                f"{without} of {len(targets)} instances have no {WANTED[chosen]}: "
                "their heads have no targets",
            )
        losses = np.stack(self.kept.losses)
        return SuperpositionRun(
            config=self.config,
            instances=self.instances,
            steps=np.array(self.kept.steps, dtype=np.int64),
            reconstruction_loss=losses[:, 0],
            pair_loss=losses[:, 1],
            snapshots=self.kept.snapshots,
            targets=targets,
            notes=notes,
        )
