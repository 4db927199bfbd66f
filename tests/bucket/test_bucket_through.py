"""What a member lends: a signature that fits the address which the borrower makes itself."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from uuid import uuid4

import obstore
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from kachery_p2p.bucket.credentials import Credentials
from kachery_p2p.bucket.faults import AbsentError
from kachery_p2p.bucket.log_book import LogBook
from kachery_p2p.bucket.log_layout import head_key, segment_key
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.sealed_objects import SealedObjects
from kachery_p2p.bucket.through import Lent, MemberObjects, address_of
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import BucketAnswerError, BucketReadOnlyError, BucketUnreachableError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import BUCKET_RELAY_BYTES_MAX
from kachery_p2p.wire.bucket_messages import query
from tests.bucket.log_parts import LOG, Owner, all_of, entries, head_of, mirror
from tests.bucket.sealed_parts import keys

MEMBER = NodeId("ab" * 32)
KEYS = {"access_key_id": "AK", "secret_access_key": "SECRET"}


def service_account() -> dict[str, Any]:
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    account = {
        "type": "service_account",
        "private_key_id": "id",
        "private_key": pem,
        "client_email": "a@example.org",
        "client_id": "1",
    }
    return {"service_account_key": json.dumps(account)}


CLOUDS: dict[str, Any] = {
    "s3://lab/a=b/c+d~e?endpoint=http://127.0.0.1:9": lambda: KEYS,
    "s3://lab/x?endpoint=https://s3.example.org/path": lambda: KEYS,
    "s3://lab": lambda: KEYS,
    "s3://lab/x?region=eu-west-1": lambda: {**KEYS, "session_token": "T/o+k=="},
    "gs://lab/a=b/c+d~e": service_account,
    "az://lab/a=b/c+d~e?account=acc": lambda: {"account_key": "c2VjcmV0"},
}


@pytest.mark.parametrize("url", CLOUDS)
def test_the_address_that_is_made_here_is_the_one_that_is_signed(url: str) -> None:
    parsed = parse_bucket_url(url)
    place = Objects(parsed, Credentials(CLOUDS[url]()))
    store: Any = place._reader
    path = place._path("sha1/ab/cd/ef/abcdef")
    signed = obstore.sign(store, "GET", path, timedelta(seconds=60))
    assert signed.partition("?")[0] == address_of(parsed, path)
    lent = place.signed_query("sha1/ab/cd/ef/abcdef", 60)
    assert lent and query(lent) == lent
    assert "SECRET" not in lent


def test_a_store_that_cannot_sign_lends_nothing(any_bucket: Objects) -> None:
    if any_bucket.url.scheme != "s3":
        assert any_bucket.signed_query("sha1/x", 60) == ""
    url = parse_bucket_url("az://lab/x?account=acc")
    shared_access = Objects(url, Credentials({"sas_key": "sv=1&sig=x"}))
    assert shared_access.signed_query("sha1/x", 60) == ""


class Reading:
    """A member that hands on bytes, or fails."""

    def __init__(self, data: bytes, size: int | None = None) -> None:
        self.data = data
        self.size = len(data) if size is None else size
        self.asked: list[int] = []
        self.wrong: set[tuple[str, NodeId]] = set()

    def look(self, key: str) -> Lent:
        if not self.data:
            raise AbsentError
        return Lent(self.size, {"root": "ab" * 32}, "", 300, MEMBER)

    def read(self, key: str, start: int, length: int) -> tuple[bytes, NodeId]:
        self.asked.append(length)
        return self.data[start : start + length], MEMBER

    def disbelieve(self, key: str, node: NodeId) -> bool:
        known, self.wrong = (key, node) in self.wrong, self.wrong | {(key, node)}
        return not known


def through(member: Reading) -> MemberObjects:
    return MemberObjects(parse_bucket_url("file:///not/here"), member)


def test_an_object_is_read_in_pieces_that_fit_an_answer() -> None:
    data = bytes(range(256)) * 3_000
    member = Reading(data)
    content = sha1_of(data)
    place = through(member)
    found = place.look(content)
    assert found is not None and found.size == len(data) and found.root == "ab" * 32
    assert b"".join(place.read(content, 7, len(data))) == data[7:]
    assert max(member.asked) == BUCKET_RELAY_BYTES_MAX


def test_a_member_that_sends_too_little_or_too_much_is_wrong() -> None:
    with pytest.raises(BucketAnswerError):
        list(through(Reading(b"abc")).read_key("sha1/x", 0, 4))
    member = Reading(b"abc")
    member.read = lambda key, start, length: (b"x" * (length + 1), MEMBER)  # type: ignore[method-assign]
    with pytest.raises(BucketAnswerError):
        list(through(member).read_key("sha1/x", 0, 3))
    with pytest.raises(BucketAnswerError):
        through(Reading(b"abc")).read_whole("sha1/x", 2)


class Lenders:
    """Two members, of whom the one who was wrong about an object is asked last."""

    def __init__(self, *places: Objects) -> None:
        self._places = {NodeId(f"{n:02x}" * 32): place for n, place in enumerate(places)}
        self.wrong: list[tuple[str, NodeId]] = []

    def _first(self, key: str) -> tuple[NodeId, Objects]:
        return min(self._places.items(), key=lambda one: self.wrong.count((key, one[0])))

    def look(self, key: str) -> Lent:
        node, place = self._first(key)
        size, attributes = place.head(key)
        return Lent(size, attributes, "", 300, node)

    def read(self, key: str, start: int, length: int) -> tuple[bytes, NodeId]:
        node, place = self._first(key)
        return b"".join(place.read_key(key, start, start + length)), node

    def disbelieve(self, key: str, node: NodeId) -> bool:
        self.wrong.append((key, node))
        return self.wrong.count((key, node)) == 1


@pytest.mark.parametrize("what", ["head", "segment"])
@pytest.mark.parametrize("sealed", [False, True])
def test_a_log_that_one_member_hands_on_wrong_is_read_through_another(
    what: str, sealed: bool, book: LogBook
) -> None:
    wrong, right = (Objects(parse_bucket_url(f"memory:{uuid4()}"), Credentials({})) for _ in "ab")
    url = parse_bucket_url("file:///not/here")
    lenders = Lenders(wrong, right)
    through = MemberObjects(url, lenders)
    opened: list[Objects] = [right, wrong, through]
    if sealed:
        opened = [SealedObjects(place, keys()) for place in opened]
    owner = Owner().grow(entries(30))
    mirror(opened[0], book).put(owner.copy())
    for one in right.list():
        wrong.put(one.key, right.read_whole(one.key, one.size))
    (segment,) = head_of(opened[0]).segments
    key = {"head": head_key(LOG), "segment": segment_key(LOG, segment.digest)}[what]
    data = opened[1].read_whole(key, 1 << 20)
    opened[1].put(key, data[:-1] + bytes([data[-1] ^ 1]))
    assert all_of(opened[2]) == owner.entries
    assert len(lenders.wrong) == 1
    # Nobody has another: that is an error, and not asked for ever.
    opened[0].put(key, b"junk")
    opened[1].put(key, b"junk")
    with pytest.raises(BucketAnswerError):
        all_of(opened[2])


def test_what_no_member_has_is_absent() -> None:
    assert through(Reading(b"")).look(sha1_of(b"")) is None


def test_nothing_is_written_or_listed_through_members() -> None:
    place = through(Reading(b"abc"))
    for work in (
        lambda: place.put_new("a", b"", {}),
        lambda: place.put("a", b""),
        lambda: place.put_large("a", [], 0, {}),
        lambda: place.replace("a", b"", ""),
        lambda: place.delete("a"),
        lambda: place.list(),
    ):
        with pytest.raises(BucketReadOnlyError) as error:
            work()
        assert error.value.hint


def test_a_fault_that_is_no_refusal_is_not_asked_of_members() -> None:
    class Down(Objects):
        def head(self, key: str) -> Any:
            raise BucketUnreachableError("down", hint="wait")

    own = Down(parse_bucket_url("memory:down"), Credentials({}))
    place = MemberObjects(own.url, Reading(b"abc"), own)
    with pytest.raises(BucketUnreachableError):
        place.head("sha1/x")
