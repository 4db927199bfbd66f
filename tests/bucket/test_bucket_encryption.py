"""An encrypted bucket: what its operator sees, and what it gains by changing what is there."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator

import pytest

from kachery_p2p.bucket import layout
from kachery_p2p.bucket.faults import AbsentError
from kachery_p2p.bucket.mirror import Mirror
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.sealed_mirror import SealedMirror
from kachery_p2p.bucket.sealed_objects import SealedObjects
from kachery_p2p.bucket.sealing import BEGINNING_BYTES, NOTE_BYTES, object_size
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import (
    BucketAnswerError,
    BucketError,
    SourceChangedError,
)
from kachery_p2p.identity.frames import FRAME_BYTES, TAG_BYTES
from tests.bucket.faulty import Faulty
from tests.bucket.sealed_parts import (
    CONTENT,
    DATA,
    KEY,
    LABEL,
    ROOT,
    TEXT,
    keys,
    overwrite,
    put,
    raw,
    read,
)


@pytest.fixture
def bucket(memory_bucket: Objects) -> SealedObjects:
    return SealedObjects(memory_bucket, keys())


# --- what the operator sees ---------------------------------------------------------------------


def test_the_operator_sees_no_name_hash_root_or_content(bucket: SealedObjects) -> None:
    put(bucket)
    put(bucket, b"", "nothing.txt")
    bucket.put_large("log/feed", [DATA, DATA], 2 * len(DATA), layout.attributes(ROOT, LABEL))
    seen = raw(bucket)
    assert len(seen) == 3
    told = [value for key in seen for value in bucket.plain.head(key)[1].items()]
    everything = b"\n".join([*map(str.encode, seen), *seen.values(), repr(told).encode()])
    secrets = (CONTENT, sha1_of(b""), ROOT, "subject", "nothing")
    for word in (*map(str.encode, secrets), CONTENT.raw, bytes.fromhex(ROOT), TEXT[:16]):
        assert word not in everything
    # Shorter words may come about by chance in what is encrypted.
    for part in ("sha1", "log", "feed", "nwb"):
        assert part not in repr((list(seen), told))
    assert sorted(map(len, seen.values())) == sorted(
        map(object_size, (0, len(DATA), 2 * len(DATA)))
    )


def test_the_same_content_put_again_looks_like_another(bucket: SealedObjects) -> None:
    put(bucket)
    (first,) = raw(bucket).values()
    bucket.delete(KEY)
    put(bucket)
    (second,) = raw(bucket).values()
    frame = FRAME_BYTES + TAG_BYTES
    for at in range(0, len(first) - 16, frame):
        assert first[at + 8 : at + 40] != second[at + 8 : at + 40]


def test_a_range_asks_for_no_more_than_its_frames(bucket: SealedObjects, faulty: Faulty) -> None:
    put(bucket)
    for path, data in raw(bucket).items():
        faulty.put(f"/k/{path}", data)
    with contextlib.closing(Mirror(parse_bucket_url(f"{faulty.url}/k"))) as plain:
        mirror = SealedMirror(plain, keys())
        found = mirror.look(CONTENT)
        assert found is not None
        assert (found.size, found.root, found.label) == (len(DATA), ROOT, LABEL)
        start, end = FRAME_BYTES - 1, FRAME_BYTES + 1
        assert b"".join(mirror.read(CONTENT, start, end)) == DATA[start:end]
        assert mirror.read_whole(KEY, len(DATA)) == DATA
        assert mirror.look(sha1_of(b"absent")) is None
        with pytest.raises(BucketAnswerError):
            read(mirror, sha1_of(b"absent"), 1)
        with pytest.raises(AbsentError):
            mirror.read_whole("absent", 10)
        mirror.close()
    spans = [one.span for one in faulty.requests if one.span is not None]
    frame = FRAME_BYTES + TAG_BYTES
    assert spans[:2] == [(0, BEGINNING_BYTES), (BEGINNING_BYTES, BEGINNING_BYTES + 2 * frame)]


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3_000_001])
def test_every_size_comes_back_whole_and_in_parts(bucket: SealedObjects, size: int) -> None:
    data = (DATA * 16)[:size]
    cut = size // 3
    bucket.put_large("large", iter([data[:cut], b"", data[cut:]]), size, {})
    bucket.put_new("small", data, {})
    for key in ("large", "small"):
        assert bucket.head(key) == (size, {})
        assert bucket.read_whole(key, size) == data
        assert b"".join(bucket.read_key(key, cut, size)) == data[cut:]


def test_the_longest_name_has_room_in_the_note(bucket: SealedObjects) -> None:
    label = "\N{SNOWMAN}" * 85
    put(bucket, label=label)
    found = bucket.look(CONTENT)
    assert found is not None and found.label == label


def test_a_large_object_is_sealed_as_it_goes(bucket: SealedObjects) -> None:
    writing, taken = [0], 0

    def pieces() -> Iterator[bytes]:
        for number in range(64):
            # Never more than two steps ahead of what was taken.
            assert number - taken <= 2
            writing[0] = number
            yield bytes(1 << 20)

    class Counting(Objects):
        def put_large(self, key, pieces, size, attributes) -> None:  # type: ignore[no-untyped-def]
            nonlocal taken
            for piece in pieces:
                taken += len(piece) >= 1 << 20

    counting = Counting(bucket.plain.url, bucket.plain.credentials)
    SealedObjects(counting, keys()).put_large("large", pieces(), 64 << 20, {})
    assert (taken, writing[0]) == (64, 63)


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1])
def test_what_changes_its_length_meanwhile_is_not_put_there(
    bucket: SealedObjects, size: int
) -> None:
    with pytest.raises(SourceChangedError):
        bucket.put_large(KEY, [DATA], size, {})
    assert bucket.look(CONTENT) is None


def test_nothing_of_a_bucket_goes_past_the_encryption() -> None:
    takes_a_key = {
        name
        for name, method in inspect.getmembers(Objects, inspect.isfunction)
        if not name.startswith("_") and {"key", "below"} & set(inspect.signature(method).parameters)
    }
    # This is made of others.
    assert takes_a_key - set(vars(SealedObjects)) == {"read_key"}


# --- what the operator changes ------------------------------------------------------------------


def assert_refused(bucket: SealedObjects, data: bytes = DATA) -> None:
    """By whoever asks now; who knew the beginning from before gets the right bytes or none."""
    content = sha1_of(data)
    with contextlib.suppress(BucketError):
        assert read(bucket, content) == data
    with pytest.raises(BucketError):
        read(SealedObjects(bucket.plain, keys()), content)
    with pytest.raises(BucketError):
        bucket.read_whole(layout.key_of(content), len(data))


def test_a_flipped_bit_anywhere_is_noticed(bucket: SealedObjects) -> None:
    put(bucket)
    ((path, good),) = raw(bucket).items()
    header = (0, 7, 8, 24, 60, 79)
    content_header = tuple(NOTE_BYTES + at for at in header)
    for at in (*header, 100, *content_header, BEGINNING_BYTES, 100_000, len(good) - 1):
        assert read(bucket) == DATA
        damaged = bytearray(good)
        damaged[at] ^= 1
        overwrite(bucket, path, bytes(damaged))
        assert_refused(bucket)
        overwrite(bucket, path, good)


def test_a_cut_or_longer_object_is_noticed(bucket: SealedObjects) -> None:
    put(bucket)
    ((path, good),) = raw(bucket).items()
    for damaged in (
        good[:-1],
        good[: BEGINNING_BYTES + FRAME_BYTES + TAG_BYTES],
        good[:BEGINNING_BYTES],
        good[:10],
    ):
        overwrite(bucket, path, damaged)
        assert_refused(bucket)
    put(bucket, b"")
    (nothing,) = (key for key in raw(bucket) if key != path)
    for key, holds in ((path, KEY), (nothing, layout.key_of(sha1_of(b"")))):
        overwrite(bucket, key, raw(bucket)[key] + b"x")
        with pytest.raises(BucketAnswerError):
            bucket.read_whole(holds, len(DATA) + 1)


def test_two_objects_that_change_places_are_noticed(bucket: SealedObjects) -> None:
    put(bucket, DATA[::-1], "other.nwb")
    put(bucket)
    (first, one), (second, two) = raw(bucket).items()
    overwrite(bucket, first, two)
    overwrite(bucket, second, one)
    assert_refused(bucket)
    assert_refused(bucket, DATA[::-1])


def test_halves_of_two_objects_and_frames_that_change_places_are_noticed(
    bucket: SealedObjects,
) -> None:
    put(bucket)
    ((path, good),) = raw(bucket).items()
    put(bucket, DATA[::-1], "other.nwb")
    (other,) = (data for key, data in raw(bucket).items() if key != path)
    overwrite(bucket, path, good[:NOTE_BYTES] + other[NOTE_BYTES:])
    assert_refused(bucket)
    overwrite(bucket, path, good[:BEGINNING_BYTES] + other[BEGINNING_BYTES:])
    assert_refused(bucket)
    frame = FRAME_BYTES + TAG_BYTES
    first, second = BEGINNING_BYTES, BEGINNING_BYTES + frame
    swapped = good[:first] + good[second : second + frame] + good[first:second]
    overwrite(bucket, path, swapped + good[second + frame :])
    assert_refused(bucket)


def test_an_object_that_was_replaced_is_read_anew(bucket: SealedObjects) -> None:
    bucket.put_new("head", b"old" * 50_000, {})
    assert bucket.head("head")[0] == 150_000
    reader = SealedObjects(bucket.plain, keys())
    reader.head("head")
    _, version = bucket.read_versioned("head", 1 << 20)
    assert bucket.replace("head", b"new" * 40_000, version)
    assert b"".join(reader.read_key("head", 0, 120_000)) == b"new" * 40_000
    assert not bucket.replace("head", b"late", version), "somebody else was there first"
    assert bucket.read_whole("head", 1 << 20) == b"new" * 40_000


def test_what_is_damaged_is_read_as_nothing_by_who_replaces_it(bucket: SealedObjects) -> None:
    bucket.put_new("head", b"old" * 50_000, {})
    ((path, good),) = raw(bucket).items()
    overwrite(bucket, path, bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(BucketAnswerError):
        bucket.read_whole("head", 1 << 20)
    nothing, version = bucket.read_versioned("head", 1 << 20)
    assert nothing == b""
    assert bucket.replace("head", b"new", version)
    assert bucket.read_whole("head", 1 << 20) == b"new"
