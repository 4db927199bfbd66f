"""What programs store for some days only is removed by the node when they are over."""

from __future__ import annotations

import os
import time
from pathlib import Path

from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.index import Index
from kachery_p2p.store.scratch import scratch_dir, sweep_scratch


def test_files_go_when_their_time_has_come_and_their_links_with_them(tmp_path: Path) -> None:
    store_dir, state = str(tmp_path / "store"), str(tmp_path / "state")
    index = Index(f"{state}/index.db")
    store = BlobStore(store_dir, index, 0)
    os.makedirs(scratch_dir(store_dir))
    now = time.time()
    for data, until in ((b"old", now - 1), (b"new", now + 60)):
        file = f"{scratch_dir(store_dir)}/{sha1_of(data)}"
        Path(file).write_bytes(data)
        os.utime(file, (until, until))
        store.link_file(file)
    begun, left = (Path(scratch_dir(store_dir)) / name for name in (".begun", ".left"))
    for path, age_s in ((begun, 60), (left, 30 * 86_400)):
        path.touch()
        os.utime(path, (now - age_s, now - age_s))
    kept = store.put_bytes(b"old")
    assert sweep_scratch(store_dir, state, now) == 2
    names = {path.name for path in Path(scratch_dir(store_dir)).iterdir()}
    assert names == {sha1_of(b"new"), ".begun"}
    assert store.linked_contents() == {sha1_of(b"new")}
    assert store.find(kept.content) == kept.path
    assert sweep_scratch(str(tmp_path / "nowhere"), state, now) == 0
    store.close()
    index.close()
