"""Training toy models with a pseudo-head: losses, gradients, stopping, files, what is learnt."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from superposition_oracle import naive_losses

from qk_taxonomy.errors import CatalogError, SpectraFileError, StudyError
from qk_taxonomy.progress import Silent
from qk_taxonomy.studies.superposition import train as training
from qk_taxonomy.studies.superposition.choice import choose_targets
from qk_taxonomy.studies.superposition.config import SuperpositionConfig, Target
from qk_taxonomy.studies.superposition.model import (
    Batches,
    Objective,
    Parameters,
    TargetPairs,
    initialise,
)
from qk_taxonomy.studies.superposition.presets import load_config, presets
from qk_taxonomy.studies.superposition.records import SuperpositionRun
from qk_taxonomy.studies.superposition.store import load_run, load_unfinished, run_path
from qk_taxonomy.studies.superposition.train import train

SMALL = SuperpositionConfig(
    name="small",
    question="Does it train?",
    probabilities=(1.0, 0.5, 0.3, 0.2, 0.1),
    targets=(Target(0, 3, 1.0), Target(2, 1, -2.0)),
    n_features=6,
    d_hidden=4,
    d_head=2,
    n_seeds=2,
    importance_decay=0.8,
    steps=60,
    batch_size=32,
    learning_rate=1e-2,
    snapshots=8,
)
FORMS: dict[str, dict[str, Any]] = {
    "product": {},
    "indicator": {"target_form": "indicator", "probabilities": (0.5, 0.3)},
    "softmax": {"target_form": "softmax", "n_keys": 4},
}


CHOSEN: dict[str, Any] = {"targets": "within", "training": "frozen"}


class Watcher(Silent):
    """Notes what it is told, and does something after so many steps."""

    def __init__(self, at: int | None = None, act: Callable[[], None] = lambda: None) -> None:
        self.done, self.lines, self.total = 0, list[str](), 0
        self._at, self._act = at, act

    def start(self, what: str, n_steps: int) -> None:
        self.what, self.total = what, n_steps

    def advance(self, n_steps: int) -> None:
        self.done += n_steps
        if self._at is not None and self.done >= self._at:
            self._act()

    def tell(self, line: str) -> None:
        self.lines.append(line)


def interrupt() -> None:
    raise KeyboardInterrupt


def same(one: SuperpositionRun, other: SuperpositionRun) -> bool:
    """Bit for bit."""
    arrays = [
        [run.steps, run.reconstruction_loss, run.pair_loss]
        + [getattr(s, part) for s in run.snapshots for part in ("w", "bias", "a", "b")]
        for run in (one, other)
    ]
    labels = [[(s.step, s.phase) for s in run.snapshots] for run in (one, other)]
    return (
        labels[0] == labels[1]
        and (one.config, one.targets, one.notes) == (other.config, other.targets, other.notes)
        and all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*arrays, strict=True))
    )


def prepared(
    config: SuperpositionConfig,
) -> tuple[Parameters, Parameters, torch.Tensor, TargetPairs]:
    """Parameters with some bias, gradients of nothing, a batch, and targets."""
    n = len(config.probabilities)
    parameters, gradients = Parameters.zeros(config, n), Parameters.zeros(config, n)
    initialise(parameters, 1.0, 0)
    noise = torch.randn(parameters.bias.shape, generator=torch.Generator().manual_seed(7))
    parameters.bias.copy_(0.1 * noise)
    x = Batches(config, list(config.probabilities), 0).draw()
    assert not isinstance(config.targets, str)
    return parameters, gradients, x, TargetPairs.of((config.targets,) * n)


@pytest.mark.parametrize("form", FORMS)
def test_losses_are_those_of_one_pair_after_the_other(form: str) -> None:
    config = dataclasses.replace(SMALL, **FORMS[form])
    parameters, gradients, x, pairs = prepared(config)
    losses = Objective(config, len(x))(parameters, gradients, x, pairs, "joint")
    for k in range(len(config.probabilities)):
        w, bias, a, b = (
            getattr(parameters, part)[k].double().numpy() for part in ("w", "bias", "a", "b")
        )
        assert not isinstance(config.targets, str)
        found = naive_losses(config, config.targets, w, bias, a.T @ b, x[k].double().numpy())
        np.testing.assert_allclose(losses[:, k].numpy(), found, rtol=1e-5)


@pytest.mark.parametrize("phase", ["joint", "representations", "heads"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_autograd(form: str, phase: Any) -> None:
    config = dataclasses.replace(SMALL, **FORMS[form], pair_weight=0.7)
    parameters, gradients, x, pairs = prepared(config)
    Objective(config, len(x))(parameters, gradients, x, pairs, phase)
    w, bias, a, b = (
        getattr(parameters, part).double().requires_grad_() for part in ("w", "bias", "a", "b")
    )
    x = x.double()
    h = w @ x
    found = torch.relu(w.mT @ h + bias[..., None])
    importance = 0.8 ** torch.arange(6)[:, None]
    reconstruction = (importance * (x - found).square()).mean((1, 2)).sum()
    half = config.batch_size // 2
    logits = (a @ h[..., :half]).mT @ (b @ h[..., half:])
    scores = torch.zeros_like(logits)
    assert not isinstance(config.targets, str)
    for target in config.targets:
        query, key = x[:, target.i, :half], x[:, target.j, half:]
        if form == "indicator":
            query, key = (query > 0).double(), (key > 0).double()
        scores = scores + target.weight * query[..., None] * key[:, None]
    if form == "softmax":
        context = torch.arange(half) // config.n_keys
        apart = context[:, None] != context
        logits, scores = (part.masked_fill(apart, -1e9) for part in (logits, scores))
        pair_losses = -(scores.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    else:
        pair_losses = (logits - scores).diagonal(dim1=1, dim2=2).square()
    pair_loss = config.pair_weight * pair_losses.mean(1).sum()
    losses = {
        "joint": reconstruction + pair_loss,
        "representations": reconstruction,
        "heads": pair_loss,
    }
    trained = {"joint": "w bias a b", "representations": "w bias", "heads": "a b"}[phase].split()
    tensors = dict(zip(("w", "bias", "a", "b"), (w, bias, a, b), strict=True))
    wanted = torch.autograd.grad(losses[phase], [tensors[part] for part in trained])
    for part, gradient in zip(trained, wanted, strict=True):
        found_gradient = getattr(gradients, part).double()
        torch.testing.assert_close(found_gradient, gradient, rtol=1e-4, atol=1e-6)
    for part in {"w", "bias", "a", "b"} - set(trained):
        assert not getattr(gradients, part).any()


def test_data_are_zero_or_uniform_and_one_seeds_are_nested() -> None:
    config = dataclasses.replace(SMALL, batch_size=20_000)
    x = Batches(config, [1.0, 0.4], 3).draw().double().numpy()
    assert x.shape == (2, 6, 20_000)
    assert (x[0] > 0).mean() > 0.999
    there = x[1] > 0
    assert abs(there.mean() - 0.4) < 0.01
    assert abs(np.quantile(x[1][there], [0.25, 0.5, 0.75]) - [0.25, 0.5, 0.75]).max() < 0.01
    assert abs(np.corrcoef(there)[np.triu_indices(6, 1)]).max() < 0.03
    again = Batches(config, [0.4], 3).draw().double().numpy()
    np.testing.assert_array_equal(again[0], x[1])
    assert not np.array_equal(Batches(config, [0.4], 4).draw().numpy()[0], again[0])


def test_features_of_a_group_occur_together() -> None:
    config = dataclasses.replace(SMALL, batch_size=20_000, groups=((1, 4, 5), (0, 2)))
    x = Batches(config, [0.3], 0).draw().double().numpy()[0]
    there = x > 0
    assert abs(there.mean(1) - 0.3).max() < 0.015
    for group in config.groups:
        assert (there[list(group)].all(0) == there[list(group)].any(0)).mean() > 0.999
        strengths = x[list(group)][:, there[group[0]]]
        assert abs(strengths.mean(1) - 0.5).max() < 0.02
        assert abs(np.corrcoef(strengths)[np.triu_indices(len(group), 1)]).max() < 0.04
    assert abs(np.corrcoef(there[[0, 1, 3]])[np.triu_indices(3, 1)]).max() < 0.03


def test_initial_parameters_have_the_stated_spread() -> None:
    config = dataclasses.replace(SMALL, n_features=400, d_hidden=200, d_head=100)
    parameters = Parameters.zeros(config, 2)
    initialise(parameters, 0.5, 5)
    assert parameters.w.std().item() == pytest.approx((2 / 600) ** 0.5, rel=0.02)
    assert parameters.a.std().item() == pytest.approx(0.5 * (2 / 300) ** 0.5, rel=0.02)
    assert not torch.equal(parameters.a, parameters.b)
    assert not parameters.bias.any()
    other = Parameters.zeros(dataclasses.replace(config, d_head=50), 1)
    initialise(other, 0.5, 5)
    assert torch.equal(other.w[0], parameters.w[1])


@pytest.mark.parametrize("kind", ["joint", "frozen"])
def test_instances_trained_together_are_those_trained_alone(kind: Any) -> None:
    config = dataclasses.replace(SMALL, training=kind)
    together = train(config)
    np.testing.assert_array_equal(together.instances.seed, [0] * 5 + [1] * 5)
    np.testing.assert_array_equal(together.instances.probability[5:], SMALL.probabilities)
    for k in (0, 4):
        p = float(together.instances.probability[k])
        alone = train(dataclasses.replace(config, probabilities=(p,), n_seeds=1))
        for mine, theirs in zip(together.snapshots, alone.snapshots, strict=True):
            for part in ("w", "bias", "a", "b"):
                found, wanted = getattr(mine, part)[k], getattr(theirs, part)[0]
                np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    assert not np.allclose(together.snapshots[-1].w[0], together.snapshots[-1].w[5], atol=0.01)


@pytest.mark.parametrize("kind", ["joint", "frozen"])
@pytest.mark.parametrize("stop", [1, 37, 60, 100])
def test_a_stopped_training_goes_on_to_the_same_end(tmp_path: Path, kind: Any, stop: int) -> None:
    config = dataclasses.replace(SMALL, training=kind)
    path = run_path(tmp_path, config)
    whole = train(config)
    if stop >= config.n_steps:
        stop = config.n_steps
    with pytest.raises(KeyboardInterrupt):
        train(config, checkpoint=path, progress=Watcher(stop, interrupt))
    with pytest.raises(SpectraFileError, match=f"stopped at step {stop} of {config.n_steps}"):
        load_run(path)
    watcher = Watcher()
    resumed = train(config, checkpoint=path, progress=watcher)
    assert watcher.done == watcher.total == config.n_steps
    assert same(resumed, whole)
    assert same(load_run(path), whole)
    untouched = Watcher(0, interrupt)
    assert same(train(config, checkpoint=path, progress=untouched), whole)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


INTERRUPTED = """
import sys
from pathlib import Path
from qk_taxonomy.studies.superposition.config import SuperpositionConfig, Target
from qk_taxonomy.progress import Silent
from qk_taxonomy.studies.superposition.train import train

