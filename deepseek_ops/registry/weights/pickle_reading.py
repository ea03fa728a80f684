"""What a pickle says, without doing it: its opcodes build plain values and notes about calls, and call nothing.

The interpreter knows lists, dictionaries, text, numbers and three notes: a name that would be imported, a call that
would be made, and a reference to a storage. So the most hostile pickle costs the time to read it, and its intentions
can be shown.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

from deepseek_ops.registry.weights.errors import WeightFormatError

MAX_OPCODES = 30_000_000


@dataclass(frozen=True, slots=True)
class Imported:
    """A name that unpickling would import."""

    module: str
    name: str

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Called:
    """A call that unpickling would make, or an object it would fill."""

    target: object
    arguments: object
    state: list[object] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Stored:
    """A persistent id: in PyTorch files, a storage of a tensor."""

    key: object


@dataclass(slots=True, eq=False)
class Pairs:
    """A dictionary; keys may be anything, so it is not made one."""

    items: list[tuple[object, object]] = field(default_factory=list)


class _Mark:
    pass


_MARK = _Mark()
_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    ["INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
     "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
     "BINUNICODE8", "FLOAT", "BINFLOAT"]
)  # fmt: skip
_IGNORED = frozenset(["PROTO", "FRAME", "READONLY_BUFFER"])


def read_pickle(stream: IO[bytes], *, file: str) -> tuple[object, set[Imported]]:
    """Return what the next pickle of the stream describes, and every name it would import.

    Raises WeightFormatError for what is no pickle, is cut, or uses opcodes that no model needs.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_OPCODES:
                raise WeightFormatError(file, f"its pickle has more than {MAX_OPCODES:,} opcodes")
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError) as error:
        raise WeightFormatError(
            file, f"its pickle cannot be read ({type(error).__name__}: {str(error)[:160]})"
        ) from None
    return machine.result(), machine.imported


class _Machine:
    """The stack, the memo, and one method for each opcode that is not a literal."""

    def __init__(self) -> None:
        self.imported: set[Imported] = set()
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}
        self._methods: dict[str, Callable[[object], None]] = {
            name.upper(): getattr(self, f"_{name}") for name in _METHODS
        }

    def result(self) -> object:
        """Return what STOP left."""
        if len(self._stack) != 1:
            raise ValueError("its end comes too early")
        return self._stack[0]

    def step(self, name: str, argument: object) -> None:
        """Do one opcode."""
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[_index(argument)] = self._stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[_index(argument)])
        elif name not in _IGNORED:
            method = self._methods.get(name)
            if method is None:
                raise ValueError(f"opcode {name} has no place in a model")
            method(argument)

    def _stop(self, _argument: object) -> None:
        """Nothing: the stream's reader ends here."""

    def _memoize(self, _argument: object) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _mark(self, _argument: object) -> None:
        self._stack.append(_MARK)

    def _pop(self, _argument: object) -> None:
        self._stack.pop()

    def _pop_mark(self, _argument: object) -> None:
        self._since_mark()

    def _dup(self, _argument: object) -> None:
        self._stack.append(self._stack[-1])

    def _empty_dict(self, _argument: object) -> None:
        self._stack.append(Pairs())

    def _empty_list(self, _argument: object) -> None:
        self._stack.append([])

    def _empty_set(self, _argument: object) -> None:
        self._stack.append([])

    def _empty_tuple(self, _argument: object) -> None:
        self._stack.append(())

    def _tuple(self, _argument: object) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _tuple1(self, _argument: object) -> None:
        self._stack.append((self._stack.pop(),))

    def _tuple2(self, _argument: object) -> None:
        self._stack[-2:] = [(self._stack[-2], self._stack[-1])]

    def _tuple3(self, _argument: object) -> None:
        self._stack[-3:] = [(self._stack[-3], self._stack[-2], self._stack[-1])]

    def _list(self, _argument: object) -> None:
        self._stack.append(self._since_mark())

    def _frozenset(self, _argument: object) -> None:
        self._stack.append(self._since_mark())

    def _dict(self, _argument: object) -> None:
        values = self._since_mark()
        self._stack.append(Pairs(list(zip(values[::2], values[1::2], strict=True))))

    def _append(self, _argument: object) -> None:
        value = self._stack.pop()
        self._extend([value])

    def _appends(self, _argument: object) -> None:
        self._extend(self._since_mark())

    def _additems(self, _argument: object) -> None:
        self._extend(self._since_mark())

    def _extend(self, values: list[object]) -> None:
        target = self._stack[-1]
        if isinstance(target, Called):
            target.state.append(values)
        elif isinstance(target, list):
            target.extend(values)
        else:
            raise TypeError("items are appended to something that is no list")

    def _setitem(self, _argument: object) -> None:
        key, value = self._stack[-2:]
        del self._stack[-2:]
        self._update([key, value])

    def _setitems(self, _argument: object) -> None:
        self._update(self._since_mark())

    def _update(self, values: list[object]) -> None:
        target, pairs = self._stack[-1], list(zip(values[::2], values[1::2], strict=True))
        if isinstance(target, Called):
            target.state.append(Pairs(pairs))
        elif isinstance(target, Pairs):
            target.items.extend(pairs)
        else:
            raise TypeError("an item is set on something that is no dictionary")

    def _global(self, argument: object) -> None:
        module, _, name = str(argument).partition(" ")
        self._import(module, name)

    def _stack_global(self, _argument: object) -> None:
        module, name = self._stack[-2:]
        del self._stack[-2:]
        self._import(str(module), str(name))

    def _import(self, module: str, name: str) -> None:
        found = Imported(module, name)
        self.imported.add(found)
        self._stack.append(found)

    def _reduce(self, _argument: object) -> None:
        arguments = self._stack.pop()
        self._stack[-1] = Called(self._stack[-1], arguments)

    def _newobj(self, _argument: object) -> None:
        self._reduce(None)

    def _newobj_ex(self, _argument: object) -> None:
        named, arguments = self._stack.pop(), self._stack.pop()
        self._stack[-1] = Called(self._stack[-1], (arguments, named))

    def _obj(self, _argument: object) -> None:
        target, *arguments = self._since_mark()
        self._stack.append(Called(target, tuple(arguments)))

    def _inst(self, argument: object) -> None:
        arguments = tuple(self._since_mark())
        self._global(argument)
        self._stack[-1] = Called(self._stack[-1], arguments)

    def _build(self, _argument: object) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if not isinstance(target, Called):
            raise TypeError("state is given to something that is no object")
        target.state.append(state)

    def _binpersid(self, _argument: object) -> None:
        self._stack.append(Stored(self._stack.pop()))

    def _persid(self, argument: object) -> None:
        self._stack.append(Stored(argument))

    def _since_mark(self) -> list[object]:
        for at in range(len(self._stack) - 1, -1, -1):
            if self._stack[at] is _MARK:
                values = self._stack[at + 1 :]
                del self._stack[at:]
                return values
        raise IndexError("a mark is missing")


_METHODS = (
    "stop", "memoize", "mark", "pop", "pop_mark", "dup", "empty_dict", "empty_list", "empty_set", "empty_tuple",
    "tuple", "tuple1", "tuple2", "tuple3", "list", "frozenset", "dict", "append", "appends", "additems", "setitem",
    "setitems", "global", "stack_global", "reduce", "newobj", "newobj_ex", "obj", "inst", "build", "binpersid",
    "persid",
)  # fmt: skip


def _index(argument: object) -> int:
    if not isinstance(argument, int):
        raise TypeError("the memo is asked for something that is no number")
    return argument
