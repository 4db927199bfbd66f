"""The line of uploads: a content that meets a mistake of ours costs nobody else anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from kachery_p2p.bucket.queue import DONE, MIRRORED, WAITING, UploadQueue
from kachery_p2p.bucket.reading import Meta
from kachery_p2p.bucket.uploads import Uploads
from kachery_p2p.channels.bucket_settings import BucketSettings
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import KacheryError
from kachery_p2p.node.upload_line import UploadLine
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.index import Index

LAB = "1a" * 32


async def test_a_mistake_in_one_content_is_said_of_it_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not within this test.
    monkeypatch.setattr("kachery_p2p.bucket.queue.UPLOAD_RETRY_S_MIN", 3_600.0)
    index = Index(str(tmp_path / "index.db"))
    blobs = BlobStore(str(tmp_path / "store"), index, 0)
    queue = UploadQueue(str(tmp_path / "uploads.db"))
    uploads = Uploads(BucketSettings(("memory:upload-line",)), LAB, blobs, queue)
    odd, plain = (blobs.put_bytes(data).content for data in (b"odd", b"plain"))
    queue.add(uploads.place, [odd, plain], MIRRORED)
    look = uploads.bucket.look

    def failing(content: ContentHash) -> Meta | None:
        if content == odd:
            raise ZeroDivisionError
        return look(content)

    monkeypatch.setattr(uploads.bucket, "look", failing)
    broke: list[KacheryError] = []
    line = UploadLine(uploads, None, queue, trio.CapacityLimiter(1), set(), broke.append)
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            await line.look(nursery)
    rows = [queue.of(uploads.place, content) for content in (odd, plain)]
    assert [row and (row.state, row.tries) for row in rows] == [(WAITING, 1), (DONE, 0)]
    assert rows[0] is not None and rows[0].said is not None
    assert "ZeroDivisionError" in rows[0].said
    assert not broke
    queue.close()
    blobs.close()
    index.close()
