"""Two surveys of one output folder, and how long the next one will take."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import LLAMA_CONFIG, MakeFolder, llama_tensors
from loopback_hub import LoopbackHub, Stall

from qk_taxonomy import load_spectra
from qk_taxonomy.cache import exclusive, spectra_path
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.errors import BusyFileError
from qk_taxonomy.speeds import expected_seconds, remember_speed
from qk_taxonomy.survey import survey, survey_model

FOUR_LAYERS = LLAMA_CONFIG | {"num_hidden_layers": 4}


def test_one_process_at_a_time_makes_a_file(make_folder: MakeFolder) -> None:
    ref = model_ref(str(make_folder()), family_name="tiny")
    path = spectra_path(".", ref)
    path.parent.mkdir(parents=True)
    with exclusive(path):
        with pytest.raises(BusyFileError, match=r"Another process is making .*tiny\.safetensors"):
            survey_model(ref)
        assert not path.exists()
    assert survey_model(ref).status == "computed"
    assert [file.name for file in path.parent.iterdir()] == ["tiny.safetensors"]


def test_a_model_that_is_busy_is_looked_at_again_after_the_others(make_folder: MakeFolder) -> None:
    refs = [model_ref(str(make_folder(name)), family_name="tiny") for name in ("a", "b")]
    path = spectra_path(".", refs[0])
    path.parent.mkdir(parents=True)
    finished = []

    class Watcher:
        def start(self, ref: object, layers: int, n_bytes: int) -> None: ...

        def advance(self, layers: int, n_bytes: int) -> None: ...

        def stopping(self) -> None: ...

        def finish(self, result: object) -> None:
            finished.append(result)
            if len(finished) == 1:
                lock.__exit__(None, None, None)  # the other process is done

    lock = exclusive(path)
    lock.__enter__()
    results = survey(refs, progress=Watcher())
    assert [result.status for result in results] == ["computed", "computed"]
    assert [Path(str(result.path)).stem for result in finished] == ["b", "a"]


def test_two_commands_at_once_share_the_work(make_folder: MakeFolder, hub: LoopbackHub) -> None:
    names = ["one", "two"]
    for seed, name in enumerate(names):
        folder = make_folder(name, tensors=llama_tensors(4, seed=seed), config=FOUR_LAYERS)
        hub.add(f"me/{name}", folder)
    # The first model stalls in the first process, which holds it for so long.
    hub.inject("/one/.*model.safetensors", *[Stall(0)] * 3, Stall(8))
    models = [part for name in names for part in ("--model", f"me/{name}")]
    call = [sys.executable, "-m", "qk_taxonomy", "download", *models, "--jobs=1"]
    env = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(Path("hf").absolute())}
    first = subprocess.Popen(call, env=env, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while hub.faults and time.monotonic() < deadline:
        time.sleep(0.01)
    second = subprocess.run(call, env=env, capture_output=True, text=True, timeout=240)
    output, _ = first.communicate(timeout=240)
    assert first.returncode == 0, output
    # Whichever of them did a model, every model is whole, and what could not be had is said.
    if second.returncode:
        assert "Another process is making data/unlisted/one.safetensors" in second.stderr
    for seed, name in enumerate(names):
        folder = make_folder(
            f"again/{name}", tensors=llama_tensors(4, seed=seed), config=FOUR_LAYERS
        )
        local = survey_model(model_ref(str(folder), family_name="local"))
        ours = load_spectra(f"data/unlisted/{name}.safetensors")
        for a, b in zip(ours.layers, load_spectra(str(local.path)).layers, strict=True):
            np.testing.assert_array_equal(a.eigenvalues, b.eigenvalues)
    left = sorted(file.name for file in Path("data/unlisted").iterdir())
    assert left == ["one.safetensors", "two.safetensors"]


class TestSpeeds:
    def test_the_last_survey_tells_of_the_next(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        hub = "hub https://huggingface.co"
        assert expected_seconds(hub, 10**9) is None
        remember_speed(hub, 10**9, 20.0)
        remember_speed("folder a", 10**9, 2.0)
        assert expected_seconds(hub, 5 * 10**8) == pytest.approx(10)
        assert expected_seconds("Python package", 10**9) == pytest.approx(2)
        remember_speed(hub, 1000, 100.0)  # says nothing of bytes
        assert expected_seconds(hub, 10**9) == pytest.approx(20)

    @pytest.mark.parametrize("damage", ["", "[1]", '{"local": "fast"}', '{"local": -1}'])
    def test_a_damaged_file_is_as_good_as_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        remember_speed("local", 10**9, 2.0)
        (tmp_path / "cache/qk-taxonomy/speeds.json").write_text(damage)
        assert expected_seconds("folder a", 10**9) is None
        remember_speed("local", 10**9, 2.0)
        assert expected_seconds("folder a", 10**9) == pytest.approx(2)
