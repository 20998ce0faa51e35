"""Quantised checkpoints: the scales of float8 tensors, and a refusal of packed integers."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qk_taxonomy.checkpoints.base import DTYPES, SCALED_DTYPES
from qk_taxonomy.errors import CheckpointError
from qk_taxonomy.records import BlockScale, TensorInfo

# Methods (transformers' names) that pack attention weights into integers or codes of their own.
_PACKED = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "eetq": "EETQ",
    "exl2": "EXL2",
    "exl3": "EXL3",
    "fp_quant": "FP-Quant",
    "gptq": "GPTQ",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "intel/auto-round": "AutoRound",
    "quanto": "Quanto",
    "quip": "QuIP",
    "sinq": "SINQ",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}

# Tensors of an attention module that stand for a packed weight, whatever the config says.
_PACKED_TENSOR = re.compile(
    r"\.(qweight|weight_packed|W_q|SCB|weight\.(absmax|quant_map|quant_state\..*))$"
)
_WEIGHT = re.compile(r"\.weight$")
_INTEGERS = frozenset({"I8", "U8", "I16", "U16", "I32", "U32"})

# What float8 checkpoints call the factors of a tensor; in all of them they multiply.
_SCALE_SUFFIXES = ("_scale_inv", "_scale")

# The block of DeepSeek's float8 format, where a config names none.
_USUAL_BLOCK = 128


def quantisation(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config says of quantisation; empty where it says nothing."""
    for part in (config, config.get("text_config")):
        for key in ("quantization_config", "compression_config"):
            if isinstance(part, Mapping) and isinstance(part.get(key), Mapping):
                return part[key]
    return {}


def refuse_quantised(
    config: Mapping[str, Any],
    tensors: Iterable[TensorInfo],
    place: str,
    unquantised: str | None = None,
) -> None:
    """Raises CheckpointError where a config, or an attention tensor, is one of packed integers.

    ``unquantised``: the model to suggest, where the config names none.
    """
    said = quantisation(config)
    method = f"{said.get('quant_method', '')!s:.40}".lower()
    if not method and (said.get("load_in_4bit") or said.get("load_in_8bit")):
        method = "bitsandbytes"
    kind = _PACKED.get(method)
    evidence = "config.json says so"
    if kind is None:
        for info in tensors:
            integers = bool(said) and info.dtype in _INTEGERS and len(info.shape) == 2
            kind_of_name = _PACKED_TENSOR.search(info.name) or (
                _WEIGHT.search(info.name) if integers else None
            )
            if kind_of_name is not None and "att" in info.name[: kind_of_name.start()]:
                kind = method or "packed integers"
                evidence = f"{info.name} is stored as {info.dtype}"
                break
    if kind is None:
        return
    named = config.get("_name_or_path")
    if (
        isinstance(named, str)
        and re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", named)
        and named != place
    ):
        unquantised = named
    advice = (
        f"Survey the unquantised {unquantised}."
        if unquantised
        else "Survey the unquantised repository that it was made from."
    )
    raise CheckpointError(
        f"The attention weights of {place} are quantised ({kind}; {evidence}), so their spectra "
        f"would be those of rounded weights, which are not read. {advice}"
    )


def with_scales(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> dict[str, TensorInfo]:
    """The tensors with float8 ones joined to their scales, which are no tensors of their own.

    A scale holds a factor for each block, each row, or the whole of a tensor. One whose shape fits
    no such division is left alone.
    """
    said = quantisation(config).get("weight_block_size")
    joined = dict(tensors)
    for name, info in tensors.items():
        if info.dtype not in SCALED_DTYPES:
            continue
        companions = (tensors.get(f"{name}{suffix}") for suffix in _SCALE_SUFFIXES)
        scale = next((found for found in companions if found is not None), None)
        block = None if scale is None else _block(info.shape, scale.shape, said)
        if scale is not None and block is not None and scale.dtype in DTYPES:
            joined[name] = dataclasses.replace(info, scale=BlockScale(scale, block))
            del joined[scale.name]
    return joined


def _block(shape: Sequence[int], scales: Sequence[int], said: Any) -> tuple[int, ...] | None:
    """Entries of a tensor that share a factor along each axis; None where the shapes do not fit."""
    if len(scales) > len(shape):
        return None
    if math.prod(scales) == 1:
        return tuple(max(size, 1) for size in shape)
    if len(scales) == 1 and scales[0] != shape[0]:
        return None
    blocks = []
    for axis, (size, n) in enumerate(zip(shape, [*scales, *[1] * len(shape)], strict=False)):
        behind = len(shape) - axis
        own = said[-behind] if isinstance(said, list) and behind <= len(said) else None
        for block in (own, 1, _USUAL_BLOCK, size // n if n and size % n == 0 else None):
            if isinstance(block, int) and block > 0 and -(-size // block) == n:
                blocks.append(min(block, max(size, 1)))
                break
        else:
            return None
    return tuple(blocks)
