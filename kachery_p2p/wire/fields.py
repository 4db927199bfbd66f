"""The kinds of fields in the operations of a daemon's doors, and what a row of their table is.

A kind is a test and its name, for the sentence that refuses what fails it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from kachery_p2p.limits import MESSAGE_ITEMS_MAX, TEXT_CHARS_MAX

# Credentials: a caller at the Unix door is the daemon's own user, one at HTTP holds the token.
OWNER = "owner"
TOKEN = "token"  # noqa: S105 - the name of a kind of credential
# Another user of this computer, of the group that was let in at the Unix door (`auth_group`).
GUEST = "guest"
# Larger sizes would not fit a signed 64-bit file offset.
SIZE_MAX = (1 << 63) - 1
# Ten years: longer deadlines are mistakes, and infinities do not travel in JSON.
SECONDS_MAX = 315_360_000.0


class Kind(NamedTuple):
    """What a field may hold: a test, and its name for the sentence that refuses."""

    name: str
    fits: Callable[[object], bool]


class Field(NamedTuple):
    kind: Kind
    required: bool = True


Fields = Mapping[str, Field]


class Operation(NamedTuple):
    """One row of the table."""

    name: str
    body: Fields
    result: Fields
    # The credentials with which it may be called: OWNER or GUEST at the Unix door, TOKEN at the
    # HTTP door.
    needs: frozenset[str] = frozenset({OWNER, TOKEN})
    # Progress maps may come before the answer (at the HTTP door as lines of JSON).
    streams: bool = False
    # A descriptor must come with the request.
    takes_descriptor: bool = False


def _is_integer(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_text(value: object, chars_max: int) -> bool:
    return isinstance(value, str) and len(value) <= chars_max


def _is_hex(value: object, digits: int) -> bool:
    return isinstance(value, str) and len(value) == digits and not value.strip("0123456789abcdef")


def _is_number(value: object, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


def text(chars_max: int = TEXT_CHARS_MAX) -> Kind:
    return Kind(f"text of at most {chars_max} characters", lambda v: _is_text(v, chars_max))


def hexadecimal(digits: int) -> Kind:
    return Kind(f"{digits} lower-case hexadecimal digits", lambda v: _is_hex(v, digits))


def integer(most: int = SIZE_MAX) -> Kind:
    return Kind(f"an integer from 0 to {most}", lambda v: _is_integer(v, 0, most))


def list_of(kind: Kind, items_max: int = MESSAGE_ITEMS_MAX) -> Kind:
    def fits(value: object) -> bool:
        return isinstance(value, list) and len(value) <= items_max and all(map(kind.fits, value))

    return Kind(f"a list of at most {items_max}, each {kind.name}", fits)


def record(fields: Fields) -> Kind:
    """A map of its own. Unknown keys do not disturb it: a newer daemon may tell more."""

    def fits(value: object) -> bool:
        return isinstance(value, dict) and all(
            may_hold(field, value.get(name)) for name, field in fields.items()
        )

    return Kind(f"a map of {', '.join(fields)}", fits)


def may_hold(field: Field, value: object) -> bool:
    return not field.required if value is None else field.kind.fits(value)


def optional(kind: Kind) -> Field:
    return Field(kind, required=False)


TEXT = text()
NAME = text(256)
CONTENT = hexadecimal(40)
ROOT = hexadecimal(64)
NODE = hexadecimal(64)
SIZE = integer()
COUNT = integer()
FLAG = Kind("true or false", lambda v: isinstance(v, bool))
SECONDS = Kind("a number of seconds", lambda v: _is_number(v, SECONDS_MAX))
RATE = Kind("a number", lambda v: _is_number(v, float("inf")))
CHANNELS = list_of(NAME, 64)
