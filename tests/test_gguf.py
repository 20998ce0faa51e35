"""GGUF checkpoints: what is read, from sound files and from damaged ones, and real quantised models."""

import importlib.util
import pickle
import struct
import time
import tracemalloc
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from dense import contract_error, dense_circuit, dense_singular_values, eigenvalue_error
from gguf_models import CONVERTED, finish, tiny_model, write_gguf
from test_conformance import PAIRS, Surveyed, assert_agreement, observe
from tiny_models import TinyModel

from qk_taxonomy.architectures import architecture_table, attention_layout
from qk_taxonomy.cache import load_spectra
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.checkpoints import open_checkpoint
from qk_taxonomy.checkpoints.gguf_format import GgufCheckpoint
from qk_taxonomy.circuits.conventions import Factor, circuit_factors
from qk_taxonomy.errors import CheckpointError, LayoutError, QKTaxonomyError
from qk_taxonomy.records import (
    CIRCUITS,
    CONVENTIONS,
    Circuit,
    Convention,
    LayerPlan,
    ModelSpectra,
    Norm,
)
from qk_taxonomy.survey import survey_model

Array = np.ndarray[Any, np.dtype[Any]]

ROWS = [
    (model_type.removeprefix("gguf-"), source)
    for model_type in sorted(architecture_table().model_types)
    if model_type.startswith("gguf-")
    for source in CONVERTED.get(model_type.removeprefix("gguf-"), ("none",))
]


def survey_file(path: Path, root: Path) -> ModelSpectra:
    ref = model_ref(str(path), family_name="gguf", families=())
    result = survey_model(ref, output_root=root, circuits=CIRCUITS, conventions=CONVENTIONS)
    assert result.path is not None
    return load_spectra(result.path)


def survey_converted(arch: str, tiny: TinyModel, folder: Path) -> Surveyed:
    """A tiny model's spectra by way of its GGUF file, and what the model itself computes."""
    model = tiny.build(folder / "model")
    write_gguf(arch, model, folder / "tiny.gguf")
    spectra = survey_file(folder / "tiny.gguf", folder)
    layers = range(len(tiny.layers_of(model)))
    observed = {c: [observe(model, tiny, layer, c) for layer in layers] for c in CONVENTIONS}
    return Surveyed(
        spectra={pair: spectra.select(*pair) for pair in PAIRS},
        computed={
            (circuit, convention): tuple(layer[circuit] for layer in observed[convention])
            for circuit, convention in PAIRS
        },
    )


@pytest.mark.parametrize(("arch", "source"), ROWS)
def test_spectra_of_a_converted_model_are_of_what_it_computes(
    arch: str, source: str, tmp_path: Path
) -> None:
    if arch not in CONVERTED:
        pytest.fail(f"tests/gguf_models.py converts no {arch} model.")
    surveyed = survey_converted(arch, tiny_model(source), tmp_path)
    for pair in PAIRS:
        assert_agreement(surveyed, *pair)


@pytest.mark.parametrize(
    ("arch", "mistake", "circuit", "convention"),
    [
        pytest.param(
            "gemma", {"input_norm": Norm("rms", 1.0)}, "ov", "folded", id="a-gain-from-one-twice"
        ),
        pytest.param(
            "gemma3", {"q_norm": Norm("rms", 1.0)}, "qk", "folded", id="a-query-gain-from-one-twice"
        ),
        pytest.param("granite", {"scale": 6**-0.5}, "qk", "folded", id="another-scale"),
        pytest.param("gptneox", {"packing": "grouped"}, "qk", "raw", id="packing"),
        pytest.param("olmo", {"input_norm": Norm("rms")}, "ov", "folded", id="centring"),
    ],
)
def test_a_wrong_reading_is_noticed(
    arch: str,
    mistake: dict[str, Any],
    circuit: Circuit,
    convention: Convention,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def mistaken(plan: LayerPlan, *args: Any) -> tuple[Factor, Factor, float]:
        return circuit_factors(replace(plan, **mistake), *args)

    monkeypatch.setattr("qk_taxonomy.survey.circuit_factors", mistaken)
    surveyed = survey_converted(arch, tiny_model(CONVERTED[arch][0]), tmp_path)
    with pytest.raises(AssertionError, match="worst errors"):
        assert_agreement(surveyed, circuit, convention)
