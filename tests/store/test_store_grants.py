from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.errors import StateCorruptError, StateVersionError, StorageFailedError
from kachery_p2p.store.grants import Grants

LAB, CLINIC = "1a" * 32, "c1" * 32
A, B, C = (sha1_of(name) for name in (b"a", b"b", b"c"))


@pytest.fixture
def grants(tmp_path: Path) -> Iterator[Grants]:
    grants = Grants(str(tmp_path / "state" / "grants.db"))
    yield grants
    grants.close()


def test_nothing_is_granted_until_it_is(grants: Grants) -> None:
    assert not grants.is_granted(A, LAB)
    grants.grant([A, B], [LAB], "store", 1.0)
    assert grants.is_granted(A, LAB)
    assert grants.is_granted(B, LAB)
    assert not grants.is_granted(A, CLINIC)
    assert not grants.is_granted(C, LAB)
    assert grants.channels_of(A) == (LAB,)
    assert (grants.count(LAB), grants.count(CLINIC)) == (2, 0)


def test_granting_twice_is_granting_once(grants: Grants) -> None:
    for _ in range(2):
        grants.grant([A, A], [LAB, CLINIC, LAB], "store", 1.0)
    assert grants.count(LAB) == grants.count(CLINIC) == 1
    assert grants.channels_of(A) == (LAB, CLINIC)


def test_no_channel_is_no_grant(grants: Grants) -> None:
    grants.grant([A], [], "store", 1.0)
    grants.grant([], [LAB], "store", 1.0)
    assert grants.channels_of(A) == ()
    assert grants.pending_count() == 0


def test_what_is_pending_is_granted_nowhere_until_a_channel_is_named(grants: Grants) -> None:
    grants.grant([B], None, "store", 1.0)
    grants.grant([A], None, "store", 2.0)
    grants.grant([A], None, "store", 3.0)
    assert grants.pending() == (B, A)
    assert grants.pending_count() == 2
    assert not grants.is_granted(A, LAB)
    assert grants.grant_pending([LAB, CLINIC], "share", 4.0) == 2
    assert grants.pending() == ()
    assert grants.channels_of(A) == grants.channels_of(B) == (LAB, CLINIC)


def test_granting_one_by_one_takes_it_out_of_pending(grants: Grants) -> None:
    grants.grant([A, B], None, "store", 1.0)
    grants.grant([A], [LAB], "share", 2.0)
    assert grants.pending() == (B,)
    grants.grant([A], None, "store", 3.0)
    assert grants.pending() == (B,)


def test_a_revoked_grant_is_gone_from_that_channel_only(grants: Grants) -> None:
    grants.grant([A, B], [LAB, CLINIC], "store", 1.0)
    grants.revoke([A, C], LAB)
    assert grants.channels_of(A) == (CLINIC,)
    assert grants.channels_of(B) == (LAB, CLINIC)


def test_grants_move_with_a_channel_that_changed_its_secret(grants: Grants) -> None:
    grants.grant([A, B], [LAB], "store", 1.0)
    grants.grant([B], [CLINIC], "store", 1.0)
    assert grants.move(LAB, CLINIC) == 2
    assert (grants.count(LAB), grants.count(CLINIC)) == (0, 2)
    assert grants.move(CLINIC, CLINIC) == 0
    assert grants.count(CLINIC) == 2


def test_grants_survive_a_restart_and_are_private(grants: Grants, tmp_path: Path) -> None:
    grants.grant([A], [LAB], "store", 1.0)
    grants.close()
    again = Grants(str(tmp_path / "state" / "grants.db"))
    assert again.is_granted(A, LAB)
    for path in (tmp_path / "state").iterdir():
        assert path.stat().st_mode & 0o077 == 0
    again.close()


def test_a_commit_of_grants_reaches_the_disk(grants: Grants) -> None:
    levels = grants._database.write(
        lambda connection: connection.execute("PRAGMA synchronous").fetchone()
    )
    assert levels == (2,)  # FULL


def test_many_are_granted_in_one_commit_and_a_look_is_fast(grants: Grants) -> None:
    contents = [sha1_of(b"%d" % number) for number in range(5_000)]
    grants.grant(contents, [LAB], "store", 1.0)
    assert grants.count(LAB) == 5_000
    assert all(grants.is_granted(content, LAB) for content in contents)


def test_looks_and_grants_from_many_threads_agree(grants: Grants) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                content = sha1_of(b"%d %d" % (number, turn))
                grants.grant([content], [LAB], "store", 1.0)
                assert grants.is_granted(content, LAB)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert grants.count(LAB) == 40


