"""What the page carries, decoded again by a reader that shares no code with the packing."""

from __future__ import annotations

import base64
import gzip
import json
import struct
from typing import Any

import numpy as np
import pytest

from qk_taxonomy.report.packing import (
    byte_shares,
    coded,
    packed,
    rounded,
    rounded_wide,
    smallest,
)


def decoded(text: str) -> tuple[Any, dict[str, Any]]:
    """Meta and columns, read byte by byte as the format is described."""
    content = gzip.decompress(base64.b64decode(text))
    (length,) = struct.unpack_from("<I", content)
    header = json.loads(content[4 : 4 + length])
    start = -(-(4 + length) // 8) * 8
    columns: dict[str, Any] = {}
    for name, column in header["columns"].items():
        kind, size = column["dtype"][0], int(column["dtype"][1:])
        n = int(np.prod(column["shape"]))
        block = content[start + column["offset"] :][: n * size]
        numbers = [
            struct.unpack(
                f"<{ {'u1': 'B', 'u2': 'H', 'u4': 'I', 'f4': 'f', 'f8': 'd'}[f'{kind}{size}'] }",
                bytes(block[i + plane * n] for plane in range(size)),
            )[0]
            for i in range(n)
        ]
        values = column.get("values")
        columns[name] = [values[i] for i in numbers] if values is not None else numbers
    return header["meta"], columns


def test_columns_come_back() -> None:
    names = ["b", "a", "", "b", "</script><b>", "模型"]
    meta, columns = decoded(
        packed(
            {"title": "T <&> \ud800"},
            {
                "names": coded(np.array(names, dtype=object)),
                "layer": smallest([0, 1, 2, 300, 4, 5]),
                "head": smallest([0, 70_000, 2, 3, 4, 5]),
                "value": np.array([0.0, -1.5, np.nan, np.inf, 2.0**-140, 3.0], dtype=np.float32),
                "p": np.array([1e-300, 0.5, np.nan, 1.0, 0.0, 0.25]),
                "histogram": np.arange(12, dtype=np.uint8).reshape(6, 2),
            },
        )
    )
    assert meta == {"title": "T <&> \ud800"}
    assert columns["names"] == names
    assert columns["layer"] == [0, 1, 2, 300, 4, 5]
    assert columns["head"] == [0, 70_000, 2, 3, 4, 5]
    np.testing.assert_array_equal(columns["value"], [0.0, -1.5, np.nan, np.inf, 2.0**-140, 3.0])
    np.testing.assert_array_equal(columns["p"], [1e-300, 0.5, np.nan, 1.0, 0.0, 0.25])
    assert columns["histogram"] == list(range(12))


def test_no_rows_are_packed_too() -> None:
    empty = np.array([], dtype=object)
    assert decoded(packed({}, {"a": coded(empty), "b": smallest([])})) == ({}, {"a": [], "b": []})


def test_the_same_columns_give_the_same_text() -> None:
    columns = {"x": rounded(np.linspace(0, 1, 50))}
    assert packed({}, columns) == packed({}, columns)


@pytest.mark.parametrize("function", [rounded, rounded_wide])
def test_rounded_numbers_have_four_digits(function: Any) -> None:
    values = np.random.default_rng(0).lognormal(0, 10, 10_000)
    values[::2] *= -1
    error = np.abs(function(values) / values - 1)
    assert 1e-4 < error.max() <= 2.0**-13 * 1.001
    special = np.array([0.0, -0.0, np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(function(special), special)


def test_rounding_drops_bytes() -> None:
    assert not np.any(rounded(np.random.default_rng(0).random(100)).view(np.uint32) & 0x7FF)


def test_histograms_are_within_half_a_255th_of_their_peak() -> None:
    histograms = np.random.default_rng(0).gamma(0.5, size=(200, 24)).astype(np.float32)
    histograms[3] = 0
    shares, peaks = byte_shares(histograms)
    back = shares / 255 * peaks[:, None]
    tolerance = histograms.max(-1, keepdims=True) * (0.5 / 255 + 2.0**-12)
    assert (np.abs(back - histograms) <= tolerance).all()
    assert not back[3].any()


def test_codes_take_the_smallest_type() -> None:
    assert [smallest([n]).itemsize for n in (255, 256, 65_535, 65_536)] == [1, 2, 2, 4]
