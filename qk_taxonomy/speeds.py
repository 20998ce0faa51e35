"""How fast surveys of hubs' models went on this machine, kept in the user's cache folder, to tell
how long the next one will take.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import platformdirs

# Surveys that moved less say more of waiting than of moving.
_WORTH_REMEMBERING = 10 * 1000**2


def _file() -> Path:
    return platformdirs.user_cache_path("qk-taxonomy") / "speeds.json"


def _speeds() -> dict[str, float]:
    try:
        kept = json.loads(_file().read_text(encoding="utf-8"))
        return {key: float(speed) for key, speed in kept.items() if float(speed) > 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # none measured yet, or the file is damaged


def remember_speed(source: str, n_bytes: int, seconds: float) -> None:
    """Remember how long this process took to fetch and survey so many bytes of a hub, which is a
    ``Checkpoint.source``.
    """
    if n_bytes < _WORTH_REMEMBERING or seconds <= 0:
        return
    speeds = _speeds() | {source: n_bytes / seconds}
    file = _file()
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # only a convenience
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(speeds, indent=1), encoding="utf-8")
        beside.replace(file)


def expected_seconds(source: str, n_bytes: int) -> float | None:
    """Seconds that a survey should take whose bytes all come over the network to this process, at
    the speed measured last; None where none was measured.
    """
    speed = _speeds().get(source)
    return None if speed is None else n_bytes / speed
