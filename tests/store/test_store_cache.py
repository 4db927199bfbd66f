"""What of a store may be removed to make it smaller, and in which order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.errors import StateCorruptError
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.cache import (
    FETCHED,
    LINKED,
    PINNED,
    STORED,
    Cached,
    Known,
    describe,
    plan,
    used_at,
)
from kachery_p2p.store.grants import Grants
from kachery_p2p.store.index import Index
from kachery_p2p.store.listing import Listed
from kachery_p2p.store.pins import Pins

A, B, C = (sha1_of(letter) for letter in (b"a", b"b", b"c"))
NOTHING = Known(set(), set(), set(), set())


def cached(states: str, size: int = 10) -> list[Cached]:
    """Objects in the order of their last use: f(etched), s(tored), p(inned), l(inked)."""
    names = {"f": FETCHED, "s": STORED, "p": PINNED, "l": LINKED}
    return [
        Cached(Listed(sha1_of(str(at).encode()), size, str(at)), names[state], float(at))
        for at, state in enumerate(states)
    ]


def removed(states: str, bytes_max: int, *, stored_too: bool = False) -> str:
    """The places of what is removed, in that order."""
    chosen = plan(cached(states), bytes_max, stored_too=stored_too).remove
    return "".join(one.listed.path for one in chosen)


@pytest.fixture
def grants(tmp_path: Path) -> Iterator[Grants]:
    grants = Grants(str(tmp_path / "grants.db"))
    yield grants
    grants.close()


def test_the_least_recently_used_goes_first_and_no_more_than_must() -> None:
    assert removed("ffff", 40) == ""
    assert removed("ffff", 39) == "0"
    assert removed("ffff", 20) == "01"
    assert removed("ffff", 0) == "0123"


def test_only_what_was_fetched_goes_unless_asked() -> None:
    assert removed("sfplf", 0) == "14"
    assert removed("sfplf", 0, stored_too=True) == "140"
    assert removed("sfplf", 40, stored_too=True) == "1"


def test_the_plan_says_what_is_left() -> None:
    planned = plan(cached("pf"), 5)
    assert (planned.bytes_before, planned.bytes_after) == (20, 10)


def test_a_linked_file_takes_no_room_in_the_store() -> None:
    one = Cached(Listed(A, 1_000, "x", linked=True), LINKED, 0.0)
    assert plan([one], 10) == ([], 0, 0)


@pytest.mark.parametrize(
    ("known", "state"),
    [
        (NOTHING, STORED),
        (NOTHING._replace(fetched={A}), FETCHED),
        (NOTHING._replace(fetched={A}, sources={A}), STORED),
        (NOTHING._replace(fetched={A}, linked={A}), LINKED),
        (NOTHING._replace(fetched={A}, linked={A}, pinned={A}), PINNED),
        (NOTHING._replace(fetched={B}, sources={C}), STORED),
    ],
)
def test_any_doubt_keeps_an_object(tmp_path: Path, known: Known, state: str) -> None:
    (tmp_path / "a").write_bytes(b"a")
    assert [one.state for one in describe([Listed(A, 1, str(tmp_path / "a"))], known)] == [state]


def test_the_later_of_access_and_change_is_the_last_use(store: BlobStore) -> None:
    paths = [store.put_bytes(data).path for data in (b"a", b"b", b"c")]
    later = os.stat(paths[2]).st_ctime + 1_000
    os.utime(paths[0], (later, 0))
    os.utime(paths[1], (1, 1))
    assert used_at(paths[0]) == later
    assert used_at(paths[1]) == os.stat(paths[1]).st_ctime
    assert describe(store.list_objects(), NOTHING)[-1].listed.content == A
    os.unlink(paths[0])
    assert used_at(paths[0]) is None


def test_what_was_stored_from_a_file_is_known(
    store: BlobStore, index: Index, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"a")
    stored = store.put_file(tmp_path / "a")
    # As the store does once a later change of the file must show in its times.
    index.remember_source(os.stat(tmp_path / "a"), A, stored.root)
    store.put_bytes(b"b")
    assert store.source_contents() == {A}
    (tmp_path / "c").write_bytes(b"c")
    store.link_file(tmp_path / "c")
    assert store.linked_contents() == {C} and store.is_linked(C) and not store.is_linked(A)


# --- grants that say where a content came from ----------------------------------------------------


def test_what_only_came_from_members_is_only_fetched(grants: Grants) -> None:
    grants.grant([A, B, C], ["lab"], "fetched", 0.0)
    grants.grant([B], ["other"], "store", 0.0)
    grants.grant_as_guest([C], ["lab"], 1_000, 0.0)
    assert grants.only_fetched() == {A}
    assert not grants.forget_fetched(B) and grants.channels_of(B) == ("lab", "other")
    assert not grants.forget_fetched(C) and grants.channels_of(C) == ("lab",)
    assert grants.forget_fetched(A) and grants.channels_of(A) == ()
    assert not grants.forget_fetched(A)


def test_what_waits_for_a_channel_is_not_only_fetched(grants: Grants) -> None:
    grants.grant([A], None, "store", 0.0)
    assert grants.only_fetched() == set()
    assert not grants.forget_fetched(A)
    assert grants.pending() == (A,)


@pytest.mark.parametrize("channels", [["lab"], ["other"], None])
def test_what_was_fetched_and_then_stored_here_is_the_users(
    grants: Grants, channels: list[str] | None
) -> None:
    grants.grant([A, B], ["lab"], "fetched", 0.0)
    grants.grant([A], channels, "store", 1.0)
    grants.grant([A, B], ["lab"], "fetched", 2.0)
    assert grants.only_fetched() == {B}
    assert not grants.forget_fetched(A)


# --- pins -----------------------------------------------------------------------------------------


def test_pins_stay_until_they_are_removed(tmp_path: Path) -> None:
    path = str(tmp_path / "pins.db")
    pins = Pins(path)
    pins.add([A, B, A])
    pins.close()
    again = Pins(path)
    assert again.all() == {A, B} and again.has(A) and not again.has(C)
    assert again.remove([A, ContentHash("0" * 40)]) == 1
    assert again.all() == {B}
    again.close()


def test_damaged_pins_are_refused_and_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "pins.db").write_bytes(b"no database at all" * 100)
    pins = Pins(str(tmp_path / "pins.db"))
    with pytest.raises(StateCorruptError, match="damaged"):
        pins.all()
    pins.close()
