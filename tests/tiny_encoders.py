"""Tiny encoders, encoder-decoders and vision models."""

from tiny_base import TinyModel

MODELS: tuple[TinyModel, ...] = ()

VARIANTS: dict[str, TinyModel] = {}
