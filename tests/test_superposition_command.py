"""The command of the superposition study, and the answers that it gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from synthetic_superposition import superposition_run

from qk_taxonomy.cli import main
from qk_taxonomy.studies.superposition.answers import (
    capacity,
    mean_over_seeds,
    order_in_training,
    recovery,
)
from qk_taxonomy.studies.superposition.config import Target
from qk_taxonomy.studies.superposition.logits import decomposed_logits
from qk_taxonomy.studies.superposition.measured import MeasuredRun
from qk_taxonomy.studies.superposition.presets import adjusted, load_config, presets
from qk_taxonomy.studies.superposition.train import train

#: A training of seconds: one probability, few features.
TINY = """
[tiny]
question = "Is it found?"
probabilities = [0.3, 0.1]
targets = [[0, 1, 1.0]]
n_features = 6
d_hidden = 4
d_head = {head}
steps = 60
batch_size = 64
snapshots = 5
n_seeds = 2
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["superposition", *arguments])


def tiny(head: str = "2") -> str:
    Path("mine.toml").write_text(TINY.format(head=head))
    return "mine.toml"


def test_presets_are_listed() -> None:
    result = run("--list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(presets())
    assert all("instance" in line and line.endswith("?") for line in lines)


def test_a_file_of_ones_own_is_trained_once() -> None:
    result = run(tiny())
    assert result.exit_code == 0, result.output
    made = {path.name for path in Path("plots/superposition/tiny").iterdir()}
    assert {"targets.csv", "losses.png", "singular.png", "training.png"} <= made
    targets = pd.read_csv("plots/superposition/tiny/targets.csv")
    assert list(targets["probability"]) == [0.3, 0.1, 0.3, 0.1]
    assert list(targets["seed"]) == [0, 0, 1, 1]
    file = Path("data/superposition/tiny.safetensors")
    before = file.stat().st_mtime_ns
    assert run(tiny()).exit_code == 0
    assert file.stat().st_mtime_ns == before


def test_several_sizes_of_head_make_a_phase_diagram() -> None:
    result = run(tiny("[1, 2]"))
    assert result.exit_code == 0, result.output
    assert Path("plots/superposition/tiny/phases.png").is_file()
    assert Path("plots/superposition/tiny-r1/losses.png").is_file()
    assert not Path("plots/superposition/tiny-r1/arrows.png").exists()


def test_the_first_question_is_answered_by_its_preset() -> None:
    result = run("basic", "--seeds", "2", "--steps", "20", "--json")
    assert result.exit_code == 0, result.output
    (answer,) = json.loads(result.stdout)
    assert answer["question"] == load_config("basic")[0].question
    assert answer["answer"].startswith("Every target is aligned")
    assert [name for name, _ in answer["effects"]] == [
        f"p = {p:.3g}" for p in load_config("basic")[0].probabilities
    ]
    assert {effect["n"] for _, effect in answer["effects"]} == {2}
    assert Path("plots/superposition/answers.png").is_file()
    # Other numbers are other trainings, which do not stand in each other's way.
    assert Path("data/superposition/basic-2-seeds-20-steps.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], 2, "Presets are basic"),
        (["none.toml"], 2, "none.toml"),
        (["basic", "--steps", "0"], 2, "--steps"),
        (["basic", "--steps", "3", "--show-seed", "4"], 2, "basic-3-steps has seeds 0 to 0"),
    ],
)
def test_wrong_calls(arguments: list[str], code: int, said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert said in result.stderr


def test_a_preset_that_diverges_is_named_and_others_go_on() -> None:
    text = TINY.format(head="2") + "learning_rate = 1e30\n"
    Path("wild.toml").write_text(text.replace("[tiny]", "[wild]"))
    result = run("wild.toml", tiny())
    assert result.exit_code == 1
    assert "learning_rate" in result.stderr
    assert Path("plots/superposition/tiny/losses.png").is_file()


def test_intervals_are_over_seeds() -> None:
    found = mean_over_seeds([1.0, 2.0, 3.0, np.nan])
    assert (found.effect, found.n) == (2.0, 3)
    half = 4.302652729911275 / np.sqrt(3)
    assert found.low == pytest.approx(2.0 - half)
    assert found.high == pytest.approx(2.0 + half)
    alone = mean_over_seeds([0.5])
    assert (alone.effect, alone.n) == (0.5, 1)
    assert np.isnan(alone.low)
    assert alone.note


def test_a_configuration_with_other_numbers_has_another_name() -> None:
    (config,) = load_config("sparse-limit")
    changed = adjusted(config, n_seeds=9, steps=7)
    assert changed.name == "sparse-limit-9-seeds-7-steps"
    assert (changed.n_seeds, changed.phases) == (9, (("representations", 7), ("heads", 7)))
    assert adjusted(config) is config


def test_logits_of_pairs_with_a_target_are_decomposed() -> None:
    """A head of one target needs one term, and rather fewer than one of random vectors."""
    Path("mine.toml").write_text(TINY.format(head="3").replace("steps = 60", "steps = 3000"))
    (config,) = load_config("mine.toml")
    found = decomposed_logits(MeasuredRun(train(config)))
    assert list(found) == [0.3, 0.1]
    for decompositions in found.values():
        assert len(decompositions) == 2
        for one in decompositions:
            assert one.n_recon.shape == (256,)
            assert np.median(one.n_recon) == 1
            assert one.fewer.effect < 0


def test_two_configurations_of_one_name_are_refused() -> None:
    tiny()
    Path("other.toml").write_text(Path("mine.toml").read_text())
    result = run("mine.toml", "other.toml")
    assert result.exit_code == 2
    assert "two configurations of the name tiny" in result.stderr


def planted(r: int = 10, **options: Any) -> MeasuredRun:
    return MeasuredRun(superposition_run([0.5, 0.1], r=r, n_seeds=8, **options))


def test_recovery_of_planted_heads() -> None:
    answer = recovery([planted()])
    assert answer.answer.endswith("in every seed at p = 0.5, 0.1.")
    assert [finding.n for _, finding in answer.effects] == [8, 8]
    assert all(finding.effect > 0.99 for _, finding in answer.effects)


def test_the_head_keeps_the_heaviest_it_has_room_for() -> None:
    """Planted: a head of r has the first r of the targets."""
    targets = tuple(Target(i, i + 6, 8.0 - i) for i in range(5))
    answer = capacity([planted(r, targets=targets) for r in (2, 4, 8)])
    assert [name for name, _ in answer.effects] == ["r = 2", "r = 4", "r = 8"]
    assert [finding.effect for _, finding in answer.effects] == [2.0, 4.0, 5.0]
    assert "r = 2: 2.0 of 5, the heaviest in 8 of 8 seeds, overlap 0.0" in answer.answer
    assert "r = 8: 5.0 of 5, overlap" in answer.answer
    lightest = capacity([planted(2, targets=targets[::-1])])
    assert "the heaviest in 0 of 8 seeds" in lightest.answer


@pytest.mark.parametrize(
    ("alignment_first", "said"),
    [(True, "p = 0.5: alignment is first"), (False, "p = 0.5: orthogonality is first")],
)
def test_what_comes_first_in_training(alignment_first: bool, said: str) -> None:
    """Planted: the weights of one side are at their end while the other's begin to move."""
    run = superposition_run([0.5, 0.1], n_seeds=8, steps=100_000)
    last, n = run.snapshots[-1], len(run.snapshots)
    first = run.snapshots[0]

    def mixed(name: str, share: float) -> Any:
        return (share * getattr(last, name) + (1 - share) * getattr(first, name)).astype(np.float32)

    snapshots = []
    for place, one in enumerate(run.snapshots):
        early, late = min(1.0, place / 2), max(0.0, (place - n + 3) / 2)
        of_head, of_w = (early, late) if alignment_first else (late, early)
        # Heads point along the end's features, whatever the others are; those of targets are there.
        w = mixed("w", of_w)
        w[:, :, [2, 4, 5, 8]] = last.w[:, :, [2, 4, 5, 8]]
        snapshots.append(replace(one, w=w, a=mixed("a", of_head), b=mixed("b", of_head)))
    answer = order_in_training([MeasuredRun(replace(run, snapshots=tuple(snapshots)))])
    assert said in answer.answer
    assert len(answer.effects) == 2 * 3
