"""Directories by their content: one tree has one name, and nothing leads out of a tree."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import kachery_p2p as kp
from kachery_p2p.client import destination, directory_lists, source_tree
from kachery_p2p.client.destination import Copy, Destination
from kachery_p2p.client.source_tree import SourceTree
from kachery_p2p.content.directories import Directory
from kachery_p2p.content.uris import parse_uri
from kachery_p2p.errors import (
    DataFormatError,
    InvalidNameError,
    KacheryError,
    LoadFilesError,
    NotFoundError,
    PathNotFoundError,
    ResolutionError,
    SourceChangedError,
    SourceFileError,
    StorageFullError,
    StoreFilesError,
    UnknownSchemeError,
    UnsupportedValueError,
)
from kachery_p2p.limits import CHUNK_BYTES, GROUP_OBJECTS_MIN, KEPT_DIRECTORIES_MAX
from kachery_p2p.store import intake, temps
from kachery_p2p.store.sources import check_unchanged

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors/content.json").read_text()
)
EVIL = [
    *("", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\nb", "\x1b[31m"),
    *("cod\u202eexe", "\u2028", "a" * 256, "\u00e9" * 128, "\udcff", "\x7f"),
]


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def make(top: Path, tree: dict[str, bytes | None]) -> Path:
    """Files by their path; None is an empty directory."""
    top.mkdir()
    for name, data in tree.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            path.mkdir()
        else:
            path.write_bytes(data)
    return top


def found(top: str | Path) -> dict[str, bytes | None]:
    """What `make` makes; every directory is named."""
    return {
        path.relative_to(top).as_posix(): path.read_bytes() if path.is_file() else None
        for path in Path(top).rglob("*")
    }


def shares(config: Path) -> list[str]:
    log = config / "shares.log"
    rows = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line)["content"] for line in rows]


def listed(record: dict[str, Any]) -> str:
    """The URI of a directory's list that somebody made up."""
    return f"sha1dir://{kp.store_text(json.dumps(record))[7:47]}"


TREE: dict[str, bytes | None] = {
    "notes.txt": b"test-content\n",
    "empty.csv": b"",
    "sub/a.bin": b"a" * 100,
    "sub/deep/b.bin": os.urandom(CHUNK_BYTES + 7),
    "sub/nothing": None,
}


@pytest.fixture(autouse=True)
def _nothing_decoded() -> Iterator[None]:
    """Lists are kept by their content, whichever store they came from."""
    directory_lists._decoded.clear()
    yield


@pytest.fixture
def session(tmp_path: Path) -> Path:
    return make(tmp_path / "session.1", TREE)


@pytest.fixture
def uri(session: Path) -> str:
    return kp.store_dir(session)


# --- storing ------------------------------------------------------------------------------------


def test_a_directory_gets_the_name_that_the_documentation_gives_it(tmp_path: Path) -> None:
    vector = next(one for one in VECTORS["directories"] if "documentation" in one["why"])
    record = json.loads(vector["written"])
    contents = {sha1(data): data for data in (b"", b"test-content\n")}

    def build(top: Path, record: dict[str, Any]) -> None:
        top.mkdir()
        for name, file in record["files"].items():
            (top / name).write_bytes(contents[file["sha1"]])
        for name, inner in record["dirs"].items():
            build(top / name, inner)

    build(tmp_path / "ds", record)
    assert kp.store_dir(tmp_path / "ds", "label") == f"sha1dir://{vector['sha1']}.label"
    assert kp.read_dir(f"sha1dir://{vector['sha1']}") == record


def test_one_tree_has_one_name_however_it_came_to_be(tmp_path: Path, uri: str) -> None:
    other = make(tmp_path / "other", dict(reversed(TREE.items())))
    (other / "notes.txt").chmod(0o600)
    os.utime(other / "notes.txt", (0, 0))
    assert uri.endswith(".session.1")
    assert kp.store_dir(other, "session.1") == uri
    assert kp.store_dir(f"{other}/", label="ä b") == f"{uri[:50]}.%C3%A4%20b"
    (other / "more").mkdir()
    assert kp.store_dir(other, "session.1") != uri


