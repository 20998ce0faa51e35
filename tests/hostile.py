"""What a pickle must not make its reader do."""

from __future__ import annotations

from typing import Any

TOUCH = "touch canary"


class Runs:
    """Pickled, it asks whoever reads it to call a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call
