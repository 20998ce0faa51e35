"""Where weights come from: names and shapes first, bytes on demand."""

from qk_taxonomy.checkpoints.open import open_checkpoint

__all__ = ["open_checkpoint"]
