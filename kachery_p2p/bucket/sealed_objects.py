"""An encrypted bucket, used as any other: `Objects` whose names, contents and notes are sealed.

    e/AA/NAME            an object; NAME is the HMAC-SHA256 of its key below the prefix, in hex
    kachery-p2p-keys     owned channels: the keys, wrapped for each reader (`key_objects`)
    kachery-p2p-channel  the marker, which says that the prefix is encrypted (`owner`)

AA are the first two digits of NAME. What lies there under other names is no part of it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from kachery_p2p.bucket.objects import Listed, Objects
from kachery_p2p.bucket.reading import Whose
from kachery_p2p.bucket.rings import STORED
from kachery_p2p.bucket.sealed_reading import Keys, SealedReading
from kachery_p2p.bucket.sealing import BEGINNING_BYTES, SealedWriting, object_size
from kachery_p2p.errors import BucketAnswerError
from kachery_p2p.limits import BUCKET_LIST_KEYS, BUCKET_SEALED_LIST_AT_ONCE

log = logging.getLogger(__name__)


class SealedObjects(Objects):
    """The objects of an encrypted bucket. Safe in any number of threads.

    All raise BucketKeysError as well, while this node has no keys, and KeyFileError if its
    own are gone.
    """

    is_encrypted = True

    def __init__(self, plain: Objects, keys: Keys) -> None:
        """`plain` is the same bucket as it is seen without keys."""
        self.url = plain.url
        self.credentials = plain.credentials
        self.name = plain.name
        self.node = plain.node
        self.keys = keys
        self._plain = plain
        self._reading = SealedReading(self.name, keys, self._beginning, plain.read_key)

    @property
    def plain(self) -> Objects:
        """The objects as they lie there."""
        return self._plain

    def close(self) -> None:
        """Close what is open; a later use opens it again."""
        self._plain.close()

    # --- reading ---------------------------------------------------------------------------

    def head(self, key: str) -> tuple[int, Mapping[str, str]]:
        """(size, metadata) of what an object holds. Raises AbsentError and BucketErrors."""
        return self._reading.head(key)

    def read_range(self, key: str, start: int, end: int) -> Iterator[bytes]:
        """Bytes `start` to `end` of what an object holds. Raises AbsentError and BucketErrors."""
        return self._reading.read(key, start, end)

    def disbelieve(self, keys: Collection[str]) -> Whose:
        """As of `Readable`."""
        return self._plain.disbelieve([*filter(None, map(self._reading.forget, keys))])

    def read_whole(self, key: str, bytes_max: int) -> bytes:
        """As of `Objects`."""
        path = self._reading.path(key)
        return self._reading.opened(key, self._plain.read_whole(path, object_size(bytes_max)))

    def read_versioned(self, key: str, bytes_max: int) -> tuple[bytes, str]:
        """All of a small object, and what `replace` knows it by. Raises as `read_whole` does.

        What is damaged has nothing in it: so it can be replaced.
        """
        path = self._reading.path(key)
        sealed, version = self._plain.read_versioned(path, object_size(bytes_max))
        try:
            return self._reading.opened(key, sealed), version
        except BucketAnswerError as error:
            log.warning("%s", error)
            return b"", version

    def list(self, below: str = "") -> Iterator[Listed]:
        """Every object whose key begins with the directory `below`; asks for each in the bucket.

        One that the keys do not open is listed under the name that it has in the bucket.
        """
        start = f"{below}/" if below else ""
        with ThreadPoolExecutor(BUCKET_SEALED_LIST_AT_ONCE) as threads:
            for page in _pages(self._plain.list(STORED)):
                found = threads.map(lambda one: self._reading.named(one.key), page)
                for one, named in zip(page, found, strict=True):
                    if named is None:
                        yield one
                    elif named[0].startswith(start):
                        yield Listed(*named, one.modified)

    def signed_query(self, key: str, seconds: float) -> str:
        """As of `Objects`: of the object as it lies there."""
        return self._plain.signed_query(self.keys.ring().stored_name(key), seconds)

    # --- writing -----------------------------------------------------------------------------

    def put_new(self, key: str, data: bytes, attributes: Mapping[str, str]) -> bool:
        """Put a small object if there is none of that key; False if there is. BucketErrors."""
        path, sealed = self._sealed(key, data, attributes)
        return self._plain.put_new(path, sealed, {})

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """As of `Objects`."""
        path, sealed = self._sealed(key, data, {})
        return self._plain.replace(path, sealed, version)

    def put(self, key: str, data: bytes) -> None:
        """As of `Objects`."""
        self._plain.put(*self._sealed(key, data, {}))

    def put_large(
        self, key: str, pieces: Iterable[bytes], size: int, attributes: Mapping[str, str]
    ) -> None:
        """Put an object in parts, sealed as they go. Raises BucketErrors, and what `pieces` does.

        SourceChangedError if these are not `size` bytes: nothing of it is seen then.
        """
        ring = self.keys.to_write()
        writing = SealedWriting(ring, key, size, attributes)
        sealed = writing.pieces(pieces)
        self._plain.put_large(ring.stored_name(key), sealed, object_size(size), {})

    def delete(self, key: str) -> None:
        """Remove an object that may or may not be there; also by the name that `list` gave it."""
        is_stored = key.startswith(f"{STORED}/")
        self._plain.delete(key if is_stored else self.keys.ring().stored_name(key))

    # --- sealing -------------------------------------------------------------------------------

    def _sealed(self, key: str, data: bytes, attributes: Mapping[str, str]) -> tuple[str, bytes]:
        ring = self.keys.to_write()
        writing = SealedWriting(ring, key, len(data), attributes)
        return ring.stored_name(key), b"".join(writing.pieces([data]))

    def _beginning(self, path: str) -> bytes:
        return b"".join(self._plain.read_range(path, 0, BEGINNING_BYTES))


def _pages(listed: Iterator[Listed]) -> Iterator[list[Listed]]:
    page: list[Listed] = []
    for one in listed:
        page.append(one)
        if len(page) == BUCKET_LIST_KEYS:
            yield page
            page = []
    yield page
