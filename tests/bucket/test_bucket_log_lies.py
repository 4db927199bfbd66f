"""What a server or a member can lie about a log in a bucket: typed faults, and never believed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kachery_p2p.bucket import log_layout as layout
from kachery_p2p.bucket.log_book import LogBook
from kachery_p2p.bucket.log_reading import read_head, read_segment
from kachery_p2p.bucket.mirror import Mirror
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.bucket.verifying import garbage
from kachery_p2p.errors import BucketAnswerError, BucketError, ProofError
from tests.bucket import faulty as faults
from tests.bucket.faulty import Faulty
from tests.bucket.log_parts import LOG, Owner, all_of, entries, forked, head_of, mirror

# --- lies and damage, seen by who mirrors --------------------------------------------------------


def head_key() -> str:
    return layout.head_key(LOG)


@pytest.mark.parametrize("junk", [b"", b"<html>log in</html>", b"kp2plog1" + bytes(500)])
def test_a_damaged_head_is_replaced(junk: bytes, any_bucket: Objects, book: LogBook) -> None:
    owner = Owner().grow(entries(30))
    mirror(any_bucket, book).put(owner.copy())
    any_bucket.put(head_key(), junk)
    with pytest.raises(BucketAnswerError):
        read_head(any_bucket, LOG)
    mirror(any_bucket, book).put(owner.copy())
    assert all_of(any_bucket) == owner.entries


def test_a_segment_that_is_gone_or_another_is_put_there_by_who_has_the_entries(
    memory_bucket: Objects, book: LogBook, other_book: LogBook
) -> None:
    owner = Owner().grow(entries(30))
    mirror(memory_bucket, book).put(owner.copy())
    (segment,) = head_of(memory_bucket).segments
    memory_bucket.delete(layout.segment_key(LOG, segment.digest))
    with pytest.raises(BucketAnswerError):
        all_of(memory_bucket)
    mirror(memory_bucket, book).put(owner.copy())
    assert all_of(memory_bucket) == owner.entries
    lie = segment._replace(digest=bytes(32))
    memory_bucket.put(head_key(), head_of(memory_bucket)._replace(segments=(lie,)).encode())
    mirror(memory_bucket, other_book).put(owner.copy())
    assert all_of(memory_bucket) == owner.entries


def test_a_second_history_is_not_written_over_and_its_proof_is_kept(
    memory_bucket: Objects, book: LogBook, other_book: LogBook
) -> None:
    one, other, proof = forked(20, 30, 40)
    mirror(memory_bucket, book).put(one.copy())
    with pytest.raises(ProofError):
        mirror(memory_bucket, other_book).put(other.copy())
    known = other.copy(end=20, fork=proof.encode())
    mirror(memory_bucket, other_book).put(known)
    head = head_of(memory_bucket)
    assert head.fork == proof.encode()
    assert all_of(memory_bucket)[:20] == one.entries[:20]
    mirror(memory_bucket, book).put(one.copy(end=20, fork=proof.encode()))
    assert head_of(memory_bucket).fork == proof.encode()


def test_what_cannot_be_read_any_more_has_hashes_and_no_segments(
    memory_bucket: Objects, book: LogBook
) -> None:
    one, _, proof = forked(20, 30, 40)
    mirror(memory_bucket, book).put(one.copy(end=20, fork=proof.encode()))
    head = head_of(memory_bucket)
    assert (head.end, head.head.size) == (20, 30)
    assert all_of(memory_bucket) == one.entries[:20]


def test_an_ending_that_was_not_signed_is_dropped(memory_bucket: Objects, book: LogBook) -> None:
    owner = Owner().grow(entries(9))
    mirror(memory_bucket, book).put(owner.copy())
    memory_bucket.put(head_key(), head_of(memory_bucket)._replace(ending=b"junk").encode())
    mirror(memory_bucket, book).put(owner.copy())
    assert head_of(memory_bucket).ending == b""


# --- lies and damage, seen by who reads ----------------------------------------------------------


@pytest.fixture
def served(
    request: pytest.FixtureRequest, faulty: Faulty, memory_bucket: Objects, book: LogBook
) -> Callable[..., Objects]:
    """A bucket behind the faulty server that has a log of 50 entries."""
    mirror(memory_bucket, book).put(Owner().grow(entries(50)).copy())
    for listed in memory_bucket.list():
        data = memory_bucket.read_whole(listed.key, 1 << 20)
        faulty.put(f"/lab/p/{listed.key}", data)
        faulty.put(f"/p/{listed.key}", data)
    return request.getfixturevalue("open_bucket")  # type: ignore[no-any-return]


LIES = {
    "flipping": faults.flipping,
    "cutting off": faults.cutting_off,
    "page": faults.page,
    "endless": faults.endless,
    "swapping": faults.swapping,
    "busy": faults.status(429),
    "refused": faults.status(403),
    "failing": faults.status(500),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("kind", ["cloud", "mirror"])
def test_each_lie_of_a_server_is_a_typed_fault(
    kind: str, lie: str, faulty: Faulty, served: Callable[..., Objects]
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    place: Objects | Mirror
    if kind == "cloud":
        place = served(f"s3://lab/p?endpoint={faulty.url}", keys)
    else:
        place = Mirror(parse_bucket_url(f"{faulty.url}/p"))
    head = read_head(place, LOG)
    assert head is not None
    faulty.fault = LIES[lie]
    with pytest.raises(BucketError):
        read_head(place, LOG)
    with pytest.raises(BucketError):
        read_segment(place, LOG, 0, head.segments[0])
    faulty.fault = None
    assert all_of(place) == entries(50)
    place.close()


def test_a_head_of_another_log_is_not_taken(memory_bucket: Objects, book: LogBook) -> None:
    mirror(memory_bucket, book).put(Owner().grow(entries(5)).copy())
    other = LOG._replace(name=bytes(32))
    data = memory_bucket.read_whole(head_key(), 1 << 20)
    memory_bucket.put_new(layout.head_key(other), data, {})
    with pytest.raises(BucketAnswerError):
        read_head(memory_bucket, other)


def test_garbage_of_logs_is_found_and_nothing_that_a_head_names(
    memory_bucket: Objects, book: LogBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, pushing = Owner(), mirror(memory_bucket, book)
    for number in range(8):
        pushing.put(owner.grow(entries(1, number)).copy())
    monkeypatch.setattr("kachery_p2p.bucket.verifying._YOUNG_S", -1.0)
    named = {segment.digest.hex() for segment in head_of(memory_bucket).segments}
    found = {listed.key.rpartition("/")[2] for listed in garbage(memory_bucket)}
    assert found
    assert not found & (named | {"head"})
    for listed in list(garbage(memory_bucket)):
        memory_bucket.delete(listed.key)
    assert all_of(memory_bucket) == owner.entries
