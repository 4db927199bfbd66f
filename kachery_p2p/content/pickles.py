"""Pickles of plain values and numpy arrays, read without ever running anything.

A pickle is a program for a small stack machine, and Python's own machine will call
whatever function the program names. This machine knows only the instructions that
plain values need, and five names: numpy's two rebuild functions, `dtype`, `ndarray`.
Even those are not called: numpy's C code trusts the states it is given, so arrays
are built here from checked shapes, dtypes and bytes instead.

Bounds against small pickles that cost much: the number of instructions, of parts
(each shared part counted each time it is reached, which stops "billion laughs"), the
nesting depth, and memo numbers, which must be given out in order.

What is written is protocol 4, byte for byte what `pickle.dumps` wrote under numpy 1:
numpy 2 moved `numpy.core` to `numpy._core`, and the old packages and old URIs know
only the old name. Both are read.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import sys
from typing import TYPE_CHECKING, Any

from kachery_p2p.content.arrays import plain_problem
from kachery_p2p.content.hashes import quoted
from kachery_p2p.content.pickled_arrays import PickledDtype, UnbuiltArray, array_of_state
from kachery_p2p.content.trees import Unfit, path_to, survey
from kachery_p2p.errors import DataFormatError, UnsafePickleError, UnsupportedValueError
from kachery_p2p.limits import VALUE_BYTES_MAX, VALUE_ITEMS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

# Containers take up to four instructions; a value at the bound of its parts must be readable.
INSTRUCTIONS_MAX = 4 * VALUE_ITEMS_MAX
PROTOCOL = 4
PROTOCOL_MAX = 5

NUMPY_1_MODULES = {
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy.core.multiarray": "numpy.core.multiarray",
    "numpy": "numpy",
}
GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
}


def encode_pickle(value: object) -> bytes:
    """`value` as a pickle that `decode_pickle` and every older kachery package can read.

    It may be built of None, bool, int, float, str, bytes, list, tuple, dict, set,
    frozenset, numpy arrays and numpy scalars: those types exactly, no kinds of them.
    """
    try:
        survey(value, _array_problem)
        out = io.BytesIO()
        _Numpy1Pickler(out, PROTOCOL).dump(value)
    except Unfit as unfit:
        raise UnsupportedValueError(f"{path_to(value, unfit.part)}: {unfit}") from None
    except RecursionError:
        raise UnsupportedValueError("the value is nested too deep for the stack") from None
    if out.tell() > VALUE_BYTES_MAX:
        raise UnsupportedValueError(f"the pickle has {out.tell()} bytes, too much for one value")
    return out.getvalue()


def decode_pickle(data: bytes) -> Any:
    """The value whose pickle is `data`; `UnsafePickleError` if it could do anything else."""
    if len(data) > VALUE_BYTES_MAX:
        raise DataFormatError(f"{len(data)} bytes are too much for one value")
    try:
        value = _Machine().run(data)
        survey(value, _kind_problem)
    except Unfit as unfit:
        raise DataFormatError(f"the pickle holds something odd: {unfit}") from None
    except DataFormatError:
        raise
    except IndexError:
        raise DataFormatError("the bytes are not a pickle: the stack is empty") from None
    # A warning (of numpy's, about a strange dtype) is an exception where the user asked for that.
    except (ValueError, TypeError, KeyError, OverflowError, Warning) as error:
        raise DataFormatError(f"the bytes are not a pickle: {quoted(str(error))}") from None
    return value


def _kind_problem(part: Any) -> str | None:
    # If numpy is not loaded, nobody can have an array; and it takes 100 ms to load.
    numpy = sys.modules.get("numpy")
    if numpy and (type(part) is numpy.ndarray or isinstance(part, numpy.generic)):
        is_own = type(part) is numpy.ndarray or type(part) is part.dtype.type
        return (
            None if is_own else f"a kind of numpy scalar ({type(part).__name__}) cannot be stored"
        )
    return f"a {type(part).__name__} cannot be stored"


def _array_problem(part: Any) -> str | None:
    return _kind_problem(part) or plain_problem(part.dtype)


class _Numpy1Pickler(pickle._Pickler):
    """Python's own pickler, except that numpy's modules have the names they had in numpy 1."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        """Write a name that `GLOBALS` has; others are needed by strange dtypes only."""
        pickler: Any = self  # the type stubs know nothing of what `_Pickler` offers its kinds
        module, name = NUMPY_1_MODULES.get(obj.__module__), name or obj.__qualname__
        if (module, name) not in GLOBALS:
            raise UnsupportedValueError(f"arrays of {obj.__module__}.{name} cannot be stored")
        pickler.save(module)
        pickler.save(name)
        pickler.write(pickle.STACK_GLOBAL)
        pickler.memoize(obj)


class _Global:
    """One of the names in `GLOBALS`, as it lies on the stack. It cannot be called."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Machine:
    """The stack machine: `run` gives the value, or raises without having called anything."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each open mark
        self.memo: dict[int, Any] = {}
        self.key_parts = 0

    def run(self, data: bytes) -> Any:
        """Follow every instruction of `data`; each is looked up in the list of those allowed."""
        end = -1
        for number, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            if number >= INSTRUCTIONS_MAX:
                raise DataFormatError("the pickle has too many parts; store large data as arrays")
            if opcode.name in LITERALS:
                self.stack.append(argument)
            elif (step := STEPS.get(opcode.name)) is not None:
                step(self, argument)
            else:
                raise UnsafePickleError(f"refuses the pickle instruction {opcode.name}")
            end = position if position is not None else -1
        if end + 1 != len(data) or len(self.stack) != 1 or self.below:
            raise DataFormatError("the bytes are not one pickle: something is left over")
        return self.stack[0]

    def check_protocol(self, argument: Any) -> None:
        if argument > PROTOCOL_MAX:
            raise DataFormatError(f"the pickle protocol {argument} is not known")

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def make_tuple(self, count: int | None) -> None:
        if count is None:
            items = self.since_mark()
        else:
            if len(self.stack) < count:
                raise DataFormatError("the bytes are not a pickle: the stack is empty")
            items = self.stack[len(self.stack) - count :]
            del self.stack[len(self.stack) - count :]
        self.stack.append(tuple(items))

    def extend(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def set_items(self, pairs: list[Any]) -> None:
        if len(pairs) % 2:
            raise DataFormatError("the pickle has a dict key without a value")
        target = self.top(dict)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[self.checked_key(key)] = value

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def add_items(self, _: Any) -> None:
        items = self.since_mark()
        self.top(set).update(map(self.checked_key, items))

    def make_frozenset(self, _: Any) -> None:
        items = self.since_mark()
        self.stack.append(frozenset(map(self.checked_key, items)))

    def top(self, kind: type[Any]) -> Any:
        if type(target := self.stack[-1]) is not kind:
            raise DataFormatError(f"the pickle adds to something that is not a {kind.__name__}")
        return target

    def checked_key(self, key: Any) -> Any:
        """`key`, if it is cheap to hash: Python hashes tuples by recursion in C, unbounded."""
        if type(key) in (tuple, frozenset):
            self.key_parts += survey(key, _kind_problem)
            if self.key_parts > VALUE_ITEMS_MAX:
                raise DataFormatError("the pickle has too many parts in its keys")
        return key

    def memoize(self, argument: int | None) -> None:
        number = len(self.memo) if argument is None else argument
        if number > len(self.memo):
            raise DataFormatError("the pickle has a memo number out of order")
        value = self.memo[number] = self.stack[-1]
        if type(value) is UnbuiltArray:
            value.memo_numbers.append(number)

    def recall(self, argument: int) -> None:
        if argument not in self.memo:
            raise DataFormatError("the pickle recalls what it never stored")
        self.stack.append(self.memo[argument])

    def name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise DataFormatError("the pickle has a name that is not text")
        if (NUMPY_1_MODULES.get(module), name) not in GLOBALS:
            raise UnsafePickleError(
                f"refuses {quoted(f'{module}.{name}')}",
                hint="ask the author of the pickle to store JSON or npy",
            )
        self.stack.append(_Global(name))

    def global_of_text(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.name(module, name)

    def global_of_stack(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Global or type(arguments) is not tuple:
            raise UnsafePickleError("refuses to call something that is not numpy's")
        if function.name == "dtype" and len(arguments) == 3:
            self.stack.append(PickledDtype(arguments[0]))
        elif function.name == "scalar" and len(arguments) == 2:
            dtype, data = arguments
            self.stack.append(array_of_state(((), dtype, False, data))[()])
        elif function.name == "_reconstruct" and len(arguments) == 3:
            if type(arguments[0]) is not _Global or arguments[0].name != "ndarray":
                raise UnsafePickleError("refuses a kind of array that is not numpy's own")
            self.stack.append(UnbuiltArray())
        else:
            raise UnsafePickleError(f"refuses to call numpy's {function.name} in this way")

    def build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(state) is not tuple or not isinstance(target, PickledDtype | UnbuiltArray):
            raise UnsafePickleError("refuses to set the state of something that is not numpy's")
        if isinstance(target, PickledDtype):
            target.set_state(state)
            return
        self.stack[-1] = array = array_of_state(state)
        for number in target.memo_numbers:
            self.memo[number] = array


# Instructions that put what follows them on the stack.
NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"}
TEXTS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
BYTES = {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
LITERALS = frozenset(NUMBERS | TEXTS | BYTES)
STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.check_protocol,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "MARK": _Machine.mark,
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_SET": lambda machine, _: machine.stack.append(set()),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "TUPLE1": lambda machine, _: machine.make_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_tuple(3),
    "TUPLE": lambda machine, _: machine.make_tuple(None),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": _Machine.set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": _Machine.make_frozenset,
    "MEMOIZE": _Machine.memoize,
    "BINPUT": _Machine.memoize,
    "LONG_BINPUT": _Machine.memoize,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "GLOBAL": _Machine.global_of_text,
    "STACK_GLOBAL": _Machine.global_of_stack,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
