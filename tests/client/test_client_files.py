"""Storing and loading without a daemon: what people do on their first day."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

import kachery_p2p as kp
from kachery_p2p.client import local
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import (
    ConfigError,
    DataFormatError,
    InvalidNameError,
    InvalidRangeError,
    NotFoundError,
    ResolutionError,
    SourceFileError,
    UnknownChannelError,
    UriError,
)
from kachery_p2p.limits import CHUNK_BYTES, KEPT_STORES_MAX

MISSING = "sha1://" + "0" * 40


def test_a_stored_file_is_found_again_by_its_uri(tmp_path: Path) -> None:
    source = tmp_path / "notes.txt"
    source.write_bytes(b"test-content\n")
    uri = kp.store_file(source)
    assert uri == "sha1://b971c6ef19b1d70ae8f0feb989b106c319b36230/notes.txt"
    path = kp.load_file(uri)
    assert Path(path).read_bytes() == b"test-content\n"
    assert path == str(tmp_path / "store/sha1/b9/71/c6/b971c6ef19b1d70ae8f0feb989b106c319b36230")


def test_the_root_is_in_the_uri_above_one_chunk_only(tmp_path: Path) -> None:
    source = tmp_path / "a.bin"
    source.write_bytes(b"a" * CHUNK_BYTES)
    assert "root" not in kp.store_file(source)
    source.write_bytes(b"a" * (CHUNK_BYTES + 1))
    assert "?root=" in kp.store_file(source)


def test_values_come_back_as_they_went() -> None:
    import numpy as np

    assert kp.load_text(kp.store_text("æ\n")) == "æ\n"
    assert kp.load_json(kp.store_json({"a": [1, None]})) == {"a": [1, None]}
    array = np.arange(6).reshape(2, 3)
    assert (kp.load_npy(kp.store_npy(array)) == array).all()
    assert (kp.load_pkl(kp.store_pkl({"x": array}))["x"] == array).all()


def test_values_have_the_labels_that_people_know() -> None:
    assert kp.store_text("x").endswith("/file.txt")
    assert kp.store_json(1).endswith("/file.json")
    assert kp.store_pkl(1).endswith("/file.pkl")
    assert kp.store_npy([1]).endswith("/file.npy")
    assert kp.store_text("x", label="my note.txt").endswith("/my%20note.txt")


def test_a_bad_label_is_refused_before_anything_is_stored(tmp_path: Path) -> None:
    with pytest.raises(InvalidNameError):
        kp.store_text("x", label="../up")
    assert not (tmp_path / "store").exists()


def test_what_cannot_be_stored_says_why(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for bad in (tmp_path / "missing", tmp_path, tmp_path / "fifo"):
        with pytest.raises(SourceFileError):
            kp.store_file(bad)


def test_a_copy_goes_to_a_file_or_into_a_directory(tmp_path: Path) -> None:
    uri = kp.store_text("hello", label="hello.txt")
    assert kp.load_file(uri, tmp_path / "copy") == str(tmp_path / "copy")
    (tmp_path / "dir").mkdir()
    assert kp.load_file(uri, tmp_path / "dir") == str(tmp_path / "dir" / "hello.txt")
    assert (tmp_path / "dir" / "hello.txt").read_text() == "hello"
    (tmp_path / "copy").write_text("changed")
    assert kp.load_text(uri) == "hello"


def test_a_destination_that_cannot_be_leaves_nothing_behind(tmp_path: Path) -> None:
    uri = kp.store_text("hello", label="hello.txt")
    (tmp_path / "dir" / "hello.txt").mkdir(parents=True)
    before = sorted(tmp_path.iterdir())
    for dest in (tmp_path / "no" / "such", tmp_path / "dir"):
        with pytest.raises(ResolutionError):
            kp.load_file(uri, dest)
    assert sorted(tmp_path.iterdir()) == before


def test_a_range_is_read_exactly() -> None:
    uri = kp.store_text("0123456789")
    assert kp.load_bytes(uri, 2, 5) == b"234"
    assert kp.load_bytes(uri, 0, 10) == b"0123456789"
    assert kp.load_bytes(uri, 10, 10) == b""
    for start, end in ((-1, 2), (5, 4), (0, 11), (11, 11)):
        with pytest.raises(InvalidRangeError):
            kp.load_bytes(uri, start, end)


def test_a_miss_without_a_daemon_says_both_facts() -> None:
    for load in (kp.load_file, kp.load_text, lambda uri: kp.load_bytes(uri, 0, 1)):
        with pytest.raises(NotFoundError, match="not stored here, and no daemon is running") as e:
            load(MISSING)
        assert e.value.hint is not None and "kachery-p2p start" in e.value.hint


def test_what_is_no_uri_is_an_error_and_never_none() -> None:
    for text in ("", "plain.txt", "sha1://abc", "md5://" + "0" * 32):
        with pytest.raises(UriError):
            kp.load_file(text)


def test_content_of_another_format_is_an_error() -> None:
    uri = kp.store_text("{")
    with pytest.raises(DataFormatError):
        kp.load_json(uri)
    with pytest.raises(DataFormatError):
        kp.load_npy(uri)


def test_an_object_that_is_a_symlink_to_a_directory_is_no_hit(tmp_path: Path) -> None:
    uri = kp.store_text("x")
    path = Path(kp.load_file(uri))
    path.unlink()
    path.mkdir()
    with pytest.raises(NotFoundError):
        kp.load_file(uri)


def test_the_environment_is_read_at_each_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = kp.store_text("x")
    monkeypatch.setenv("KACHERY_STORAGE_DIR", str(tmp_path / "other"))
    with pytest.raises(NotFoundError):
        kp.load_file(uri)
    monkeypatch.setenv("KACHERY_STORAGE_DIR", str(tmp_path / "store"))
    assert kp.load_text(uri) == "x"
    monkeypatch.setenv("KACHERY_STORAGE_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    kp.store_text("y")
    assert (tmp_path / "kachery-storage").is_dir()


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1", "1e3"])
def test_a_port_that_is_none_is_said(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("KACHERY_DAEMON_PORT", port)
    with pytest.raises(ConfigError, match="KACHERY_DAEMON_PORT"):
        kp.load_file(MISSING)


# --- sharing without a daemon ------------------------------------------------------------------


def shares(config: Path) -> list[tuple[str, list[str] | None]]:
    log = config / "shares.log"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [(row["content"], row["channels"]) for row in rows]


def join(config: Path, name: str) -> str:
    from kachery_p2p.channels.channel import generate_secret
    from kachery_p2p.channels.files import join_shared

    return join_shared(str(config), name, generate_secret(os.urandom(20))).id


def test_what_is_stored_before_any_channel_is_pending(tmp_path: Path) -> None:
    kp.store_text("x")
    assert shares(tmp_path / "config") == [(hashlib.sha1(b"x").hexdigest(), None)]


def test_what_is_private_is_not_noted(tmp_path: Path) -> None:
    kp.store_text("x", channels=[])
    assert shares(tmp_path / "config") == []


def test_the_share_list_counts_at_that_moment_and_names_choose_otherwise(tmp_path: Path) -> None:
    config = tmp_path / "config"
    first, second = join(config, "lab"), join(config, "other")
    kp.store_text("x")
    kp.store_text("x", channels=["other"])
    assert [ids for _, ids in shares(config)] == [[first], [second]]


def test_a_channel_that_was_not_joined_is_an_error() -> None:
    with pytest.raises(UnknownChannelError, match="'nowhere'"):
        kp.store_text("x", channels=["nowhere"])


def test_what_cannot_be_shared_as_wished_is_not_stored_either() -> None:
    with pytest.raises(UnknownChannelError):
        kp.store_text("a text", channels=["nowhere"])
    with pytest.raises(NotFoundError):
        kp.load_text(f"sha1://{sha1_of(b'a text')}/file.txt")


def test_the_node_id_is_that_of_the_key_file(tmp_path: Path) -> None:
    from kachery_p2p.identity.keyring import load_or_create

    assert kp.get_node_id is not None
    with pytest.raises(kp.KacheryError):
        kp.get_node_id()
    key = load_or_create(str(tmp_path / "config"))
    assert kp.get_node_id() == key.node_id


def test_directories_removed_between_calls_are_made_again() -> None:
    kp.store_text("one")
    for name in ("KACHERY_STORAGE_DIR", "KACHERY_P2P_CONFIG_DIR"):
        shutil.rmtree(os.environ[name])
    uri = kp.store_text("one")
    assert kp.load_text(uri) == "one"
    assert Path(os.environ["KACHERY_P2P_CONFIG_DIR"], "state", "index.db").exists()


def test_a_program_that_goes_through_many_stores_keeps_few_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3 * KEPT_STORES_MAX):
        monkeypatch.setenv("KACHERY_STORAGE_DIR", str(tmp_path / f"store{number % 7}"))
        assert kp.load_text(kp.store_text(f"text {number}")) == f"text {number}"
    assert len(local._kept) <= KEPT_STORES_MAX


def test_a_forked_worker_stores_beside_its_parent() -> None:
    kp.store_text("before the fork")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        uris = pool.map(kp.store_text, [f"worker {number}" for number in range(20)])
    assert [kp.load_text(uri) for uri in uris] == [f"worker {number}" for number in range(20)]
    assert kp.load_text(kp.store_text("after the fork")) == "after the fork"
