"""Two surveys of one output folder, and how long the next one will take."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import LLAMA_CONFIG, MakeFolder

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
