"""Pickles of NumPy arrays: the numbers of pickle.loads, and nothing in them is run."""

from __future__ import annotations

import collections
import datetime
import functools
import os
import pickle
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import TOUCH, Runs

from qk_taxonomy.checkpoints.numpy_pickle import read_arrays
from qk_taxonomy.errors import CheckpointError

PROTOCOLS = pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))

NAMES = {"numpy.core": "numpy._core", "numpy._core": "numpy.core"}


def read(content: bytes) -> Any:
    path = Path("arrays.pkl")
    path.write_bytes(content)
    return read_arrays(path)


def awkward_arrays() -> dict[str, Any]:
    """Every way in which NumPy writes an array: orders, dtypes, views, none and one of a value."""
    rng = np.random.default_rng(0)
    frozen = rng.random(3)
    frozen.flags.writeable = False
    dtypes = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
    return {
        **{dtype: np.arange(6).reshape(2, 3).astype(dtype) for dtype in dtypes},
        "big-endian": rng.random((2, 3)).astype(">f4"),
        "big-endian integers": np.arange(-3, 3, dtype=">i2"),
        "columns": np.asfortranarray(rng.random((3, 4))),
        "permuted": rng.random((2, 3, 4)).transpose(1, 0, 2),
        "a view": rng.random((6, 4))[::2, 1:],
        "frozen": frozen,
        "nothing": np.zeros((0, 3)),
        "no axes": np.array(3.5),
        "a number": np.float32(2.5),
        "all bytes": np.arange(256, dtype="u1"),
    }


@PROTOCOLS
def test_arrays_are_those_that_were_pickled(protocol: int) -> None:
    arrays = awkward_arrays()
    found = read(pickle.dumps(arrays, protocol))
    assert list(found) == list(arrays)
    for name, wanted in arrays.items():
        np.testing.assert_array_equal(found[name], wanted, err_msg=name)
        assert found[name].dtype == wanted.dtype.newbyteorder("="), name


@PROTOCOLS
def test_what_is_around_the_arrays(protocol: int) -> None:
    tables = collections.defaultdict(dict, a={10: [np.ones(2), 1], 2: (2.5, [])}, b={})
    found = read(pickle.dumps(tables, protocol))
    assert type(found) is dict
    assert list(found["a"]) == [10, 2]
    np.testing.assert_array_equal(found["a"][10][0], np.ones(2))
    assert (found["a"][10][1], found["a"][2], found["b"]) == (1, [2.5, []], {})


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_another_version_of_numpy(protocol: int) -> None:
    content = pickle.dumps({"a": np.arange(6.0).reshape(2, 3), "b": np.float32(2)}, protocol)
    here = "numpy._core" if b"numpy._core" in content else "numpy.core"
    there = NAMES[here]
    for module in ("multiarray", "numeric"):
        if protocol == 2:
            old, new = (f"c{name}.{module}\n".encode() for name in (here, there))
        else:
            names = (f"{name}.{module}".encode() for name in (here, there))
            old, new = (b"\x8c" + bytes([len(name)]) + name for name in names)
        content = content.replace(old, new)
    assert here.encode() not in content
    found = read(content)
    np.testing.assert_array_equal(found["a"], np.arange(6.0).reshape(2, 3))
    assert found["b"] == 2


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([None, 1]), "dtype is 'O8'"),
        (np.zeros(2, "c8"), "dtype is 'c8'"),
        (np.zeros(2, [("a", "f4")]), "dtype is 'V4'"),
        (np.array(["a"]), "dtype is 'U1'"),
        (np.zeros(2, bool), "dtype is 'b1'"),
        (np.datetime64("2020-01-01"), "dtype is 'M8'"),
        (np.dtype("f4"), "what numpy.dtype would make"),
        ({"x": {3: "text"}}, r"holds a str at \['x'\]\[3\]"),
        ({"x": [1, None]}, r"holds a NoneType at \['x'\]\[1\]"),
        ({"x": np.ndarray}, r"holds numpy.ndarray at \['x'\]"),
        ({2.5: 1}, "a key that is no name or number"),
        (np.ma.zeros(3), "asks to run numpy.ma.core._mareconstruct"),
        (datetime.date(2020, 1, 1), "asks to run datetime.date"),
        (collections.Counter("a"), "asks to run collections.Counter"),
        (collections.defaultdict(list), "asks to run .*list"),
    ],
)
def test_what_is_not_read(value: Any, message: str, protocol: int) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read(pickle.dumps(value, protocol))
    assert "qk-taxonomy download" in str(caught.value)


