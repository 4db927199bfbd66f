"""A bucket of a cloud, a directory or memory: one class on the library obstore.

Its calls block, so they belong into threads (its own async ones need asyncio). Timeouts and
retries are set here and nowhere else; every error is one of ours (`faults`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from kachery_p2p.bucket.credentials import Credentials
from kachery_p2p.bucket.faults import AbsentError, busy, explaining, missing, wrong_answer
from kachery_p2p.bucket.layout import key_of, tables_key, told_label, told_root
from kachery_p2p.bucket.owner import check_encryption
from kachery_p2p.bucket.reading import Meta, Whose, exactly
from kachery_p2p.bucket.urls import AZURE, CLOUDS, FILE, GOOGLE, MEMORY, S3, BucketUrl
from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.errors import BucketError, BucketSupportMissingError
from kachery_p2p.limits import (
    BUCKET_CONNECT_S_MAX,
    BUCKET_FAST_BYTES_PER_S,
    BUCKET_FAST_PIECE_BYTES,
    BUCKET_LIST_KEYS,
    BUCKET_PART_BYTES,
    BUCKET_PARTS_AT_ONCE,
    BUCKET_PARTS_MAX,
    BUCKET_READ_RETRIES_MAX,
    BUCKET_READ_S_MAX,
    BUCKET_RETRY_S_MAX,
    BUCKET_WRITE_RETRIES_MAX,
    BUCKET_WRITE_S_MAX,
    CHUNK_BYTES,
    STALL_BYTES_MIN,
    STALL_S_MAX,
)

if TYPE_CHECKING:
    from obstore.store import ObjectStore

# Buckets in memory live as long as the process, like those on a server.
_memory: dict[str, ObjectStore] = {}


class Listed(NamedTuple):
    """One object of a listing."""

    key: str
    size: int
    # Seconds since 1970.
    modified: float


class Objects:
    """The objects below one prefix of one bucket. Safe in any number of threads."""

    # True for one that seals what it puts there (`sealed_objects`).
    is_encrypted = False
    _is_checked = False

    def __init__(self, url: BucketUrl, credentials: Credentials) -> None:
        """Raises BucketSupportMissingError without the library; asks nothing of the server."""
        self.url = url
        self.credentials = credentials
        self.name = _shown(url)
        self.node = url.node
        self._piece_bytes = STALL_BYTES_MIN
        with explaining(self.name):
            self._reader = _open(url, credentials, BUCKET_READ_S_MAX, BUCKET_READ_RETRIES_MAX)
            self._writer = _open(url, credentials, BUCKET_WRITE_S_MAX, BUCKET_WRITE_RETRIES_MAX)

    @property
    def plain(self) -> Objects:
        """The objects as they lie there, whatever they hold."""
        return self

    def close(self) -> None:
        """Nothing is open that would have to be closed."""

    # --- reading ---------------------------------------------------------------------------

    def look(self, content: ContentHash) -> Meta | None:
        """What is said of a content's object; None if there is none. Raises BucketErrors."""
        try:
            size, attributes = self.head(key_of(content))
        except AbsentError:
            self._check_alike()
            return None
        return Meta(size, told_root(attributes), told_label(attributes))

    def _check_alike(self) -> None:
        """Once, before it is said that something is not there: it may be there encrypted."""
        if not self._is_checked:
            check_encryption(self)
            self._is_checked = True

    def read(self, content: ContentHash, start: int, end: int) -> Iterator[bytes]:
        """Bytes `start` to `end` of a content's object, in pieces. Raises BucketErrors."""
        return self.read_key(key_of(content), start, end)

    def read_tables(self, root: Root, start: int, end: int) -> bytes:
        """Bytes of the chunk hashes of a content with this root. Raises BucketErrors."""
        return b"".join(self.read_key(tables_key(root), start, end))

    def disbelieve(self, keys: Collection[str]) -> Whose:
        """As of `Readable`."""
        return Whose.PLACE

    def head(self, key: str) -> tuple[int, Mapping[str, str]]:
        """(size, metadata) of an object. Raises AbsentError and BucketErrors."""
        with explaining(self.name):
            found = self._reader.get(self._path(key), options={"head": True})
            return found.meta["size"], dict(found.attributes)

    def read_key(self, key: str, start: int, end: int) -> Iterator[bytes]:
        """Bytes `start` to `end` of any object, in pieces; BucketAnswerError if it is absent."""
        try:
            yield from self.read_range(key, start, end)
        except AbsentError:
            raise wrong_answer(self.name, f"has no {key} (any more)") from None

    def read_range(self, key: str, start: int, end: int) -> Iterator[bytes]:
        """The same; AbsentError if it is absent and any bytes of it are asked for."""
        if start == end:
            return
        with explaining(self.name):
            found = self._reader.get(self._path(key), options={"range": (start, end)})
            if tuple(found.range) != (start, end):
                raise wrong_answer(self.name, f"has not all of {key}")
            pieces = found.stream(min_chunk_size=self._piece_bytes)
            yield from self._timed(exactly(pieces, end - start, self.name), end - start)

    def _timed(self, pieces: Iterator[bytes], length: int) -> Iterator[bytes]:
        """The same; what comes fast comes in larger pieces the next time, each of which costs."""
        began, is_fast = time.monotonic(), False
        try:
            yield from pieces
            seconds = time.monotonic() - began
            is_fast = length >= CHUNK_BYTES and length >= BUCKET_FAST_BYTES_PER_S * seconds
        finally:
            self._piece_bytes = BUCKET_FAST_PIECE_BYTES if is_fast else STALL_BYTES_MIN

    def read_whole(self, key: str, bytes_max: int) -> bytes:
        """All of a small object. Raises AbsentError, and BucketAnswerError if it is larger."""
        return self.read_versioned(key, bytes_max)[0]

    def read_versioned(self, key: str, bytes_max: int) -> tuple[bytes, str]:
        """All of a small object, and what `replace` knows it by. Raises as `read_whole` does."""
        with explaining(self.name):
            found = self._reader.get(self._path(key))
            size = found.meta["size"]
            if size > bytes_max:
                raise wrong_answer(self.name, f"has a {key} of {size} bytes")
            pieces = found.stream(min_chunk_size=STALL_BYTES_MIN)
            return b"".join(exactly(pieces, size, self.name)), found.meta["e_tag"] or ""

    def list(self, below: str = "") -> Iterator[Listed]:
        """Every object whose key begins with the directory `below`, a page at a time."""
        start = len(self.url.prefix) + 1 if self.url.prefix else 0
        prefix = "/".join(filter(None, (self.url.prefix, below)))
        with explaining(self.name):
            for page in self._reader.list(prefix or None, chunk_size=BUCKET_LIST_KEYS):
                for found in page:
                    time = found["last_modified"].timestamp()
                    yield Listed(found["path"][start:], found["size"], time)

    def signed_query(self, key: str, seconds: float) -> str:
        """What lets anybody read an object for so long: the query of its URL.

        "" if this store has no such signatures, or these credentials cannot make them. Blocks:
        the provider's chain may be asked for credentials.
        """
        if self.url.scheme not in CLOUDS:
            return ""
        import obstore

        with suppress(BucketError), explaining(self.name):
            # Only of stores of clouds: the type does not tell them from others.
            store: Any = self._reader
            url = obstore.sign(store, "GET", self._path(key), timedelta(seconds=seconds))
            return url.partition("?")[2]
        return ""

    # --- writing -----------------------------------------------------------------------------

    def put_new(self, key: str, data: bytes, attributes: Mapping[str, str]) -> bool:
        """Put a small object if there is none of that key; False if there is. BucketErrors."""
        from obstore import exceptions

        options: dict[str, Any] = {"attributes": dict(attributes)} if self._has_attributes else {}
        try:
            with explaining(self.name):
                try:
                    path = self._path(key)
                    self._writer.put(path, data, mode="create", use_multipart=False, **options)
                    return True
                except exceptions.AlreadyExistsError:
                    pass
        except AbsentError:
            # Nowhere to put it.
            raise missing(self.name) from None
        # Some stores answer the same (409) while two write it at once: it may not be there yet,
        # or never.
        if self._version(key) is None:
            raise busy(self.name, "409")
        return False

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """Put a small object in place of the one with this version; False if that is gone.

        Where a server cannot compare, what is there is replaced whatever it is: look afterwards.
        """
        # Amazon's servers quote a version (RFC 9110, 8.8.3), Ceph's compare it without quotes.
        for tag in dict.fromkeys((version, version.strip('"'))):
            replaced = self._put_over(key, data, {"e_tag": tag})
            if replaced is None:
                break
            if replaced or self._version(key) != version:
                return replaced
        return bool(self._put_over(key, data, "overwrite"))

    def put(self, key: str, data: bytes) -> None:
        """Put a small object in place of whatever is there. Raises BucketErrors."""
        self._put_over(key, data, "overwrite")

    def _put_over(self, key: str, data: bytes, mode: Any) -> bool | None:
        """True if it was put; False if the object is another; None if that cannot be told."""
        from obstore import exceptions

        try:
            with explaining(self.name):
                try:
                    path = self._path(key)
                    self._writer.put(path, data, mode=mode, use_multipart=False)
                except exceptions.PreconditionError:
                    return False
                except NotImplementedError:
                    return None
        except AbsentError:
            raise missing(self.name) from None
        return True

    def _version(self, key: str) -> str | None:
        try:
            with explaining(self.name):
                found = self._reader.get(self._path(key), options={"head": True})
                return found.meta["e_tag"] or ""
        except AbsentError:
            return None

    def put_large(
        self, key: str, pieces: Iterable[bytes], size: int, attributes: Mapping[str, str]
    ) -> None:
        """Put an object in parts; it is seen when it is whole, or never. Raises BucketErrors.

        An error that `pieces` raises ends it, and is raised.
        """
        part = max(BUCKET_PART_BYTES, -(-size // BUCKET_PARTS_MAX))
        options: dict[str, Any] = {"attributes": dict(attributes)} if self._has_attributes else {}
        heard: list[BaseException] = []
        try:
            with explaining(self.name):
                self._writer.put(
                    self._path(key),
                    _remembering(pieces, heard),
                    use_multipart=True,
                    chunk_size=part,
                    max_concurrency=BUCKET_PARTS_AT_ONCE,
                    **options,
                )
        except AbsentError:
            raise missing(self.name) from None
        except Exception as error:
            # The library wraps what its source of bytes raised.
            raise heard[0] if heard else error from None

    def delete(self, key: str) -> None:
        """Remove an object that may or may not be there. Raises BucketErrors."""
        with suppress(AbsentError), explaining(self.name):
            self._writer.delete(self._path(key))

    @property
    def _has_attributes(self) -> bool:
        # A directory keeps bytes and nothing with them.
        return self.url.scheme != FILE

    def _path(self, key: str) -> str:
        return f"{self.url.prefix}/{key}" if self.url.prefix else key


def _remembering(pieces: Iterable[bytes], heard: list[BaseException]) -> Iterator[bytes]:
    try:
        yield from pieces
    except BaseException as error:
        heard.append(error)
        raise


def _shown(url: BucketUrl) -> str:
    """How people know it: without the options, which they need not read each time."""
    return str(url).partition("?")[0]


def _open(url: BucketUrl, credentials: Credentials, request_s: float, retries: int) -> ObjectStore:
    try:
        from obstore import store
    except ImportError as error:
        raise BucketSupportMissingError(
            f"buckets need the package obstore, which is not installed ({error})",
            hint="pip install 'kachery-p2p[cloud]'",
        ) from None
    if url.scheme == MEMORY:
        return _memory.setdefault(url.place, store.MemoryStore())
    if url.scheme == FILE:
        if not os.path.isdir(url.place):
            raise missing(_shown(url))
        return store.LocalStore(url.place)
    assert url.scheme in CLOUDS
    client = {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=BUCKET_CONNECT_S_MAX),
        "read_timeout": timedelta(seconds=STALL_S_MAX),
        "timeout": timedelta(seconds=request_s),
        "user_agent": "kachery-p2p",
    }
    retry = {
        "max_retries": retries,
        "retry_timeout": timedelta(seconds=BUCKET_RETRY_S_MAX),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    }
    common: dict[str, Any] = {"client_options": client, "retry_config": retry}
    options = {**_places(url), **credentials.options}
    kinds: dict[str, Callable[..., ObjectStore]] = {
        S3: store.S3Store,
        GOOGLE: store.GCSStore,
        AZURE: store.AzureStore,
    }
    return kinds[url.scheme](url.place, **options, **common)


def _places(url: BucketUrl) -> dict[str, Any]:
    """What the URL says of where the server is."""
    if url.scheme == S3:
        # Servers other than Amazon's want some region in the signature, and take this one.
        region = url.region or "us-east-1"
        # With an endpoint of one's own a name for each bucket is seldom in the DNS.
        return {"region": region, "virtual_hosted_style_request": url.endpoint is None} | (
            {"endpoint": url.endpoint} if url.endpoint else {}
        )
    if url.scheme == AZURE:
        told = {"account_name": url.account, "endpoint": url.endpoint}
        return {key: value for key, value in told.items() if value}
    return {}
