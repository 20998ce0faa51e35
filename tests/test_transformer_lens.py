"""Agreement with TransformerLens: pip install "qk-taxonomy[lens]".

Only products and eigenvalues of its FactoredMatrix are used: ``Vh`` returns V.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_circuit_oracle import FULL_MODELS, set_error
from oracle import PAIRS
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from qk_taxonomy.catalog import model_ref
from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Circuit, Convention
from qk_taxonomy.studies.circuits.compute import full_circuits
from qk_taxonomy.studies.circuits.records import ModelCircuits

pytest.importorskip("transformer_lens", reason='pip install "qk-taxonomy[lens]"')

# What a file of float32 keeps; and it folds norms in float32, whatever the dtype of the model.
TOLERANCE = {"raw": 1e-8, "folded": 1e-6}


#: What scores are multiplied by, d_head being 8. Nothing, says GPT-Neo.
SCALES = {"gpt2": 8**-0.5, "gpt_neo": 1.0}


@pytest.fixture(scope="module", params=SCALES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer, without which TransformerLens opens none."""
    folder = tmp_path_factory.mktemp("lens") / "model"
    full = FULL_MODELS[request.param]
    full.build(folder)
    words = {f"w{i}": i for i in range(full.tiny.transformers_config().vocab_size)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, "w0")),
        unk_token="w0",
        bos_token="w1",
        eos_token="w2",
        pad_token="w0",
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> ModelCircuits:
    ref = model_ref(str(folder), family_name="tiny", families=())
    return full_circuits(ref, output_root=folder.parent, circuits=CIRCUITS, conventions=CONVENTIONS)


def factored(folder: Path, circuit: Circuit, convention: Convention) -> Any:
    """The full circuits of all layers and heads as a FactoredMatrix, (layer, head, V, V).

    Of QK without the scale of scores, which it does not fold.
    """
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(str(folder), dtype=torch.float64)
    model.enable_compatibility_mode(no_processing=convention == "raw", disable_warnings=True)
    # It multiplies rows from the right: its OV is the transpose of ours, with the same eigenvalues
    # and singular values.
    if circuit == "ov":
        return model.W_E @ model.OV @ model.W_U
    return model.W_E @ model.QK @ model.W_E.T


@pytest.mark.parametrize(("circuit", "convention"), PAIRS)
def test_spectra_are_those_of_factored_matrices(
    folder: Path, found: ModelCircuits, circuit: Circuit, convention: Convention
) -> None:
    wanted = factored(folder, circuit, convention)
    if (circuit, convention) == ("qk", "folded"):
        wanted = wanted * SCALES[found.metadata["architecture"]]
    eigenvalues, singular_values = (x.detach().numpy() for x in (wanted.eigenvalues, wanted.S))
    layers = found.select(circuit, convention)
    assert len(layers) == len(eigenvalues)
    for layer in layers:
        assert layer.eigenvalues.shape == eigenvalues[layer.layer].shape
        error = set_error(layer.eigenvalues, eigenvalues[layer.layer])
        assert error < TOLERANCE[convention]
        np.testing.assert_allclose(
            layer.singular_values, singular_values[layer.layer], rtol=TOLERANCE[convention]
        )