def test_bytes_are_no_array() -> None:
    with pytest.raises(CheckpointError, match=r"holds a bytes at \['x'\]"):
        read(pickle.dumps({"x": b"abc"}, 3))
    with pytest.raises(CheckpointError, match=r"codecs.encode would make"):
        read(pickle.dumps({"x": b"abc"}, 2))


def test_files_that_are_not_there_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pkl cannot be read: No such file"):
        read_arrays(tmp_path / "none.pkl")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_arrays(tmp_path)
    with (tmp_path / "large.pkl").open("wb") as stream:
        stream.truncate(65 << 20)
    with pytest.raises(CheckpointError, match="more than 64 MiB"):
        read_arrays(tmp_path / "large.pkl")


#: Objects that a reader must not build, by what they would do.
HOSTILE: dict[str, Any] = {
    "os.system": Runs(os.system, TOUCH),
    "subprocess": Runs(subprocess.check_call, ["touch", "canary"]),
    "eval": Runs(eval, "open('canary', 'w')"),
    "open": Runs(open, "canary", "w"),
    "getattr": Runs(getattr, np.ndarray, "tofile"),
    "np.load": Runs(np.load, "canary"),
    "nested": {"singular_values": {0: np.ones((2, 2)), 1: Runs(os.system, TOUCH)}},
    "in an array of objects": np.array([Runs(os.system, TOUCH)], dtype=object),
    "makes the values of a dict": collections.defaultdict(functools.partial(os.system, TOUCH)),
    "bytearray": Runs(bytearray, 1 << 40),
}

