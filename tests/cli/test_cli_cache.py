"""`cache`: what is removed to keep a store small, and above all what is not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.node.config import grants_path
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.grants import Grants
from kachery_p2p.store.index import Index
from kachery_p2p.store.paths import blob_path

if TYPE_CHECKING:
    from tests.cli.conftest import Shell


def fetch(shell: Shell, *letters: str, why: str = "fetched") -> list[ContentHash]:
    """Contents of 1,000 bytes, as if they had been fetched, used in this order."""
    config = shell.environment["KACHERY_P2P_CONFIG_DIR"]
    index = Index(f"{config}/state/index.db")
    store = BlobStore(shell.environment["KACHERY_STORAGE_DIR"], index)
    grants = Grants(grants_path(config))
    found = []
    for letter in letters:
        stored = store.put_bytes(letter.encode() * 1_000)
        later = os.stat(stored.path).st_ctime + 1_000 + ord(letter)
        os.utime(stored.path, (later, later))
        found.append(stored.content)
    grants.grant(found, ["lab"], why, 0.0)
    grants.close()
    store.close()
    index.close()
    return found


def rows(shell: Shell) -> list[dict[str, Any]]:
    return [json.loads(line) for line in shell.run("cache", "ls", "--json").stdout.splitlines()]


def is_there(shell: Shell, content: ContentHash) -> bool:
    return os.path.exists(blob_path(shell.environment["KACHERY_STORAGE_DIR"], content))


def pruned(shell: Shell, *arguments: str) -> list[str]:
    """The URIs that a prune prints."""
    done = shell.run("cache", "prune", *arguments)
    assert done.returncode == 0, done.stderr
    return [line.split()[-1] for line in done.stdout.splitlines()]


def test_the_least_recently_used_is_listed_first(shell: Shell) -> None:
    b, a = fetch(shell, "b", "a")
    assert [row["uri"] for row in rows(shell)] == [f"sha1://{a}", f"sha1://{b}"]
    assert {row["state"] for row in rows(shell)} == {"fetched"}
    told = shell.run("cache", "ls")
    assert "1.0 kB  fetched  sha1://" in told.stdout and "2 files" in told.stderr


def test_prune_only_says_what_it_would_remove_until_yes(shell: Shell) -> None:
    a, b, c = fetch(shell, *"abc")
    assert pruned(shell, "--max-size", "1.5kB") == [f"sha1://{a}", f"sha1://{b}"]
    assert all(is_there(shell, one) for one in (a, b, c))
    assert pruned(shell, "--max-size", "1.5kB", "--yes") == [f"sha1://{a}", f"sha1://{b}"]
    assert [is_there(shell, one) for one in (a, b, c)] == [False, False, True]
    assert pruned(shell, "--max-size", "1.5kB", "--yes") == []


def test_what_is_pruned_is_granted_no_more(shell: Shell) -> None:
    (a,) = fetch(shell, "a")
    pruned(shell, "--max-size", "0", "--yes")
    grants = Grants(grants_path(shell.environment["KACHERY_P2P_CONFIG_DIR"]))
    assert grants.channels_of(a) == ()
    grants.close()


def test_what_was_stored_here_goes_only_if_asked_and_last(shell: Shell, stored: str) -> None:
    (shared,) = fetch(shell, "a", why="share")
    (fetched,) = fetch(shell, "z")
    assert pruned(shell, "--max-size", "0", "--yes") == [f"sha1://{fetched}"]
    assert is_there(shell, shared)
    left = pruned(shell, "--max-size", "0", "--stored", "--yes")
    assert len(left) == 2 and f"sha1://{shared}" in left


def test_a_fetched_file_that_the_user_stored_since_stays(shell: Shell) -> None:
    (a,) = fetch(shell, "a")
    (shell.directory / "mine").write_bytes(b"a" * 1_000)
    shell.run("store", "--private", "mine")
    assert [row["state"] for row in rows(shell)] == ["stored"]
    assert pruned(shell, "--max-size", "0", "--yes") == [] and is_there(shell, a)


def test_a_wish_to_share_that_no_daemon_has_seen_keeps_a_file(shell: Shell) -> None:
    (a,) = fetch(shell, "a")
    assert shell.run("share", f"sha1://{a}").returncode == 0
    assert [row["state"] for row in rows(shell)] == ["stored"]


def test_pinned_contents_stay_whatever_is_asked(shell: Shell) -> None:
    a, b = fetch(shell, *"ab")
    assert shell.run("cache", "pin", f"sha1://{a}").stderr == "kachery-p2p: pinned 1 file\n"
    everything = ("--max-size", "0", "--stored", "--yes")
    assert pruned(shell, *everything) == [f"sha1://{b}"]
    assert shell.run("cache", "unpin", f"sha1://{a}").stderr == "kachery-p2p: unpinned 1 file\n"
    assert pruned(shell, *everything) == [f"sha1://{a}"]


def test_a_pinned_directory_is_its_list_and_its_files(shell: Shell) -> None:
    (shell.directory / "d").mkdir()
    (shell.directory / "d" / "f").write_text("x")
    uri = shell.answer("store", "d")
    assert shell.run("cache", "pin", uri).stderr == "kachery-p2p: pinned 2 files\n"
    assert {row["state"] for row in rows(shell)} == {"pinned"}


def test_linked_files_stay_linked(shell: Shell) -> None:
    (a,) = fetch(shell, "a")
    for name, data in (("a", b"a" * 1_000), ("other", b"other")):
        (shell.directory / name).write_bytes(data)
        shell.run("link", "--private", name)
    assert {row["state"] for row in rows(shell)} == {"linked"}
    assert pruned(shell, "--max-size", "0", "--stored", "--yes") == []
    assert shell.answer("load", f"sha1://{sha1_of(b'other')}") == str(shell.directory / "other")


def test_what_is_left_over_the_size_is_said(shell: Shell, stored: str) -> None:
    done = shell.run("cache", "prune", "--max-size", "1B", "--yes")
    assert (done.returncode, done.stdout) == (0, "")
    assert "0 B freed, 11 B left" in done.stderr and "more than 1 B" in done.stderr


def test_an_offline_store_has_nothing_that_was_fetched(shell: Shell) -> None:
    fetch(shell, "a")
    offline = {"KACHERY_OFFLINE_STORAGE_DIR": shell.environment["KACHERY_STORAGE_DIR"]}
    done = shell.run("cache", "prune", "--max-size", "0", "--yes", **offline)
    assert (done.returncode, done.stdout) == (0, "")


def test_damaged_pins_stop_a_prune(shell: Shell) -> None:
    (a,) = fetch(shell, "a")
    (Path(shell.environment["KACHERY_P2P_CONFIG_DIR"]) / "state" / "pins.db").write_bytes(b"x" * 99)
    done = shell.run("cache", "prune", "--max-size", "0", "--yes")
    assert done.returncode != 0 and done.stdout == "" and "pins" in done.stderr
    assert is_there(shell, a)


def test_cache_verify_reads_what_is_stored(shell: Shell, stored: str) -> None:
    assert shell.answer("cache", "verify") == "checked  1 file, 11 B; 0 bad"


@pytest.mark.parametrize("size", ["", "x", "-1", "5%", "1 XB", "1e9", "nan"])
def test_a_size_that_is_none_is_refused(shell: Shell, size: str) -> None:
    done = shell.run("cache", "prune", f"--max-size={size}")
    assert done.returncode == 2 and "is not a size" in done.stderr


def test_what_is_not_stored_cannot_be_pinned(shell: Shell) -> None:
    assert "not stored" in shell.fails(3, "cache", "pin", "sha1://" + "0" * 40)
