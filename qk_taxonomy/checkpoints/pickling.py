"""What of a checkpoint travels to another process: what reading needs, and no more.

A plan names the tensors that a worker reads; the names, shapes and config of a large model are
megabytes that it has no use for.
"""

from __future__ import annotations

from typing import Any

from qk_taxonomy.checkpoints.base import Checkpoint


def reading_state(checkpoint: Checkpoint, *others: str) -> dict[str, Any]:
    """A checkpoint's attributes but ``config``, ``tensors`` and ``others``, for __getstate__."""
    left = {"config", "tensors", *others}
    return {name: value for name, value in vars(checkpoint).items() if name not in left}
