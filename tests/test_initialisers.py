"""Random twins against what transformers' own initialiser draws, for every type it can build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LLAMA_CONFIG, llama_tensors
from gguf_models import GGUF_MODELS
from scipy.stats import truncnorm
from tiny_models import TINY_MODELS
from transformers import PreTrainedConfig
from twins import RANDOM

from qk_taxonomy.architectures import architecture_table, attention_layout
from qk_taxonomy.checkpoints import open_checkpoint
from qk_taxonomy.controls import surveyed
from qk_taxonomy.errors import CatalogError, LayoutError
from qk_taxonomy.records import TensorInfo
from qk_taxonomy.resources import builtin_catalog

TABLE = architecture_table()
MODELS = TINY_MODELS | GGUF_MODELS

#: Settings of initialisers; each config of a model gets values of its own, unlike the usual ones.
SETTINGS = {"initializer_range": 0.03, "init_std": 0.045, "initializer_factor": 0.7}

#: Gains with which transformers begins though they are not 1: Nemotron's initialiser does not know
#: that its norms add 1, and T5's factor, which "is for testing", is 1 in every published config.
GAINS = {"nemotron": 2.0, "gguf-nemotron": 2.0} | dict.fromkeys(TABLE.rows["t5"].model_types, 0.7)

#: Deviations of a sample from its law, in standard errors, that a fixed seed may have by chance.
ERRORS = 5


def configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from configs(value)


def with_settings(config: PreTrainedConfig) -> PreTrainedConfig:
    for number, part in enumerate(configs(config)):
        for key, value in SETTINGS.items():
            if hasattr(part, key):
                setattr(part, key, value * 1.3**number)
    return config


def told_nothing(config: PreTrainedConfig) -> PreTrainedConfig:
    """A config as a GGUF file keeps it, without settings of initialisers: the usual ones hold."""
    config.initializer_range = TABLE.rows["llama"].stacks[0].config({})["initializer_range"]
    return config


@pytest.mark.parametrize(
    "name", [t for t, row in TABLE.model_types.items() if row.unbuildable is None]
)
def test_a_twin_is_drawn_as_transformers_draws_the_model(name: str, tmp_path: Path) -> None:
    if name not in MODELS:
        pytest.fail(f"tests/tiny_models.py builds no {name} model.")
    tiny = MODELS[name]
    change = told_nothing if name.startswith("gguf-") else with_settings
    config = change(tiny.transformers_config())
    torch.manual_seed(0)
    checkpoint = open_checkpoint(str(tiny.untrained(config, tmp_path / "model")))
    twin, layout = surveyed(checkpoint, tiny.said_architecture, RANDOM)
    for stack in layout.stacks:
        layers = [plan for plan in layout.layers if plan.stack == stack]
        for role in layers[0].tensors:
            tensor_names = [plan.tensors[role].name for plan in layers]
            stored, drawn = (
                [opened.read(opened.tensors[n]).double() for n in tensor_names]
                for opened in (checkpoint, twin)
            )
            if "_norm" in role:
                offset = layers[0].norms[role.partition(".")[0]].offset
                gain = GAINS.get(name, 1.0)
                np.testing.assert_allclose(torch.cat(stored) + offset, gain, rtol=1e-6)
                np.testing.assert_allclose(torch.cat(drawn) + offset, 1.0)
                continue
            for tensors in (stored, drawn):
                parts = zip(tensors, layers, strict=True)
                weights = torch.cat([(w / plan.init_std[role]).flatten() for w, plan in parts])
                error = ERRORS * len(weights) ** -0.5
                assert weights.mean().item() == pytest.approx(0, abs=error), (stack, role)
                assert weights.std().item() == pytest.approx(1, abs=error / 2**0.5), (stack, role)


LLAMA = {
    name: TensorInfo(name, "F32", array.shape, "", 0, 0) for name, array in llama_tensors().items()
}


def deviations(said: dict[str, object]) -> dict[str, float]:
    """Of the first layer of a Llama-type model whose config says so."""
    layout = attention_layout(LLAMA_CONFIG | said, LLAMA, untrained=True)
    return dict(layout.layers[0].init_std)


def test_what_a_config_says_and_leaves_out() -> None:
    roles = ("q", "k", "v", "o")
    assert deviations({"initializer_range": 0.5}) == dict.fromkeys(roles, 0.5)
    assert deviations({}) == dict.fromkeys(roles, 0.02)
    assert deviations({"initializer_range": None}) == dict.fromkeys(roles, 0.02)


@pytest.mark.parametrize("value", [0, -0.02, "small", float("nan"), float("inf")])
def test_a_config_that_makes_no_sense_stops_the_twin_alone(value: object) -> None:
    with pytest.raises(LayoutError, match=r"initialiser of llama needs initializer_range, a pos"):
        deviations({"initializer_range": value})


def test_nothing_is_worked_out_that_nobody_asked_for() -> None:
    layout = attention_layout(LLAMA_CONFIG | {"initializer_range": "small"}, LLAMA)
    assert [dict(plan.init_std) for plan in layout.layers] == [{}, {}]


@pytest.mark.parametrize("cut", [0.5, 2.0, 3.0])
def test_a_normal_distribution_that_is_cut(cut: float) -> None:
    shapes = {"qkv": (96, 32), "o": (32, 32)}
    infos = {
        name: TensorInfo(name, "F32", shapes[role], "", 0, 0)
        for role, name in (
            ("qkv", "layers.0.attn.Wqkv.weight"),
            ("o", "layers.0.attn.Wo.weight"),
        )
    }
    config = {"model_type": "modernbert", "num_attention_heads": 4, "initializer_range": 1.0}
    layout = attention_layout(config | {"initializer_cutoff_factor": cut}, infos, untrained=True)
    assert layout.layers[0].init_std["qkv"] == pytest.approx(truncnorm.std(-cut, cut))


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ('{ all = { initializer_range = "1" } }', r"init.*initializer_range: wanted a power, a nu"),
        ("{ o = 0.02 }", r"init.*o: .*wanted"),
        ("{ qkv = { 2 = -0.5 } }", r"init.*qkv"),
        ("0.02", r"init: "),
    ],
)
def test_a_row_with_a_mistake_is_named_with_its_line(
    init: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (builtin_catalog() / "architectures.toml").read_text()
    row = "[architectures.olmo] # its LayerNorm has no gain\n"
    assert row in text
    (tmp_path / "architectures.toml").write_text(text.replace(row, f"{row}init = {init}\n"))
    monkeypatch.setattr("qk_taxonomy.architectures.table.builtin_catalog", lambda: tmp_path)
    with pytest.raises(CatalogError, match=rf"line \d+, architectures\.olmo\.{message}"):
        architecture_table.__wrapped__()
