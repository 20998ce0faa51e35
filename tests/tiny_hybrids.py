"""Tiny models with latent attention, with attention in some layers only, or that hold others."""

from tiny_base import TinyModel

MODELS: tuple[TinyModel, ...] = ()

VARIANTS: dict[str, TinyModel] = {}
