"""The messages of an admission hold just their fields, each within its bounds."""

from __future__ import annotations

from typing import Any

import pytest

from kachery_p2p.errors import ProtocolError
from kachery_p2p.wire import admission
from kachery_p2p.wire.codec import decode_message, encode_frame

OPENING = {"invite": bytes(16), "nonce": bytes(32)}
CHALLENGE = {"proof": b"p", "nonce": bytes(32)}
APPLICATION = {
    "mac": bytes(32),
    "exchange": bytes(32),
    "exchange_signature": bytes(64),
    "label": "label",
}
ADMISSION = {"mac": bytes(32), "entry_secret": bytes(20), "name": "lab", "roles": ["read"]}
WAIT = {"wait": "the keeper is asleep"}
REFUSAL = {"error": "refused", "text": "no"}
CHECKS = [
    (admission.check_opening, OPENING),
    (admission.check_challenge, CHALLENGE),
    (admission.check_challenge, REFUSAL),
    (admission.check_application, APPLICATION),
    (admission.check_outcome, ADMISSION),
    (admission.check_outcome, WAIT),
    (admission.check_outcome, REFUSAL),
]


@pytest.mark.parametrize(("check", "message"), CHECKS)
def test_a_message_arrives_as_it_was_sent_and_later_fields_are_dropped(
    check: Any, message: dict[str, Any]
) -> None:
    assert check(decode_message(encode_frame({**message, "later": 1})[4:])) == message


@pytest.mark.parametrize(("check", "message"), CHECKS)
def test_a_field_that_is_missing_or_of_another_type_breaks_the_protocol(
    check: Any, message: dict[str, Any]
) -> None:
    for field in message:
        junk: list[Any] = [None, 1, True, [], {}, b"x" * 10_000, "x" * 300, "a\nb", ["a\x1b"]]
        for wrong in junk:
            if (field, wrong) == ("roles", []):  # what a later version's role may come to here
                continue
            with pytest.raises(ProtocolError):
                check({**message, field: wrong})
        if len(message) > 1:
            with pytest.raises(ProtocolError):
                check({name: value for name, value in message.items() if name != field})


@pytest.mark.parametrize(
    "change",
    [
        {"entry_secret": bytes(19)},
        {"entry_secret": bytes(21)},
        {"name": "../evil"},
        {"name": ""},
        {"roles": ["read"] * 11},
        {"roles": "read"},
        {"roles": [7]},
        {"mac": bytes(31)},
    ],
)
def test_an_admission_out_of_its_bounds_breaks_the_protocol(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        admission.check_outcome({**ADMISSION, **change})


@pytest.mark.parametrize("body", [None, [], b"", "x", 7])
@pytest.mark.parametrize("check", [check for check, _ in CHECKS])
def test_what_is_no_map_breaks_the_protocol(check: Any, body: object) -> None:
    with pytest.raises(ProtocolError):
        check(body)


def test_an_answer_is_one_thing_only() -> None:
    assert admission.check_outcome({**ADMISSION, **REFUSAL}) == REFUSAL
    assert admission.check_outcome({**WAIT, **REFUSAL}) == REFUSAL
    assert admission.check_outcome({**WAIT, **ADMISSION}) == WAIT
