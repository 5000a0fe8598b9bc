"""Pickle streams read as data: an interpreter of the pickle opcodes that imports nothing and calls nothing.

A pickle is a small program that may name any function and call it. Here a name is looked up in a table of the
few that network files need, and "calling" it runs a constructor of this package that only checks and keeps
values; every other name ends the reading. Nothing is allocated that the bytes at hand do not back: byte
strings and long texts stay views into the file, sizes are checked before they are used, and a budget of
opcodes, shared by a file and the streams nested in it, bounds the number of objects.

Source of the format: the documentation of Python's ``pickletools`` (protocols 2 to 5).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_OPCODES = 250_000  # a 256-pixel NVIDIA generator needs 18,448; so three 1024-pixel networks about 80,000
# Longer texts stay undecoded: they are embedded source, which nobody reads, or arrays written as latin-1.
MAX_TEXT = 4096
MAX_SHOWN = 80


class Refused(Exception):
    """Why a file is not loaded: half a sentence, which the public function completes with the path."""


def shown(text: Any) -> str:
    """A name out of a file, made harmless for a message: printable, and short."""
    clean = "".join(c if c.isprintable() else "?" for c in str(text)[: MAX_SHOWN + 1])
    return clean if len(clean) <= MAX_SHOWN else clean[:MAX_SHOWN] + "…"


def refuse_name(module: str, name: str) -> Refused:
    return Refused(
        f"it names {shown(module)}.{shown(name)}, which no StyleGAN2 checkpoint needs (nothing in the file "
        "was run); "
        "get the file from a source that you trust"
    )


class Budget:
    """Opcodes that one file may still use."""

    def __init__(self, opcodes: int = MAX_OPCODES) -> None:
        self.opcodes = opcodes


@dataclass(frozen=True)
class LongText:
    """A text over MAX_TEXT bytes, as its UTF-8 bytes in the file."""

    raw: memoryview

    def latin1(self) -> bytes:
        """The bytes that protocol 2 wrote as a text, one character a byte."""
        return str(self.raw, "utf-8").encode("latin-1")


Constructor = Callable[[tuple[Any, ...]], Any]


@dataclass(frozen=True)
class Name:
    """A permitted global name; ``construct`` makes an inert value from the arguments that the stream
    gives."""

    module: str
    name: str
    construct: Constructor | None = None

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert:
    """Stands for an object of a class that is not here: its name, its arguments, its state; no behaviour."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] = ()) -> None:
        self.name = name
        self.args = args
        self.state: Any = None

    def set_state(self, state: Any) -> None:
        self.state = state


FindName = Callable[[str, str], Name]
PersistentLoad = Callable[[Any], Any]


def no_persistent_objects(_: Any) -> Any:
    raise Refused("it refers to objects outside the file; export the network again with the program that wrote it")


