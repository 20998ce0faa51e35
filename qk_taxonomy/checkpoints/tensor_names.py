"""What may be the name of a tensor, whatever file it is in."""

from __future__ import annotations

from collections.abc import Iterable

from qk_taxonomy.errors import CheckpointError

# Real names have up to some 120. Patterns are searched for in all of them, which takes the square.
_LONGEST = 256


def check_names(names: Iterable[str], where: str) -> None:
    """Raises CheckpointError for a name that is too long, or that cannot be printed or hashed."""
    for name in names:
        if len(name) > _LONGEST or not name.isprintable():
            raise CheckpointError(
                f"{where} has a tensor named {name[:60]!r} ({len(name)} characters); printable "
                f"names of at most {_LONGEST} are wanted. Fetch the file again."
            )
