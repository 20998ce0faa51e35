"""Columns as compact text that a page carries: typed arrays, compressed, in base64.

The bytes, before gzip and base64: the length of the header (uint32, little-endian), the header
(JSON, UTF-8), zeros up to a multiple of 8, and the arrays, each padded to a multiple of 8. The
header holds ``meta`` and, by name in ``columns``, each array's ``dtype`` (as of
numpy, without byte order), ``shape`` and ``offset`` from the first array; ``values`` where the
numbers are positions in a list of texts; ``planes`` where the bytes of a number do not stand
together: all first bytes come first, then all second ones, ... which compresses better.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

_ALIGNMENT = 8

#: Bits of a packed number's mantissa, the leading one not counted: 1.2e-4 relative, four digits.
MANTISSA_BITS = 12

_FLOAT32_BITS, _FLOAT64_BITS = 23, 52


def rounded(values: ArrayLike, bits: int = MANTISSA_BITS) -> NDArray[np.float32]:
    """Numbers as float32 with ``bits`` bits of mantissa: relative error at most 2^-(bits + 1).

    What is not finite stays as it is.
    """
    return _rounded(np.asarray(values, dtype=np.float32), np.uint32, _FLOAT32_BITS - bits)


def rounded_wide(values: ArrayLike, bits: int = MANTISSA_BITS) -> NDArray[np.float64]:
    """The same as float64, for numbers as small as p-values."""
    return _rounded(np.asarray(values, dtype=np.float64), np.uint64, _FLOAT64_BITS - bits)


def _rounded(values: NDArray[Any], integer: Any, dropped: int) -> NDArray[Any]:
    bits = values.view(integer)
    half = integer(1 << (dropped - 1))
    kept = ((bits + half) >> integer(dropped)) << integer(dropped)
    return np.where(np.isfinite(values), kept.view(values.dtype), values)


def coded(texts: ArrayLike) -> tuple[NDArray[np.integer[Any]], list[str]]:
    """Texts as positions in the list of different ones, in order of appearance."""
    codes, values = pd.factorize(np.asarray(texts, dtype=object))
    return smallest(codes), [str(value) for value in values]


def smallest(numbers: ArrayLike) -> NDArray[np.integer[Any]]:
    """Whole numbers, from 0 on, in the smallest unsigned type that holds them."""
    whole = np.asarray(numbers)
    largest = int(whole.max()) if len(whole) else 0
    return whole.astype(np.min_scalar_type(largest))


def byte_shares(histograms: ArrayLike) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Histograms (n, bins) in 255ths of their highest bin, and those highest bins (n,)."""
    heights = np.asarray(histograms, dtype=np.float32)
    peaks = heights.max(-1, initial=0.0)
    shares = np.divide(
        255 * heights, peaks[:, None], out=np.zeros_like(heights), where=peaks[:, None] > 0
    )
    return np.round(shares).astype(np.uint8), rounded(peaks)


def packed(
    meta: Mapping[str, Any], columns: Mapping[str, NDArray[Any] | tuple[NDArray[Any], list[str]]]
) -> str:
    """``meta``, of which JSON can be made, and columns; texts are as :func:`coded` gives them."""
    described: dict[str, dict[str, Any]] = {}
    blocks: list[bytes] = []
    offset = 0
    for name, column in columns.items():
        array, values = column if isinstance(column, tuple) else (column, None)
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        block = little.reshape(-1).view(np.uint8).reshape(-1, little.itemsize)
        described[name] = {
            "dtype": f"{little.dtype.kind}{little.itemsize}",
            "shape": list(little.shape),
            "offset": offset,
            "planes": little.itemsize > 1,
        }
        if values is not None:
            described[name]["values"] = values
        blocks.append(_padded(block.T.tobytes()))
        offset += len(blocks[-1])
    head = json.dumps({"meta": meta, "columns": described}, allow_nan=False).encode()
    start = _padded(len(head).to_bytes(4, "little") + head)
    # Without a time in it, the same columns give the same text.
    return base64_gzip(b"".join([start, *blocks]))


def base64_gzip(content: bytes) -> str:
    """Bytes as compressed base64 text: the same for the same bytes."""
    return base64.b64encode(gzip.compress(content, compresslevel=9, mtime=0)).decode()


def _padded(block: bytes) -> bytes:
    return block + b"\0" * (-len(block) % _ALIGNMENT)
