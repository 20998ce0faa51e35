"""LoRA adapters against a merge written here, by PEFT's definition, in float64."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import LLAMA_CONFIG, MakeFolder, llama_tensors
from huggingface_hub import HfApi
from loopback_hub import LoopbackHub
from safetensors.torch import save_file
from tiny_models import TINY_MODELS
from twins import RANDOM, spectra_of, survey_control

from qk_taxonomy import load_spectra, open_checkpoint
from qk_taxonomy.architectures import attention_layout
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.survey import survey_model

RANK, ALPHA = 2, 6

#: What PEFT writes of an adapter, shortened to what it means.
ADAPTER_CONFIG = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": ALPHA,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
    "fan_in_fan_out": False,
    "use_rslora": False,
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "layer_replication": None,
    "init_lora_weights": True,
    "revision": None,
}

MODULES = [f"model.layers.{i}.self_attn.{x}_proj" for i in (0, 1) for x in ("q", "v")]
Q0, K0, V1 = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.k_proj",
    "model.layers.1.self_attn.v_proj",
)

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


def llama_factors(ranks: dict[str, int] | None = None) -> Factors:
    """A (rank, in) and B (out, rank) of every module, random."""
    generator = torch.Generator().manual_seed(1)
    base = llama_tensors()
    factors = {}
    for module in MODULES:
        out, n_in = base[f"{module}.weight"].shape
        rank = (ranks or {}).get(module, RANK)
        factors[module] = (
            torch.randn(rank, n_in, generator=generator),
            torch.randn(out, rank, generator=generator),
        )
    return factors


def stored(factors: Factors) -> dict[str, torch.Tensor]:
    tensors = {}
    for module, (a, b) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    return tensors


def merged(
    base: dict[str, np.ndarray[Any, Any]], factors: Factors, scale: float = ALPHA / RANK
) -> dict[str, np.ndarray[Any, Any]]:
    """W + scale · B · A in float64."""
    out: dict[str, np.ndarray[Any, Any]] = {k: w.astype(np.float64) for k, w in base.items()}
    for module, (a, b) in factors.items():
        name = f"{module}.weight"
        out[name] = out[name] + scale * np.einsum("or,ri->oi", b.double(), a.double())
    return out


def make_adapter(
    folder: Path,
    base: str | Path,
    tensors: dict[str, torch.Tensor] | None = None,
    *,
    torch_file: bool = False,
    **config: Any,
) -> Path:
    folder.mkdir(parents=True)
    said = ADAPTER_CONFIG | {"base_model_name_or_path": str(base)} | config
    (folder / "adapter_config.json").write_text(json.dumps(said))
    weights = stored(llama_factors()) if tensors is None else tensors
    if torch_file:
        torch.save(weights, folder / "adapter_model.bin")
    else:
        save_file(weights, folder / "adapter_model.safetensors")
    return folder


def survey_path(path: Path, circuits: Any = ("qk", "ov")) -> Any:
    result = survey_model(model_ref(str(path), family_name="tiny"), circuits=circuits)
    return load_spectra(str(result.path))


def assert_same_spectra(a: Any, b: Any) -> None:
    for ours, theirs in zip(a.layers, b.layers, strict=True):
        np.testing.assert_allclose(ours.singular_values, theirs.singular_values, rtol=1e-6)


def assert_merged(path: Path, wanted: dict[str, np.ndarray[Any, Any]]) -> None:
    """Every tensor of the checkpoint at ``path`` has the numbers of ``wanted``."""
    checkpoint = open_checkpoint(str(path))
    assert set(checkpoint.tensors) == set(wanted)
    for name, array in wanted.items():
        found = checkpoint.read(checkpoint.tensors[name]).double().numpy()
        np.testing.assert_allclose(found, array, rtol=1e-14, atol=1e-14 * np.abs(array).max())


@pytest.mark.parametrize("torch_file", [False, True])
def test_merged_weights_and_their_spectra(
    make_folder: MakeFolder, tmp_path: Path, torch_file: bool
) -> None:
    base = make_folder("base")
    adapter = make_adapter(tmp_path / "adapter", base, torch_file=torch_file)
    wanted = merged(llama_tensors(), llama_factors())
    assert_merged(adapter, wanted)
    assert_same_spectra(survey_path(adapter), survey_path(make_folder("merged", tensors=wanted)))
    metadata = survey_path(adapter).metadata
    assert metadata["model_id"] == "adapter"
    of_base = open_checkpoint(str(base)).revision
    assert metadata["revision"].endswith(f"+{of_base}")
    assert metadata["source"].startswith("folder adapter; base base at ")
    assert of_base in metadata["source"]


def test_plans_of_an_adapter(make_folder: MakeFolder, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", make_folder())
    checkpoint = open_checkpoint(str(adapter))
    info = checkpoint.tensors[f"{Q0}.weight"]
    assert info.n_bytes == 4 * (32 * 24 + RANK * (32 + 24))
    assert checkpoint.tensors[f"{K0}.weight"].n_bytes == 4 * 16 * 24
    for plan in attention_layout(checkpoint.config, checkpoint.tensors).layers:
        again = pickle.loads(pickle.dumps(plan))
        assert again == plan
        torch.testing.assert_close(
            checkpoint.read(again.tensors["q"]), checkpoint.read(plan.tensors["q"])
        )
    result = survey_model(model_ref(str(adapter), family_name="tiny"), dry_run=True)
    # W_O, 32 × 24, lies between keys and queries and is not worth leaving out.
    assert result.bytes_read == 2 * 4 * ((32 + 16 + 1 + 32) * 24 + RANK * (32 + 24))


def test_rank_stabilised(make_folder: MakeFolder, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", make_folder(), use_rslora=True)
    assert_merged(adapter, merged(llama_tensors(), llama_factors(), ALPHA / RANK**0.5))


def test_ranks_and_alphas_of_their_own(make_folder: MakeFolder, tmp_path: Path) -> None:
    factors = llama_factors({Q0: 3, V1: 1})
    adapter = make_adapter(
        tmp_path / "adapter",
        make_folder(),
        stored(factors),
        rank_pattern={"layers.0.self_attn.q_proj": 3, r"layers\.1\..*v_proj": 1},
        alpha_pattern={"v_proj": 5},
    )
    wanted = llama_tensors()
    scales = {
        Q0: ALPHA / 3,
        "model.layers.0.self_attn.v_proj": 5 / RANK,
        "model.layers.1.self_attn.q_proj": ALPHA / RANK,
        V1: 5.0,
    }
    for module, scale in scales.items():
        wanted = merged(wanted, {module: factors[module]}, scale)
    assert_merged(adapter, wanted)


@pytest.mark.parametrize(
    ("of_adapter", "of_base"),
    [
        ("", "model."),  # trained on the bare model, base saved with its head
        ("transformer.", ""),  # base saved bare
        ("model.language_model.", "language_model."),
    ],
)
def test_prefixes_that_differ(
    make_folder: MakeFolder, tmp_path: Path, of_adapter: str, of_base: str
) -> None:
    def renamed(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
        return {name.replace("model.layers.", f"{prefix}layers."): t for name, t in tensors.items()}

    base = make_folder("base", tensors=renamed(llama_tensors(), of_base))
    factors = renamed(llama_factors(), of_adapter)
    adapter = make_adapter(tmp_path / "adapter", base, stored(factors))
    assert_merged(adapter, renamed(merged(llama_tensors(), llama_factors()), of_base))


def test_a_module_saved_whole(make_folder: MakeFolder, tmp_path: Path) -> None:
    gain = "model.layers.0.input_layernorm.weight"
    tensors = stored(llama_factors()) | {
        f"base_model.model.{gain}": torch.arange(24.0),
        "base_model.model.score.weight": torch.ones(2, 24),
    }
    adapter = make_adapter(
        tmp_path / "adapter",
        make_folder(),
        tensors,
        modules_to_save=["input_layernorm", "score"],
    )
    wanted = merged(llama_tensors(), llama_factors()) | {gain: np.arange(24.0)}
    assert_merged(adapter, wanted)


def test_an_embedding(make_folder: MakeFolder, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(RANK, 1000, generator=generator), torch.randn(24, RANK, generator=generator)
    tensors = stored(llama_factors()) | {
        "base_model.model.model.embed_tokens.lora_embedding_A": a,
        "base_model.model.model.embed_tokens.lora_embedding_B": b,
    }
    wanted = merged(llama_tensors(), llama_factors())
    name = "model.embed_tokens.weight"
    wanted[name] = wanted[name] + ALPHA / RANK * (b.double() @ a.double()).numpy().T
    assert_merged(make_adapter(tmp_path / "adapter", make_folder(), tensors), wanted)


def test_gpt2_whose_weights_are_stored_transposed(tmp_path: Path) -> None:
    """The fused (in, 3 · out) and the square output projection, which no shape gives away."""
    model, base = TINY_MODELS["gpt2"].build(tmp_path / "gpt2")
    state = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    tensors, changed = {}, {}
    for name, weight in state.items():
        if name.endswith(("attn.c_attn.weight", "attn.c_proj.weight")):
            n_in, out = weight.shape
            a = torch.randn(RANK, n_in, generator=generator)
            b = torch.randn(out, RANK, generator=generator)
            module = name.removesuffix(".weight")
            tensors |= stored({module: (a, b)})
            # A Conv1D computes x · W: the change of W is (B · A)ᵀ.
            changed[name] = weight + ALPHA / RANK * (b.double() @ a.double()).T
    assert len(changed) >= 2
    adapter = make_adapter(tmp_path / "adapter", base, tensors, fan_in_fan_out=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in changed:
                parameter.copy_(changed[name])
    model.save_pretrained(tmp_path / "merged")
    assert_same_spectra(survey_path(adapter), survey_path(tmp_path / "merged"))
    checkpoint = open_checkpoint(str(adapter))
    for name, wanted in changed.items():
        info = next(i for n, i in checkpoint.tensors.items() if name.endswith(n))
        np.testing.assert_allclose(checkpoint.read(info).numpy(), wanted.numpy(), atol=1e-6)


def test_a_base_in_a_torch_file(make_folder: MakeFolder, tmp_path: Path) -> None:
    base = make_folder()
    (base / "model.safetensors").unlink()
    state = {name: torch.from_numpy(array) for name, array in llama_tensors().items()}
    torch.save(state, base / "pytorch_model.bin")
    adapter = make_adapter(tmp_path / "adapter", base)
    assert_merged(adapter, merged(llama_tensors(), llama_factors()))


def test_a_base_in_float8(make_folder: MakeFolder, tmp_path: Path) -> None:
    base, wanted = make_folder(), llama_tensors()
    weights = {name: torch.from_numpy(array) for name, array in wanted.items()}
    weights[f"{Q0}.weight"] = weights[f"{Q0}.weight"].to(torch.float8_e4m3fn)
    wanted[f"{Q0}.weight"] = weights[f"{Q0}.weight"].float().numpy() * np.float32(0.5)
    weights[f"{Q0}.weight_scale"] = torch.tensor(0.5)
    save_file(weights, base / "model.safetensors")
    adapter = make_adapter(tmp_path / "adapter", base)
    assert_merged(adapter, merged(wanted, llama_factors()))
    n_bytes = open_checkpoint(str(adapter)).tensors[f"{Q0}.weight"].n_bytes
    assert n_bytes == 32 * 24 + 4 + 4 * RANK * (32 + 24)


@pytest.mark.usefixtures("hub_cache")
def test_a_random_twin_is_that_of_the_base(make_folder: MakeFolder, tmp_path: Path) -> None:
    base = make_folder()
    adapter = make_adapter(tmp_path / "adapter", base)
    twins = [spectra_of(survey_control(path, RANDOM)) for path in (base, adapter)]
    assert_same_spectra(*twins)


class TestOnTheHub:
    def test_adapter_and_base_at_their_commits(
        self,
        hub: LoopbackHub,
        make_folder: MakeFolder,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # In a model so small, what lies between tensors would be fetched with them.
        monkeypatch.setattr("qk_taxonomy.records.tensors._SMALL_GAP", 0)
        base = make_folder("base")
        of_base = hub.add("org/base", base, revision="v2")
        hub.add("org/base", make_folder("other", tensors=llama_tensors(seed=9)))
        folder = make_adapter(tmp_path / "adapter", "org/base", revision="v2")
        of_adapter = hub.add("org/adapter", folder, revision="v1")
        result = survey_model(
            model_ref("org/adapter", revision="v1"), api=HfApi(endpoint=hub.endpoint)
        )
        found = load_spectra(str(result.path))
        assert found.metadata["revision"] == f"{of_adapter}+{of_base}"
        assert found.metadata["model_id"] == "org/adapter"
        assert f"org/base at {of_base}" in found.metadata["source"]
        wanted = make_folder("merged", tensors=merged(llama_tensors(), llama_factors()))
        assert_same_spectra(found, survey_path(wanted, ("qk",)))
        factors = 2 * 4 * RANK * (32 + 24)
        assert result.bytes_read == 2 * 4 * (32 + 16 + 1) * 24 + factors
        headers = sum(
            8 + int.from_bytes((part / file).read_bytes()[:8], "little")
            for part, file in ((base, "model.safetensors"), (folder, "adapter_model.safetensors"))
        )
        assert hub.bytes_served(".safetensors") == result.bytes_read + headers

    def test_a_base_that_does_not_exist(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.add("org/adapter", make_adapter(tmp_path / "adapter", "org/none"))
        with pytest.raises(
            CheckpointError, match=r"base org/none of the adapter org/adapter .*no model org/none"
        ):
            open_checkpoint("org/adapter", api=HfApi(endpoint=hub.endpoint))


class TestRefusals:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"use_dora": True}, "DoRA.*merge_and_unload"),
            ({"peft_type": "LOHA"}, "of the type LOHA; plain LoRA is read"),
            ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
            ({"layer_replication": [[0, 1], [0, 2]]}, "layers are repeated"),
            ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
            ({"init_lora_weights": "loftq"}, "changes the base's own weights"),
            ({"alora_invocation_tokens": [1, 2]}, "some tokens"),
            ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
            (
                {"base_model_name_or_path": "/no/such/folder"},
                "'?/no/such/folder'?.*cannot be opened",
            ),
            ({"r": 4}, "the rank 4, and its lora_A has 2 rows"),
            ({"r": "two"}, "says r = 'two'"),
            ({"lora_alpha": None}, "says lora_alpha = None"),
            ({"rank_pattern": {"(": 2}}, "rank_pattern"),
            ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
            ({"rank_pattern": {"((([a-z_.0-9])*)*)*X": 2}}, "more than the name of modules"),
            ({"alpha_pattern": {".*.*.*.*.*.*.*.*X": 2}}, "more than the name of modules"),
            ({"lora_alpha": 10**400}, "says lora_alpha = 1000"),
            ({"base_model_name_or_path": "a" * 5000}, "cannot be opened"),
            ({"base_model_name_or_path": "~no-such-user/x"}, "cannot be opened"),
        ],
    )
    def test_configs(
        self, make_folder: MakeFolder, tmp_path: Path, config: dict[str, Any], message: str
    ) -> None:
        base = {"base_model_name_or_path": str(make_folder())} | config
        adapter = make_adapter(tmp_path / "adapter", "unused", **base)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(str(adapter))

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            (
                stored({"model.layers.7.self_attn.q_proj": (torch.ones(2, 24), torch.ones(32, 2))}),
                r"another base than .*layers\.7\.self_attn\.q_proj.*no such tensor",
            ),
            (
                stored({"model.layers.0.attn.Wqkv": (torch.ones(2, 24), torch.ones(96, 2))}),
                r"another base than .*Wqkv.*no such tensor",
            ),
            (
                stored({Q0: (torch.ones(2, 48), torch.ones(32, 2))}),
                r"another base than .*q_proj\.weight by \[32, 2\] · \[2, 48\], .* has \[32, 24\]",
            ),
            (
                {f"base_model.model.{Q0}.lora_A.weight": torch.ones(2, 24)},
                "one of lora_A and lora_B",
            ),
            (
                stored({Q0: (torch.ones(2, 24), torch.ones(32, 2))})
                | {f"base_model.model.{Q0}.lora_magnitude_vector": torch.ones(32)},
                "lora_magnitude_vector, of which it is not known",
            ),
            ({"base_model.model.score.weight": torch.ones(2, 24)}, "changes no tensor of its base"),
        ],
    )
    def test_adapters_for_another_base(
        self,
        make_folder: MakeFolder,
        tmp_path: Path,
        tensors: dict[str, torch.Tensor],
        message: str,
    ) -> None:
        base = make_folder("base")
        adapter = make_adapter(tmp_path / "adapter", base, tensors)
        with pytest.raises(CheckpointError, match=message) as caught:
            open_checkpoint(str(adapter))
        if "another base" in message:
            assert "adapter is an adapter" in str(caught.value)
            assert "than base:" in str(caught.value)

    def test_a_quantised_base(self, make_folder: MakeFolder, tmp_path: Path) -> None:
        config = LLAMA_CONFIG | {
            "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
            "_name_or_path": "org/whole",
        }
        adapter = make_adapter(tmp_path / "adapter", make_folder(config=config))
        with pytest.raises(
            CheckpointError,
            match=r"unquantised org/whole\. Another base can be put",
        ):
            open_checkpoint(str(adapter))

    def test_an_adapter_of_an_adapter(self, make_folder: MakeFolder, tmp_path: Path) -> None:
        first = make_adapter(tmp_path / "first", make_folder())
        second = make_adapter(tmp_path / "second", first)
        with pytest.raises(CheckpointError, match="is an adapter itself"):
            open_checkpoint(str(second))

    def test_an_adapter_of_itself(self, tmp_path: Path) -> None:
        adapter = make_adapter(tmp_path / "adapter", tmp_path / "adapter")
        with pytest.raises(CheckpointError, match="is an adapter itself"):
            open_checkpoint(str(adapter))

    def test_weights_beside_an_adapter_are_the_model(
        self, make_folder: MakeFolder, tmp_path: Path
    ) -> None:
        folder = make_folder()
        make_adapter(tmp_path / "adapter", folder)
        for path in (tmp_path / "adapter").iterdir():
            path.rename(folder / path.name)
        checkpoint = open_checkpoint(str(folder))
        assert {info.file for info in checkpoint.tensors.values()} == {"model.safetensors"}
