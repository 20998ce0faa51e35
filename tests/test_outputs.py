"""Files that outputs are written to: whole ones, links, pipes and folders."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from qk_taxonomy.cache import write_file
from qk_taxonomy.errors import SpectraFileError


class TestWriteFile:
    def test_a_file_and_nothing_beside_it(self) -> None:
        assert write_file(Path("new/x.csv"), b"one") == Path("new/x.csv")
        write_file(Path("new/x.csv"), b"two")
        assert Path("new/x.csv").read_bytes() == b"two"
        assert os.listdir("new") == ["x.csv"]

    @pytest.mark.parametrize("there", [True, False])
    def test_a_link_stays_and_its_target_is_written(self, there: bool) -> None:
        Path("far").mkdir()
        if there:
            Path("far/x.csv").write_text("old")
        Path("second").symlink_to("far/x.csv")
        Path("first").symlink_to("second")
        assert write_file(Path("first"), b"new") == Path("first")
        assert Path("first").is_symlink()
        assert Path("second").is_symlink()
        assert Path("far/x.csv").read_bytes() == b"new"
        assert os.listdir("far") == ["x.csv"]

    @pytest.mark.parametrize("linked", [False, True])
    def test_a_pipe_is_written_into(self, linked: bool) -> None:
        os.mkfifo("pipe")
        Path("link").symlink_to("pipe")
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(Path("pipe").read_bytes()))
        reader.daemon = True
        reader.start()
        write_file(Path("link" if linked else "pipe"), b"heads")
        reader.join(timeout=60)
        assert read == [b"heads"]
        assert Path("pipe").is_fifo()
        assert set(os.listdir()) == {"pipe", "link"}

    def test_folders_and_circles_are_refused(self) -> None:
        Path("folder").mkdir()
        Path("link").symlink_to("folder")
        Path("circle").symlink_to("circle")
        for name in ("folder", "link", "circle"):
            with pytest.raises(SpectraFileError, match=f"{name} cannot be written: "):
                write_file(Path(name), b"heads")
        assert Path("circle").is_symlink()
        assert not os.listdir("folder")
