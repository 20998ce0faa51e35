"""The command of the superposition study, and the answers that it gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from readable import with_captions

from qk_taxonomy.cache import find_spectra
from qk_taxonomy.cli import main
from qk_taxonomy.errors import SpectraFileError
from qk_taxonomy.outputs import superposition as outputs
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
    file = Path("data/superposition/tiny/training.safetensors")
    before = file.stat().st_mtime_ns
    assert run(tiny()).exit_code == 0
    assert file.stat().st_mtime_ns == before
    # Commands that look for spectra of models under data/ do not take it for some.
    with pytest.raises(SpectraFileError, match="There are no spectra"):
        find_spectra(".")


def test_several_sizes_of_head_make_a_phase_diagram() -> None:
    result = run(tiny("[1, 2]"))
    assert result.exit_code == 0, result.output
    assert Path("plots/superposition/tiny/phases.png").is_file()
    assert Path("plots/superposition/tiny-r1/losses.png").is_file()
    assert not Path("plots/superposition/tiny-r1/arrows.png").exists()


def test_a_question_is_answered_by_its_preset() -> None:
    result = run("basic", "--seeds", "2", "--steps", "20", "--json")
    assert result.exit_code == 0, result.output
    (answer,) = json.loads(result.stdout)
    (config,) = load_config("basic")
    assert answer["question"] == config.question
    cosines, *ratios = answer["measures"]
    names = [f"p = {p:.3g}" for p in config.probabilities]
    assert [name for name, _ in cosines["effects"]] == names
    assert {effect["n"] for _, effect in cosines["effects"]} == {2}
    assert len(cosines["chance"]) == len(names)
    assert [one["measure"] for one in ratios] == [
        "σ of 2 → 4 over its weight 1", "σ of 5 → 8 over its weight 2",
    ]  # fmt: skip
    # Other numbers are other trainings, which do not stand in each other's way.
    folder = Path("plots/superposition/basic-2-seeds-20-steps")
    table = pd.read_csv(folder / "answer.csv")
    assert table["name"].tolist() == 3 * names
    assert table["effect"][: len(names)].tolist() == pytest.approx(
        [effect["effect"] for _, effect in cosines["effects"]], rel=1e-5
    )
    assert (folder / "answer.png").is_file()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert Path("data/superposition/basic-2-seeds-20-steps/training.safetensors").is_file()


def test_sizes_of_head_are_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    # Six runs' own figures, which other tests draw, take a minute.
    monkeypatch.setattr(outputs, "write_superposition", lambda *_, **__: iter(()))
    result = run("head-size", "--seeds", "1", "--steps", "3")
    assert result.exit_code == 0, result.output
    folder = Path("plots/superposition/head-size-1-seeds-3-steps")
    assert {path.name for path in folder.iterdir()} == with_captions(
        ["phases.png", "answer.png", "answer.csv"]
    )
    assert "One seed gives no interval: --seeds 10 gives one." in result.stdout
    assert "nan" not in result.stdout
    # A note is told once, with the runs that it is of; a training, as it begins and as it ends.
    notes = [line for line in result.stderr.splitlines() if line.startswith("Note:")]
    assert [note.split(": ")[1] for note in notes] == [
        f"head-size-r{r}-1-seeds-3-steps" for r in (1, 2, 4, 8, 12)
    ]
    assert "Training head-size-r1-1-seeds-3-steps: 2 instances, 3 steps …" in result.stderr
    assert "Training head-size-r15-1-seeds-3-steps: 2 instances: recon" in result.stderr


def test_a_grid_of_choices_weights_and_heads_is_one_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outputs, "write_superposition", lambda *_, **__: iter(()))
    result = run("tegum", "--seeds", "2", "--steps", "20")
    assert result.exit_code == 0, result.output
    folder = Path("plots/superposition/tegum-2-seeds-20-steps")
    # Several runs of one size of head make no phase diagram.
    assert {path.name for path in folder.iterdir()} == with_captions(["answer.png", "answer.csv"])
    answer = pd.read_csv(folder / "answer.csv")
    assert "within 1:1, r = 10" in set(answer["name"])
    assert "nan" not in result.stdout


def test_a_table_of_ones_own_with_the_name_of_a_preset_asks_nothing() -> None:
    Path("mine.toml").write_text(TINY.format(head="[2, 3]").replace("[tiny]", "[dynamics]"))
    result = run("mine.toml", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == []
    assert not Path("plots/superposition/dynamics/answer.png").exists()


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
