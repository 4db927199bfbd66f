from __future__ import annotations

import os
import shutil
import tempfile
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
def store(tmp_path: Path, index: Index) -> Iterator[BlobStore]:
    store = BlobStore(str(tmp_path / "store"), index, reserve_bytes=0)
    yield store
    store.close()


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, if there is one: for tests that store thousands of times."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="kachery-test-"))
    yield path
    shutil.rmtree(path)
