"""JSON records from strangers: each key once, whole numbers only, a bounded number of parts.

The older packages kept their chunk lists and directories as JSON. Python's reader takes
more than they wrote (a key given twice, NaN, fractions), and 3 bytes of JSON can cost it
60 of memory; here what they never wrote is refused, and parts are counted beforehand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kachery_p2p.content.hashes import quoted
from kachery_p2p.errors import DataFormatError

if TYPE_CHECKING:
    from collections.abc import Callable

Pairs = list[tuple[str, Any]]


def read_json(
    data: bytes,
    what: str,
    *,
    bytes_max: int,
    parts_max: int,
    record: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """The value of `data`; `record`, if given, makes of each object what stands for it.

    `what` names it in the errors, all `DataFormatError`. Memory is some 150 bytes a part.
    """
    import json

    if len(data) > bytes_max:
        raise DataFormatError(f"{what} has {len(data)} bytes, more than {bytes_max}")
    # Every part but the first comes after one of these; in names they are rare.
    if data.count(b",") + data.count(b"[") + data.count(b"{") > parts_max:
        raise DataFormatError(f"{what} has more parts than any real one")

    def once(pairs: Pairs) -> Any:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise DataFormatError(f"{what} gives a key twice")
        return keys if record is None else record(keys)

    def refused(text: str) -> Any:
        raise DataFormatError(f"{what} holds {quoted(text)}, which is not a whole number")

    try:
        return json.loads(
            data.decode(), object_pairs_hook=once, parse_float=refused, parse_constant=refused
        )
    except DataFormatError:
        raise
    except RecursionError:
        raise DataFormatError(f"{what} is nested too deep") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number of more than 4,300 digits
        raise DataFormatError(f"{what} is not JSON: {quoted(str(error))}") from None
