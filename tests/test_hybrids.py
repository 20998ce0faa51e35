"""Hybrids: which layers are surveyed, which are named as skipped, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import MakeFolder
from safetensors.numpy import load_file, save_file
from tiny_models import TINY_MODELS

from qk_taxonomy.cache import load_spectra
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.cli import main
from qk_taxonomy.errors import QKTaxonomyError
from qk_taxonomy.records import ModelResult
from qk_taxonomy.survey import survey_model


def survey(folder: Path, root: Path) -> ModelResult:
    return survey_model(model_ref(str(folder), family_name="tiny", families=()), output_root=root)


def qk(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def cut(folder: Path, lost: tuple[str, ...]) -> None:
    """Take the tensors whose names begin so out of a saved model."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    kept = {name: array for name, array in tensors.items() if not name.startswith(lost)}
    assert len(kept) < len(tensors)
    save_file(kept, path)


@pytest.mark.parametrize(
    ("model_type", "skipped"),
    [
        ("jamba", dict.fromkeys(["layers.0", "layers.2"], "a state-space layer")),
        ("lfm2", dict.fromkeys(["layers.0", "layers.2"], "a short convolution")),
        ("minimax", dict.fromkeys(["layers.0", "layers.2"], "linear attention")),
        ("qwen3_next", dict.fromkeys(["layers.0", "layers.2"], "linear attention")),
        (
            "nemotron_h",
            {
                "layers.0": "a state-space layer",
                "layers.2": "experts",
                "layers.3": "a feed-forward layer",
            },
        ),
        (
            "zamba2",
            {
                **dict.fromkeys(["layers.0", "layers.3"], "a state-space layer"),
                **dict.fromkeys(
                    ["layers.4", "layers.5"], "a state-space layer and shared attention"
                ),
            },
        ),
        ("falcon_h1", {}),
    ],
)
def test_layers_without_attention_are_named(
    model_type: str, skipped: dict[str, str], tmp_path: Path
) -> None:
    _, folder = TINY_MODELS[model_type].build(tmp_path / "model")
    result = survey(folder, tmp_path)
    assert result.path is not None
    provenance = json.loads(load_spectra(result.path).metadata["provenance"])
    assert provenance["skipped_layers"] == skipped
    assert provenance["notes"] == list(result.notes)
    for reason in set(skipped.values()):
        places = [place for place, why in skipped.items() if why == reason]
        (note,) = [note for note in result.notes if f"({reason})" in note]
        assert note.startswith(f"{len(places)} without attention of their own")
        assert note.endswith(": " + ", ".join(places))
    assert result.layers == TINY_MODELS[model_type].config["num_hidden_layers"] - len(skipped)


@pytest.mark.parametrize(
    ("model_type", "lost", "message"),
    [
        pytest.param("jamba", "model.layers.3.", "holds 1 of.* layer 3 is missing", id="layer"),
        pytest.param("jamba", "model.layers.3.self_attn.", "layer 3 is missing", id="attention"),
        pytest.param("jamba", "model.layers.2.", "layer 2 is missing", id="other-layer"),
        pytest.param("jamba", "model.layers.2.mamba.", "layer 2 is missing", id="other-mixer"),
        pytest.param("lfm2", "model.layers.1.self_attn.q_proj", "layer 1: .*q_proj", id="queries"),
        pytest.param("minimax", "model.layers.1.self_attn.", "layer 1 is missing", id="minimax"),
        pytest.param("nemotron_h", "backbone.layers.2.", "layer 2 is missing", id="experts"),
        pytest.param("zamba2", "model.layers.5.", "layer 5 is missing", id="shared"),
    ],
)
def test_a_layer_whose_tensors_are_absent_is_no_skipped_layer(
    model_type: str, lost: str, message: str, tmp_path: Path
) -> None:
    _, folder = TINY_MODELS[model_type].build(tmp_path / "model")
    cut(folder, (lost,))
    with pytest.raises(QKTaxonomyError, match=message):
        survey(folder, tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path, make_folder: MakeFolder) -> None:
    _, saved = TINY_MODELS["jamba"].build(tmp_path / "model")
    late = ("model.layers.2.", "model.layers.3.")
    shards = {
        "model-00001-of-00002.safetensors": lambda name: not name.startswith(late),
        "model-00002-of-00002.safetensors": lambda name: name.startswith(late),
    }
    folder = make_folder(
        "jamba",
        config=json.loads((saved / "config.json").read_text()),
        tensors=load_file(saved / "model.safetensors"),
        shards=shards,
    )
    assert survey(folder, tmp_path).layers == 2
    (folder / "model-00002-of-00002.safetensors").unlink()
    result = qk("download", "--model", folder, "--output-root", tmp_path / "again")
    assert result.exit_code == 1
    assert "lacks model-00002-of-00002.safetensors" in result.output
    (folder / "model.safetensors.index.json").unlink()
    result = qk("download", "--model", folder, "--output-root", tmp_path / "again")
    assert result.exit_code == 1
    assert "layer 2 is missing" in " ".join(result.output.split())


def test_the_blocks_that_zamba2_shares_are_surveyed_once(tmp_path: Path) -> None:
    _, folder = TINY_MODELS["zamba2"].build(tmp_path / "model")
    result = survey(folder, tmp_path)
    assert (result.layers, result.heads) == (2, 8)


@pytest.mark.parametrize(
    ("model_type", "key", "value", "message"),
    [
        ("zamba2", "use_shared_attention_adapter", True, "of its own to the shared projections"),
        ("falcon_h1", "attention_in_multiplier", 0.5, "what attention reads is scaled"),
    ],
)
def test_attention_that_a_row_does_not_describe_is_refused(
    model_type: str, key: str, value: object, message: str, tmp_path: Path
) -> None:
    _, folder = TINY_MODELS[model_type].but(**{key: value}).build(tmp_path / "model")
    with pytest.raises(QKTaxonomyError, match=f"{key} = {value}: .*{message}"):
        survey(folder, tmp_path)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("falcon_mamba", "a state-space model"),
        ("mamba", "a state-space model"),
        ("mamba2", "a state-space model"),
        ("rwkv", "a recurrent network"),
        ("xlstm", "a recurrent network"),
    ],
)
def test_models_without_attention_are_refused_with_the_reason(
    model_type: str, reason: str, make_folder: MakeFolder, tmp_path: Path
) -> None:
    tensors: dict[str, Any] = {
        "backbone.layers.0.mixer.in_proj.weight": np.ones((8, 4), np.float32)
    }
    folder = make_folder(
        model_type, config={"model_type": model_type, "num_hidden_layers": 1}, tensors=tensors
    )
    result = qk("download", "--model", folder, "--output-root", tmp_path)
    message = " ".join(result.output.split())
    assert result.exit_code == 1
    assert f"A {model_type} model has no attention heads ({reason})" in message
    assert "Traceback" not in message
    assert not list(tmp_path.glob("data/**/*.safetensors"))
