"""The types of fields in messages between nodes, and what a row of their table is.

A check turns a value that a peer sent into one of its type and within its bound, or raises
WrongValueError, which names what was expected and never quotes what came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kachery_p2p.errors import ProtocolError
from kachery_p2p.limits import ADDRESS_CHARS_MAX
from kachery_p2p.wire.codec import Message

HASH_BYTES = 32
CONTENT_BYTES = 20
CHANNEL_CHARS = 64

Check = Callable[[object], Any]
Fields = Mapping[str, Check]


class WrongValueError(ValueError):
    """A value is not what the table says; the message says what was expected, never what came."""


def integer(low: int, high: int) -> Check:
    def check(value: object) -> int:
        if type(value) is int and low <= value <= high:
            return value
        raise WrongValueError(f"expected an integer from {low} to {high}")

    return check


def bytes_of(low: int, high: int) -> Check:
    def check(value: object) -> bytes:
        if isinstance(value, bytes) and low <= len(value) <= high:
            return value
        raise WrongValueError(f"expected {low if low == high else f'{low} to {high}'} bytes")

    return check


def packed(item_bytes: int, items_max: int) -> Check:
    """Items of one length, one after the other."""
    short = bytes_of(0, item_bytes * items_max)

    def check(value: object) -> bytes:
        items: bytes = short(value)
        if len(items) % item_bytes == 0:
            return items
        raise WrongValueError(f"expected a multiple of {item_bytes} bytes")

    return check


def printable(chars_max: int) -> Check:
    def check(value: object) -> str:
        # isprintable() also refuses bidi and other invisible format characters.
        if isinstance(value, str) and len(value) <= chars_max and value.isprintable():
            return value
        raise WrongValueError(f"expected at most {chars_max} printable characters")

    return check


def list_of(item: Check, items_max: int) -> Check:
    def check(value: object) -> list[Any]:
        if isinstance(value, list | tuple) and len(value) <= items_max:
            return [item(one) for one in value]
        raise WrongValueError(f"expected a list of at most {items_max}")

    return check


def map_of(fields: Fields) -> Check:
    def check(value: object) -> Message:
        return check_fields(fields, value)

    return check


def boolean(value: object) -> bool:
    if type(value) is bool:
        return value
    raise WrongValueError("expected true or false")


def address(value: object) -> str:
    """A multiaddr as far as its alphabet goes; whoever dials it parses it."""
    if (
        isinstance(value, str)
        and len(value) <= ADDRESS_CHARS_MAX
        and value.startswith("/")
        and value.isascii()
        and value.isprintable()
        and " " not in value
    ):
        return value
    raise WrongValueError(f"expected a multiaddr of at most {ADDRESS_CHARS_MAX} characters")


def channel_id(value: object) -> str:
    if isinstance(value, str) and len(value) == CHANNEL_CHARS:  # noqa: SIM102 (one thought a line)
        if not value.strip("0123456789abcdef"):
            return value
    raise WrongValueError(f"expected a channel id of {CHANNEL_CHARS} hex digits")


class Operation(NamedTuple):
    """One line of the table. `stream` is where it may be asked: "control" or "data"."""

    request: Fields
    answer: Fields
    stream: str = "control"


def check_message(what: str, fields: Fields, body: object) -> Message:
    """The fields of `body`, or ProtocolError that begins with `what`."""
    try:
        return check_fields(fields, body)
    except WrongValueError as wrong:
        raise ProtocolError(f"{what}: {wrong}") from None


def check_fields(fields: Fields, body: object) -> Message:
    """The fields of `body`, or WrongValueError naming the first that is missing or wrong."""
    if not isinstance(body, dict):
        raise WrongValueError("expected a map")
    found = {}
    for name, check in fields.items():
        if name not in body:
            raise WrongValueError(f"{name} is missing")
        try:
            found[name] = check(body[name])
        except WrongValueError as wrong:
            raise WrongValueError(f"{name}: {wrong}") from None
    return found
