"""The table of what a client may ask, and how errors travel."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kachery_p2p import errors
from kachery_p2p.errors import DaemonProtocolError, KacheryError, NotFoundError
from kachery_p2p.wire.operations import (
    OPERATIONS,
    OWNER,
    TOKEN,
    check_body,
    check_progress,
    check_result,
    check_version,
    error_from_map,
    error_to_map,
    operation_named,
)

SOURCES = ("from_channel", "from_node", "timeout_s")
HASH = "b971c6ef19b1d70ae8f0feb989b106c319b36230"


def test_a_checked_body_has_every_field_of_the_table() -> None:
    body = check_body(OPERATIONS["load"], {"content": HASH})
    assert body == {"content": HASH, "root": None, **dict.fromkeys(SOURCES)}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("load", {"content": HASH, "timeout_s": math.inf}),
        ("load", {"content": HASH, "timeout_s": math.nan}),
        ("load", {"content": HASH, "timeout_s": "5"}),
        ("load_range", {"content": HASH, "start": -1, "end": 1}),
        ("load_range", {"content": HASH, "start": 0, "end": 1 << 63}),
        ("load_range", {"content": HASH, "start": False, "end": 1}),
        ("load_range", {"content": HASH, "start": 0.0, "end": 1}),
        ("share", {"contents": [HASH] * 4_097}),
        ("share", {"contents": [HASH, None]}),
        ("share", {"contents": HASH}),
        ("share", {"channels": ["x" * 257]}),
        ("share", {"pending": 1}),
        ("store", {"label": "x" * 257}),
        ("hello", {}),
        ("stop", {"now": True}),
        ("stop", None),
        ("stop", []),
    ],
)
def test_a_body_that_the_table_forbids_is_refused(name: str, body: Any) -> None:
    with pytest.raises(DaemonProtocolError, match=name):
        check_body(OPERATIONS[name], body)


def test_each_door_offers_its_own_operations_only() -> None:
    assert operation_named("put", TOKEN).name == "put"
    assert operation_named("store", OWNER).takes_descriptor
    for name, credential in (("put", OWNER), ("store", TOKEN), ("load", "nobody"), (None, OWNER)):
        with pytest.raises(DaemonProtocolError, match="no operation"):
            operation_named(name, credential)


def test_a_result_may_tell_more_but_not_less() -> None:
    result = {"path": "/x", "size": 1, "root": None}
    assert check_result(OPERATIONS["load"], {**result, "news": 1}) == result
    with pytest.raises(DaemonProtocolError, match="'path'"):
        check_result(OPERATIONS["load"], {"size": 1})


def test_progress_may_be_empty_and_never_wrong() -> None:
    assert check_progress({})["bytes"] is None
    for wrong in (None, {"bytes": "1"}, {"sources": [1]}):
        with pytest.raises(DaemonProtocolError):
            check_progress(wrong)


def test_a_version_mismatch_names_the_side_to_upgrade() -> None:
    check_version(1)
    for version, side in ((0, "client"), (2, "daemon")):
        with pytest.raises(DaemonProtocolError) as caught:
            check_version(version)
        assert caught.value.hint is not None and caught.value.hint.startswith(f"upgrade the {side}")


def test_every_error_comes_out_as_it_went_in() -> None:
    kinds = [
        k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, KacheryError)
    ]
    for kind in kinds:
        back = error_from_map(error_to_map(kind("why", hint="do")))
        assert (type(back), str(back), back.hint) == (kind, "why", "do")


def test_a_kind_of_a_rooms_own_travels_as_the_public_one() -> None:
    class Special(NotFoundError):
        pass

    assert error_to_map(Special("x"))["name"] == "NotFoundError"


@pytest.mark.parametrize(
    "junk",
    [
        None,
        7,
        {},
        {"name": "SystemExit"},
        {"name": "by_name"},
        {"name": 7, "message": [], "hint": 3},
    ],
)
def test_whatever_comes_as_an_error_becomes_one_of_ours(junk: Any) -> None:
    error = error_from_map(junk)
    assert isinstance(error, KacheryError) and str(error)


def test_a_long_sentence_is_cut() -> None:
    assert len(error_to_map(KacheryError("x" * 10_000))["message"]) == 4_096