def test_files_are_stored_under_their_own_names_and_large_ones_carry_their_root(uri: str) -> None:
    record = kp.read_dir(uri)
    assert record["files"]["notes.txt"] == {"size": 13, "sha1": sha1(b"test-content\n")}
    assert record["files"]["empty.csv"] == {"size": 0, "sha1": sha1(b"")}
    big = record["dirs"]["sub"]["dirs"]["deep"]["files"]["b.bin"]
    assert big["size"] == CHUNK_BYTES + 7
    data = TREE["sub/deep/b.bin"]
    assert data is not None
    assert Path(kp.load_file(f"sha1://{big['sha1']}?root={big['root']}")).read_bytes() == data
    assert kp.read_dir(f"{uri}/sub/nothing") == {"files": {}, "dirs": {}}


def test_an_empty_directory_is_stored(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert kp.load_dir(kp.store_dir(tmp_path / "none")) == {}


def test_all_of_it_is_shared_by_one_wish_with_the_list_last(uri: str, tmp_path: Path) -> None:
    contents = shares(tmp_path / "config")
    assert len(contents) == 5 and contents[-1] == uri[10:50]
    assert set(contents[:-1]) == {sha1(data) for data in TREE.values() if data is not None}


def test_a_private_directory_is_not_noted(session: Path, tmp_path: Path) -> None:
    kp.store_dir(session, channels=[])
    assert shares(tmp_path / "config") == []


def test_with_a_daemon_it_is_shared_by_one_call(daemon: Any, session: Path) -> None:
    uri = kp.store_dir(session, channels=["lab"])
    assert daemon.operations.count("share") == 1
    assert (uri[10:50], ["lab"]) in daemon.shared and len(daemon.shared) == 5


def test_a_daemon_with_another_store_is_handed_each_file(
    distant: Any, session: Path, tmp_path: Path
) -> None:
    uri = kp.store_dir(session)
    assert distant.operations.count("store") == 5
    assert distant.shared[-1][0] == uri[10:50]
    assert not (tmp_path / "store").exists()
    assert found(kp.load_dir(uri, tmp_path / "copy")) == found(session)


def test_a_daemon_on_another_machine_is_sent_what_it_lacks(remote: Any, session: Path) -> None:
    uri = kp.store_dir(session)
    assert len(remote.put_in) == 5 and uri[10:50] in remote.put_in


def test_many_files_are_stored_in_groups_with_few_syncs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 4 * GROUP_OBJECTS_MIN
    top = make(tmp_path / "many", {f"{n % 7}/{n}": b"%d" % n for n in range(count)})
    synced: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(temps, "syncs_at_once", lambda fd: True)

    def counted(fd: int) -> None:
        synced.append(fd)
        sync(fd)

    monkeypatch.setattr(os, "fsync", counted)
    uri = kp.store_dir(top)
    # Those of the store's own directories, of the list and of the note.
    assert len(synced) < 30
    assert len(kp.load_dir(uri)) == count


@pytest.mark.parametrize("count", [GROUP_OBJECTS_MIN + more for more in (-1, 0, 1, 70)])
def test_every_file_keeps_its_own_bytes_however_many_there_are(tmp_path: Path, count: int) -> None:
    """Descriptors are closed and used again while the store still takes the files behind them."""
    top = make(tmp_path / "many", {f"{n:03}": b"%d" % n for n in range(count)})
    record = kp.read_dir(kp.store_dir(top))
    assert record["files"] == {
        f"{n:03}": {"size": len(str(n)), "sha1": sha1(b"%d" % n)} for n in range(count)
    }


def test_what_was_stored_is_not_read_again(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "unsettled_s", lambda status: 0)
    uri = kp.store_dir(session)

    def read(*_: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(intake.Intake, "take_file", read)
    assert kp.store_dir(session) == uri


def test_a_file_that_changes_meanwhile_is_named_and_the_rest_is_there_the_next_time(
    session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def growing(before: os.stat_result, fd: int) -> None:
        if before.st_size == 100:
            with open(session / "sub/a.bin", "ab") as file:
                file.write(b"more")
        check_unchanged(before, fd)

    with monkeypatch.context() as patch:
        patch.setattr(intake, "check_unchanged", growing)
        with pytest.raises(StoreFilesError, match=r"1 file was not stored \(of 4 in") as caught:
            kp.store_dir(session)
    assert list(caught.value.failed) == [f"{session}/sub/a.bin"]
    assert isinstance(caught.value.failed[f"{session}/sub/a.bin"], SourceChangedError)
    assert caught.value.hint is not None
    assert shares(tmp_path / "config") == []
    assert kp.load_text(f"{kp.store_dir(session)}/sub/a.bin") == "a" * 100 + "more"


def test_an_interrupted_store_leaves_nothing_open_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2 * GROUP_OBJECTS_MIN
    top = make(tmp_path / "many", {f"{n:03}": b"%d" % n for n in range(count)})
    kp.store_text("the store and its index are open")
    before = len(os.listdir("/proc/self/fd"))
    taken: list[int] = []
    take = intake.Intake.take_file

    def interrupted(self: intake.Intake, target: int, *arguments: Any) -> Any:
        taken.append(target)
        if len(taken) == count - 1:
            raise KeyboardInterrupt
        return take(self, target, *arguments)

    monkeypatch.setattr(intake.Intake, "take_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kp.store_dir(top)
    # What earlier tests left to the garbage collector may be closed meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= before
    assert os.listdir(tmp_path / "store/.tmp") == []
    assert len(kp.load_dir(kp.store_dir(top))) == count


# --- what cannot be stored ----------------------------------------------------------------------


def link(path: Path) -> None:
    path.symlink_to("notes.txt")


def link_upward(path: Path) -> None:
    path.symlink_to("..")


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.path.relpath(path))


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (link, "is a symbolic link"),
        (link_upward, "is a symbolic link"),
        (link_to_nothing, "is a symbolic link"),
        (pipe, "is not a regular file but a pipe, socket or device"),
        (listening, "is not a regular file but a pipe, socket or device"),
    ],
)
def test_what_a_list_cannot_say_is_refused_before_anything_is_stored(
    session: Path, tmp_path: Path, plant: Callable[[Path], None], says: str
) -> None:
    plant(session / "sub" / "odd")
    with pytest.raises(SourceFileError) as caught:
        kp.store_dir(session)
    assert str(caught.value).startswith(f"{session}/sub/odd {says}")
    assert caught.value.hint is not None
    assert not (tmp_path / "store").exists()


def test_the_directory_itself_may_be_reached_by_a_link(session: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(session)
    assert kp.store_dir(tmp_path / "link", "session.1") == kp.store_dir(session)


@pytest.mark.parametrize("name", ["a\nb", "a\\b", "cod\u202eexe", "\x1b[31m", "\udcff"])
def test_a_name_that_could_not_be_loaded_is_refused(
    session: Path, tmp_path: Path, name: str
) -> None:
    (session / "sub" / name).write_bytes(b"")
    with pytest.raises(InvalidNameError, match="cannot be stored") as caught:
        kp.store_dir(session)
    assert str(caught.value).isprintable() and f"{session}/sub/" in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_what_is_no_directory_or_cannot_be_named_is_refused(session: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "missing", session / "notes.txt", f"{tmp_path}/a\0b"):
        with pytest.raises((SourceFileError, InvalidNameError)):
            kp.store_dir(path, "x" if "\0" in str(path) else None)
    with pytest.raises(InvalidNameError):
        kp.store_dir("/")
    with pytest.raises(InvalidNameError):
        kp.store_dir(session, "a/b")
    assert not (tmp_path / "store").exists()


def test_a_file_that_may_not_be_read_is_named(
    session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As root, who may read everything, nothing else would do.
    monkeypatch.setattr(os, "access", lambda name, *_, **__: name != "a.bin")
    with pytest.raises(SourceFileError, match=r"sub/a\.bin cannot be read: permission denied"):
        kp.store_dir(session)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("own", ["store", "config"])
def test_our_own_directories_are_not_stored(tmp_path: Path, own: str) -> None:
    (tmp_path / own).mkdir()
    with pytest.raises(SourceFileError, match=f"{own} is kachery-p2p's own"):
        kp.store_dir(tmp_path)


def test_64_directories_below_each_other_are_stored_and_no_more(tmp_path: Path) -> None:
    top = tmp_path / "deep"
    os.makedirs(top / "/".join("d" * 64))
    assert found(kp.load_dir(kp.store_dir(top), tmp_path / "copy")) == found(top)
    os.makedirs(top / "/".join("d" * 65))
    with pytest.raises(UnsupportedValueError, match="more than 64 directories deep"):
        kp.store_dir(top)


def test_a_directory_with_too_many_entries_is_refused(
    session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 4 files and 3 directories.
    monkeypatch.setattr(source_tree, "DIRECTORY_ENTRIES_MAX", 7)
    kp.store_dir(session)
    monkeypatch.setattr(source_tree, "DIRECTORY_ENTRIES_MAX", 6)
    with pytest.raises(UnsupportedValueError, match="more than 6 entries"):
        kp.store_dir(session)


@pytest.mark.parametrize("victim", ["sub/a.bin", "sub", "sub/deep"])
@pytest.mark.parametrize("by", ["link", "pipe", "nothing"])
def test_what_is_replaced_after_it_was_looked_at_is_not_followed(
    session: Path, tmp_path: Path, victim: str, by: str
) -> None:
    secret = make(tmp_path / "secret", {"a.bin": b"secret", "b.bin": b"secret", "deep": None})
    with SourceTree(str(session)) as tree:
        (session / victim).rename(tmp_path / "away")
        if by == "link":
            (session / victim).symlink_to(secret if victim != "sub/a.bin" else secret / "a.bin")
        elif by == "pipe":
            os.mkfifo(session / victim)
        with pytest.raises(SourceChangedError, match=f"{victim}.* was removed or replaced"):
            for descriptor in tree.descriptors():
                assert b"secret" not in os.pread(descriptor, 100, 0)


def test_descriptors_of_files_do_not_pile_up(tmp_path: Path) -> None:
    count = 3 * GROUP_OBJECTS_MIN
    top = make(tmp_path / "many", {str(n): b"%d" % n for n in range(count)})
    before = len(os.listdir("/proc/self/fd"))
    with SourceTree(str(top)) as tree:
        opened = [len(os.listdir("/proc/self/fd")) for _ in tree.descriptors()]
        assert len(opened) == count
        assert max(opened) <= before + GROUP_OBJECTS_MIN + 2
    # What earlier tests left to the garbage collector may be closed meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= before


# --- loading ------------------------------------------------------------------------------------


def test_a_directory_comes_back_as_it_was(session: Path, uri: str, tmp_path: Path) -> None:
    copy = kp.load_dir(uri, tmp_path / "copy")
    assert copy == str(tmp_path / "copy") and found(copy) == found(session)
    assert kp.store_dir(copy, "session.1") == uri
    kp.load_dir(f"{uri}/sub", tmp_path / "sub")
    assert found(tmp_path / "sub") == found(session / "sub")
    # Copies are the user's own: they may be written.
    assert stat.S_IMODE(os.stat(f"{copy}/notes.txt").st_mode) & 0o200


def test_without_a_destination_the_stored_files_are_named(session: Path, uri: str) -> None:
    paths = kp.load_dir(uri)
    assert list(paths) == ["sub/deep/b.bin", "sub/a.bin", "empty.csv", "notes.txt"]
    for name, path in paths.items():
        assert path.endswith(sha1((session / name).read_bytes()))


def test_a_file_of_a_directory_is_loaded_like_any_other(uri: str, tmp_path: Path) -> None:
    assert kp.load_text(f"{uri}/notes.txt") == "test-content\n"
    assert kp.load_bytes(f"{uri}/sub/deep/b.bin", CHUNK_BYTES, CHUNK_BYTES + 7) == bytes(
        (TREE["sub/deep/b.bin"] or b"")[-7:]
    )
    with kp.open(f"  {uri.upper().replace('SESSION', 'session')}/sub/a.bin") as file:
        assert file.read() == b"a" * 100
    (tmp_path / "out").mkdir()
    assert kp.load_file(f"{uri}/sub/a.bin", tmp_path / "out") == f"{tmp_path}/out/a.bin"
    assert kp.find_file(f"{uri}/notes.txt").local


@pytest.mark.parametrize("load", [kp.load_file, kp.load_text, kp.open, kp.find_file])
def test_a_directory_is_no_file_and_a_file_no_directory(
    uri: str, load: Callable[[str], object]
) -> None:
    for path in ("", "/", "/sub"):
        with pytest.raises(PathNotFoundError, match="names a directory, not a file"):
            load(uri + path)
    with pytest.raises(PathNotFoundError, match=r"notes\.txt is a file of the directory"):
        kp.read_dir(f"{uri}/notes.txt")
    with pytest.raises(PathNotFoundError, match="there is no 'x' in 'sub'"):
        kp.load_dir(f"{uri}/sub/x")
    with pytest.raises(InvalidNameError):
        load(f"{uri}/sub/../notes.txt")


def test_the_uri_of_a_file_is_no_directory() -> None:
    with pytest.raises(UnsupportedValueError, match="names no directory"):
        kp.read_dir(kp.store_text("{}"))
    with pytest.raises(DataFormatError):
        kp.read_dir(f"sha1dir://{kp.store_text('{}')[7:47]}")


def test_files_are_fetched_through_the_daemon(daemon: Any, tmp_path: Path) -> None:
    data = {"a.txt": b"far", "b.txt": b"farther"}
    files = {
        name: {"size": len(one), "sha1": daemon.give_network(one)} for name, one in data.items()
    }
    content = daemon.give_network(json.dumps({"files": files, "dirs": {}}).encode())
    kp.load_dir(f"sha1dir://{content}.far", tmp_path / "copy")
    assert found(tmp_path / "copy") == data
    assert daemon.operations == ["load", "load_many"]


@pytest.mark.parametrize("rooted", [True, False])
def test_of_a_large_file_only_what_is_read_is_fetched_if_the_list_has_its_root(
    daemon: Any, rooted: bool
) -> None:
    data = b"a" * CHUNK_BYTES + b"end"
    file = {"size": len(data), "sha1": daemon.give_network(data)}
    if rooted:
        file["root"] = "1" * 64
    uri = listed({"files": {"rec.h5": file}, "dirs": {}})
    daemon.operations.clear()
    warned = contextlib.nullcontext() if rooted else pytest.warns(UserWarning, match="no .root=")
    with warned, kp.open(f"{uri}/rec.h5") as opened:
        opened.seek(-3, os.SEEK_END)
        assert opened.read() == b"end"
        # Where it is, so that the list is not looked into for each block.
        assert not rooted or str(opened.name).startswith(f"sha1://{file['sha1']}/rec.h5?root=")
    assert ("load" in daemon.operations) == (not rooted)


def test_what_cannot_be_loaded_is_named_by_its_path_and_nothing_is_written(
    daemon: Any, tmp_path: Path
) -> None:
    here = {"size": 4, "sha1": kp.store_text("here")[7:47]}
    away = {"size": 4, "sha1": "0" * 40}
    uri = listed({"files": {"a": here}, "dirs": {"sub": {"files": {"b": away}, "dirs": {}}}})
    with pytest.raises(LoadFilesError, match=r"1 file was not loaded \(of 2 .*: sub/b: ") as caught:
        kp.load_dir(uri, tmp_path / "copy")
    assert list(caught.value.failed) == ["sub/b"]
    assert isinstance(caught.value.failed["sub/b"], NotFoundError)
    assert not (tmp_path / "copy").exists()


def test_a_list_that_nobody_has_is_not_found() -> None:
    calls: tuple[Callable[[str], object], ...] = (kp.read_dir, kp.load_dir, kp.load_text)
    for call in calls:
        with pytest.raises(NotFoundError):
            call("sha1dir://" + "0" * 40 + ".x")


def test_a_list_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    file = {"size": 5, "sha1": kp.store_text("here")[7:47]}
    uri = listed({"files": {"a": file}, "dirs": {}})
    for dest in (None, tmp_path / "copy"):
        with pytest.raises(DataFormatError, match="gives a 5 bytes, and its content has 4"):
            kp.load_dir(uri, dest)
    assert not (tmp_path / "copy").exists()


def test_a_file_named_by_its_md5_is_listed_and_not_loaded(tmp_path: Path) -> None:
    uri = listed({"files": {"a": {"size": 5, "md5": "0" * 32}}, "dirs": {}})
    assert kp.read_dir(uri)["files"]["a"]["md5"] == "0" * 32
    calls: tuple[Callable[[], object], ...] = (
        lambda: kp.load_dir(uri, tmp_path / "copy"),
        lambda: kp.load_text(f"{uri}/a"),
    )
    for call in calls:
        with pytest.raises(UnknownSchemeError, match="md5"):
            call()
    assert not (tmp_path / "copy").exists()


def test_a_list_too_long_is_not_read(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_lists, "DIRECTORY_BYTES_MAX", 100)
    with pytest.raises(DataFormatError, match="more than 100"):
        kp.read_dir(uri)


def test_a_list_is_decoded_once_for_many_files(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = Directory.decode

    def counted(data: bytes) -> Directory:
        decoded.append(len(data))
        return decode(data)

    monkeypatch.setattr(Directory, "decode", counted)
    for _ in range(3):
        kp.load_text(f"{uri}/notes.txt")
    assert len(decoded) == 1
    for number in range(KEPT_DIRECTORIES_MAX):
        kp.read_dir(listed({"files": {}, "dirs": {str(number): {"files": {}, "dirs": {}}}}))
    assert len(directory_lists._decoded) == KEPT_DIRECTORIES_MAX
    kp.load_text(f"{uri}/notes.txt")
    assert len(decoded) == 2 + KEPT_DIRECTORIES_MAX


def test_what_is_stored_is_verified_if_asked(uri: str, tmp_path: Path) -> None:
    path = Path(kp.load_file(f"{uri}/notes.txt"))
    path.chmod(0o644)
    path.write_bytes(b"test-kontent\n")
    with pytest.raises(kp.LoadFileError, match="quarantine"):
        kp.load_dir(uri, tmp_path / "copy", verify=True)


# --- what is there already ----------------------------------------------------------------------


def test_an_interrupted_load_goes_on_where_it_stopped(
    uri: str, session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[tuple[str, ...]] = []
    copy = destination._copy

    def interrupted(source: int, target: int, one: Copy, progress: Callable[[int], None]) -> None:
        if len(copied) == 3:
            raise KeyboardInterrupt
        copied.append(one.path)
        copy(source, target, one, progress)

    monkeypatch.setattr(destination, "GROUP_OBJECTS_MAX", 2)
    with monkeypatch.context() as patch:
        patch.setattr(destination, "_copy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kp.load_dir(uri, tmp_path / "copy")
    # The first group is there, of the second nothing; and no temporary file.
    there = {name for name, data in found(tmp_path / "copy").items() if data is not None}
    assert there == {"sub/deep/b.bin", "sub/a.bin"}
    copied.clear()

    def counted(source: int, target: int, one: Copy, progress: Callable[[int], None]) -> None:
        copied.append(one.path)
        copy(source, target, one, progress)

    monkeypatch.setattr(destination, "_copy", counted)
    kp.load_dir(uri, tmp_path / "copy")
    assert copied == [("empty.csv",), ("notes.txt",)]
    assert found(tmp_path / "copy") == found(session)


def test_what_is_right_in_the_destination_is_not_fetched(daemon: Any, tmp_path: Path) -> None:
    make(tmp_path / "copy", {"sub/a": b"far", "mine": b"mine"})
    inner = {"files": {"a": {"size": 3, "sha1": sha1(b"far")}}, "dirs": {}}
    kp.load_dir(listed({"files": {}, "dirs": {"sub": inner}}), tmp_path / "copy")
    assert "load" not in daemon.operations
    assert found(tmp_path / "copy") == {"sub": None, "sub/a": b"far", "mine": b"mine"}


def other_bytes(path: Path) -> None:
    path.write_bytes(b"fat")


def right_bytes_behind_a_link(path: Path) -> None:
    (path.parents[1] / "far").write_bytes(b"far")
    path.symlink_to(path.parents[1] / "far")


def directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("plant", [other_bytes, right_bytes_behind_a_link, directory, pipe])
def test_what_is_in_the_way_stays_and_nothing_is_fetched(
    daemon: Any, tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    content = daemon.give_network(b"far")
    uri = listed({"files": {"a": {"size": 3, "sha1": content}}, "dirs": {}})
    (tmp_path / "copy").mkdir()
    plant(tmp_path / "copy/a")
    before = os.lstat(tmp_path / "copy/a")
    with pytest.raises(ResolutionError, match="copy/a is "):
        kp.load_dir(uri, tmp_path / "copy")
    assert os.lstat(tmp_path / "copy/a") == before
    assert "load" not in daemon.operations


def test_a_link_in_the_place_of_a_directory_is_not_followed(tmp_path: Path, uri: str) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "copy/sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResolutionError, match="copy/sub.* is in the way"):
        kp.load_dir(uri, tmp_path / "copy")
    assert os.listdir(tmp_path / "elsewhere") == []


def test_the_destination_itself_may_be_a_link(tmp_path: Path, uri: str, session: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "copy").symlink_to(tmp_path / "disk")
    kp.load_dir(uri, tmp_path / "copy")
    assert found(tmp_path / "disk") == found(session)


def test_a_file_that_appears_while_copying_is_not_overwritten(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = destination._copy

    def meanwhile(source: int, target: int, one: Copy, progress: Callable[[int], None]) -> None:
        (tmp_path / "copy/notes.txt").write_text("mine")
        copy(source, target, one, progress)

    monkeypatch.setattr(destination, "_copy", meanwhile)
    with pytest.raises(ResolutionError, match=r"notes\.txt is there already"):
        kp.load_dir(uri, tmp_path / "copy")
    assert (tmp_path / "copy/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("dest", ["session.1/notes.txt", "missing/copy", "session.1/notes.txt/x"])
def test_a_destination_that_cannot_be_is_said(uri: str, tmp_path: Path, dest: str) -> None:
    with pytest.raises(ResolutionError, match=r"notes\.txt|missing"):
        kp.load_dir(uri, tmp_path / dest)


def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes, offset: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kachery_p2p.store.copying.write_all", full)
    monkeypatch.delattr(os, "copy_file_range")
    with pytest.raises(StorageFullError, match=r"no space is left for .*copy/sub/deep/b\.bin"):
        kp.load_dir(uri, tmp_path / "copy")
    assert set(found(tmp_path / "copy").values()) == {None}


@pytest.mark.parametrize("together", [True, False])
def test_bytes_are_on_disk_before_they_have_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    count = GROUP_OBJECTS_MIN + 1
    uri = kp.store_dir(make(tmp_path / "many", {str(n): b"%d" % n for n in range(count)}))
    events: list[str] = []
    rename = os.rename

    def renamed(*arguments: Any, **keywords: Any) -> None:
        events.append("name")
        rename(*arguments, **keywords)

    monkeypatch.setattr(destination, "syncs_at_once", lambda fd: together)
    monkeypatch.setattr(destination, "sync_file", lambda fd: events.append("file"))
    monkeypatch.setattr(destination, "sync_filesystem", lambda fd: events.append("all"))
    monkeypatch.setattr(os, "rename", renamed)
    kp.load_dir(uri, tmp_path / "copy")
    assert events == (["all"] if together else ["file"] * count) + ["name"] * count


def test_what_a_killed_load_left_is_removed_and_what_a_living_one_has_is_not(
    uri: str, tmp_path: Path, session: Path
) -> None:
    left, used, mine = (f".kp2p-{digit * 32}.tmp" for digit in "0ab")
    copy = make(tmp_path / "copy", {f"{left}/0": b"x", f"{used}/0": b"x", f"{mine}/note": b"x"})
    lock = os.open(copy / used, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kp.load_dir(uri, copy)
    finally:
        os.close(lock)
    assert set(os.listdir(copy)) == {*os.listdir(session), used, mine}


def test_a_directory_with_such_a_name_is_no_leftover(tmp_path: Path) -> None:
    top = make(tmp_path / "odd", {f".kp2p-{'0' * 32}.tmp/0": b"x", "a": b"a"})
    uri = kp.store_dir(top)
    kp.load_dir(uri, tmp_path / "copy")
    (tmp_path / "copy/a").unlink()
    kp.load_dir(uri, tmp_path / "copy")
    assert found(tmp_path / "copy") == found(top)


# --- hostile names ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*EVIL, *VECTORS["bad_names"]], ids=ascii)
@pytest.mark.parametrize("kind", ["file", "directory", "inside"])
def test_no_list_makes_anything_outside_its_destination(
    tmp_path: Path, name: str, kind: str
) -> None:
    file = {"size": 4, "sha1": kp.store_text("evil")[7:47]}
    empty: dict[str, Any] = {"files": {}, "dirs": {}}
    records: dict[str, dict[str, Any]] = {
        "file": {"files": {name: file}, "dirs": {}},
        "directory": {"files": {}, "dirs": {name: {"files": {"x": file}, "dirs": {}}}},
        "inside": {"files": {}, "dirs": {"a": {"files": {name: file}, "dirs": {"b": empty}}}},
    }
    uri = listed(records[kind])
    before = set(tmp_path.rglob("*"))
    calls: tuple[Callable[[], object], ...] = (
        lambda: kp.load_dir(uri, tmp_path / "copy"),
        lambda: kp.read_dir(uri),
    )
    for call in calls:
        with pytest.raises(InvalidNameError) as caught:
            call()
        assert str(caught.value).isprintable()
    assert set(tmp_path.rglob("*")) == before


names = st.one_of(
    st.sampled_from([*EVIL, *VECTORS["bad_names"], "a", "sub", ".hidden"]),
    st.text(max_size=20),
    st.text(alphabet="./\\~\0a\n", max_size=8),
)


@hypothesis_settings(
    derandomize=True,
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(names, min_size=1, max_size=4))
@example(["..", "..", "x"])
@example(["a/../../x"])
def test_every_path_that_is_made_is_inside_the_destination(tmp_path: Path, path: list[str]) -> None:
    """Even if the list had not been checked."""
    world = tmp_path / "world"
    (world / "top").mkdir(parents=True, exist_ok=True)
    (world / "stored").write_bytes(b"evil")
    with Destination(str(world / "top")) as place:
        try:
            place.make([tuple(path[: end + 1]) for end in range(len(path) - 1)])
            place.fill([Copy(tuple(path), str(world / "stored"), 4)], lambda count: None)
        except KacheryError:
            pass
    assert set(os.listdir(world)) == {"top", "stored"}
    assert (world / "stored").read_bytes() == b"evil"
    for made in (world / "top").rglob("*"):
        assert made.resolve().is_relative_to(world / "top") and not made.is_symlink()


# --- sharing ------------------------------------------------------------------------------------


def test_the_uri_of_a_directory_shares_all_of_it(session: Path, tmp_path: Path) -> None:
    uri = kp.store_dir(session, channels=[])
    assert kp.share(uri).files == 5
    assert sorted(shares(tmp_path / "config")) == sorted(
        {uri[10:50], *(sha1(data) for data in TREE.values() if data is not None)}
    )
    assert kp.share(f"{uri}/sub/a.bin").files == 2
    with pytest.raises(NotFoundError):
        kp.share(listed({"files": {"a": {"size": 1, "sha1": "0" * 40}}, "dirs": {}}))


# --- light imports ------------------------------------------------------------------------------


def test_loading_a_stored_file_by_its_path_imports_nothing_heavy(uri: str) -> None:
    code = (
        "import sys, kachery_p2p as kp\n"
        "assert kp.load_file(sys.argv[1])\n"
        "heavy = {'trio', 'libp2p', 'numpy', 'cryptography', 'msgpack', 'click', 'sqlite3',\n"
        "         'blake3', 'h11', 'http.client', 'asyncio', 'logging', 'tempfile'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(
        [sys.executable, "-c", code, f"{uri}/notes.txt"], env=environment, check=True, timeout=60
    )


def test_uris_of_files_are_what_ls_says(uri: str) -> None:
    wanted = parse_uri(f"sha1://{sha1(b'test-content' + bytes([10]))}/notes.txt")
    assert directory_lists.file_at(f"{uri}/notes.txt") == wanted
