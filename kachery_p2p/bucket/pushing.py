"""Putting one content of the local store into a bucket: never twice, and never other bytes."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kachery_p2p.bucket.faults import busy, wrong_answer
from kachery_p2p.bucket.layout import attributes, key_of, tables_key
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.reading import Meta
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.content.manifests import page_count
from kachery_p2p.errors import BucketAnswerError, CorruptObjectError
from kachery_p2p.limits import BUCKET_PART_BYTES, BUCKET_SEEN_BYTES, CHUNK_BYTES
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.objects import Opened

# Told how many bytes go now; may take its time.
Throttle = Callable[[int], None]


class Pushed(NamedTuple):
    """What became of it. `sent` is False if it was there already."""

    size: int
    sent: bool


class Pace:
    """A throttle: so many bytes a second, for all threads together."""

    def __init__(self, bytes_per_s: int) -> None:
        self._rate = bytes_per_s
        self._free_at = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, byte_count: int) -> None:
        if not self._rate:
            return
        with self._lock:
            start = max(self._free_at, time.monotonic())
            self._free_at = start + byte_count / self._rate
        time.sleep(max(start - time.monotonic(), 0.0))


def push(
    bucket: Objects,
    blobs: BlobStore,
    content: ContentHash,
    label: str | None = None,
    throttle: Throttle = lambda byte_count: None,
) -> Pushed:
    """Put the content there, with what is needed to verify its parts. Blocks.

    Nothing is seen of it before all of it is there. Raises NotFoundError if it is not in the
    store, CorruptObjectError if the store has other bytes, and BucketErrors.
    """
    with blobs.open_verified(content) as opened:
        size = opened.root_object.size
        found = bucket.look(content)
        if found is not None:
            _check(bucket, found, opened)
        # First the hashes: whoever finds the content can verify its parts.
        _push_tables(bucket, blobs, opened)
        if found is not None:
            return Pushed(size, sent=False)
        told = attributes(opened.root_object.root, label)
        if size <= BUCKET_PART_BYTES:
            data = b"".join(_checked(opened, content, throttle))
            is_sent = bucket.put_new(key_of(content), data, told)
            if not is_sent:
                # Another was faster. What it has put there is judged as if it had been found.
                found = bucket.look(content)
                if found is None:
                    raise busy(bucket.name, "409")
                _check(bucket, found, opened)
            return Pushed(size, is_sent)
        bucket.put_large(key_of(content), _checked(opened, content, throttle), size, told)
        return Pushed(size, sent=True)


def _check(bucket: Objects, found: Meta, opened: Opened) -> None:
    """Raise BucketAnswerError if what is found there is something else than the content."""
    here = opened.root_object
    if found.size != here.size:
        raise wrong_answer(
            bucket.name, f"has {found.size} bytes as sha1://{here.content}, which has {here.size}"
        )
    if not found.agrees(here.size, here.root):
        raise wrong_answer(
            bucket.name, f"has something with the root {found.root} as sha1://{here.content}"
        )


def is_seen(bucket: Objects, opened: Opened) -> bool:
    """True if the bucket has this content, as far as its size, its root and last bytes tell.

    Blocks. Raises BucketErrors.
    """
    here = opened.root_object
    found = bucket.look(here.content)
    if found is None or not found.agrees(here.size, here.root):
        return False
    # What is said of it may be another's word; bytes are not made up.
    start = max(here.size - BUCKET_SEEN_BYTES, 0)
    try:
        seen = b"".join(bucket.read(here.content, start, here.size))
    except BucketAnswerError:
        return False
    return seen == os.pread(opened.descriptor, here.size - start, start)


def _push_tables(bucket: Objects, blobs: BlobStore, opened: Opened) -> None:
    root_object = opened.root_object
    if root_object.chunk_count == 1:
        return  # its only chunk is verified by the root itself
    parts = [root_object.encode()]
    for number in range(page_count(root_object.size)):
        page = blobs.page(root_object.content, number)
        if page is None:
            return  # the index forgot it just now; the content is loaded as a whole then
        parts.append(page)
    bucket.put_new(tables_key(root_object.root), b"".join(parts), {})


def _checked(opened: Opened, content: ContentHash, throttle: Throttle) -> Iterator[bytes]:
    """The file's bytes; CorruptObjectError in place of the last ones if they are not its."""
    sha1 = hashlib.sha1(usedforsecurity=False)
    at, size, last = 0, opened.root_object.size, b""
    while at < size:
        piece = os.pread(opened.descriptor, min(CHUNK_BYTES, size - at), at)
        if not piece:
            break
        sha1.update(piece)
        at += len(piece)
        if last:
            throttle(len(last))
            yield last
        last = piece
    if sha1.hexdigest() != content:
        raise CorruptObjectError(
            f"the file stored as {content} changed while it was sent: nothing of it was put there",
            hint="`kachery-p2p verify` finds and removes what is damaged",
        )
    throttle(len(last))
    yield last
