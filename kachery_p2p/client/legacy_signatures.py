"""Signed messages of kachery-p2p and kachery-client: reading them, and verifying what they say.

    {"body": {"message", "messageNumber", "previousSignature"?, "timestamp", "metaData"?},
     "signature": 128 hex digits}

The signature is the feed's own (Ed25519), over the JSON of the body with sorted keys, without
spaces, nothing escaped that need not be: kachery-p2p signed that text, kachery-client its SHA-1.
Each message names the signature of the one before it, so that none can be left out.

Numbers are kept as they were spelled: JavaScript wrote them, and not as Python would.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from kachery_p2p.client.feed_values import is_deep
from kachery_p2p.content.hashes import FeedId
from kachery_p2p.errors import DataFormatError
from kachery_p2p.limits import MESSAGE_BYTES_MAX

if TYPE_CHECKING:
    import json

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE_DIGITS = 128
# Milliseconds until the year 2286: what is later was no clock.
_TIME_MS_MAX = 10**13
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class SignedMessage(NamedTuple):
    """One signed message, read but not verified."""

    # As it was stored.
    text: str
    # What was signed.
    body_text: str
    signature: str
    # The signature of the message before it.
    previous: str | None
    number: int
    time_ms: int


class _Number(str):
    """A number as it was spelled."""

    __slots__ = ()


def read_signed(text: str) -> SignedMessage:
    """The signed message that `text` spells. DataFormatError if it is none."""
    if len(text.encode("utf-8", "replace")) > MESSAGE_BYTES_MAX:
        raise DataFormatError("it is larger than a message can be")
    if is_deep(text):
        raise DataFormatError("it is nested too deep")
    try:
        value = _decoder().decode(text)
        text.encode()
    except (ValueError, RecursionError):
        raise DataFormatError("it is not JSON") from None
    body = value.get("body") if isinstance(value, dict) else None
    if not isinstance(body, dict) or "message" not in body:
        raise DataFormatError("it is not a signed message")
    signature, previous = value.get("signature"), body.get("previousSignature")
    if not _is_signature(signature) or not (previous is None or _is_signature(previous)):
        raise DataFormatError("its signatures have not the form of signatures")
    number, time_ms = _whole(body.get("messageNumber")), _whole(body.get("timestamp"))
    return SignedMessage(text, canonical(body), signature, previous, number, time_ms)


def why_not_next(feed: FeedId, message: SignedMessage, before: SignedMessage | None) -> str | None:
    """Why the message is not the next one of a subfeed of `feed`; None if it is."""
    if before is None:
        if message.previous is not None or message.number not in (0, 1):
            return "it is not the first message"
    elif message.number != before.number + 1:
        return f"its number is {message.number}, and that before it has {before.number}"
    elif message.previous != before.signature:
        return "it does not name the signature of the message before it"
    return None if _is_signed(feed, message) else "its signature is wrong"


def canonical(value: Any) -> str:
    """The text of a value of `read_signed` that the older packages signed."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, _Number):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    # JavaScript sorts by halves of UTF-16.
    names = sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
    return "{" + ",".join(f"{_text(name)}:{canonical(value[name])}" for name in names) + "}"


def _text(value: str) -> str:
    return _HALF_CHARACTER.sub(lambda half: f"\\u{ord(half[0]):04x}", _string_encoder()(value))


def _is_signed(feed: FeedId, message: SignedMessage) -> bool:
    from hashlib import sha1

    from cryptography.exceptions import InvalidSignature

    signature, body = bytes.fromhex(message.signature), message.body_text.encode()
    for signed in (body, sha1(body, usedforsecurity=False).digest()):
        try:
            _public_key(feed).verify(signature, signed)
        except InvalidSignature:
            continue
        return True
    return False


@functools.lru_cache(maxsize=8)
def _public_key(feed: FeedId) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(feed.raw)


def _is_signature(value: object) -> bool:
    return (
        type(value) is str
        and len(value) == SIGNATURE_DIGITS
        and not value.strip("0123456789abcdef")
    )


def _whole(value: object) -> int:
    if isinstance(value, _Number) and value.isdecimal() and len(value) <= len(str(_TIME_MS_MAX)):
        return int(value)
    raise DataFormatError("its number or its time is not a whole number")


@functools.cache
def _decoder() -> json.JSONDecoder:
    import json

    return json.JSONDecoder(parse_float=_Number, parse_int=_Number, parse_constant=_refuse_constant)


@functools.cache
def _string_encoder() -> Any:
    import json

    return json.JSONEncoder(ensure_ascii=False).encode


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
