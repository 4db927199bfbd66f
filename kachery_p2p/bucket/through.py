"""A channel's bucket as a node without its credentials reads it: by leave of a member with them.

The member tells what is said of an object, and lends a signature that lets one object be
read for a few minutes. Only the signature: where it leads is made here, from the bucket's
own URL in this node's settings, so that no member can send this node to an address of its
choosing. Of a store that has no such signatures the member hands on the bytes itself.
Whatever comes is verified like that of any source. What turns out wrong is the word of who said
it, and not the bucket's: others are asked about that object first from then on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol
from urllib.parse import quote

from kachery_p2p.bucket.credentials import Credentials
from kachery_p2p.bucket.faults import wrong_answer
from kachery_p2p.bucket.mirror import read_part
from kachery_p2p.bucket.objects import Listed, Objects
from kachery_p2p.bucket.reading import Whose, exactly
from kachery_p2p.bucket.urls import AZURE, GOOGLE, S3, BucketUrl
from kachery_p2p.bucket.web import Web
from kachery_p2p.errors import BucketReadOnlyError, BucketRefusedError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    BUCKET_KNOWN_MAX,
    BUCKET_PROVIDER_S,
    BUCKET_RELAY_BYTES_MAX,
    BUCKET_SIGNED_MARGIN_S,
)

_DEFAULT_REGION = "us-east-1"


class Lent(NamedTuple):
    """What a member says of an object, and lends."""

    size: int
    attributes: Mapping[str, str]
    # What makes the object's address a signed one; "" if the member reads it for us.
    query: str
    # For so many seconds.
    valid_s: float
    # Who says so.
    by: NodeId


class Lender(Protocol):
    """Members that have the credentials of one bucket, asked by blocking calls."""

    def look(self, key: str) -> Lent:
        """Raises AbsentError if there is no object of that key, and BucketErrors."""

    def read(self, key: str, start: int, length: int) -> tuple[bytes, NodeId]:
        """So many bytes of an object, BUCKET_RELAY_BYTES_MAX at most, and who handed them on.

        Raises BucketErrors.
        """

    def disbelieve(self, key: str, node: NodeId) -> bool:
        """What a member said of an object was wrong: others are asked about it before that one.

        False if that was known. Does not block.
        """


class MemberObjects(Objects):
    """The objects below the prefix of one bucket, read through members. Safe in many threads."""

    def __init__(self, url: BucketUrl, lender: Lender, own: Objects | None = None) -> None:
        """`own`: with what this node has itself, which is tried before members are asked."""
        self.url = url
        self.credentials = Credentials({}, writes=False)
        self.name = str(url).partition("?")[0]
        self.node = url.node
        self._lender = lender
        self._own = own
        self._ask_until = 0.0
        # True once bytes were handed on by a member: they are its word, not the bucket's.
        self.relays = False
        # Signatures are for one host, so nobody can send us on to another.
        self._web = Web(self.name, redirects_max=0)
        self._lent: dict[str, tuple[float, Lent]] = {}
        # Whose word anything was that is known of an object, or was handed on of it.
        self._told: dict[str, set[NodeId]] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close what is open; a later use opens it again."""
        self._web.close()

    # --- reading ---------------------------------------------------------------------------

    def head(self, key: str) -> tuple[int, Mapping[str, str]]:
        """(size, metadata) of an object. Raises AbsentError and BucketErrors."""
        own = self._usable()
        if own is not None:
            try:
                return own.head(key)
            except BucketRefusedError:
                self._refused()
        lent = self._look(key)
        return lent.size, lent.attributes

    def read_range(self, key: str, start: int, end: int) -> Iterator[bytes]:
        """Bytes `start` to `end` of any object, in pieces. Raises AbsentError and BucketErrors."""
        own = self._usable()
        if own is not None:
            try:
                for piece in own.read_range(key, start, end):
                    start += len(piece)
                    yield piece
                return
            except BucketRefusedError:
                self._refused()
        if start < end:
            yield from self._read_lent(key, start, end)

    def read_versioned(self, key: str, bytes_max: int) -> tuple[bytes, str]:
        """All of a small object, without a version: nothing is replaced from here."""
        size, _ = self.head(key)
        if size > bytes_max:
            raise wrong_answer(self.name, f"has a {key} of {size} bytes")
        return b"".join(self.read_key(key, 0, size)), ""

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """Raises BucketReadOnlyError."""
        raise self._needs_credentials()

    def signed_query(self, key: str, seconds: float) -> str:
        """Nothing: what is lent to this node is not lent on."""
        return ""

    def _read_lent(self, key: str, start: int, end: int) -> Iterator[bytes]:
        lent = self._known(key) or self._look(key)
        if not lent.query:
            self.relays = True
            yield from exactly(self._relayed(key, start, end), end - start, self.name)
            return
        try:
            for piece in self._signed(key, lent, start, end):
                start += len(piece)
                yield piece
            return
        except BucketRefusedError:
            # It may have run out early, by the server's clock: once more, with a new one.
            self._forget(key)
        if start < end:
            yield from self._signed(key, self._look(key), start, end)

    def _signed(self, key: str, lent: Lent, start: int, end: int) -> Iterator[bytes]:
        url = f"{address_of(self.url, self._path(key))}?{lent.query}"
        return read_part(self._web, self.name, url, start, end)

    def _relayed(self, key: str, start: int, end: int) -> Iterator[bytes]:
        for at in range(start, end, BUCKET_RELAY_BYTES_MAX):
            data, by = self._lender.read(key, at, min(BUCKET_RELAY_BYTES_MAX, end - at))
            with self._lock:
                self._note(key, by)
            yield data

    # --- what members have lent ----------------------------------------------------------------

    def _look(self, key: str) -> Lent:
        lent = self._lender.look(key)
        until = time.monotonic() + lent.valid_s - BUCKET_SIGNED_MARGIN_S
        with self._lock:
            if len(self._lent) >= BUCKET_KNOWN_MAX:
                self._lent.clear()
            self._lent[key] = (until, lent)
            self._note(key, lent.by)
        return lent

    def _note(self, key: str, by: NodeId) -> None:
        """By who has the lock."""
        if len(self._told) >= BUCKET_KNOWN_MAX:
            self._told.clear()
        self._told.setdefault(key, set()).add(by)

    def _known(self, key: str) -> Lent | None:
        with self._lock:
            until, lent = self._lent.get(key, (0.0, None))
        return lent if time.monotonic() < until else None

    def _forget(self, key: str) -> None:
        with self._lock:
            self._lent.pop(key, None)

    def disbelieve(self, keys: Collection[str]) -> Whose:
        """As of `Readable`."""
        with self._lock:
            told = {key: self._told.pop(key, set()) for key in keys}
            for key in keys:
                self._lent.pop(key, None)
        wrong = [self._lender.disbelieve(key, by) for key in keys for by in told[key]]
        if not wrong and self._usable() is not None:
            # With what this node has itself nobody was asked.
            return Whose.PLACE
        return Whose.NEW_MEMBERS if any(wrong) else Whose.MEMBERS

    def _usable(self) -> Objects | None:
        return self._own if time.monotonic() >= self._ask_until else None

    def _refused(self) -> None:
        """What this node has itself does not open the bucket: members are asked for a while."""
        self._ask_until = time.monotonic() + BUCKET_PROVIDER_S

    # --- all else needs credentials --------------------------------------------------------------

    def list(self, below: str = "") -> Iterator[Listed]:
        """Raises BucketReadOnlyError: members lend one object at a time."""
        if (own := self._usable()) is not None:
            return own.list(below)
        raise self._needs_credentials()

    def put_new(self, key: str, data: bytes, attributes: Mapping[str, str]) -> bool:
        """Raises BucketReadOnlyError: members are asked to put contents there, not bytes."""
        raise self._needs_credentials()

    def put(self, key: str, data: bytes) -> None:
        """Raises BucketReadOnlyError."""
        raise self._needs_credentials()

    def put_large(
        self, key: str, pieces: Iterable[bytes], size: int, attributes: Mapping[str, str]
    ) -> None:
        """Raises BucketReadOnlyError."""
        raise self._needs_credentials()

    def delete(self, key: str) -> None:
        """Raises BucketReadOnlyError."""
        raise self._needs_credentials()

    def _needs_credentials(self) -> BucketReadOnlyError:
        return BucketReadOnlyError(
            f"this node has no credentials for {self.name}",
            hint="do it on the node of a member that has them",
        )


def address_of(url: BucketUrl, path: str) -> str:
    """Where an object of a cloud's bucket is read by HTTP, without what signs it."""
    if url.scheme == S3:
        path = quote(path, safe="/-._~")
        if url.endpoint is not None:
            return f"{url.endpoint}/{url.place}/{path}"
        return f"https://{url.place}.s3.{url.region or _DEFAULT_REGION}.amazonaws.com/{path}"
    if url.scheme == AZURE:
        host = url.endpoint or f"https://{url.account}.blob.core.windows.net"
        return f"{host}/{url.place}/{path}"
    assert url.scheme == GOOGLE, "only clouds sign"
    return f"https://storage.googleapis.com/{url.place}/{path}"
