"""numpy's part of a pickle: arrays and dtypes built anew from the states that a pickle gives.

numpy's own `__setstate__` trusts its argument (a dtype's field may be told to lie
outside of the item, an array's bytes to be Python pointers). Here the state is only
read: every dtype is built by numpy's checked public constructor, and arrays only
from bytes whose number is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kachery_p2p.content.arrays import PLAIN_KINDS, array_from
from kachery_p2p.content.hashes import quoted
from kachery_p2p.errors import DataFormatError, UnsafePickleError

if TYPE_CHECKING:
    import numpy as np

DATE_UNITS = frozenset(("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"))
ALIGNED_STRUCT_FLAG = 0x80
# Fields may share their dtype, so that a dtype of 40 fields could unfold into 2^40.
FIELDS_MAX = 10_000
FIELD_DEPTH_MAX = 32


class PickledDtype:
    """A dtype as it lies on the stack, complete after its state has been set."""

    def __init__(self, spec: object) -> None:
        import numpy as np

        if not isinstance(spec, str) or not 2 <= len(spec) <= 11:
            raise DataFormatError("the pickle has a dtype without a name")
        if spec[0] not in PLAIN_KINDS or not (spec[1:].isascii() and spec[1:].isdecimal()):
            raise UnsafePickleError(f"refuses the dtype {quoted(spec)}")
        self.dtype: np.dtype[Any] = np.dtype(spec)
        self.fields = 1
        self.depth = 0

    def set_state(self, state: tuple[Any, ...]) -> None:
        """Take what numpy's `dtype.__reduce__` wrote, by building the dtype that it describes."""
        order, subdtype, names, fields, itemsize, _alignment, flags = state[1:8]
        if order not in ("<", ">", "|", "="):
            raise DataFormatError("the pickle has a dtype of unknown byte order")
        if names is not None:
            self._become_record(names, fields, itemsize, bool(flags & ALIGNED_STRUCT_FLAG))
        elif subdtype is not None:
            self._become_subarray(*subdtype)
        else:
            self._become_plain(order, state[8] if len(state) > 8 else None)
        if itemsize not in (-1, self.dtype.itemsize):
            raise DataFormatError("the pickle has a dtype of another size than it claims")

    def _become_plain(self, order: Any, metadata: Any) -> None:
        import numpy as np

        if self.dtype.kind in "Mm" and metadata is not None:
            self.dtype = np.dtype(f"{self.dtype.kind}8{_date_unit(metadata)}")
        self.dtype = self.dtype.newbyteorder(order)

    def _become_subarray(self, base: Any, shape: Any) -> None:
        import numpy as np

        self._contain([_checked(base)])
        self.dtype = np.dtype((base.dtype, tuple(map(_index, shape))))

    def _become_record(self, names: Any, fields: Any, itemsize: Any, aligned: bool) -> None:
        import numpy as np

        if not all(isinstance(name, str) and len(fields[name]) == 2 for name in names):
            raise DataFormatError("the pickle has a dtype with strange fields")
        found = [_checked(fields[name][0]) for name in names]
        self._contain(found)
        spec: Any = {
            "names": list(names),
            "formats": [field.dtype for field in found],
            "offsets": [_index(fields[name][1]) for name in names],
            "itemsize": _index(itemsize),
        }
        self.dtype = np.dtype(spec, align=aligned)

    def _contain(self, inner: list[PickledDtype]) -> None:
        self.fields = 1 + sum(field.fields for field in inner)
        self.depth = 1 + max((field.depth for field in inner), default=0)
        if self.fields > FIELDS_MAX or self.depth > FIELD_DEPTH_MAX:
            raise DataFormatError("the pickle has a dtype with too many fields")


class UnbuiltArray:
    """An array whose shape and bytes come next in the pickle."""

    def __init__(self) -> None:
        self.memo_numbers: list[int] = []


def array_of_state(state: tuple[Any, ...]) -> Any:
    """The array whose `__reduce__` gave `state`: version, shape, dtype, Fortran order, bytes."""
    shape, dtype, fortran, data = state[-4:]
    if type(data) is not bytes:
        raise UnsafePickleError("refuses an array of Python objects")
    found = _checked(dtype).dtype
    if found.subdtype is not None:
        raise DataFormatError("the pickle has an array of arrays")
    sizes = tuple(map(_index, shape))
    return array_from(sizes, found, memoryview(data), fortran=fortran is True)


def _checked(value: object) -> PickledDtype:
    if not isinstance(value, PickledDtype):
        raise DataFormatError("the pickle has something else where a dtype must be")
    return value


def _index(value: object) -> int:
    if type(value) is not int:
        raise DataFormatError("the pickle has something else where a size must be")
    return value


def _date_unit(metadata: Any) -> str:
    extra, (unit, number, *rest) = metadata
    unit = unit.decode("ascii") if isinstance(unit, bytes) else unit
    if extra or rest != [1, 1] or not isinstance(unit, str) or not 0 < _index(number) < 1 << 31:
        raise DataFormatError("the pickle has a date of unknown kind")
    if unit == "generic":
        return ""
    if unit not in DATE_UNITS:
        raise DataFormatError("the pickle has a date of unknown unit")
    return f"[{number}{unit}]"
