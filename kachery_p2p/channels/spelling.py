"""Bytes with one spelling: how changes, invites and proofs of owned channels are written.

A text is its UTF-8 after a u16 length. A `Cursor` reads what a `Speller` wrote and raises
LogFormatError when something is cut off, left over, or not what it has to be.
"""

from __future__ import annotations

from kachery_p2p.errors import LogFormatError
from kachery_p2p.limits import (
    ADDRESS_CHARS_MAX,
    BUCKET_CHARS_MAX,
    LABEL_CHARS_MAX,
    LOG_TIME_MS_MAX,
)

_LENGTH_BYTES = 2
# UTF-8 needs at most this many bytes for one character.
_UTF8_BYTES_MAX = 4
TIME_S_MAX = LOG_TIME_MS_MAX // 1000


class Speller:
    """Collects the parts of something that is written."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def number(self, value: int, width: int) -> None:
        self._parts.append(value.to_bytes(width, "big"))

    def fixed(self, data: bytes, width: int) -> None:
        assert len(data) == width
        self._parts.append(data)

    def text(self, value: str) -> None:
        """LogFormatError if it has no UTF-8, or too much."""
        try:
            data = value.encode("utf-8")
            self.number(len(data), _LENGTH_BYTES)
        except (UnicodeEncodeError, OverflowError):
            raise LogFormatError("a text in the change cannot be written") from None
        self._parts.append(data)

    def spelled(self) -> bytes:
        return b"".join(self._parts)


class Cursor:
    """Reads bytes from their beginning. LogFormatError from every method if they do not fit."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def fixed(self, width: int) -> bytes:
        end = self._at + width
        if end > len(self._data):
            raise LogFormatError("the bytes are cut off")
        found = self._data[self._at : end]
        self._at = end
        return found

    def number(self, width: int) -> int:
        return int.from_bytes(self.fixed(width), "big")

    def text(self, chars_max: int) -> str:
        length = self.number(_LENGTH_BYTES)
        if length > chars_max * _UTF8_BYTES_MAX:
            raise LogFormatError(f"a text is longer than {chars_max} characters")
        try:
            found = self.fixed(length).decode("utf-8")
        except UnicodeDecodeError:
            raise LogFormatError("a text is not UTF-8") from None
        if len(found) > chars_max:
            raise LogFormatError(f"a text is longer than {chars_max} characters")
        return found

    def rest(self) -> bytes:
        """All that has not been read."""
        return self.fixed(len(self._data) - self._at)

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)

    def end(self) -> None:
        if not self.at_end:
            raise LogFormatError(f"{len(self._data) - self._at} bytes are left over")


def check_label(label: str) -> str:
    """A node's label: printable, so that it can be shown without escaping."""
    if len(label) <= LABEL_CHARS_MAX and label.isprintable():
        return label
    raise LogFormatError(f"a label is not {LABEL_CHARS_MAX} printable characters or fewer")


def check_address(address: str) -> str:
    """A multiaddr as far as its alphabet goes, which leaves nothing to escape in TOML or JSON."""
    plain = address.isascii() and address.isprintable() and not set(address) & set(" \"'\\")
    if plain and address.startswith("/") and len(address) <= ADDRESS_CHARS_MAX:
        return address
    raise LogFormatError("an address is not a multiaddr")


def check_bucket(url: str) -> str:
    """A bucket's URL or "". One with a user or password in it would tell every member."""
    plain = url.isascii() and url.isprintable() and not set(url) & set(" \"'\\@")
    if plain and len(url) <= BUCKET_CHARS_MAX and (not url or "://" in url):
        return url
    raise LogFormatError("the bucket is not a URL without credentials")


def check_time_s(time_s: int) -> int:
    """Seconds since 1970 that are still a time in milliseconds."""
    if 0 <= time_s <= TIME_S_MAX:
        return time_s
    raise LogFormatError("a time is impossible")
