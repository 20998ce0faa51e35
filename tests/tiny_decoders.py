"""Tiny decoders with fused projections, and ones known by other names."""

from tiny_base import TinyModel

MODELS: tuple[TinyModel, ...] = ()

VARIANTS: dict[str, TinyModel] = {}
