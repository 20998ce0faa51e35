"""``qk-taxonomy circuits``: full QK and OV circuits over the vocabulary."""

from __future__ import annotations