@pytest.mark.parametrize("damage", ["noise", "middle"])
def test_damaged_grants_are_never_thrown_away(grants: Grants, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state" / "grants.db"
    grants.grant([sha1_of(b"%d" % number) for number in range(500)], [LAB], "store", 1.0)
    grants.close()
    data = bytearray(path.read_bytes())
    start = 0 if damage == "noise" else 4096
    data[start:] = os.urandom(len(data) - start)
    path.write_bytes(data)
    with pytest.raises(StateCorruptError, match="grants.db is damaged") as caught:
        grants.is_granted(A, LAB)
    assert caught.value.hint
    with pytest.raises(StateCorruptError):
        grants.grant([A], [LAB], "store", 1.0)
    grants.close()
    assert path.read_bytes()[4096:] == data[4096:]


def test_grants_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "grants.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StateVersionError, match="newer"):
        Grants(str(path)).pending_count()


def test_what_is_removed_is_granted_nowhere_and_waits_for_no_channel(tmp_path: Path) -> None:
    grants = Grants(str(tmp_path / "grants.db"))
    gone, kept = sha1_of(b"gone"), sha1_of(b"kept")
    grants.grant([gone, kept], ["a" * 64, "b" * 64], "stored", 1.0)
    grants.forget(gone)
    assert grants.channels_of(gone) == ()
    assert grants.channels_of(kept) == ("a" * 64, "b" * 64)
    grants.grant([gone], None, "stored", 2.0)
    grants.forget(gone)
    assert grants.pending_count() == 0
    grants.close()


def test_the_contents_of_a_channel_are_listed_page_by_page(grants: Grants) -> None:
    contents = sorted(sha1_of(b"%d" % number) for number in range(25))
    grants.grant(contents, [LAB], "store", 1.0)
    grants.grant([A], [CLINIC], "store", 1.0)
    listed: list[str] = []
    while page := grants.contents(LAB, ContentHash(listed[-1]) if listed else None, 10):
        assert len(page) <= 10
        listed += page
    assert listed == contents
    assert grants.contents("00" * 32, None, 10) == []


def test_a_page_of_contents_is_read_off_an_index(grants: Grants) -> None:
    plan = grants._rows(
        "EXPLAIN QUERY PLAN SELECT content FROM grants WHERE channel = ? AND content > ?"
        " ORDER BY content LIMIT ?",
        LAB,
        b"",
        10,
    )
    assert "SEARCH grants USING COVERING INDEX grants_by_channel" in str(plan)
    assert "TEMP B-TREE" not in str(plan)


def test_a_watch_first_finds_that_all_is_unknown_and_then_what_changes(grants: Grants) -> None:
    watch = grants.watch()
    assert watch.has_changed()
    assert watch.take().unknown
    assert not watch.has_changed()
    grants.grant([A, B], [LAB, CLINIC], "store", 1.0)
    assert watch.has_changed()
    taken = watch.take()
    assert set(taken.touched) == {(A, LAB), (A, CLINIC), (B, LAB), (B, CLINIC)}
    assert not taken.unknown
    grants.revoke([A], LAB)
    grants.forget(B)
    grants.grant([C], None, "store", 1.0)
    taken = watch.take()
    assert set(taken.touched) == {(A, LAB), (B, LAB), (B, CLINIC)}
    assert not taken.unknown
    assert not watch.has_changed()


@pytest.mark.parametrize("many", ["pending", "move", "flood"])
def test_of_many_changes_a_watch_says_that_there_were_some(
    grants: Grants, many: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.store.grants.GRANT_CHANGES_MAX", 3)
    watch = grants.watch()
    watch.take()
    if many == "pending":
        grants.grant_pending([LAB], "share", 1.0)
    elif many == "move":
        grants.move(LAB, CLINIC)
    else:
        grants.grant([A, B], [LAB, CLINIC], "store", 1.0)
    assert watch.has_changed()
    assert watch.take().unknown
    assert not watch.has_changed()


def test_a_watch_notices_what_another_process_changed_and_only_that(
    grants: Grants, tmp_path: Path
) -> None:
    watch = grants.watch()
    watch.take()
    other = Grants(str(tmp_path / "state" / "grants.db"))
    other.grant([A], [LAB], "store", 1.0)
    assert watch.has_changed()
    grants.grant([B], [LAB], "store", 1.0)
    taken = watch.take()
    assert taken.unknown
    assert set(taken.touched) == {(B, LAB)}
    assert not watch.has_changed()
    other.close()


def test_a_change_that_failed_is_not_told(grants: Grants, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = grants.watch()
    watch.take()

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr("kachery_p2p.store.grants._grant_each", fail)
    with pytest.raises(StorageFailedError):
        grants.grant([A], [LAB], "store", 1.0)
    assert not watch.has_changed()
