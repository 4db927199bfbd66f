from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.index import Index


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index(str(tmp_path / "config" / "state" / "index.db"))
    yield index
    index.close()


@pytest.fixture
def store(tmp_path: Path, index: Index) -> BlobStore:
    return BlobStore(str(tmp_path / "store"), index, reserve_bytes=0)
