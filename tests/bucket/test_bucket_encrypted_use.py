"""An encrypted bucket beside others: never mixed, and used as any other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kachery_p2p.bucket import layout
from kachery_p2p.bucket.mirror import Mirror
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.opening import check_urls
from kachery_p2p.bucket.owner import check_prefix, take_prefix
from kachery_p2p.bucket.pushing import push
from kachery_p2p.bucket.sealed_mirror import SealedMirror
from kachery_p2p.bucket.sealed_objects import SealedObjects
from kachery_p2p.bucket.sealing import object_size
from kachery_p2p.bucket.through import Lent, MemberObjects
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.bucket.verifying import garbage, remove, verify
from kachery_p2p.channels.bucket_settings import BucketSettings
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.content.manifests import RootObject
from kachery_p2p.errors import (
    BucketEncryptionError,
    BucketReadOnlyError,
    BucketUrlError,
)
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.index import Index
from tests.bucket.faulty import Faulty
from tests.bucket.sealed_parts import (
    CONTENT,
    DATA,
    KEY,
    LAB,
    LABEL,
    OTHER_SECRET,
    ROOT,
    keys,
    overwrite,
    put,
    raw,
    read,
)

MEMBER = NodeId("ab" * 32)


@pytest.fixture
def bucket(memory_bucket: Objects) -> SealedObjects:
    return SealedObjects(memory_bucket, keys())


# --- who has not the keys -----------------------------------------------------------------------


def test_who_has_another_secret_finds_nothing(bucket: SealedObjects) -> None:
    put(bucket)
    stranger = SealedObjects(bucket.plain, keys(OTHER_SECRET))
    assert stranger.look(CONTENT) is None
    assert [one.key for one in stranger.list()] == list(raw(bucket))
    assert list(stranger.list("sha1")) == list(stranger.list())


def test_encrypted_and_not_encrypted_never_mix(memory_bucket: Objects) -> None:
    encrypted = SealedObjects(memory_bucket, keys())
    take_prefix(encrypted, LAB)
    check_prefix(encrypted, LAB)
    for refuse in (take_prefix, check_prefix):
        with pytest.raises(BucketEncryptionError) as refused:
            refuse(memory_bucket, LAB)
        assert "--encrypt" in str(refused.value.hint)
    with pytest.raises(BucketEncryptionError):
        memory_bucket.look(CONTENT)


def test_what_is_there_in_clear_is_not_taken_for_encrypted(memory_bucket: Objects) -> None:
    encrypted = SealedObjects(memory_bucket, keys())
    memory_bucket.put_new(KEY, DATA, {})
    with pytest.raises(BucketEncryptionError, match="there are files"):
        take_prefix(encrypted, LAB)
    take_prefix(memory_bucket, LAB)
    for refuse in (take_prefix, check_prefix):
        with pytest.raises(BucketEncryptionError):
            refuse(encrypted, LAB)
    with pytest.raises(BucketEncryptionError):
        encrypted.look(CONTENT)


def test_a_mirror_says_that_it_is_encrypted(bucket: SealedObjects, faulty: Faulty) -> None:
    put(bucket)
    take_prefix(bucket, LAB)
    for path, data in raw(bucket).items():
        faulty.put(f"/k/{path}", data)
    with contextlib.closing(Mirror(parse_bucket_url(f"{faulty.url}/k"))) as plain:
        with pytest.raises(BucketEncryptionError):
            plain.look(CONTENT)
        check_prefix(SealedMirror(plain, keys()), LAB)


def test_a_layout_of_others_is_not_encrypted() -> None:
    settings = BucketSettings(("https://example.org/{hash}",), encrypt=True)
    with pytest.raises(BucketUrlError):
        check_urls(settings)


class Relay:
    """A member with the bucket's credentials, which hands on what lies there."""

    def __init__(self, plain: Objects) -> None:
        self._plain = plain

    def look(self, key: str) -> Lent:
        size, attributes = self._plain.head(key)
        return Lent(size, attributes, "", 60.0, MEMBER)

    def read(self, key: str, start: int, length: int) -> tuple[bytes, NodeId]:
        return b"".join(self._plain.read_key(key, start, start + length)), MEMBER

    def disbelieve(self, key: str, node: NodeId) -> bool:
        raise AssertionError("nothing was wrong")


def test_what_a_member_lends_is_opened_by_who_has_the_keys(bucket: SealedObjects) -> None:
    put(bucket)
    take_prefix(bucket, LAB)
    lent = MemberObjects(bucket.url, Relay(bucket.plain))
    reader = SealedObjects(lent, keys())
    assert read(reader) == DATA
    assert reader.read_whole(KEY, len(DATA)) == DATA
    assert reader.look(sha1_of(b"absent")) is None
    check_prefix(reader, LAB)
    with pytest.raises(BucketReadOnlyError):
        put(reader, b"more")


# --- what works as on any bucket -----------------------------------------------------------------


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[BlobStore]:
    (tmp_path / "state").mkdir()
    index = Index(str(tmp_path / "state/index.db"))
    store = BlobStore(str(tmp_path / "store"), index, 0)
    yield store
    store.close()
    index.close()


def test_a_content_is_pushed_once_and_verified(bucket: SealedObjects, blobs: BlobStore) -> None:
    large = DATA * 60
    content = blobs.put_bytes(large).content
    assert push(bucket, blobs, content, LABEL) == (len(large), True)
    before = raw(bucket)
    assert push(bucket, blobs, content, LABEL) == (len(large), False)
    assert raw(bucket) == before
    assert [(one.content, one.size, one.good) for one in verify(bucket)] == [
        (content, len(large), True)
    ]
    (path,) = (key for key, data in before.items() if len(data) == object_size(len(large)))
    damaged = bytearray(before[path])
    damaged[-1] ^= 1
    overwrite(bucket, path, bytes(damaged))
    assert [one.good for one in verify(bucket)] == [False]
    overwrite(bucket, path, b"something else")
    assert [(one.content, one.good, one.key) for one in verify(bucket)] == [(None, False, path)]
    assert list(garbage(bucket)) == [], "nothing is a day old"
    bucket.delete(path)
    assert bucket.look(content) is None


def test_what_belongs_to_nothing_is_removed_and_what_does_not_open_is_not(
    bucket: SealedObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.bucket.verifying._YOUNG_S", -60.0)
    put(bucket)
    of_nothing = RootObject(1 << 21, sha1_of(b"nothing"), (bytes(32),)).encode()
    bucket.put_new(layout.tables_key(ROOT), of_nothing, {})
    bucket.plain.put_new(".kachery-p2p-probe/left", b"x", {})
    others = SealedObjects(bucket.plain, keys(OTHER_SECRET))
    put(others)
    found = list(garbage(bucket))
    assert {one.key for one in found} == {".kachery-p2p-probe/left", layout.tables_key(ROOT)}
    for one in found:
        remove(bucket, one)
    assert len(raw(bucket)) == 2
    assert read(bucket) == read(others) == DATA
