"""Links that another user of a shared store planted: no sweep goes through them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kachery_p2p.errors import StorageFailedError
from kachery_p2p.limits import PARTIAL_AGE_S_MAX
from kachery_p2p.store.cleanup import sweep
from kachery_p2p.store.durable import DurableDirectories
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.store.partials import Partial
from kachery_p2p.store.scratch import sweep_scratch
from kachery_p2p.store.temps import TempGroup

FILES = ("thesis.tex", "root", "data", "12" * 20)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A user's directory, in which everything is as old as can be."""
    top = tmp_path / "documents"
    (top / "inner" / "innermost").mkdir(parents=True)
    for directory in (top, top / "inner", top / "inner" / "innermost"):
        for name in FILES:
            (directory / name).write_text("mine")
    age_s = 2 * PARTIAL_AGE_S_MAX
    for path in (top, *top.rglob("*")):
        os.utime(path, (time.time() - age_s,) * 2)
    return top


@pytest.mark.parametrize(
    "planted",
    [
        *(".scratch", ".tmp", ".partial"),
        *(".scratch/" + "34" * 20, ".tmp/group", ".partial/node", ".partial/node/download"),
    ],
)
def test_no_sweep_removes_what_a_planted_link_leads_to(
    tmp_path: Path, documents: Path, planted: str
) -> None:
    store, state = tmp_path / "store", tmp_path / "state"
    (store / planted).parent.mkdir(parents=True)
    (store / planted).symlink_to(documents)
    before = sorted(documents.rglob("*"))
    sweep(str(store))
    sweep_scratch(str(store), str(state), time.time())
    assert sorted(documents.rglob("*")) == before
    assert (store / planted).is_symlink()


def test_a_link_planted_in_the_place_of_a_group_is_not_emptied(
    tmp_path: Path, documents: Path
) -> None:
    with TempGroup(DurableDirectories(str(tmp_path / "store"))) as group:
        os.close(group.create()[1])
        aside = Path(group.path).rename(tmp_path / "aside")
        Path(group.path).symlink_to(documents)
    assert list(aside.iterdir()) == []
    assert sorted(path.name for path in documents.iterdir()) == sorted([*FILES, "inner"])


def test_a_directory_of_a_download_with_a_planted_file_link_leaves_its_target(
    tmp_path: Path, documents: Path
) -> None:
    download = tmp_path / "store" / ".partial" / "node" / "download"
    download.mkdir(parents=True)
    (download / "data").symlink_to(documents / "thesis.tex")
    old = time.time() - 2 * PARTIAL_AGE_S_MAX
    os.utime(download / "data", (old, old), follow_symlinks=False)
    os.utime(download, (old, old))
    assert sweep(str(tmp_path / "store")) == 1
    assert not download.exists()
    assert (documents / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("planted", [".partial", ".partial/node", ".partial/node/NAME"])
def test_no_download_is_written_or_removed_where_a_planted_link_leads_to(
    tmp_path: Path, documents: Path, planted: str
) -> None:
    store, root_object = tmp_path / "store", hash_bytes(b"data").root_object
    link = store / planted.replace("NAME", f"{root_object.content}-{root_object.root}")
    link.parent.mkdir(parents=True)
    link.symlink_to(documents)
    with pytest.raises(StorageFailedError):
        Partial.open(str(store), "node", root_object, 0)
    assert {path.read_text() for path in documents.rglob("*") if path.is_file()} == {"mine"}
    # Planted a moment later.
    link.unlink()
    partial = Partial.open(str(store), "node", root_object, 0)
    link.rename(tmp_path / "aside")
    link.symlink_to(documents)
    partial.discard()
    assert all((documents / name).exists() for name in FILES)
