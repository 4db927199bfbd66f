"""Arrays and their `.npy` bytes, never trusting what a header claims.

`np.save`'s format, with two refusals: arrays of Python objects (they would need
pickle), and bytes whose header claims more or less data than there is. The claim
is checked before anything of that size is allocated.
"""

from __future__ import annotations

import io
import math
import sys
from typing import TYPE_CHECKING, Any

from kachery_p2p.content.hashes import quoted
from kachery_p2p.errors import DataFormatError, UnsafePickleError, UnsupportedValueError
from kachery_p2p.limits import VALUE_ITEMS_MAX

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np

    from kachery_p2p.content.manifests import Bytes

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

# Booleans, integers, floats, complex numbers, bytes, text, records, dates, durations.
PLAIN_KINDS = "biufcSUVMm"
NUMBER_KINDS = "biufc"
NPY_VERSIONS = ((1, 0), (2, 0), (3, 0))
# What numpy itself allows a header to have before it is parsed as Python literals.
NPY_HEADER_BYTES_MAX = 10_000
# numpy 2 allows 64, numpy 1 allowed 32.
DIMENSIONS_MAX = 64


def encode_npy(value: object) -> bytes:
    """What `np.save` writes for `value`: an array, a numpy scalar, or a list of numbers."""
    array = _array_of(value)
    for version in NPY_VERSIONS:  # explicit, because np.save's own choice comes with a warning
        data = _npy_bytes(array, version)
        if data is not None and len(data) - array.nbytes <= NPY_HEADER_BYTES_MAX:
            return data
    raise UnsupportedValueError("the array has too many or too strange fields for the npy format")


def decode_npy(data: Bytes) -> Array:
    """The array whose `.npy` bytes are `data`: writable, and sharing no memory with it."""
    view = memoryview(data).cast("B")
    try:
        shape, fortran, dtype, start = _npy_header(view)
    except DataFormatError:
        raise
    # numpy reads headers by Python's tokenizer and parser: they raise a dozen kinds of error.
    except Exception as error:
        raise DataFormatError(f"the bytes are not an npy array: {quoted(str(error))}") from None
    return array_from(shape, dtype, view[start:], fortran=fortran)


def array_from(
    shape: tuple[int, ...], dtype: np.dtype[Any], data: memoryview, *, fortran: bool
) -> Array:
    """A new array of a plain dtype; `DataFormatError` unless `data` is just as long as it needs."""
    import numpy as np

    if len(shape) > DIMENSIONS_MAX or any(not 0 <= n < 1 << 63 for n in shape):
        raise DataFormatError("the array has a shape that no array can have")
    count = math.prod(shape)
    if count * dtype.itemsize != data.nbytes:
        claimed = count * dtype.itemsize
        raise DataFormatError(f"the array claims {claimed} bytes, but there are {data.nbytes}")
    # Items of no bytes cost nothing here, but whoever looks at each of them waits for ever.
    if data.nbytes == 0 and count > VALUE_ITEMS_MAX:
        raise DataFormatError(f"the array claims {count} items without any bytes")
    # Bytes are copied, not items: no loop over records, and their padding comes along.
    try:
        array = np.ndarray(shape, dtype, buffer=bytearray(data), order="F" if fortran else "C")
    except ValueError as error:  # an empty array whose other lengths are beyond numpy's limits
        raise DataFormatError(f"the array cannot be built: {quoted(str(error))}") from None
    _check_text(array)
    return array


def _check_text(array: Array) -> None:
    """Refuse text beyond Unicode: numpy would raise SystemError when somebody looks at it."""
    import numpy as np

    for name in array.dtype.names or ():
        _check_text(array[name])
    if array.dtype.kind == "U" and array.nbytes:
        codes = np.ascontiguousarray(array).view(array.dtype.byteorder + "u4")
        if codes.max() > sys.maxunicode:
            raise DataFormatError("the array has text that is not Unicode")


def plain_problem(dtype: np.dtype[Any]) -> str | None:
    """Why arrays of `dtype` cannot be written as plain bytes, or None if they can."""
    if dtype.subdtype is not None:
        return plain_problem(dtype.subdtype[0])
    if dtype.hasobject:
        return "arrays of Python objects cannot be stored"
    if dtype.kind not in PLAIN_KINDS:
        return f"arrays of {dtype.name} cannot be stored"
    if dtype.metadata:
        return "arrays whose dtype has metadata cannot be stored"
    for field in (dtype.fields or {}).values():
        if len(field) > 2:
            return "arrays whose fields have titles cannot be stored"
        if problem := plain_problem(field[0]):
            return problem
    return None


def _array_of(value: object) -> Array:
    import numpy as np

    if isinstance(value, np.ma.MaskedArray):
        raise UnsupportedValueError(
            "npy cannot hold the mask of a masked array", hint="store its data and its mask"
        )
    if not isinstance(value, np.ndarray | np.generic | list):
        raise UnsupportedValueError(f"a {type(value).__name__} is not an array")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise UnsupportedValueError(f"the list is not an array: {error}") from None
    if isinstance(value, list) and array.dtype.kind not in NUMBER_KINDS:
        raise UnsupportedValueError("the list does not hold only numbers")
    if problem := plain_problem(array.dtype):
        raise UnsupportedValueError(problem)
    return array


def _npy_bytes(array: Array, version: tuple[int, int]) -> bytes | None:
    from numpy.lib import format as npy

    out = io.BytesIO()
    try:
        npy.write_array(out, array, version=version, allow_pickle=False)
    except ValueError:  # field names do not fit into a header of this version
        return None
    return out.getvalue()


def _npy_header(view: memoryview) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    from numpy.lib import format as npy

    head = io.BytesIO(view[: NPY_HEADER_BYTES_MAX + 12])
    version = npy.read_magic(head)
    if version not in NPY_VERSIONS:
        raise DataFormatError(f"the npy format {version[0]}.{version[1]} is not known")
    if version == (1, 0):
        shape, fortran, dtype = npy.read_array_header_1_0(head)
        start = head.tell()
    else:
        length = int.from_bytes(head.read(4), "little")
        start = 12 + length
        raw = head.read(length)
        # Format 3 differs only in being UTF-8: escape what the reader of format 2 would not see.
        escaped = raw.decode().encode("latin1", "backslashreplace") if version == (3, 0) else raw
        again = io.BytesIO(len(escaped).to_bytes(4, "little") + escaped)
        shape, fortran, dtype = npy.read_array_header_2_0(again)
        if start > len(view):
            raise DataFormatError("the npy header is cut off")
    if dtype.hasobject:
        raise UnsafePickleError("the npy array holds Python objects, which could run code")
    return shape, fortran, dtype, start
