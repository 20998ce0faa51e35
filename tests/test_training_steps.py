"""Steps that names of revisions tell, and which checkpoints are chosen among many."""

from __future__ import annotations

import doctest
import math

import pytest

from qk_taxonomy import training_checkpoints, training_steps
from qk_taxonomy.catalog import load_families
from qk_taxonomy.errors import QKTaxonomyError
from qk_taxonomy.training_steps import choose_checkpoints, training_stage, training_step

PUBLISHED = sorted(
    {
        model.checkpoints.revisions
        for family in load_families()
        for model in family.models
        if model.checkpoints
    }
)


@pytest.mark.parametrize(
    ("revision", "step"),
    [
        ("step0", 0),
        ("step143000", 143_000),
        ("step1000-tokens2B", 1000),
        ("stage2-ingredient1-step11931-tokens50B", 11_931),
        ("stage3-step-4720000", 4_720_000),
        ("global_step600000", 600_000),
        ("globalstep7", 7),
        ("checkpoint-500", 500),
        ("ckpt_003", 3),
        ("iter_0001000", 1000),
        ("iteration-12", 12),
        ("Step-50K", 50_000),
        ("step1.5k", 1500),
        ("step-1431k-3T", 1_431_000),
        ("tokens2B", 2_000_000_000),
        ("2.5T-tokens", 2_500_000_000_000),
        ("main", None),
        ("v1.0", None),
        ("checkpoint-1.0", None),
        ("step", None),
        ("steps", None),
        ("footstep9", None),
        ("step12abc", None),
        ("step9999999T", None),
        ("step99999999999999999999", None),
        ("5b8c2f60e1a34b1f9a0d6e7c8b9a0f1e2d3c4b5a", None),
    ],
)
def test_the_step_of_a_name(revision: str, step: int | None) -> None:
    assert training_step(revision) == step


def test_stages() -> None:
    names = ["stage1-step1000", "stage2-step10", "stage3-step-5", "step3", "backstage4"]
    assert [training_stage(name) for name in names] == [1, 2, 3, 0, 0]


def test_examples() -> None:
    assert doctest.testmod(training_steps).failed == 0


@pytest.mark.parametrize("revisions", PUBLISHED, ids=lambda names: names[0])
def test_every_published_list(revisions: tuple[str, ...]) -> None:
    places = [(training_stage(name), training_step(name) or 0) for name in revisions]
    assert places == sorted(places)
    assert None not in map(training_step, revisions)
    assert choose_checkpoints(revisions, "all") == list(revisions)
    for how in ("log", *range(2, 40)):
        chosen = choose_checkpoints(revisions, how)  # type: ignore[arg-type]
        assert chosen == [name for name in revisions if name in set(chosen)]
        assert (chosen[0], chosen[-1]) == (revisions[0], revisions[-1])
        assert how == "log" or len(chosen) == min(int(how), len(revisions))


def test_pythia_by_doublings() -> None:
    revisions = training_checkpoints("EleutherAI/pythia-14m")
    early = [f"step{2**power}" for power in range(10)]
    late = [f"step{n}000" for n in (1, 2, 4, 8, 16, 33, 66, 131, 143)]
    assert choose_checkpoints(revisions, "log") == ["step0", *early, *late]


def test_a_number_is_even_in_log_steps() -> None:
    revisions = [f"step{step}" for step in range(10_001)]
    chosen = [training_step(name) or 0 for name in choose_checkpoints(revisions, 9)]
    wanted = [math.expm1(math.log(10_001) * i / 8) for i in range(9)]
    for found, ideal in zip(chosen, wanted, strict=True):
        assert abs(math.log1p(found) - math.log1p(ideal)) <= math.log1p(0.5)


def test_steps_that_begin_anew_count_on() -> None:
    first = [f"stage1-step{2**power}" for power in range(8)]
    second = [f"stage2-step{step}" for step in (64, 128, 1920)]
    # 128 + 64 and 128 + 128 and 128 + 1920 steps since training began.
    assert choose_checkpoints(first + second, "log") == [*first, *second[1:]]


def test_names_without_steps_go_by_their_place() -> None:
    revisions = [f"{letter}-draft" for letter in "abcdefghi"]
    assert choose_checkpoints(revisions, "log") == [revisions[i] for i in (0, 1, 2, 4, 8)]
    assert choose_checkpoints(revisions, 3) == [revisions[i] for i in (0, 2, 8)]


@pytest.mark.parametrize("how", ["all", "log", 2, 5])
@pytest.mark.parametrize("revisions", [[], ["step7"], ["step0"], ["step0", "step0-again"]])
def test_few_checkpoints(revisions: list[str], how: training_steps.CheckpointChoice) -> None:
    assert choose_checkpoints(revisions, how) == revisions


def test_fewer_than_two_are_refused() -> None:
    with pytest.raises(QKTaxonomyError, match="At least 2 checkpoints"):
        choose_checkpoints(["step0", "step1"], 1)