class PickleReader:
    """One pickle stream in ``data`` from ``position`` on; after ``load`` the position is behind the stream.

    Values are None, bool, int, float, str, tuple, list, dict, set of plain values, read-only memoryviews
    (bytes), LongText, Name, and whatever the constructors behind ``find_name`` return. Objects with a
    ``set_state`` method take the state that the stream holds for them.
    """

    def __init__(
        self,
        data: memoryview,
        find_name: FindName,
        budget: Budget,
        persistent_load: PersistentLoad = no_persistent_objects,
        position: int = 0,
    ) -> None:
        self.data = data
        self.position = position
        self._find_name = find_name
        self._budget = budget
        self._persistent_load = persistent_load
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The value of the stream. Raises Refused on anything unsafe, unknown, damaged or cut short."""
        start = self.position
        try:
            while True:
                start = self.position
                opcode = self._byte()
                if opcode == _STOP:
                    return self._stack.pop()
                self._budget.opcodes -= 1
                if self._budget.opcodes < 0:
                    raise Refused("it holds far more objects than any StyleGAN2 checkpoint; it is not one")
                run = _OPCODES.get(opcode)
                if run is None:
                    raise Refused(
                        f"its pickle stream uses the opcode 0x{opcode:02x} at byte {start}, which no "
                        "StyleGAN2 "
                        "checkpoint needs; it is damaged or not a checkpoint"
                    )
                run(self)
        except (LookupError, ValueError, TypeError, OverflowError, struct.error):
            raise Refused(f"its pickle stream is damaged at byte {start}; download it again") from None

    # Reading the stream

    def _take(self, size: int) -> memoryview:
        end = self.position + size
        if end > len(self.data):
            raise Refused(f"it ends early: at byte {self.position} begins a value of size {size}; download it again")
        view = self.data[self.position : end]
        self.position = end
        return view

    def _byte(self) -> int:
        return self._take(1)[0]

    def _number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self._take(size), "little", signed=signed)

    def _line(self) -> str:
        window = bytes(self.data[self.position : self.position + 512])
        end = window.find(b"\n")
        if end < 0:
            raise Refused(f"it holds an unterminated name at byte {self.position}; download it again")
        self.position += end + 1
        return window[:end].decode("utf-8")

    # The stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _pop_to_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    # Opcodes

    def _proto(self) -> None:
        version = self._byte()
        if not 2 <= version <= 5:
            raise Refused(f"it is a pickle of protocol {version}; protocols 2 to 5 can be read")

    def _text(self, size: int) -> None:
        raw = self._take(size)
        self._push(str(raw, "utf-8") if size <= MAX_TEXT else LongText(raw))

    def _long1(self) -> None:
        self._push(self._number(self._byte(), signed=True))

    def _tuple(self, size: int) -> None:
        if len(self._stack) < size:
            raise IndexError
        items = self._stack[len(self._stack) - size :]
        del self._stack[len(self._stack) - size :]
        self._push(tuple(items))

    def _top(self, kind: type) -> Any:
        top = self._stack[-1]
        if not isinstance(top, kind):
            raise TypeError
        return top

    def _appends(self, items: list[Any]) -> None:
        self._top(list).extend(items)

    def _append(self) -> None:
        self._appends([self._stack.pop()])

    def _add_items(self) -> None:
        items = self._pop_to_mark()
        self._top(set).update(_key(item) for item in items)

    def _set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise ValueError
        self._top(dict).update((_key(k), v) for k, v in zip(items[::2], items[1::2], strict=True))

    def _set_item(self) -> None:
        value = self._stack.pop()
        self._set_items([self._stack.pop(), value])

    def _frozen_set(self) -> None:
        self._push({_key(item) for item in self._pop_to_mark()})

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _global(self) -> None:
        module = self._line()
        self._push(self._find_name(module, self._line()))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError
        self._push(self._find_name(module, name))

    def _instance(self) -> None:
        module = self._line()
        raise refuse_name(module, self._line())

    def _reduce(self) -> None:
        args, name = self._stack.pop(), self._stack.pop()
        if not isinstance(name, Name) or not isinstance(args, tuple):
            raise TypeError
        if name.construct is None:
            raise Refused(
                f"it calls {name}, which no StyleGAN2 checkpoint does (nothing was run); get a trustworthy file"
            )
        self._push(name.construct(args))

    def _new_object_ex(self) -> None:
        if self._stack.pop() != {}:
            raise TypeError
        self._reduce()

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, dict):
            return  # attributes of a dictionary (torch's version record on state dicts) are not used
        if not hasattr(target, "set_state"):
            raise TypeError
        target.set_state(state)

    def _persistent(self) -> None:
        self._push(self._persistent_load(self._stack.pop()))


def _key(value: Any) -> Any:
    # Only plain values: hashing a deeply nested tuple would recurse without bound. Of the numbers only small whole
    # ones: large ones can be chosen to have the same hash, which makes a dictionary quadratically slow.
    if value is None or isinstance(value, str) or (isinstance(value, int) and abs(value) < 1 << 31):
        return value
    raise TypeError


def _number(size: int, signed: bool = False) -> Callable[[PickleReader], None]:
    return lambda r: r._push(r._number(size, signed))


def _text(size_bytes: int) -> Callable[[PickleReader], None]:
    return lambda r: r._text(r._number(size_bytes))


def _bytes(size_bytes: int) -> Callable[[PickleReader], None]:
    return lambda r: r._push(r._take(r._number(size_bytes)))


def _constant(value: Any) -> Callable[[PickleReader], None]:
    return lambda r: r._push(value)


def _tuple(size: int) -> Callable[[PickleReader], None]:
    return lambda r: r._tuple(size)


_STOP = ord(".")
_OPCODES: dict[int, Callable[[PickleReader], Any]] = {
    0x80: PickleReader._proto,
    0x95: lambda r: r._take(8),  # FRAME: a hint for buffering
    # Plain values
    ord("N"): _constant(None),
    0x88: _constant(True),
    0x89: _constant(False),
    ord("J"): _number(4, signed=True),
    ord("K"): _number(1),
    ord("M"): _number(2),
    0x8A: PickleReader._long1,
    ord("G"): lambda r: r._push(struct.unpack(">d", r._take(8))[0]),
    0x8C: _text(1),
    ord("X"): _text(4),
    0x8D: _text(8),
    ord("C"): _bytes(1),
    ord("B"): _bytes(4),
    0x8E: _bytes(8),
    0x96: _bytes(8),  # BYTEARRAY8
    # Containers
    ord(")"): _tuple(0),
    0x85: _tuple(1),
    0x86: _tuple(2),
    0x87: _tuple(3),
    ord("t"): lambda r: r._push(tuple(r._pop_to_mark())),
    ord("]"): lambda r: r._push([]),
    ord("l"): lambda r: r._push(r._pop_to_mark()),
    ord("a"): PickleReader._append,
    ord("e"): lambda r: r._appends(r._pop_to_mark()),
    ord("}"): lambda r: r._push({}),
    ord("s"): PickleReader._set_item,
    ord("u"): lambda r: r._set_items(r._pop_to_mark()),
    0x8F: lambda r: r._push(set()),
    0x90: PickleReader._add_items,
    0x91: PickleReader._frozen_set,
    # The stack and the memo
    ord("("): PickleReader._mark,
    ord("0"): lambda r: r._stack.pop(),
    ord("1"): PickleReader._pop_to_mark,
    ord("2"): lambda r: r._push(r._stack[-1]),
    0x94: lambda r: r._put(len(r._memo)),
    ord("q"): lambda r: r._put(r._number(1)),
    ord("r"): lambda r: r._put(r._number(4)),
    ord("h"): lambda r: r._push(r._memo[r._number(1)]),
    ord("j"): lambda r: r._push(r._memo[r._number(4)]),
    # Names and objects
    ord("c"): PickleReader._global,
    0x93: PickleReader._stack_global,
    ord("i"): PickleReader._instance,  # protocol 0; always refused, by its name
    ord("R"): PickleReader._reduce,
    0x81: PickleReader._reduce,  # NEWOBJ: a class and its arguments, the same to us
    0x92: PickleReader._new_object_ex,
    ord("b"): PickleReader._build,
    ord("Q"): PickleReader._persistent,
}