class Told(Silent):
    def tell(self, line):
        print(line, flush=True)

config = SuperpositionConfig(
    "long", "?", (0.5, 0.1), (Target(0, 1),), n_features=6, d_hidden=4, d_head=2, steps=100_000
)
train(config, checkpoint=Path(sys.argv[1]), progress=Told())
"""


def test_ctrl_c_in_the_middle_of_a_step(tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    command = [sys.executable, "-c", INTERRUPTED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        for _ in range(30):
            assert it.stdout.readline().startswith("reconstruction loss")
        it.send_signal(signal.SIGINT)
        _, said = it.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    with pytest.raises(SpectraFileError, match="stopped at step") as caught:
        load_run(path)
    stopped = int(str(caught.value).split("step ")[1].split(" ")[0])
    config = SuperpositionConfig(
        "long", "?", (0.5, 0.1), (Target(0, 1),), n_features=6, d_hidden=4, d_head=2, steps=100_000
    )
    # Both are stopped again soon: from the checkpoint, and after a run without any pause.
    ends = []
    for place in (path, tmp_path / "whole.safetensors"):
        with pytest.raises(KeyboardInterrupt):
            train(config, checkpoint=place, progress=Watcher(stopped + 200, interrupt))
        ends.append(load_unfinished(place, config))
    resumed, whole = ends
    assert resumed is not None
    assert whole is not None
    assert resumed.step == whole.step >= stopped + 200
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    for one, other in zip(resumed.blocks, whole.blocks, strict=True):
        assert torch.equal(one.representation, other.representation)
        assert torch.equal(one.head, other.head)
        assert torch.equal(one.generator, other.generator)


def test_checkpoints_are_written_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_CHECKPOINT_EVERY", 0.0)
    path = tmp_path / "new" / "one.safetensors"
    found = list[int]()

    def look() -> None:
        if path.exists():
            with pytest.raises(SpectraFileError, match="stopped at step") as caught:
                load_run(path)
            found.append(int(str(caught.value).split("step ")[1].split(" ")[0]))

    train(SMALL, checkpoint=path, progress=Watcher(0, look))
    assert len(found) > 40
    assert found == sorted(found)


def test_what_is_told_and_kept() -> None:
    watcher = Watcher()
    config = dataclasses.replace(SMALL, training="frozen", head_steps=2000, n_seeds=1)
    run = train(config, progress=watcher)
    assert watcher.what == "Training small: 5 instances"
    assert watcher.done == watcher.total == 2060
    assert watcher.lines[-1].startswith("reconstruction loss 0.0")
    assert "pair loss" in watcher.lines[0]
    assert run.steps[0] == 1
    assert run.steps[-1] == 2060
    assert np.diff(run.steps).max() == 2
    assert run.reconstruction_loss.shape == run.pair_loss.shape == (len(run.steps), 5)
    assert [s.step for s in run.snapshots if s.phase == "representations"][-1] == 60
    first, middle, last = (
        next(s for s in run.snapshots if s.step == step) for step in (0, 60, 2060)
    )
    assert (first.phase, last.phase) == ("representations", "heads")
    assert np.array_equal(middle.w, last.w)
    assert np.array_equal(middle.bias, last.bias)
    assert np.array_equal(first.a, middle.a)
    assert not first.bias.any()
    trained = run.steps <= 60
    assert run.reconstruction_loss[trained][-9:].mean() < run.reconstruction_loss[0].mean() / 2
    assert run.pair_loss[-50:].mean() < run.pair_loss[trained].mean() * 0.7


def test_divergence_says_where_and_what_to_try(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, learning_rate=1e20)
    path = run_path(tmp_path, config)
    with pytest.raises(
        StudyError, match=r"not at step \d+, of the instance with p = .* seed \d"
    ) as e:
        train(config, checkpoint=path)
    assert "learning_rate 1e+20; try 1e+19" in str(e.value)
    with pytest.raises(StudyError, match=r"learning_rate 1e\+20 and not 0.01"):
        train(SMALL, checkpoint=path)


def test_divergence_of_one_instance_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter(range(1000))

    def draw(self: Batches) -> torch.Tensor:
        x = drawn(self)
        if next(steps) == 12:
            x[1, 2, 3] = torch.inf
        return x

    drawn = Batches.draw
    monkeypatch.setattr(Batches, "draw", draw)
    config = dataclasses.replace(SMALL, probabilities=(0.5, 0.3), n_seeds=1)
    with pytest.raises(StudyError, match=r"at step 13, of the instance with p = 0.3 and seed 0"):
        train(config)


def test_another_configurations_file(tmp_path: Path) -> None:
    path = run_path(tmp_path, SMALL)
    run = train(SMALL, checkpoint=path)
    other = dataclasses.replace(
        SMALL, steps=61, targets=(Target(0, 3),), question="Something else?"
    )
    with pytest.raises(StudyError) as caught:
        train(other, checkpoint=path)
    assert "steps 60 and not 61" in str(caught.value)
    assert "targets [(0, 3, 1.0), (2, 1, -2.0)] and not [(0, 3, 1.0)]" in str(caught.value)
    assert "question" not in str(caught.value)
    assert "remove the file" in str(caught.value)
    assert same(load_run(path), run)
    renamed = dataclasses.replace(SMALL, question="Asked in other words?")
    assert train(renamed, checkpoint=path, progress=Watcher(0, interrupt)).config == SMALL


@pytest.mark.parametrize("damage", ["cut", "text", "missing"])
def test_files_that_cannot_be_used(tmp_path: Path, damage: str) -> None:
    path = run_path(tmp_path, SMALL)
    with pytest.raises(KeyboardInterrupt):
        train(SMALL, checkpoint=path, progress=Watcher(30, interrupt))
    if damage == "missing":
        path.unlink()
        with pytest.raises(SpectraFileError, match="no training"):
            load_run(path)
        return
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"not a file" * 20)
    with pytest.raises(SpectraFileError, match=r"is damaged .* Remove it"):
        train(SMALL, checkpoint=path)


def test_a_checkpoint_whose_blocks_are_of_other_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_path(tmp_path, SMALL)
    with pytest.raises(KeyboardInterrupt):
        train(SMALL, checkpoint=path, progress=Watcher(30, interrupt))
    monkeypatch.setattr(training, "_BLOCK", 3)
    with pytest.raises(SpectraFileError, match="is damaged"):
        train(SMALL, checkpoint=path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_head": 5}, "d_head ≤ d_hidden, found 5 > 4"),
        ({"d_head": 0}, "d_head of at least 1"),
        ({"n_seeds": 0}, "n_seeds of at least 1"),
        ({"steps": 0}, "steps of at least 1"),
        ({"name": "../up"}, "Wanted a name"),
        ({"targets": (Target(0, 6),)}, r"features 0 to 5, found the pair \(0, 6\)"),
        ({"targets": (Target(-1, 2),)}, r"found the pair \(-1, 2\)"),
        ({"targets": (Target(0, 1, 0.0),)}, "weights that are not 0, found 0.0"),
        ({"targets": (Target(0, 1, float("nan")),)}, "found nan"),
        ({"targets": (Target(0, 1), Target(0, 1, 2.0))}, "each pair once"),
        ({"targets": ()}, "at least one target"),
        ({"targets": "within"}, "in frozen training"),
        ({"targets": "beside", "training": "frozen"}, "'beside'"),
        ({"target_weights": (1.0, 3.0)}, r"chosen only, found \[1.0, 3.0\]"),
        ({**CHOSEN, "target_weights": (1.0, 0.0)}, r"not 0, .* found \[1.0, 0.0\]"),
        ({**CHOSEN, "target_weights": (float("inf"), 1.0)}, r"found \[inf, 1.0\]"),
        ({**CHOSEN, "target_weights": (1.0,)}, r"two finite numbers .* found \[1.0\]"),
        ({"target_form": "sum"}, "product, indicator, softmax"),
        ({"training": "both"}, "joint or frozen"),
        ({"probabilities": ()}, "at least one probability"),
        ({"probabilities": (0.5, 0.0)}, r"in \(0, 1\], found 0.0"),
        ({"probabilities": (1.5,)}, r"in \(0, 1\], found 1.5"),
        ({"probabilities": (1e-42,)}, "at least 1e-06, found 1e-42: inputs are drawn as single"),
        ({"probabilities": (float("nan"),)}, r"in \(0, 1\], found nan"),
        ({"probabilities": (0.5, 0.5)}, "each probability once"),
        ({"n_keys": 4}, "softmax form only, found 4 with product"),
        ({"target_form": "softmax"}, "n_keys of at least 2"),
        ({"target_form": "softmax", "n_keys": 5}, "divides the 16 keys of a batch, found 5"),
        ({"batch_size": 33}, "even batch_size, found 33"),
        ({"learning_rate": 0.0}, "learning_rate above 0"),
        ({"learning_rate": float("inf")}, "finite learning_rate"),
        ({"pair_weight": -1.0}, "pair_weight above 0"),
        ({"importance_decay": 1.1}, "importance_decay ≤ 1"),
        ({"weight_decay": -0.1}, "weight_decay of at least 0"),
        ({"snapshots": 1}, "at least 2 snapshots"),
        ({"head_steps": 10}, "in frozen training only"),
        ({"groups": ((0, 1), (1, 2))}, "found feature 1"),
        ({"groups": ((0, 9),)}, "found feature 9"),
        ({"groups": ((3,),)}, "two features or more"),
    ],
    ids=str,
)
def test_configurations_that_cannot_be_trained(change: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        dataclasses.replace(SMALL, **change)


def test_a_constant_target_is_said() -> None:
    config = dataclasses.replace(SMALL, target_form="indicator", steps=2)
    assert any("p = 1" in note and "no alignment" in note for note in train(config).notes)
    assert not dataclasses.replace(config, probabilities=(0.5,)).notes
    assert not SMALL.notes


def test_targets_beyond_the_heads_rank_are_said() -> None:
    config = dataclasses.replace(SMALL, d_head=1)
    assert "rank 2, beyond the 1 dimensions" in config.notes[0]


def test_snapshots_are_spread_over_the_logarithm_of_training() -> None:
    config = load_config("basic")[0]
    steps = config.snapshot_steps
    assert (steps[0], steps[1], steps[-1]) == (0, 1, 10_000)
    assert 30 <= len(steps) <= 40
    assert max(b / a for a, b in pairwise(steps[8:])) < 1.6
    assert set(steps) <= {0, *config.marks}


def test_presets_load() -> None:
    assert presets()[0] == "basic"
    configs = [config for preset in presets() for config in load_config(preset)]
    assert len({config.name for config in configs}) == len(configs)
    basic = configs[0]
    np.testing.assert_allclose(basic.probabilities, 50.0 ** -np.linspace(0, 1, 7))
    assert basic.targets == (Target(2, 4, 1.0), Target(5, 8, 2.0))
    assert (basic.n_features, basic.d_hidden, basic.d_head) == (30, 15, 10)
    tegum = load_config("tegum")
    assert len(tegum) == 8
    assert [config.name for config in tegum[:3]] == [
        "tegum-apart-w2-1-r1", "tegum-apart-w2-1-r10", "tegum-apart-w1-1-r1",
    ]  # fmt: skip
    assert tegum[-1].name == "tegum-within-w1-1-r10"
    heads = load_config("head-size")
    assert [config.name for config in heads] == [f"head-size-r{c.d_head}" for c in heads]
    assert heads[-1].d_head == heads[-1].d_hidden


CONFIG_FILE = """
[mine]
question = "What then?"
probabilities = [0.5, 0.1]
targets = [[0, 1, 2]]
"""


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(CONFIG_FILE + "d_head = [2, 3]\ngroups = [[4, 5]]\n[other]" + CONFIG_FILE[7:])
    assert [config.name for config in load_config(path)] == ["mine-r2", "mine-r3", "other"]
    first, last = load_config(str(path))[0], load_config(path)[-1]
    assert (first.d_head, first.groups, first.targets) == (2, ((4, 5),), (Target(0, 1, 2.0),))
    assert (last.d_head, last.groups) == (10, ())


def test_what_varies_is_in_the_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = CONFIG_FILE.replace("[[0, 1, 2]]", '["within", "apart"]') + 'training = "frozen"\n'

    def found(more: str) -> list[tuple[object, ...]]:
        path.write_text(text + more)
        return [
            (config.name, config.targets, config.target_weights, config.d_head)
            for config in load_config(path)
        ]

    assert found("") == [
        ("mine-within", "within", (2.0, 1.0), 10),
        ("mine-apart", "apart", (2.0, 1.0), 10),
    ]
    assert found("target_weights = [1, 3.5]")[0] == ("mine-within", "within", (1.0, 3.5), 10)
    assert [one[0] for one in found("target_weights = [[1, 1], [0.5, -2]]\nd_head = [3, 4]")] == [
        f"mine-{where}-w{weights}-r{head}"
        for where in ("within", "apart")
        for weights in ("1-1", "0.5--2")
        for head in (3, 4)
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("d_head = [2, 3, 2]", r"line 6, mine.d_head: wanted each value once"),
        (
            "target_weights = [1, 2, 3]",
            r"two weights, or an array of such pairs, found \[1, 2, 3\]",
        ),
        ("target_weights = []", r"two weights, .* found \[\]"),
        ("target_weights = [[1, 2], 3]", "two weights, .* found 3"),
        ("target_weights = [['a', 2]]", "two weights"),
        ("target_weights = 3", "wanted an array"),
        ("target_weights = [[1, 2], [1.0, 2.0]]", "mine.target_weights: wanted each value once"),
        ("d_head = 2.5", "line 6, mine.d_head: wanted a whole number"),
        ("d_head = []", "wanted an array of whole numbers"),
        ("d_heads = 3", "unknown key"),
        ("steps = '3'", "wanted a whole number"),
        ("groups = [3]", "wanted an array of whole numbers, found 3"),
        ("[mine.more]", "unknown key"),
    ],
)
def test_files_that_say_something_else(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(CONFIG_FILE + line)
    with pytest.raises(CatalogError, match=message):
        load_config(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[0, 1, 2]]", "[[0, 1]]", r"arrays \[i, j, weight\]"),
        ("[[0, 1, 2]]", "[[0.5, 1, 2]]", r"arrays \[i, j, weight\]"),
        ("[[0, 1, 2]]", "7", r"arrays \[i, j, weight\]"),
        ("[[0, 1, 2]]", '["within", [0, 1, 2]]', "found 'within'"),
        ("[[0, 1, 2]]", '["within", "within"]', "mine.targets: wanted each value once"),
        ("[0.5, 0.1]", '["0.5"]', "wanted numbers"),
        ("[0.5, 0.1]", "{ highest = 1.0, lowest = 0.0, count = 3 }", "0 < lowest < highest"),
        ("[0.5, 0.1]", "{ highest = 1.0, count = 3 }", "required and missing"),
        ("[mine]", "mine = 3\n[x]", "wanted a table of a configuration"),
    ],
)
def test_files_with_other_values(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(CONFIG_FILE.replace(old, new))
    with pytest.raises(CatalogError, match=message):
        load_config(path)


def test_what_is_neither_a_preset_nor_a_file(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"no preset 'basics'\. Presets are basic, indicator"):
        load_config("basics")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(CatalogError, match="has no configuration"):
        load_config(tmp_path / "empty.toml")
    path = tmp_path / "mine.toml"
    path.write_text(CONFIG_FILE + "d_head = [2, 40]")
    with pytest.raises(StudyError, match=r"mine\.toml, mine: Wanted d_head ≤ d_hidden, found 40"):
        load_config(path)


def cosines(run: SuperpositionRun, instance: int) -> np.ndarray[Any, Any]:
    """|cos| of W_i with the left and of W_j with the right singular vector that find a target."""
    last = run.snapshots[-1]
    u, _, vh = np.linalg.svd(last.a[instance].T @ last.b[instance])
    unit = last.w[instance] / np.linalg.norm(last.w[instance], axis=0)
    found = []
    for target in run.targets[instance]:
        left, right = abs(unit[:, target.i] @ u), abs(vh @ unit[:, target.j])
        k = (left * right).argmax()
        found.append([left[k], right[k]])
    return np.array(found)


def singular_values(run: SuperpositionRun, instance: int) -> np.ndarray[Any, Any]:
    last = run.snapshots[-1]
    return np.linalg.svd(last.a[instance].T @ last.b[instance], compute_uv=False)


def test_singular_vectors_find_the_features_of_product_targets() -> None:
    config = dataclasses.replace(
        load_config("basic")[0], probabilities=(1.0, 0.1), steps=1800, learning_rate=3e-3
    )
    run = train(config)
    for instance in range(2):
        assert cosines(run, instance).min() > 0.99
        np.testing.assert_allclose(singular_values(run, instance)[:2], [2.0, 1.0], rtol=0.04)
        assert singular_values(run, instance)[2] < 0.1


def test_a_head_that_starts_large_keeps_what_no_feature_sees() -> None:
    config = dataclasses.replace(
        load_config("basic")[0],
        probabilities=(0.27,),
        steps=1800,
        learning_rate=3e-3,
        head_scale=1.0,
    )
    run = train(config)
    assert np.linalg.svd(run.snapshots[-1].w[0], compute_uv=False)[-1] < 0.1
    assert run.pair_loss[-20:].mean() < 1e-3
    assert singular_values(run, 0)[2] > 0.2


def test_a_constant_target_aligns_nothing() -> None:
    config = dataclasses.replace(
        load_config("indicator")[0], probabilities=(1.0, 0.3), steps=2000, learning_rate=3e-3
    )
    run = train(config)
    assert cosines(run, 0).max() < 0.7
    assert cosines(run, 1).min() > 0.95


def test_a_rare_indicator_pair_of_orthonormal_features_has_nine_quarters() -> None:
    """Frozen orthonormal representation, one pair: u = W_i, v = W_j, σ → (E x / E x²)² = 9/4.

    σ keeps moving by a few per cent, as long as the learning rate stays: it is averaged over seeds.
    """
    config = dataclasses.replace(
        load_config("sparse-limit")[0],
        probabilities=(0.1,),
        n_features=8,
        d_hidden=8,
        d_head=4,
        steps=1200,
        head_steps=2000,
        batch_size=1024,
        learning_rate=2e-3,
        weight_decay=0.0,
        n_seeds=2,
    )
    run = train(config)
    sigma = []
    for instance, w in enumerate(run.snapshots[-1].w):
        np.testing.assert_allclose(w.T @ w, np.eye(8), atol=0.1)
        assert cosines(run, instance).min() > 0.98
        sigma.append(singular_values(run, instance)[:2])
    first, second = np.mean(sigma, axis=0)
    assert first == pytest.approx(9 / 4, rel=0.12)
    assert second < 0.05


def test_softmax_attention_finds_the_features_too() -> None:
    config = dataclasses.replace(
        load_config("softmax")[0], probabilities=(0.3,), steps=1500, learning_rate=3e-3
    )
    run = train(config)
    assert cosines(run, 0).min() > 0.9


def test_chosen_targets_are_trained_and_kept(tmp_path: Path) -> None:
    config = dataclasses.replace(
        SMALL,
        training="frozen",
        targets="within",
        target_weights=(1.0, -3.0),
        n_features=8,
        d_hidden=6,
        probabilities=(0.5, 0.05),
        importance_decay=1.0,
        steps=1500,
        head_steps=300,
        batch_size=256,
        n_seeds=1,
    )
    path = run_path(tmp_path, config)
    run = train(config)
    head = run.steps > 1500
    assert np.isnan(run.pair_loss[~head]).all()
    assert np.isfinite(run.pair_loss[head]).all()
    w = run.snapshots[-1].w
    assert run.targets == tuple(choose_targets(each, "within", (1.0, -3.0)) for each in w)
    assert [target.weight for target in run.targets[0]] == [1.0, -3.0]
    with pytest.raises(KeyboardInterrupt):
        train(config, checkpoint=path, progress=Watcher(1600, interrupt))
    assert same(train(config, checkpoint=path), run)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("apart", "2 of 2 instances have no two tegum factors of 3 features or more"),
        ("within", "2 of 2 instances have no tegum factor of 3 features or more"),
    ],
)
def test_representations_without_polytopes_are_noted(where: Any, said: str) -> None:
    """Each feature has a dimension to itself."""
    config = dataclasses.replace(
        SMALL, training="frozen", targets=where, n_features=4, probabilities=(0.3,), steps=800,
        importance_decay=1.0,
    )  # fmt: skip
    run = train(config)
    assert run.targets == ((), ())
    assert said in run.notes[0]
