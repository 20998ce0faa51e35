"""Pickles read as data: nothing that a pickle names is imported, called or built.

What a pickle would call is returned as a record of the call, and only names on a list may be
called at all. ``pickle.Unpickler`` is not used, since even one whose ``find_class`` refuses
everything allocates what a file claims (a memo of 2³² entries, a string of 2⁶⁰ bytes) and sets
attributes of what it has built. ``pickletools`` parses the opcodes, here they are followed.
"""

from __future__ import annotations

import io
import pickletools
import struct
from dataclasses import dataclass
from typing import IO, Any, cast

from qk_taxonomy.errors import CheckpointError

# A tensor takes some 30: enough for 35,000 of them, and some seconds and 100 MB at most.
_MOST_STEPS = 1 << 20

# torch's magic number has 80 bits. The hash of a long number is worked out anew each time.
_MOST_BITS = 128

_ORDERED_DICT = "collections OrderedDict"
_DEFAULT_DICT = "collections defaultdict"

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}

# Opcodes whose argument is the value they push.
_VALUES = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
        *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    }
)

_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names: ``module name``, with one space."""

    name: str


@dataclass(eq=False)
class Call:
    """A call that a pickle asks for and that was not made.

    ``state``: what would then be handed to the result's ``__setstate__``, if anything.
    """

    function: str
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True)
class Persistent:
    """An object kept outside the pickle, by its id."""

    id: Any


@dataclass(frozen=True)
class PickleKind:
    """What pickles of one kind may ask for beside plain values, and how their errors speak of it.

    ``content``: what they hold; ``advice``: where to get that otherwise. ``names``: what they may
    name (``module name``); ``stateful``: the calls among these whose result may be given a state.
    """

    content: str
    advice: str
    names: frozenset[str] = frozenset()
    stateful: frozenset[str] = frozenset()
    bytearrays: bool = False


@dataclass(frozen=True)
class Pickle:
    """What a pickle holds, and the ids of all objects that it keeps elsewhere, in order."""

    value: Any
    persistent_ids: list[Any]


def read_pickle(stream: io.BufferedIOBase, kind: PickleKind, where: str) -> Pickle:
    """The object of the pickle at the stream's position, which is left behind its last byte.

    Scalars, strings, tuples, lists and dicts are themselves (an OrderedDict or defaultdict is a
    dict); anything else is a Name, Call or Persistent. Raises CheckpointError where the pickle is
    damaged or asks for what its kind may not.
    """
    machine = _Machine(kind, where)
    try:
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], stream)):
            machine.work(1)
            machine.step(opcode.name, argument)
        return Pickle(machine.result(), machine.persistent_ids)
    except (ValueError, LookupError, TypeError, OverflowError, struct.error) as err:
        raise CheckpointError(
            f"{where} is damaged or cut short: its pickle cannot be followed ({str(err)[:80]}). "
            "Fetch the file again."
        ) from err


class _Machine:
    """The stack machine that a pickle is a program of. Errors are those of broken programs."""

    def __init__(self, kind: PickleKind, where: str) -> None:
        self.kind = kind
        self.where = where
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.persistent_ids: list[Any] = []
        self.steps_left = _MOST_STEPS

    def work(self, steps: int) -> None:
        self.steps_left -= steps
        if self.steps_left < 0:
            raise ValueError("it is longer than that of any model")

    def result(self) -> Any:
        if len(self.stack) != 1 or self.marked:
            raise ValueError("it ends in the middle")
        return self.stack[0]

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _VALUES or (opcode == "BYTEARRAY8" and self.kind.bytearrays):
            if type(argument) is int and argument.bit_length() > _MOST_BITS:
                raise ValueError("a number is longer than any that a model needs")
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _TUPLES:
            self.stack.append(tuple(self.pop(_TUPLES[opcode])))
        else:
            self.special(opcode, argument)

    def special(self, opcode: str, argument: Any) -> None:
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self.marked.append(self.stack)
                self.stack = []
            case "TUPLE":
                items = self.pop_marked()
                self.stack.append(tuple(items))
            case "EMPTY_LIST":
                self.stack.append([])
            case "LIST":
                items = self.pop_marked()
                self.stack.append(items)
            case "APPEND":
                self.extend(self.pop(1))
            case "APPENDS":
                self.extend(self.pop_marked())
            case "EMPTY_DICT":
                self.stack.append({})
            case "DICT":
                items = self.pop_marked()
                self.stack.append({})
                self.set_items(items)
            case "SETITEM":
                self.set_items(self.pop(2))
            case "SETITEMS":
                self.set_items(self.pop_marked())
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                self.stack.append(self.memo[argument])
            case "GLOBAL":
                self.name(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                self.name(*self.pop(2))
            case "REDUCE":
                self.stack.append(self.call(*self.pop(2)))
            case "BUILD":
                self.set_state(self.pop(1)[0])
            case "BINPERSID":
                self.persistent_ids += self.pop(1)
                self.stack.append(Persistent(self.persistent_ids[-1]))
            case _:
                raise CheckpointError(
                    f"{self.where} uses the pickle opcode {opcode}, which {self.kind.content} do "
                    f"not need; nothing of it was run. {self.kind.advice}."
                )

    def pop(self, n: int) -> list[Any]:
        if n > len(self.stack):
            raise IndexError("a value is missing")
        cut = len(self.stack) - n
        values = self.stack[cut:]
        del self.stack[cut:]
        return values

    def pop_marked(self) -> list[Any]:
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise TypeError("it appends to what is no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError("it sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only these: the hash of a tuple a million deep would take the process with it.
            if type(key) not in (str, int, bytes, bool, float, type(None)):
                raise TypeError("a dict has keys that are no names")
            # Beyond, numbers of one hash can be had by the thousand, and a dict of them never ends.
            if type(key) is int and abs(key) >= 1 << 60:
                raise TypeError("a dict has a key that is no name or number")
            target[key] = value

    def set_state(self, state: Any) -> None:
        target = self.stack[-1]
        if type(target) is Call and target.function in self.kind.stateful:
            target.state = state
        elif type(target) is not dict:  # a state_dict's _metadata, which nobody needs
            raise TypeError("it sets the state of what has none")

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise TypeError("a name is no text")
        name = f"{module} {name}"
        if name != _ORDERED_DICT and name not in self.kind.names:
            raise CheckpointError(
                f"{self.where} asks to run {name.replace(' ', '.')[:120]}, which "
                f"{self.kind.content} do not need. It was not run, and nothing of the file was "
                f"taken. {self.kind.advice}; if you trust the file, convert it in a sandbox."
            )
        self.stack.append(Name(name))

    def call(self, function: Any, arguments: Any) -> Any:
        if type(function) is not Name or type(arguments) is not tuple:
            raise TypeError("it calls what is no function")
        if function.name == _DEFAULT_DICT:
            if len(arguments) > 1 or not all(type(factory) is Name for factory in arguments):
                raise TypeError("a defaultdict is made of more than what makes its values")
            return {}
        if function.name != _ORDERED_DICT:
            return Call(function.name, arguments)
        items: list[Any] = []
        for pair in arguments[0] if arguments else ():  # as Python 2 wrote them
            self.work(1)
            if type(pair) not in (list, tuple) or len(pair) != 2:
                raise TypeError("a dict is made of what are no pairs")
            items += pair
        self.stack.append({})
        self.set_items(items)
        return self.stack.pop()
