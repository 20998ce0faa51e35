"""Float8 checkpoints against a dequantisation in float64; packed ones refused with advice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import LLAMA_CONFIG, MakeFolder, llama_tensors
from huggingface_hub import HfApi
from loopback_hub import LoopbackHub
from safetensors.torch import save_file

from qk_taxonomy import load_spectra, open_checkpoint
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.survey import survey_model

Q0 = "model.layers.0.self_attn.q_proj.weight"
FLOAT8 = pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])


def float8_value(byte: int, dtype: torch.dtype) -> float:
    """The number that a byte stands for, by the format's definition (OCP 8-bit floats)."""
    exponent_bits, bias = (4, 7) if dtype == torch.float8_e4m3fn else (5, 15)
    mantissa_bits = 7 - exponent_bits
    exponent = (byte & 0x7F) >> mantissa_bits
    fraction = (byte & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    size = (
        fraction * 2.0 ** (1 - bias) if exponent == 0 else (1 + fraction) * 2.0 ** (exponent - bias)
    )
    return -size if byte & 0x80 else size


def dequantised(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]) -> Any:
    """weight · scale of its block in float64, entry by entry of the definition."""
    values = np.array([float8_value(byte, weight.dtype) for byte in range(256)])
    numbers = values[weight.view(torch.uint8).numpy()]
    rows, columns = (np.arange(n) // b for n, b in zip(weight.shape, block, strict=True))
    return numbers * scale.double().numpy()[rows[:, None], columns[None, :]]


def opened(tmp_path: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Checkpoint:
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_CONFIG | config))
    return open_checkpoint(str(tmp_path))


@FLOAT8
@pytest.mark.parametrize(
    ("shape", "scales", "block", "said"),
    [
        ((256, 384), (2, 3), (128, 128), [128, 128]),
        ((300, 200), (3, 2), (128, 128), [128, 128]),  # cut blocks, both ways
        ((300, 200), (3, 2), (128, 128), None),
        ((64, 576), (1, 5), (128, 128), None),
        ((40, 24), (3, 2), (16, 16), [16, 16]),
        ((40, 24), (5, 3), (8, 8), None),
        ((40, 64), (40, 2), (1, 32), None),
        ((30, 20), (30, 1), (1, 20), [128, 128]),
        ((300, 200), (300, 1), (1, 200), None),
        ((30, 20), (1, 1), (30, 20), None),
    ],
)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_blocks_against_float64(
    tmp_path: Path,
    dtype: torch.dtype,
    shape: tuple[int, int],
    scales: tuple[int, int],
    block: tuple[int, int],
    said: list[int] | None,
    scale_dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype)
    scale = (torch.rand(scales, generator=generator) + 0.01).to(scale_dtype)
    checkpoint = opened(
        tmp_path,
        {"w": weight, "w_scale_inv": scale},
        quantization_config={"quant_method": "fp8", "weight_block_size": said},
    )
    assert set(checkpoint.tensors) == {"w"}
    info = checkpoint.tensors["w"]
    assert info.n_bytes == weight.numel() + scale.numel() * scale.itemsize
    found = checkpoint.read(info)
    assert found.dtype == torch.float32
    wanted = dequantised(weight, scale, block)
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=2**-24, atol=0)
    if scale_dtype == torch.bfloat16:
        np.testing.assert_array_equal(found.double().numpy(), wanted)


