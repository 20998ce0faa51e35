"""Two surveys of one output folder, and how long the next one will take."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeFolder
from filelock import FileLock
from huggingface_hub import HfApi, constants, snapshot_download
from loopback_hub import LoopbackHub

from qk_taxonomy.cache import exclusive, load_spectra, spectra_path
from qk_taxonomy.cache import make_folder as make_folder_of_results
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.errors import BusyFileError
from qk_taxonomy.records import CIRCUITS, Control, ModelRef
from qk_taxonomy.speeds import expected_seconds, remember_speed
from qk_taxonomy.survey import survey, survey_model


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


def test_a_lock_that_its_last_holder_removed_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire, removed = FileLock.acquire, []

    def too_late(self: FileLock) -> object:
        held = acquire(self)
        if not removed:
            removed.append(self.lock_file)
            Path(self.lock_file).unlink()  # as its last holder did, after this one had opened it
        return held

    monkeypatch.setattr(FileLock, "acquire", too_late)
    with exclusive(tmp_path / "x.safetensors"):
        assert removed
        assert Path(removed[0]).exists()
        with pytest.raises(BusyFileError), exclusive(tmp_path / "x.safetensors"):
            pass


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


def test_what_another_process_finishes_before_the_lock_is_kept(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = model_ref(str(make_folder()), family_name="tiny")

    def another_first(folder: Path) -> Path:
        """Called when all is planned, just before the lock is taken."""
        patched.undo()
        assert survey_model(ref, circuits=("ov",)).status == "computed"
        return make_folder_of_results(folder)

    with monkeypatch.context() as patched:
        patched.setattr("qk_taxonomy.survey.models.make_folder", another_first)
        result = survey_model(ref, circuits=("qk",))
    assert result.status == "computed"
    spectra = load_spectra(str(result.path))
    assert {layer.circuit for layer in spectra.layers} == {"qk", "ov"}
    assert json.loads(spectra.metadata["provenance"])["circuits"] == ["qk", "ov"]


class TestSpeeds:
    def test_the_last_survey_tells_of_the_next(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        hub = "hub https://huggingface.co"
        assert expected_seconds(hub, 10**9) is None
        remember_speed(hub, 10**9, 20.0)
        assert expected_seconds(hub, 5 * 10**8) == pytest.approx(10)
        assert expected_seconds("hub https://mirror.example", 10**9) is None
        remember_speed(hub, 1000, 100.0)  # says nothing of bytes
        assert expected_seconds(hub, 10**9) == pytest.approx(20)

    @pytest.mark.usefixtures("hub_cache")
    def test_those_of_bytes_that_came_over_the_network_alone(
        self, hub: LoopbackHub, minilm: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        hub.add("org/mini", minilm)
        api, source = HfApi(endpoint=hub.endpoint), f"hub {hub.endpoint}"

        def speed_after(ref: ModelRef, **options: Any) -> float | None:
            assert survey_model(ref, circuits=CIRCUITS, force=True, **options).status == "computed"
            return expected_seconds(source, 10**7)

        ref = model_ref("org/mini")
        assert speed_after(model_ref(str(minilm), family_name="local")) is None
        assert speed_after(replace(ref, control=Control("random")), api=api) is None
        with Elsewhere() as executor:
            assert speed_after(ref, api=api, executor=executor) is None
        snapshot_download("org/mini", endpoint=hub.endpoint)
        assert speed_after(ref, api=api) is None
        shutil.rmtree(constants.HF_HUB_CACHE)
        assert (speed_after(ref, api=api) or 0) > 0
        speeds = json.loads((tmp_path / "cache/qk-taxonomy/speeds.json").read_text())
        assert list(speeds) == [source]

    @pytest.mark.parametrize("damage", ["", "[1]", '{"hub x": "fast"}', '{"hub x": -1}'])
    def test_a_damaged_file_is_as_good_as_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        remember_speed("hub x", 10**9, 2.0)
        (tmp_path / "cache/qk-taxonomy/speeds.json").write_text(damage)
        assert expected_seconds("hub x", 10**9) is None
        remember_speed("hub x", 10**9, 2.0)
        assert expected_seconds("hub x", 10**9) == pytest.approx(2)


class Elsewhere(Executor):
    """Stands in for a cluster: does what it is given where it is given."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future
