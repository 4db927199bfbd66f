"""What guests share: each sees and ends its own grants, and no others."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.store.grants import Grants

A, B, C = (ContentHash(letter * 40) for letter in "abc")
LAB, FIELD = "1" * 64, "2" * 64
ANN, BEN = 1001, 1002


@pytest.fixture
def grants(tmp_path: Path) -> Iterator[Grants]:
    one = Grants(str(tmp_path / "grants.db"))
    yield one
    one.close()


def seen(grants: Grants, uid: int | None, channel: str | None = None) -> list[tuple[str, str]]:
    return [(one.content, one.channel) for one in grants.page(None, channel, uid, 100)]


def test_each_sees_only_what_it_shared_itself(grants: Grants) -> None:
    grants.grant([A], [LAB], "stored", 1.0)
    grants.grant_as_guest([A, B], [LAB], ANN, 2.0)
    grants.grant_as_guest([C], [LAB, FIELD], BEN, 3.0)
    assert seen(grants, None) == [(A, LAB)]
    assert seen(grants, ANN) == [(A, LAB), (B, LAB)]
    assert seen(grants, BEN) == [(C, LAB), (C, FIELD)]
    assert seen(grants, BEN, FIELD) == [(C, FIELD)]


def test_a_guest_cannot_end_what_others_share(grants: Grants) -> None:
    grants.grant([A], [LAB], "stored", 1.0)
    grants.grant_as_guest([B], [LAB], BEN, 1.0)
    assert grants.end([A, B], None, ANN) == 0
    assert grants.is_granted(A, LAB) and grants.is_granted(B, LAB)


@pytest.mark.parametrize("guest_first", [True, False])
def test_what_two_share_is_served_until_both_have_ended_it(
    grants: Grants, guest_first: bool
) -> None:
    def ann() -> None:
        grants.grant_as_guest([A], [LAB], ANN, 1.0)

    def owner() -> None:
        grants.grant([A], [LAB], "stored", 2.0)

    for share in (ann, owner) if guest_first else (owner, ann):
        share()
    assert grants.end([A], None, ANN) == 1
    assert grants.is_granted(A, LAB) and seen(grants, None) == [(A, LAB)]
    grants.grant_as_guest([A], [LAB], ANN, 3.0)
    assert grants.end([A], LAB) == 1
    assert grants.is_granted(A, LAB) and seen(grants, None) == []
    assert grants.end([A], FIELD, ANN) == 0
    assert grants.end([A], LAB, ANN) == 1
    assert not grants.is_granted(A, LAB)


def test_pending_becomes_the_owners_even_where_a_guest_shares_it(grants: Grants) -> None:
    grants.grant([A], None, "stored", 1.0)
    grants.grant_as_guest([A], [LAB], ANN, 2.0)
    grants.grant_pending([LAB], "shared", 3.0)
    assert grants.end([A], None, ANN) == 1
    assert grants.is_granted(A, LAB)


def test_ending_everywhere_ends_the_waiting_too(grants: Grants) -> None:
    grants.grant([A], None, "stored", 1.0)
    assert grants.end([A], LAB) == 0 and grants.pending_count() == 1
    assert grants.end([A], None) == 1 and grants.pending_count() == 0


def test_revoking_and_forgetting_take_it_from_the_guests_as_well(grants: Grants) -> None:
    grants.grant_as_guest([A, B], [LAB], ANN, 1.0)
    grants.revoke([A], LAB)
    grants.forget(B)
    assert seen(grants, ANN) == [] and not grants.is_granted(A, LAB)


def test_a_channel_with_another_secret_keeps_its_guests(grants: Grants) -> None:
    grants.grant_as_guest([A], [LAB], ANN, 1.0)
    grants.move(LAB, FIELD)
    assert seen(grants, ANN) == [(A, FIELD)]
    assert grants.end([A], None, ANN) == 1 and not grants.is_granted(A, FIELD)


def test_pages_meet_without_a_gap(grants: Grants) -> None:
    contents = [ContentHash(f"{number:040x}") for number in range(25)]
    grants.grant(contents, [LAB, FIELD], "stored", 1.0)
    for channel, count in ((None, 50), (LAB, 25)):
        found, after = [], None
        while page := grants.page(after, channel, None, 7):
            assert len(page) <= 7
            found += page
            after = page[-1].key
        assert len(set(found)) == len(found) == count
        assert sorted(found) == found


def test_watchers_are_told(grants: Grants) -> None:
    watch = grants.watch()
    watch.take()
    grants.grant_as_guest([A], [LAB], ANN, 1.0)
    assert list(watch.take().touched) == [(A, LAB)]
    grants.end([A], None, ANN)
    assert list(watch.take().touched) == [(A, LAB)]


def test_the_older_file_is_upgraded_and_a_private_copy_of_it_kept(tmp_path: Path) -> None:
    path = tmp_path / "grants.db"
    with sqlite3.connect(path) as old:
        old.execute(
            "CREATE TABLE grants (content BLOB NOT NULL, channel TEXT NOT NULL, why TEXT NOT NULL,"
            " time REAL NOT NULL, PRIMARY KEY (content, channel)) WITHOUT ROWID"
        )
        old.execute("CREATE INDEX grants_by_channel ON grants (channel)")
        old.execute(
            "CREATE TABLE pending (content BLOB PRIMARY KEY, why TEXT NOT NULL, time REAL NOT NULL)"
            " WITHOUT ROWID"
        )
        old.execute("INSERT INTO grants VALUES (?, ?, 'stored', 1.0)", (A.raw, LAB))
        old.execute("PRAGMA user_version = 1")
    old.close()
    grants = Grants(str(path))
    grants.grant_as_guest([B], [LAB], ANN, 1.0)
    assert seen(grants, None) == [(A, LAB)] and seen(grants, ANN) == [(B, LAB)]
    grants.close()
    copy = tmp_path / "grants.db.v1"
    assert stat.S_IMODE(os.stat(copy).st_mode) == 0o600
    kept = sqlite3.connect(copy)
    assert kept.execute("SELECT content FROM grants").fetchall() == [(A.raw,)]
    assert kept.execute("PRAGMA user_version").fetchone() == (1,)
    kept.close()
