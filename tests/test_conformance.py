"""Surveyed spectra against the bilinear forms that the models themselves compute."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONFORMANCE
from gguf_models import GGUF_MODELS, GGUF_VARIANTS
from oracle import PAIRS, Surveyed, deviation, survey_tiny
from tiny_models import BASE_MODELS, TINY_MODELS, VARIANTS
from transformers import AutoConfig

from qk_taxonomy.architectures import architecture_table
from qk_taxonomy.circuits.conventions import circuit_factors
from qk_taxonomy.circuits.factors import FactorPair
from qk_taxonomy.records import Circuit, Convention, LayerPlan, Norm

# Worst errors of σ and μ, relative to a head's largest. The survey's file is float32, and so is
# part of what models compute: every RMSNorm, and the scores of several models, whose rounding
# the eigenvalues of a non-normal matrix enlarge.
TOLERANCES = np.array([1e-6, 1e-4])

TABLE = architecture_table()

MODELS = TINY_MODELS | GGUF_MODELS
OTHERS = VARIANTS | BASE_MODELS | GGUF_VARIANTS


@pytest.fixture(scope="module", params=[*sorted(TABLE.model_types), *OTHERS])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def surveyed(name: str, tmp_path_factory: pytest.TempPathFactory) -> Surveyed:
    models = MODELS | OTHERS
    if name not in models:
        pytest.fail(f"tests/tiny_models.py builds no {name} model.")
    return survey_tiny(models[name], tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(("circuit", "convention"), PAIRS)
def test_spectra_are_of_what_the_model_computes(
    surveyed: Surveyed,
    name: str,
    circuit: Circuit,
    convention: Convention,
    pytestconfig: pytest.Config,
) -> None:
    errors = deviation(surveyed, circuit, convention)
    pytestconfig.stash[CONFORMANCE].setdefault(name, {})[circuit, convention] = errors
    assert (errors <= TOLERANCES).all(), f"worst errors of σ and μ: {errors.tolist()}"


@pytest.mark.parametrize(
    "row", [r for r in TABLE.rows.values() if r.unbuildable], ids=lambda r: r.name
)
def test_a_row_that_says_it_cannot_be_built_is_right(row: Any) -> None:
    for model_type in row.model_types:
        with pytest.raises(ValueError, match="Unrecognized"):
            AutoConfig.for_model(model_type)


@pytest.mark.parametrize(
    ("model_type", "mistake", "circuit", "convention"),
    [
        pytest.param("gpt_neox", {"packing": "concatenated"}, "qk", "raw", id="packing-of-q-and-k"),
        pytest.param("gpt_neox", {"packing": "concatenated"}, "ov", "raw", id="packing-of-v"),
        pytest.param("gptj", {"transposed": True}, "qk", "raw", id="axes-of-q-and-k"),
        pytest.param("gptj", {"transposed": True}, "ov", "raw", id="axes-of-v-and-o"),
        pytest.param("gpt_neox", {"input_norm": Norm("rms")}, "qk", "folded", id="centring"),
        pytest.param("gemma", {"input_norm": Norm("rms")}, "ov", "folded", id="offset-of-a-gain"),
        pytest.param("qwen3", {"k_norm": None}, "qk", "folded", id="gain-of-a-key-norm"),
        pytest.param(
            "deepseek_v3", {"kv_latent_norm": None}, "ov", "folded", id="gain-of-a-latent-norm"
        ),
        pytest.param(
            "deepseek_v3", {"q_latent_norm": None}, "qk", "folded", id="gain-of-the-queries-latent"
        ),
        pytest.param("llama", {"scale": 1.0}, "qk", "folded", id="scale"),
        pytest.param(
            "gguf-gemma", {"input_norm": Norm("rms", 1.0)}, "ov", "folded", id="gain-from-one-twice"
        ),
        pytest.param(
            "gguf-gemma3", {"q_norm": Norm("rms", 1.0)}, "qk", "folded", id="query-gain-twice"
        ),
        pytest.param("gguf-gptneox", {"packing": "grouped"}, "qk", "raw", id="packing-converted"),
        pytest.param("t5", {"memory_norm": None}, "ov", "folded", id="norm-of-a-memory"),
        pytest.param("t5", {"cross": False}, "qk", "folded", id="what-cross-attention-reads"),
    ],
)
def test_a_wrong_reading_of_the_weights_is_noticed(
    model_type: str,
    mistake: dict[str, Any],
    circuit: Circuit,
    convention: Convention,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def mistaken(plan: LayerPlan, *args: Any) -> list[FactorPair]:
        norms = {role: norm for role, norm in mistake.items() if role.endswith("norm")}
        others = {key: value for key, value in mistake.items() if key not in norms}
        wrong = {k: v for k, v in {**plan.norms, **norms}.items() if v is not None}
        return circuit_factors(replace(plan, norms=wrong, **others), *args)

    monkeypatch.setattr("qk_taxonomy.survey.layers.circuit_factors", mistaken)
    surveyed = survey_tiny(MODELS[model_type], tmp_path)
    assert (deviation(surveyed, circuit, convention) > TOLERANCES).any()
