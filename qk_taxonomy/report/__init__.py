"""The atlas: one self-contained page to explore a survey; an :class:`Atlas` in, HTML out."""

from qk_taxonomy.report.atlas import Atlas as Atlas