@pytest.mark.parametrize("shape", [(), (1,), (6,), (6, 1)])
def test_a_factor_for_all_or_for_each_row(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weight = torch.randn(6, 4).to(torch.float8_e4m3fn)
    scale = torch.rand(shape) + 0.5
    checkpoint = opened(tmp_path, {"w.weight": weight, "w.weight_scale": scale})
    wanted = dequantised(weight, scale.reshape(-1, 1).expand(6, 1), (1, 4))
    found = checkpoint.read(checkpoint.tensors["w.weight"]).double().numpy()
    np.testing.assert_allclose(found, wanted, rtol=2**-24)


def test_every_byte(tmp_path: Path) -> None:
    for dtype, unused in (
        (torch.float8_e4m3fn, {0x7F}),
        (torch.float8_e5m2, set(range(0x7C, 0x80))),
    ):
        codes = [byte for byte in range(256) if byte & 0x7F not in unused]
        weight = torch.tensor(codes, dtype=torch.uint8).view(dtype).reshape(1, -1)
        checkpoint = opened(tmp_path, {"w": weight, "w_scale": torch.tensor(0.5)})
        found = checkpoint.read(checkpoint.tensors["w"])[0].tolist()
        assert found == [float8_value(byte, dtype) / 2 for byte in codes]


def float8_folder(make_folder: MakeFolder, **config: Any) -> tuple[Path, Path]:
    """A Llama in float8 by blocks of 16 × 16, and the same numbers in float32."""
    plain = llama_tensors()
    stored: dict[str, torch.Tensor] = {}
    for name, array in llama_tensors().items():
        tensor = torch.from_numpy(array)
        if "proj" not in name:
            stored[name] = tensor
            continue
        rows, columns = -(-array.shape[0] // 16), -(-array.shape[1] // 16)
        stored[name] = tensor.to(torch.float8_e4m3fn)
        scale = torch.rand(rows, columns) + 0.5
        stored[f"{name}_scale_inv"] = scale
        plain[name] = dequantised(stored[name], scale, (16, 16)).astype(np.float32)
    said = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    folder = make_folder("float8", config=LLAMA_CONFIG | {"quantization_config": said} | config)
    save_file(stored, folder / "model.safetensors")
    return folder, make_folder("plain", tensors=plain)


def test_spectra_of_a_float8_model(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What lies between is not fetched along.
    monkeypatch.setattr("qk_taxonomy.records.tensors._SMALL_GAP", 0)
    results = [
        survey_model(model_ref(str(folder), family_name="tiny"), circuits=("qk", "ov"))
        for folder in float8_folder(make_folder)
    ]
    float8, plain = (load_spectra(str(result.path)) for result in results)
    assert float8.metadata["weights_dtype"] == "F8_E4M3"
    for a, b in zip(float8.layers, plain.layers, strict=True):
        np.testing.assert_allclose(a.singular_values, b.singular_values, rtol=2e-6)
    # Two layers of Q, O (32 × 24) and K, V (16 × 24), each with its scales, and a gain of 24.
    scales = 4 * (2 * (2 * 2) + 2 * (1 * 2))
    assert results[0].bytes_read == 2 * (2 * 32 * 24 + 2 * 16 * 24 + scales + 24 * 4)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (None, f"{Q0} is stored as F8_E4M3 without a scale that fits"),
        (torch.ones(5, 7), "without a scale that fits"),
        (torch.ones(24), "without a scale that fits"),
        (torch.ones(2, 2).to(torch.float8_e4m3fn), "without a scale that fits"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_float8_without_its_scale(
    make_folder: MakeFolder, scale: torch.Tensor | None, message: str, dry_run: bool
) -> None:
    folder, _ = float8_folder(make_folder)
    stored = {name: torch.from_numpy(array) for name, array in llama_tensors().items()}
    stored[Q0] = stored[Q0].to(torch.float8_e4m3fn)
    if scale is not None:
        stored[f"{Q0}_scale_inv"] = scale
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        survey_model(model_ref(str(folder), family_name="tiny"), dry_run=dry_run)


PACKED: dict[str, dict[str, Any]] = {
    "GPTQ": {"quant_method": "gptq", "bits": 4},
    "AWQ": {"quant_method": "awq", "bits": 4},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "HQQ": {"quant_method": "hqq"},
    "AQLM": {"quant_method": "aqlm"},
    "EETQ": {"quant_method": "eetq"},
    "torchao": {"quant_method": "torchao"},
    "BitNet": {"quant_method": "bitnet"},
}


@pytest.mark.parametrize("kind", PACKED)
def test_packed_weights_are_refused_before_they_are_read(
    make_folder: MakeFolder, kind: str
) -> None:
    folder = make_folder(config=LLAMA_CONFIG | {"quantization_config": PACKED[kind]})
    (folder / "model.safetensors").write_bytes(b"never opened")
    with pytest.raises(CheckpointError, match=rf"quantised \({kind}.*the unquantised repository"):
        open_checkpoint(str(folder))
    config = {"quantization_config": PACKED[kind], "_name_or_path": "org/whole"}
    (folder / "config.json").write_text(json.dumps(LLAMA_CONFIG | config))
    with pytest.raises(CheckpointError, match=r"Survey the unquantised org/whole\."):
        open_checkpoint(str(folder))


def test_a_bitsandbytes_config_without_a_method(make_folder: MakeFolder) -> None:
    text = {"text_config": {"quantization_config": {"load_in_8bit": True}}}
    with pytest.raises(CheckpointError, match="bitsandbytes"):
        open_checkpoint(str(make_folder(config=LLAMA_CONFIG | text)))


@pytest.mark.parametrize(
    ("suffix", "method", "dtype"),
    [
        (".SCB", None, torch.float32),
        (".qweight", None, torch.int32),
        (".weight.absmax", None, torch.uint8),
        (".weight_packed", "compressed-tensors", torch.int32),
        (".weight", "compressed-tensors", torch.int8),
        (".weight", "modelopt", torch.uint8),
    ],
)
def test_packed_tensors_that_no_method_names(
    make_folder: MakeFolder, suffix: str, method: str | None, dtype: torch.dtype
) -> None:
    said = {} if method is None else {"quantization_config": {"quant_method": method}}
    folder = make_folder(config=LLAMA_CONFIG | said)
    stored = {name: torch.from_numpy(array) for name, array in llama_tensors().items()}
    name = Q0.removesuffix(".weight") + suffix
    stored[name] = torch.ones(32, 24).to(dtype)
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"quantised .*{name} is stored as"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("method", ["mxfp4", "compressed-tensors", "modelopt", "fp8", "quark"])
def test_attention_that_was_left_as_it_was(make_folder: MakeFolder, method: str) -> None:
    said = {"quantization_config": {"quant_method": method}}
    folder = make_folder(config=LLAMA_CONFIG | said)
    stored = {name: torch.from_numpy(array) for name, array in llama_tensors().items()}
    stored["model.layers.0.mlp.experts.gate_up_proj_blocks"] = torch.ones(4, 4).to(torch.uint8)
    stored["model.layers.0.mlp.down_proj.weight_packed"] = torch.ones(4, 4).to(torch.int32)
    save_file(stored, folder / "model.safetensors")
    assert survey_model(model_ref(str(folder), family_name="tiny")).status == "computed"


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("base", ["org/whole", ["org/whole", "org/other"]])
def test_the_model_card_names_the_unquantised(
    hub: LoopbackHub, make_folder: MakeFolder, base: Any
) -> None:
    config = LLAMA_CONFIG | {"quantization_config": {"quant_method": "gptq"}}
    hub.add("org/whole-GPTQ", make_folder(config=config), card={"base_model": base})
    with pytest.raises(CheckpointError, match=r"Survey the unquantised org/whole\."):
        open_checkpoint("org/whole-GPTQ", api=HfApi(endpoint=hub.endpoint))
    assert not hub.bytes_served("model.safetensors")
