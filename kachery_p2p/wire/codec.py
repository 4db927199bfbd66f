"""Messages as bytes: frames of a u32 big-endian length and that many bytes of msgpack.

Three streams speak this: the control stream and the data streams between nodes, and
the daemon's Unix door. What arrives is bounded before it is allocated: the length is
judged by its four bytes, before any of the frame is kept; msgpack's own limits bound
strings and containers before they are made; a count of all items stops a frame that
is nothing but containers.

A message is a map with text keys, of None, bool, int, float, text, bytes, lists and
such maps. msgpack accepts more than that (duplicate keys, where the last wins;
extension types, timestamps, keys of any kind, NaN); here all of it is refused, so
that two readers of one frame cannot understand different things. Integers are not
checked to be in their shortest form: nothing that is signed is ever re-encoded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NoReturn

import msgpack

from kachery_p2p.errors import ProtocolError
from kachery_p2p.limits import (
    FRAME_BYTES_MAX,
    MESSAGE_DEPTH_MAX,
    MESSAGE_ITEMS_MAX,
    MESSAGE_ITEMS_TOTAL_MAX,
    TEXT_CHARS_MAX,
)

Message = dict[str, Any]

LENGTH_BYTES = 4
# UTF-8 needs at most this many bytes for one character.
_UTF8_BYTES_MAX = 4
# Types of which every value is one that messages carry.
_PLAIN = frozenset((bytes, int, bool, type(None)))


def encode_frame(message: Message) -> bytes:
    """`message` as one frame.

    Raises ValueError if the other side would refuse it: that is a mistake of ours.
    Tuples travel as lists, subclasses of str as text.
    """
    try:
        _verify_value(message, depth=1)
        encoded: bytes = msgpack.packb(message, use_bin_type=True)
    except (ProtocolError, OverflowError) as broken:
        raise ValueError(f"not a message that may be sent: {broken}") from None
    if len(encoded) > FRAME_BYTES_MAX:
        raise ValueError(f"a message of {len(encoded)} bytes is longer than {FRAME_BYTES_MAX}")
    return len(encoded).to_bytes(LENGTH_BYTES, "big") + encoded


def decode_message(encoded: bytes | bytearray | memoryview) -> Message:
    """The message in the bytes of a frame (without its length), or ProtocolError."""
    budget = _Budget()
    try:
        message = msgpack.unpackb(
            encoded,
            raw=False,
            use_list=True,
            strict_map_key=True,
            unicode_errors="strict",
            timestamp=0,
            object_pairs_hook=budget.spend_on_map,
            list_hook=budget.spend_on_list,
            ext_hook=_refuse_extension,
            max_str_len=TEXT_CHARS_MAX * _UTF8_BYTES_MAX,
            max_bin_len=FRAME_BYTES_MAX,
            max_array_len=MESSAGE_ITEMS_MAX,
            max_map_len=MESSAGE_ITEMS_MAX,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        # The library's own words may quote the frame, and none of them helps whoever reads them.
        raise ProtocolError("a frame is not a msgpack message within our limits") from None
    if type(message) is not dict:
        raise ProtocolError("a message is not a map")
    _verify_value(message, depth=1)
    return message


class _Budget:
    """Counts the items of one message while msgpack makes them, so that it can be stopped."""

    def __init__(self) -> None:
        self._left = MESSAGE_ITEMS_TOTAL_MAX

    def spend_on_list(self, items: list[Any]) -> list[Any]:
        self._spend(1 + len(items))
        return items

    def spend_on_map(self, pairs: list[tuple[Any, Any]]) -> Message:
        self._spend(1 + len(pairs))
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ProtocolError("a map has the same key twice")
        return found

    def _spend(self, items: int) -> None:
        self._left -= items
        if self._left < 0:
            raise ProtocolError(f"a message has more than {MESSAGE_ITEMS_TOTAL_MAX} items")


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    raise ProtocolError("a message has a msgpack extension type")


def _verify_value(value: object, depth: int) -> None:
    """Raises ProtocolError for what msgpack can carry and a message may not."""
    if value is None or isinstance(value, int | bytes):
        return
    if isinstance(value, str):
        if len(value) > TEXT_CHARS_MAX:
            raise ProtocolError(f"a text is longer than {TEXT_CHARS_MAX} characters")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ProtocolError("a number is not finite")
    elif isinstance(value, dict | list | tuple):
        _verify_container(value, depth)
    else:
        raise ProtocolError("a message has a value of a type that messages do not carry")


def _verify_container(
    value: dict[Any, Any] | list[Any] | tuple[Any, ...],
    depth: int,
) -> None:
    if depth > MESSAGE_DEPTH_MAX:
        raise ProtocolError(f"a message is nested deeper than {MESSAGE_DEPTH_MAX}")
    if len(value) > MESSAGE_ITEMS_MAX:
        raise ProtocolError(f"a list or map has more than {MESSAGE_ITEMS_MAX} items")
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ProtocolError("a map has a key that is not text")
            if len(key) > TEXT_CHARS_MAX:
                _verify_value(key, depth)
    for item in value.values() if isinstance(value, dict) else value:
        # Most need no look: a call for each would take longer than all the rest.
        if type(item) not in _PLAIN:
            _verify_value(item, depth + 1)


class FrameDecoder:
    """Cuts a stream of bytes into messages, however the bytes are split.

    Keeps at most one unfinished frame. The first ProtocolError ends it: a stream that
    lost its framing cannot be trusted to find it again, so every later `feed` raises too.
    """

    def __init__(self) -> None:
        self._kept = bytearray()
        # Bytes of the frame being read, length included; unknown while its length is unread.
        self._frame_bytes: int | None = None
        self._broken = False

    @property
    def at_boundary(self) -> bool:
        """True if no frame is begun: the only place where a stream may end."""
        return not self._kept

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """The messages that `data` completes, in order. Raises ProtocolError."""
        return list(self.each(data))

    def each(self, data: bytes | bytearray | memoryview) -> Iterator[Message]:
        """The same one by one, for who may want to stop: what follows is then never looked at."""
        if self._broken:
            raise ProtocolError("bytes after a frame that was refused")
        try:
            yield from self._messages(memoryview(data))
        except ProtocolError:
            self._broken = True
            self._kept = bytearray()
            raise

    def _messages(self, unread: memoryview) -> Iterator[Message]:
        while len(unread):
            wanted = (self._frame_bytes or LENGTH_BYTES) - len(self._kept)
            self._kept += unread[:wanted]
            unread = unread[wanted:]
            if self._frame_bytes is None:
                self._read_length()
            elif len(self._kept) == self._frame_bytes:
                yield self._finish_frame()

    def _read_length(self) -> None:
        if len(self._kept) < LENGTH_BYTES:
            return
        length = int.from_bytes(self._kept, "big")
        if length == 0:
            raise ProtocolError("an empty frame")
        if length > FRAME_BYTES_MAX:
            raise ProtocolError(f"a frame of {length} bytes, of at most {FRAME_BYTES_MAX}")
        self._frame_bytes = LENGTH_BYTES + length

    def _finish_frame(self) -> Message:
        frame, self._kept, self._frame_bytes = self._kept, bytearray(), None
        with memoryview(frame) as whole:
            return decode_message(whole[LENGTH_BYTES:])
