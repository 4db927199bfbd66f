"""For the tests of encrypted buckets: what is put there, and what its operator has then."""

from __future__ import annotations

from kachery_p2p.bucket import layout
from kachery_p2p.bucket.member_keys import SecretKeys
from kachery_p2p.bucket.mirror import Mirror
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.rings import ring_of_secret
from kachery_p2p.bucket.sealed_objects import SealedObjects
from kachery_p2p.content.hashes import ContentHash, Root, sha1_of

SECRET, OTHER_SECRET = bytes(range(20)), bytes(range(1, 21))
LAB = "1a" * 32
TEXT = b"subject 7, left hippocampus, session 3. "
DATA = TEXT * 5_000
CONTENT, ROOT = sha1_of(DATA), Root("cd" * 32)
KEY = layout.key_of(CONTENT)
LABEL = "subject-7-session-3.nwb"


def keys(secret: bytes = SECRET) -> SecretKeys:
    return SecretKeys(ring_of_secret(secret, "lab"))


def put(bucket: SealedObjects, data: bytes = DATA, label: str = LABEL) -> ContentHash:
    content = sha1_of(data)
    assert bucket.put_new(layout.key_of(content), data, layout.attributes(ROOT, label))
    return content


def raw(bucket: Objects) -> dict[str, bytes]:
    """All that the operator has."""
    plain = bucket.plain
    return {one.key: b"".join(plain.read_key(one.key, 0, one.size)) for one in plain.list()}


def read(bucket: Objects | Mirror, content: ContentHash = CONTENT, size: int = len(DATA)) -> bytes:
    return b"".join(bucket.read(content, 0, size))


def overwrite(bucket: SealedObjects, path: str, data: bytes) -> None:
    bucket.plain.delete(path)
    bucket.plain.put_new(path, data, {})