DTYPE = (
    b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4\x89\x88tR"
    b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"


def array_of(shape: bytes, data: bytes = b"C\x04abcd", dtype: bytes = DTYPE) -> bytes:
    """The program of an array; its parts are programs of their own."""
    return b"\x80\x03" + ARRAY + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb."


#: Pickles written by hand: (program, what the error says).
PROGRAMS: dict[str, tuple[bytes, str]] = {
    "a call": (b"\x80\x02cposix\nsystem\nX\x0c\x00\x00\x00touch canary\x85R.", "asks to run posix"),
    "an instance": (b"(S'touch canary'\nios\nsystem\n.", "opcode INST"),
    "a new object": (b"\x80\x02cnumpy\nndarray\nK\x03\x85\x81.", "opcode NEWOBJ"),
    "an extension": (b"\x80\x02\x82\x01.", "opcode EXT1"),
    "a buffer outside": (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
    "an object outside": (b"\x80\x02K\x01Q.", "holds a Persistent"),
    "an array of a size": (
        b"\x80\x02cnumpy\nndarray\n\x8a\x05\x00\x00\x00\x00\x7f\x85R.",
        "would make",
    ),
    "an array without content": (b"\x80\x03" + ARRAY + b".", "would make"),
    "state of a number": (b"\x80\x02K\x01}b.", "cannot be followed"),
    "state of a function": (b"\x80\x02cnumpy\nndarray\n}b.", "cannot be followed"),
    "state of bytes": (b"\x80\x02c__builtin__\nbytes\n)R}b.", "cannot be followed"),
    "a huge shape": (array_of(b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85"), "not those of its shape"),
    "a shape of huge numbers": (array_of(b"\x8a\x10" + b"\x7f" * 16 + b"\x85"), "shape is none"),
    "many axes": (array_of(b"(" + b"K\x01" * 80 + b"t"), "shape is none"),
    "a huge shape of nothing": (
        array_of(b"K\x00\x8a\x08" + b"\xff" * 7 + b"\x7f\x86", b"C\x00"),
        "not read",
    ),
    "a negative shape": (array_of(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86"), "shape is none"),
    "a shape of fractions": (array_of(b"G?\xf0\x00\x00\x00\x00\x00\x00\x85"), "shape is none"),
    "too few bytes": (array_of(b"K\x02\x85"), "its 4 bytes are not those"),
    "bytes that are text": (array_of(b"K\x01\x85", b"X\x04\x00\x00\x00abcd"), "are no bytes"),
    "text that is no bytes": (
        array_of(
            b"K\x01\x85",
            b"c_codecs\nencode\nX\x03\x00\x00\x00\xe2\x82\xacX\x06\x00\x00\x00latin1\x86R",
        ),
        "not read",
    ),
    "another codec": (
        array_of(b"K\x01\x85", b"c_codecs\nencode\nX\x04\x00\x00\x00abcdX\x03\x00\x00\x00hex\x86R"),
        "are no bytes",
    ),
    "a dtype that is none": (array_of(b"K\x01\x85", dtype=b"K\x01"), "dtype is none"),
    "a dtype of fields": (
        array_of(b"K\x01\x85", dtype=DTYPE.replace(b"NNN", b"N))")),
        "dtype is 'f4'",
    ),
    "an array that is its own dtype": (
        b"\x80\x03" + ARRAY + b"q\x00(K\x01K\x01\x85h\x00\x89C\x04abcdtb.",
        "dtype is none",
    ),
    "axes that are none": (
        b"\x80\x05cnumpy.core.numeric\n_frombuffer\n(C\x04abcd"
        + DTYPE
        + b"K\x01\x85X\x01\x00\x00\x00KK\x07\x85tR.",
        "not read",
    ),
    "a memo of 2³² entries": (b"\x80\x02Nr\xff\xff\xff\xff.", "holds a NoneType"),
    "a string of 2⁶⁰ bytes": (
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"abc.",
        "cannot be followed",
    ),
    "a bytearray of 2⁶⁰ bytes": (
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b"abc.",
        "cannot be followed",
    ),
    "lists deep": (b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".", "more than 8 deep"),
    "tuples deep": (b"\x80\x02)" + b"\x85" * 50_000 + b".", "more than 8 deep"),
    "a dict that holds itself": (b"\x80\x02}q\x00K\x01h\x00s.", "more than 8 deep"),
    "references that double": (
        b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(60)) + b".",
        "cannot be followed",
    ),
    "references that multiply": (
        b"\x80\x02(]("
        + b"K\x01" * 1000
        + b"eq\x00"
        + b"".join(b"](" + b"h%c" % i * 1000 + b"eq%c" % (i + 1) for i in range(5))
        + b"t.",
        "stands for more than its own size",
    ),
    "one array in many places": (
        b"\x80\x03]("
        + ARRAY
        + b"(K\x01M\x00\x01\x85"
        + DTYPE
        + b"\x89B\x00\x04\x00\x00"
        + bytes(1024)
        + b"tbq\x00"
        + b"h\x00" * 100_000
        + b"e.",
        "stands for more than its own size",
    ),
    "nothing": (b"", "cannot be followed"),
    "no end": (b"\x80\x02}", "cannot be followed"),
    "another file": (b"PK\x03\x04" + bytes(600), "cannot be followed"),
}


@pytest.fixture
def _untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a file asks for, nothing is written beside it, and pickle is not used."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a pickle was executed")

    with monkeypatch.context() as context:
        for name in ("load", "loads", "Unpickler"):
            context.setattr(pickle, name, refuse)
        context.setattr(os, "system", refuse)
        yield
    assert {path.name for path in Path().iterdir()} <= {"arrays.pkl"}


@pytest.mark.usefixtures("_untouched")
class TestHostileFiles:
    @pytest.mark.parametrize("protocol", [2, 4, 5])
    @pytest.mark.parametrize("what", HOSTILE)
    def test_objects(self, what: str, protocol: int) -> None:
        with pytest.raises(CheckpointError, match=r"asks to run .*It was not run"):
            read(pickle.dumps(HOSTILE[what], protocol))

    @pytest.mark.parametrize("what", PROGRAMS)
    def test_programs(self, what: str) -> None:
        program, message = PROGRAMS[what]
        began = time.monotonic()
        with pytest.raises(CheckpointError, match=message):
            read(program)
        assert time.monotonic() - began < 20

    def test_the_program_of_an_array_is_sound(self) -> None:
        np.testing.assert_array_equal(read(array_of(b"K\x01\x85")), np.frombuffer(b"abcd", "<f4"))


@pytest.mark.usefixtures("_untouched")
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
class TestDamagedFiles:
    """Wherever a file is cut or changed: a CheckpointError, or values as they are described."""

    def attempt(self, content: bytes) -> bool:
        try:
            read(content)
        except CheckpointError:
            return False
        return True

    def content(self, protocol: int) -> bytes:
        tables = collections.defaultdict(dict, a={0: np.arange(6.0).reshape(2, 3)}, b={1: [1]})
        return pickle.dumps(tables, protocol)

    @PROTOCOLS
    def test_cut_at_every_byte(self, protocol: int) -> None:
        content = self.content(protocol)
        assert self.attempt(content)
        for length in range(len(content)):
            assert not self.attempt(content[:length]), length

    @PROTOCOLS
    def test_each_byte_changed(self, protocol: int) -> None:
        content = self.content(protocol)
        rng = np.random.default_rng(0)
        began = time.monotonic()
        outcomes = set()
        for position in range(len(content)):
            for change in (0xFF, 1 << int(rng.integers(8))):
                changed = bytearray(content)
                changed[position] ^= change
                outcomes.add(self.attempt(bytes(changed)))
        assert outcomes == {True, False}
        assert time.monotonic() - began < 60
