"""The predecessor's published spectra, read by an unpickler that can build arrays and no more."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

_ALLOWED = {
    ("collections", "defaultdict"),
    ("builtins", "dict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return super().find_class(module, name)


def read_pickle(path: Path) -> dict[str, dict[int, Any]]:
    with path.open("rb") as stream:
        return dict(_Arrays(stream).load())
