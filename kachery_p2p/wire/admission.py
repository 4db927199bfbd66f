"""The messages of an admission to an owned channel: their fields, types and bounds.

Four messages on a stream of its own, which a node that is no member may open; the talk
itself is `channels.admission`. What is checked here holds exactly the fields of the table.
"""

from __future__ import annotations

from kachery_p2p.channels.admission import NONCE_BYTES
from kachery_p2p.channels.channel import SECRET_BYTES, check_channel_name
from kachery_p2p.channels.invites import INVITE_ID_BYTES
from kachery_p2p.channels.permissions import ACTIONS
from kachery_p2p.errors import InvalidNameError, ProtocolError
from kachery_p2p.identity.ed25519 import SIGNATURE_BYTES
from kachery_p2p.identity.keys import KEY_BYTES
from kachery_p2p.limits import LABEL_CHARS_MAX, NOTICE_BYTES_MAX, REASON_CHARS_MAX
from kachery_p2p.wire.codec import Message
from kachery_p2p.wire.messages import (
    Fields,
    WrongValueError,
    bytes_of,
    check_message,
    list_of,
    printable,
)

MAC_BYTES = 32


def _name(value: object) -> str:
    if isinstance(value, str):
        try:
            return check_channel_name(value)
        except InvalidNameError:
            pass
    raise WrongValueError("expected the name of a channel")


def _role(value: object) -> str:
    # A later version may have more roles: what is not known allows nothing.
    return str(printable(LABEL_CHARS_MAX)(value))


_MAC = bytes_of(MAC_BYTES, MAC_BYTES)
_NONCE = bytes_of(NONCE_BYTES, NONCE_BYTES)
_OPENING: Fields = {"invite": bytes_of(INVITE_ID_BYTES, INVITE_ID_BYTES), "nonce": _NONCE}
_CHALLENGE: Fields = {"proof": bytes_of(1, NOTICE_BYTES_MAX), "nonce": _NONCE}
_APPLICATION: Fields = {
    "mac": _MAC,
    "exchange": bytes_of(KEY_BYTES, KEY_BYTES),
    "exchange_signature": bytes_of(SIGNATURE_BYTES, SIGNATURE_BYTES),
    "label": printable(LABEL_CHARS_MAX),
}
_ADMISSION: Fields = {
    "mac": _MAC,
    "entry_secret": bytes_of(SECRET_BYTES, SECRET_BYTES),
    "name": _name,
    "roles": list_of(_role, 2 * len(ACTIONS)),
}
_WAIT: Fields = {"wait": printable(REASON_CHARS_MAX)}
_REFUSAL: Fields = {"error": printable(LABEL_CHARS_MAX), "text": printable(REASON_CHARS_MAX)}


def check_opening(body: object) -> Message:
    """The fields of the joiner's first message, or ProtocolError."""
    return check_message("a request to enter", _OPENING, body)


def check_challenge(body: object) -> Message:
    """The fields of the admitter's answer to it, or of its refusal; else ProtocolError."""
    return _check_one_of("an answer to a request to enter", body, _CHALLENGE)


def check_application(body: object) -> Message:
    """The fields of the joiner's second message, or ProtocolError."""
    return check_message("an application", _APPLICATION, body)


def check_outcome(body: object) -> Message:
    """The fields of an admission, of a request to wait, or of a refusal; else ProtocolError."""
    if isinstance(body, dict) and "wait" in body and "error" not in body:
        return check_message("a request to wait", _WAIT, body)
    return _check_one_of("an admission", body, _ADMISSION)


def _check_one_of(what: str, body: object, fields: Fields) -> Message:
    if isinstance(body, dict) and "error" in body:
        return check_message("a refusal", _REFUSAL, body)
    if not isinstance(body, dict):
        raise ProtocolError(f"{what} is not a map")
    return check_message(what, fields, body)
