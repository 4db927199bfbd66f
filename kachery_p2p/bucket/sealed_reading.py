"""Reading sealed objects from wherever they lie: a bucket, or a mirror of one on the web."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from kachery_p2p.bucket.faults import AbsentError, wrong_answer
from kachery_p2p.bucket.rings import Ring
from kachery_p2p.bucket.sealing import (
    BEGINNING_BYTES,
    NOTE_BYTES,
    Beginning,
    UnknownKeyError,
    opened_beginning,
)
from kachery_p2p.errors import (
    BucketAnswerError,
    BucketBusyError,
    BucketError,
    BucketKeysError,
    BucketRefusedError,
    BucketUnreachableError,
    SealError,
    StateVersionError,
)
from kachery_p2p.identity.frames import FRAME_BYTES, TAG_BYTES, span
from kachery_p2p.limits import BUCKET_SEALED_KNOWN_MAX


class Keys(Protocol):
    """Where the keys of one bucket come from. All raise BucketErrors and KeyFileError."""

    def ring(self) -> Ring:
        """Those that this node has, to read."""

    def newer(self, than: Ring) -> Ring | None:
        """Those that the bucket has for it now; None if they are no newer."""

    def to_write(self) -> Ring:
        """Those to put something there with; BucketKeysError if there are none as yet."""

    def maintain(self) -> bool:
        """See to it that each reader has them; False if that is somebody else's."""


def keys_at(place: object) -> Keys | None:
    """The keys with which what lies at a place is opened; None if it is not encrypted."""
    return getattr(place, "keys", None)


class SealedReading:
    """Objects by their keys, opened. Safe in any number of threads.

    `beginning(path)` gives the first BEGINNING_BYTES of what lies under a name, or raises
    AbsentError; `part(path, start, end)` the bytes of a range.
    """

    def __init__(
        self,
        name: str,
        keys: Keys,
        beginning: Callable[[str], bytes],
        part: Callable[[str, int, int], Iterator[bytes]],
    ) -> None:
        self._name = name
        self._keys = keys
        self._beginning = beginning
        self._part = part
        self._known: OrderedDict[str, Beginning] = OrderedDict()
        # What names were made with last.
        self._ring: Ring | None = None
        self._lock = threading.Lock()

    def head(self, key: str) -> tuple[int, Mapping[str, str]]:
        """(size, metadata) of an object, asked now. Raises AbsentError and BucketErrors."""
        found = self._asked(key)
        return found.size, found.attributes

    def read(self, key: str, start: int, end: int) -> Iterator[bytes]:
        """Bytes `start` to `end` of an object, in pieces. Raises AbsentError and BucketErrors."""
        with self._lock:
            known = self._known.get(key)
        if known is not None:
            began = False
            try:
                for piece in self._opened(key, known, start, end):
                    began = True
                    yield piece
                return
            except (BucketBusyError, BucketRefusedError, BucketUnreachableError):
                raise
            except BucketError:
                # It may have been replaced since; what is read from two of them is neither.
                if began:
                    raise
        yield from self._opened(key, self._asked(key), start, end)

    def forget(self, key: str) -> str | None:
        """Look at the object anew the next time; under which name it was read. Does not block."""
        with self._lock:
            self._known.pop(key, None)
        return None if self._ring is None else self._ring.stored_name(key)

    def path(self, key: str) -> str:
        """Under which name an object of that key is read."""
        self._ring = self._keys.ring()
        return self._ring.stored_name(key)

    def named(self, path: str) -> tuple[str, int] | None:
        """The key and the size of what lies under a name; None if the keys do not open it."""
        try:
            found = self._look(path)
        except (AbsentError, BucketAnswerError, BucketKeysError):
            return None
        return (found.key, found.size) if self._keys.ring().stored_name(found.key) == path else None

    def opened(self, key: str, data: bytes) -> bytes:
        """What the object of that key holds, all of whose bytes are given."""
        found = self._judged(data[:BEGINNING_BYTES], key)
        sealed = data[BEGINNING_BYTES:]
        try:
            if not found.size:
                return found.opener.open(0, sealed)
            return found.opener.open_span(0, found.size, sealed)
        except SealError as error:
            raise _tampered(self._name, error) from None

    def _asked(self, key: str) -> Beginning:
        """What the object begins with now; remembered for the reads that follow."""
        found = self._look(self.path(key), key)
        with self._lock:
            self._known[key] = found
            self._known.move_to_end(key)
            if len(self._known) > BUCKET_SEALED_KNOWN_MAX:
                self._known.popitem(last=False)
        return found

    def _look(self, path: str, key: str | None = None) -> Beginning:
        return self._judged(self._beginning(path), key)

    def _judged(self, data: bytes, key: str | None) -> Beginning:
        ring = self._keys.ring()
        try:
            try:
                return opened_beginning(ring, data, key)
            except UnknownKeyError:
                newer = self._keys.newer(ring)
                if newer is None:
                    raise
                return opened_beginning(newer, data, key)
        except UnknownKeyError as error:
            raise BucketKeysError(
                f"{self._name}: {error}",
                hint="if this node was let in lately, wait for the keeper's node to see to it",
            ) from None
        except (SealError, StateVersionError) as error:
            raise _tampered(self._name, error) from None

    def _opened(self, key: str, found: Beginning, start: int, end: int) -> Iterator[bytes]:
        if not start <= end <= found.size:
            raise wrong_answer(self._name, f"has not all of {key}")
        if start == end:
            return
        where = span(found.size, start, end)
        path = self.path(key)
        first = NOTE_BYTES + where.offset
        number, skip, left = where.first_frame, where.skip, end - start
        buffer, sealed_left = bytearray(), where.length
        for piece in self._part(path, first, first + where.length):
            buffer += piece
            whole = FRAME_BYTES + TAG_BYTES
            while len(buffer) >= min(whole, sealed_left) > 0:
                length = min(whole, sealed_left)
                plain = self._frame(found, number, bytes(buffer[:length]))[skip : skip + left]
                del buffer[:length]
                number, skip = number + 1, 0
                sealed_left, left = sealed_left - length, left - len(plain)
                yield plain

    def _frame(self, found: Beginning, number: int, sealed: bytes) -> bytes:
        try:
            return found.opener.open(number, sealed)
        except SealError as error:
            raise _tampered(self._name, error) from None


def _tampered(name: str, error: SealError | StateVersionError) -> BucketAnswerError:
    return wrong_answer(name, f"has an object that is damaged or was tampered with: {error}")
