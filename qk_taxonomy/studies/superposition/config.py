"""What is trained in the superposition study: a configuration, checked."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from qk_taxonomy.errors import StudyError

TargetForm = Literal["product", "indicator", "softmax"]
Training = Literal["joint", "frozen"]
Choice = Literal["apart", "within"]
Phase = Literal["joint", "representations", "heads"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")

# Below it inputs, which are made of single-precision numbers, multiples of 2⁻²⁴, are too coarse.
_LEAST_PROBABILITY = 1e-6

# Weights of chosen targets, unless given: told apart by their size.
_UNEQUAL = (2.0, 1.0)

# Points of the loss curves: closer than this, a curve on a page shows no more.
_CURVE_POINTS = 1000


@dataclass(frozen=True)
class Target:
    """The head is to score feature i of the query with feature j of the key by ``weight``."""

    i: int
    j: int
    weight: float = 1.0


@dataclass(frozen=True)
class SuperpositionConfig:
    """One training of many instances: every probability with every seed.

    An instance is h = W x, x' = ReLU(Wᵀ h + b), and a pseudo-head Ω = Aᵀ B that gives the pair
    (h, g) the logit hᵀ Ω g; W (d_hidden, n_features), A and B (d_head, d_hidden). Its loss is
    L₁ + ``pair_weight`` · L₂ (:mod:`~qk_taxonomy.studies.superposition.model` has both).

    probabilities: p that a feature is not 0, one instance each. n_seeds: seeds 0, 1, ….
    importance_decay: feature i has the importance ``importance_decay``ⁱ. targets: pairs; or, in
    frozen training, two pairs that each instance chooses from its own W
    (:func:`~qk_taxonomy.studies.superposition.choice.choose_targets`), with the two
    ``target_weights``. n_keys: against which a query is held, "softmax" only. head_scale: of A and
    B as training starts; about 1 makes Ω so large that W gives up a dimension to escape it, where Ω
    then stays as it was drawn, and alignment is lost though both losses are small. training:
    "joint", or "frozen": W and b first, by L₁ alone, then A and B with W and b as they are, for
    ``head_steps`` (``steps`` unless given). batch_size: rows, the even ones queries and the odd
    ones keys. learning_rate, weight_decay: of AdamW. groups: features that are 0, or not, together.
    snapshots: about so many points of the training are kept.

    Raises StudyError where it cannot be trained.
    """

    name: str
    question: str
    probabilities: tuple[float, ...]
    targets: tuple[Target, ...] | Choice
    target_form: TargetForm = "product"
    target_weights: tuple[float, float] = _UNEQUAL
    n_features: int = 30
    d_hidden: int = 15
    d_head: int = 10
    n_seeds: int = 1
    importance_decay: float = 0.9
    n_keys: int = 1
    pair_weight: float = 0.5
    head_scale: float = 0.1
    training: Training = "joint"
    steps: int = 10_000
    head_steps: int | None = None
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    groups: tuple[tuple[int, ...], ...] = ()
    snapshots: int = 40

    def __post_init__(self) -> None:
        for fault in itertools.chain(
            self._faults_of_sizes(),
            self._faults_of_probabilities(),
            self._faults_of_training(),
            self._faults_of_groups(),
            self._faults_of_form(),
            self._faults_of_targets(),
        ):
            raise StudyError(fault)

    def _faults_of_sizes(self) -> Iterable[str]:
        if not _NAME.fullmatch(self.name):
            yield (
                f"Wanted a name of letters, digits, '.', '_' and '-', found {self.name[:100]!r}: "
                "files are named after it."
            )
        for key in ("n_features", "d_hidden", "d_head", "n_seeds", "n_keys", "steps"):
            if getattr(self, key) < 1:
                yield f"Wanted {key} of at least 1, found {getattr(self, key)}."
        if self.d_head > self.d_hidden:
            yield (
                f"Wanted d_head ≤ d_hidden, found {self.d_head} > {self.d_hidden}: Ω is "
                f"{self.d_hidden} × {self.d_hidden}, and has no more singular values than that."
            )

    def _faults_of_probabilities(self) -> Iterable[str]:
        if not self.probabilities:
            yield "Wanted at least one probability, found none."
        for p in self.probabilities:
            if not 0 < p <= 1:
                yield (
                    f"Wanted probabilities in (0, 1], found {p}: it is how often a feature is not "
                    "0, which is 1 − sparsity."
                )
            elif p < _LEAST_PROBABILITY:
                yield (
                    f"Wanted probabilities of at least {_LEAST_PROBABILITY:g}, found {p}: inputs "
                    "are drawn as single-precision numbers, which do not resolve it, and no batch "
                    "would have such a feature."
                )
        if len(set(self.probabilities)) < len(self.probabilities):
            yield f"Wanted each probability once, found {list(self.probabilities)}."

    def _faults_of_training(self) -> Iterable[str]:
        for key in ("importance_decay", "pair_weight", "head_scale", "learning_rate"):
            value = getattr(self, key)
            if not (0 < value < math.inf):
                yield f"Wanted a finite {key} above 0, found {value}."
        if self.importance_decay > 1:
            yield (
                f"Wanted importance_decay ≤ 1, found {self.importance_decay}: feature 0 is the "
                "most important one."
            )
        if not 0 <= self.weight_decay < math.inf:
            yield f"Wanted a finite weight_decay of at least 0, found {self.weight_decay}."
        if self.batch_size < 2 or self.batch_size % 2:
            yield (
                f"Wanted an even batch_size, found {self.batch_size}: its even rows are paired "
                "with its odd ones."
            )
        if self.snapshots < 2:
            yield f"Wanted at least 2 snapshots, the first and the last, found {self.snapshots}."
        if self.training not in get_args(Training):
            yield f"Wanted training {' or '.join(get_args(Training))}, found {self.training!r}."
        if self.head_steps is not None and (self.training != "frozen" or self.head_steps < 1):
            yield (
                f"Wanted head_steps of at least 1, in frozen training only, found "
                f"{self.head_steps} in {self.training} training."
            )

    def _faults_of_groups(self) -> Iterable[str]:
        found = Counter(feature for group in self.groups for feature in group)
        for feature, times in found.items():
            if not 0 <= feature < self.n_features or times > 1:
                yield (
                    f"Wanted groups of features 0 to {self.n_features - 1}, each in one group at "
                    f"most, found feature {feature} in {[list(group) for group in self.groups]}."
                )
        if any(len(group) < 2 for group in self.groups):
            yield "Wanted groups of two features or more, which occur together, found fewer."

    def _faults_of_form(self) -> Iterable[str]:
        if self.target_form not in get_args(TargetForm):
            yield (
                f"Wanted target_form {', '.join(get_args(TargetForm))}, found {self.target_form!r}."
            )
        if self.target_form == "softmax":
            n_pairs = self.batch_size // 2
            if self.n_keys < 2 or n_pairs % self.n_keys:
                yield (
                    f"Wanted n_keys of at least 2 that divides the {n_pairs} keys of a batch, "
                    f"found {self.n_keys}: a softmax over one key is always 1."
                )
        elif self.n_keys != 1:
            yield (
                f"Wanted n_keys for the softmax form only, found {self.n_keys} with "
                f"{self.target_form}: there, a query is paired with one key."
            )

    def _faults_of_targets(self) -> Iterable[str]:
        if isinstance(self.targets, str):
            return self._faults_of_choice(self.targets)
        return self._faults_of_pairs(self.targets)

    def _faults_of_choice(self, choice: str) -> Iterable[str]:
        if choice not in get_args(Choice) or self.training != "frozen":
            yield (
                f'Wanted targets as pairs, or "apart" or "within" in frozen training, which '
                f"chooses them from trained representations, found {choice!r} in {self.training} "
                "training."
            )
        if len(self.target_weights) != 2 or not all(
            math.isfinite(weight) and weight != 0 for weight in self.target_weights
        ):
            yield (
                "Wanted target_weights as two finite numbers that are not 0, one for each of "
                f"the two targets that are chosen, found {list(self.target_weights)}."
            )

    def _faults_of_pairs(self, targets: Sequence[Target]) -> Iterable[str]:
        if self.target_weights != _UNEQUAL:
            yield (
                f"Wanted target_weights with targets that are chosen only, found "
                f"{list(self.target_weights)} with targets as pairs: those have weights of their "
                "own, [i, j, weight]."
            )
        if not targets:
            yield "Wanted at least one target (i, j, weight), found none: the head has no task."
        pairs = Counter((target.i, target.j) for target in targets)
        for target in targets:
            if not (0 <= target.i < self.n_features and 0 <= target.j < self.n_features):
                yield (
                    f"Wanted targets of features 0 to {self.n_features - 1}, found the pair "
                    f"({target.i}, {target.j})."
                )
            if not math.isfinite(target.weight) or target.weight == 0:
                yield (
                    f"Wanted finite weights that are not 0, found {target.weight} for the pair "
                    f"({target.i}, {target.j}): leave the pair out."
                )
            if pairs[target.i, target.j] > 1:
                yield (
                    f"Wanted each pair once, found ({target.i}, {target.j}) more often: give it "
                    "the sum of the weights."
                )

    @property
    def n_instances(self) -> int:
        return self.n_seeds * len(self.probabilities)

    @property
    def phases(self) -> tuple[tuple[Phase, int], ...]:
        """What is trained, one after the other, each for so many steps."""
        if self.training == "joint":
            return (("joint", self.steps),)
        return (("representations", self.steps), ("heads", self.head_steps or self.steps))

    @property
    def n_steps(self) -> int:
        """Steps of all phases together."""
        return sum(steps for _, steps in self.phases)

    def phase_of(self, step: int) -> Phase:
        """The phase of a step, counted from 1 over all phases; 0 is with the first."""
        end = 0
        for phase, steps in self.phases:
            end += steps
            if step <= end:
                return phase
        raise StudyError(f"Wanted a step up to {end} of {self.name}, found {step}.")

    @property
    def snapshot_steps(self) -> tuple[int, ...]:
        """Numbers of steps after which a snapshot is taken: 0, then log-spaced in each phase."""
        found, start = {0}, 0
        for _, steps in self.phases:
            count = max(1, (self.snapshots - 1) // len(self.phases))
            found |= {start + round(step) for step in np.geomspace(1, steps, count)[:-1]}
            start += steps
            found.add(start)
        return tuple(sorted(found))

    @property
    def marks(self) -> tuple[int, ...]:
        """Numbers of steps after which the losses are kept: those of snapshots, and evenly."""
        every = max(1, self.n_steps // _CURVE_POINTS)
        return tuple(sorted({*self.snapshot_steps, *range(0, self.n_steps, every)}))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the results must know of the configuration, a sentence each."""
        notes = []
        if self.target_form == "indicator" and 1.0 in self.probabilities:
            notes.append(
                "At p = 1 every feature is always there: the indicator target is the same number "
                "for all pairs, which says nothing of features, and no alignment is to be expected"
            )
        if not isinstance(self.targets, str):
            matrix = np.zeros((self.n_features, self.n_features))
            for target in self.targets:
                matrix[target.i, target.j] = target.weight
            rank = int(np.linalg.matrix_rank(matrix))
            if rank > self.d_head:
                notes.append(
                    f"The targets have rank {rank}, beyond the {self.d_head} dimensions of the head"
                )
        return tuple(notes)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return asdict(self)

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> SuperpositionConfig:
        """Of :meth:`to_json`. Raises StudyError, TypeError and KeyError for what is none."""
        values = dict(table)
        values["probabilities"] = tuple(values["probabilities"])
        values["groups"] = tuple(tuple(group) for group in values["groups"])
        values["target_weights"] = tuple(values["target_weights"])
        if not isinstance(values["targets"], str):
            values["targets"] = tuple(Target(**target) for target in values["targets"])
        return cls(**values)

    def differences(self, other: SuperpositionConfig) -> list[str]:
        """What is trained otherwise in another configuration; the question is no part of it."""
        return [
            f"{field.name} {_said(getattr(other, field.name))} and not "
            f"{_said(getattr(self, field.name))}"
            for field in fields(self)
            if field.name != "question" and getattr(self, field.name) != getattr(other, field.name)
        ]


def _said(value: object) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], Target):
        return str([(target.i, target.j, target.weight) for target in value])
    return str(list(value) if isinstance(value, tuple) else value)
