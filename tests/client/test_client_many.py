"""Several files in one call, links, offline directories and the other names of the API."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kachery_p2p as kp
from kachery_p2p.client import batches, settings
from kachery_p2p.errors import (
    ConfigError,
    CorruptObjectError,
    DaemonDownError,
    DaemonProtocolError,
    InvalidNameError,
    LinkChangedError,
    LoadFilesError,
    NotFoundError,
    RootMismatchError,
    SourceFileError,
    StoreError,
    StoreFilesError,
    UnknownChannelError,
    UnsupportedValueError,
    UriError,
)
from kachery_p2p.limits import CHUNK_BYTES, GROUP_OBJECTS_MIN

MISSING = "sha1://" + "0" * 40


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def shares(config: Path) -> list[tuple[str, list[str] | None]]:
    log = config / "shares.log"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [(row["content"], row["channels"]) for row in rows]


def make(directory: Path, count: int) -> list[Path]:
    paths = [directory / f"{number}.txt" for number in range(count)]
    for path in paths:
        path.write_text(path.name)
    return paths


# --- several files ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3, GROUP_OBJECTS_MIN + 2])
def test_many_files_are_stored_in_order_with_one_note(tmp_path: Path, count: int) -> None:
    paths = make(tmp_path, count)
    uris = kp.store_files(paths)
    assert uris == [f"sha1://{sha1(p.name.encode())}/{p.name}" for p in paths]
    assert [content for content, _ in shares(tmp_path / "config")] == [uri[7:47] for uri in uris]
    assert [Path(path).read_text() for path in kp.load_files(uris)] == [p.name for p in paths]


def test_files_with_one_content_keep_their_names_and_are_shared_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("same")
    first, second = kp.store_files([tmp_path / "a", tmp_path / "b"])
    assert (first[-2:], second[-2:]) == ("/a", "/b")
    assert len(shares(tmp_path / "config")) == 1


def test_private_files_are_not_noted(tmp_path: Path) -> None:
    kp.store_files(make(tmp_path, 2), channels=[])
    assert shares(tmp_path / "config") == []


def test_what_cannot_be_stored_is_named_and_the_others_are_stored(tmp_path: Path) -> None:
    good, other = make(tmp_path, 2)
    (tmp_path / "dir").mkdir()
    bad = [tmp_path / "missing", tmp_path / "dir"]
    with pytest.raises(StoreFilesError, match=r"2 files were not stored \(of 4\)") as caught:
        kp.store_files([good, bad[0], other, bad[1]])
    error = caught.value
    assert list(error.failed) == [str(path) for path in bad]
    assert all(isinstance(one, SourceFileError) for one in error.failed.values())
    assert error.exit_code == SourceFileError.exit_code
    assert error.uris[1] is error.uris[3] is None
    assert [kp.load_text(uri) for uri in error.uris if uri] == ["0.txt", "1.txt"]
    assert len(shares(tmp_path / "config")) == 2


def test_a_name_that_cannot_be_is_refused_before_anything_is_stored(tmp_path: Path) -> None:
    (tmp_path / "bad\nname").touch()
    with pytest.raises(InvalidNameError):
        kp.store_files([*make(tmp_path, 1), tmp_path / "bad\nname"])
    assert not (tmp_path / "store").exists()


def test_one_path_or_uri_is_not_a_list_of_them() -> None:
    calls: tuple[Callable[[Any], object], ...] = (kp.store_files, kp.load_files)
    for call in calls:
        for one in ("a.txt", Path("a.txt"), b"a"):
            with pytest.raises(UnsupportedValueError, match="give a list"):
                call(one)


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    here = kp.store_text("x")
    with pytest.raises(LoadFilesError, match=r"1 file was not loaded \(of 2\)") as caught:
        kp.load_files([here, MISSING])
    assert list(caught.value.failed) == [MISSING]
    assert isinstance(caught.value.failed[MISSING], NotFoundError)
    assert isinstance(caught.value, kp.LoadFileError)
    assert caught.value.hint is not None


def test_a_mistyped_uri_is_said_before_anything_is_fetched(daemon: Any) -> None:
    content = daemon.give_network(b"far")
    with pytest.raises(LoadFilesError) as caught:
        kp.load_files([f"sha1://{content}", "sha1://abc"])
    assert isinstance(caught.value.failed["sha1://abc"], UriError)
    assert daemon.operations == []


def test_many_are_loaded_from_here_and_through_the_daemon(daemon: Any) -> None:
    here = kp.store_text("here")
    far = [f"sha1://{daemon.give_network(data)}" for data in (b"far", b"farther")]
    paths = kp.load_files([far[0], here, far[1], here])
    assert [Path(path).read_text() for path in paths] == ["far", "here", "farther", "here"]
    assert daemon.operations[-1] == "load_many"
    assert daemon.operations.count("load") == 0


def test_thousands_are_asked_for_in_few_calls_and_in_order(
    daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "LOAD_MANY_MAX", 40)
    datas = [f"far {number}".encode() for number in range(100)]
    uris = [f"sha1://{daemon.give_network(data)}/{number}" for number, data in enumerate(datas)]
    # The last ones again under another name: one content is asked for once.
    uris += [f"{uri}-again" for uri in uris[90:]]
    paths = kp.load_files(uris)
    assert [Path(path).read_bytes() for path in paths] == datas + datas[90:]
    assert daemon.operations == ["load_many"] * 3


def test_what_the_daemon_left_unanswered_is_asked_for_again(daemon: Any) -> None:
    daemon.answered_max = 7
    uris = [f"sha1://{daemon.give_network(str(n).encode())}" for n in range(20)]
    assert [Path(path).read_text() for path in kp.load_files(uris)] == [str(n) for n in range(20)]
    assert daemon.operations == ["load_many"] * 3


def test_a_daemon_that_answers_for_none_is_not_asked_for_ever(daemon: Any) -> None:
    daemon.answered_max = 0
    with pytest.raises(LoadFilesError) as caught:
        kp.load_files([f"sha1://{daemon.give_network(b'x')}"])
    assert isinstance(next(iter(caught.value.failed.values())), DaemonProtocolError)


def test_each_that_fails_has_its_own_error_and_the_others_are_there(daemon: Any) -> None:
    far = [f"sha1://{daemon.give_network(data)}" for data in (b"far", b"farther")]
    with pytest.raises(LoadFilesError, match=r"2 files were not loaded \(of 4\)") as caught:
        kp.load_files([far[0], MISSING, far[1], MISSING[:-1] + "1"])
    assert list(caught.value.failed) == [MISSING, MISSING[:-1] + "1"]
    for error in caught.value.failed.values():
        assert isinstance(error, NotFoundError)
        assert error.hint == "ask its owner"
    daemon.stop()
    assert [Path(path).read_text() for path in kp.load_files(far)] == ["far", "farther"]


def test_with_no_daemon_each_says_that_it_is_not_stored_here(tmp_path: Path) -> None:
    uris = [f"sha1://{number:040x}" for number in range(50)]
    with pytest.raises(LoadFilesError) as caught:
        kp.load_files(uris)
    assert list(caught.value.failed) == uris
    for uri, error in caught.value.failed.items():
        assert isinstance(error, NotFoundError)
        assert uri in str(error)
        assert "no daemon is running" in str(error)


def test_files_in_directories_are_loaded_with_the_others(daemon: Any, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "a.txt").write_text("a")
    (tree / "sub" / "b.txt").write_text("b")
    uri = kp.store_dir(tree)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    for path in (tmp_path / "elsewhere" / "sha1").rglob("*"):
        if path.is_file():
            daemon.give_network(path.read_bytes())
    daemon.operations.clear()
    far = f"sha1://{daemon.give_network(b'c')}"
    paths = kp.load_files([f"{uri}/sub/b.txt", far, f"{uri}/a.txt"])
    assert [Path(path).read_text() for path in paths] == ["b", "c", "a"]
    # The list, and all the files at once.
    assert daemon.operations == ["load", "load_many"]
    with pytest.raises(LoadFilesError) as caught:
        kp.load_files([f"{uri}/sub", f"{uri}/missing", f"{uri}/a.txt"])
    assert {kind.__name__ for kind in map(type, caught.value.failed.values())} == {
        "PathNotFoundError"
    }
    assert len(caught.value.failed) == 2


def test_a_directory_is_loaded_in_one_call(daemon: Any, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(30):
        (tree / str(number)).write_text(str(number))
    uri = kp.store_dir(tree)
    for path in list((tmp_path / "store" / "sha1").rglob("*")):
        if path.is_file():
            daemon.give_network(path.read_bytes())
            path.unlink()
    daemon.operations.clear()
    copy = kp.load_dir(uri, tmp_path / "copy")
    assert sorted(path.read_text() for path in Path(copy).iterdir()) == sorted(map(str, range(30)))
    assert daemon.operations == ["load", "load_many"]


def test_a_daemon_with_another_store_hands_each_over(distant: Any) -> None:
    uris = [f"sha1://{distant.give_network(data)}" for data in (b"far", b"farther")]
    paths = kp.load_files(uris)
    assert [Path(path).read_text() for path in paths] == ["far", "farther"]
    assert distant.operations == ["load_many", "load", "load"]


def test_a_daemon_on_another_machine_brings_them_first(remote: Any) -> None:
    uris = [f"sha1://{remote.give_network(data)}" for data in (b"far", b"farther")]
    assert [Path(path).read_text() for path in kp.load_files(uris)] == ["far", "farther"]
    assert remote.operations[0] == "load_many"


def test_with_a_daemon_many_are_shared_by_one_call(daemon: Any, tmp_path: Path) -> None:
    kp.store_files(make(tmp_path, 5), channels=["lab"])
    assert daemon.operations.count("share") == 1
    assert [channels for _, channels in daemon.shared] == [["lab"]] * 5


def test_a_daemon_with_another_store_is_handed_each_file(distant: Any, tmp_path: Path) -> None:
    paths = make(tmp_path, 2)
    with pytest.raises(StoreFilesError) as caught:
        kp.store_files([paths[0], tmp_path / "missing", paths[1]])
    assert distant.operations.count("store") == 2
    assert [content for content, _ in distant.shared] == [
        uri[7:47] for uri in caught.value.uris if uri
    ]
    assert not (tmp_path / "store").exists()


def test_a_daemon_on_another_machine_is_sent_what_it_lacks(remote: Any, tmp_path: Path) -> None:
    uris = kp.store_files(make(tmp_path, 3))
    assert sorted(remote.put_in) == sorted(uri[7:47] for uri in uris)


# --- links --------------------------------------------------------------------------------------


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "recording.h5"
    path.write_bytes(os.urandom(CHUNK_BYTES + 5))
    return path


def test_a_linked_file_is_loaded_from_where_it_lies(big: Path, tmp_path: Path) -> None:
    uri = kp.link_file(big)
    assert uri.startswith(f"sha1://{sha1(big.read_bytes())}/recording.h5?root=")
    assert kp.load_file(uri) == str(big)
    assert kp.load_bytes(uri, CHUNK_BYTES, CHUNK_BYTES + 5) == big.read_bytes()[CHUNK_BYTES:]
    with kp.open(uri) as file:
        assert file.read() == big.read_bytes()
    assert not list((tmp_path / "store").rglob("*"))
    assert [content for content, _ in shares(tmp_path / "config")] == [uri[7:47]]
    copy = kp.load_file(uri, tmp_path / "copy")
    assert Path(copy).read_bytes() == big.read_bytes()


def test_a_linked_file_that_changed_is_never_returned(big: Path) -> None:
    uri = kp.link_file(big, label="x", channels=[])
    big.write_bytes(b"other")
    with pytest.raises(LinkChangedError):
        kp.load_file(uri)
    with pytest.raises(NotFoundError):
        kp.load_file(uri)


def test_a_linked_file_that_is_away_comes_back(big: Path) -> None:
    uri = kp.link_file(big)
    big.rename(big.with_suffix(".away"))
    with pytest.raises(NotFoundError):
        kp.load_file(uri)
    big.with_suffix(".away").rename(big)
    assert kp.load_file(uri) == str(big)


def test_a_link_of_an_older_package_is_followed(big: Path, tmp_path: Path) -> None:
    content = sha1(big.read_bytes())
    place = tmp_path / "store" / "sha1" / content[:2] / content[2:4] / content[4:6]
    place.mkdir(parents=True)
    status = big.stat()
    told = {"path": str(big), "stat": {"size": status.st_size, "mtime": status.st_mtime}}
    (place / f"{content}.link").write_text(json.dumps(told))
    assert kp.load_file(f"sha1://{content}") == str(big)


def test_what_cannot_be_linked_says_why(tmp_path: Path) -> None:
    for bad in (tmp_path / "missing", tmp_path):
        with pytest.raises(SourceFileError):
            kp.link_file(bad)
    with pytest.raises(UnknownChannelError):
        kp.link_file(make(tmp_path, 1)[0], channels=["nowhere"])


def test_a_linked_file_is_sent_to_a_daemon_on_another_machine(remote: Any, big: Path) -> None:
    uri = kp.link_file(big)
    assert remote.put_in == [uri[7:47]]


def test_a_daemon_of_the_same_configuration_sees_the_link(distant: Any, big: Path) -> None:
    uri = kp.link_file(big)
    assert [content for content, _ in distant.shared] == [uri[7:47]]
    assert "store" not in distant.operations


# --- verifying ----------------------------------------------------------------------------------


def test_what_is_stored_is_read_before_it_is_loaded_if_asked(tmp_path: Path) -> None:
    uri = kp.store_text("spikes")
    path = Path(kp.load_file(uri, verify=True))
    path.chmod(0o644)
    path.write_text("spiked")
    assert kp.load_file(uri) == str(path)
    with pytest.raises(CorruptObjectError, match="quarantine"):
        kp.load_file(uri, verify=True)
    with pytest.raises(NotFoundError):
        kp.load_file(uri)


def test_a_root_of_other_bytes_is_refused_if_asked() -> None:
    uri = kp.store_text("spikes")
    with pytest.raises(RootMismatchError):
        kp.load_file(f"{uri}?root={'1' * 64}", verify=True)


def test_a_corrupt_file_is_fetched_again_after_it_was_found(daemon: Any) -> None:
    content = daemon.give_network(b"spikes")
    path = Path(kp.load_file(f"sha1://{content}"))
    path.chmod(0o644)
    path.write_bytes(b"spiked")
    with pytest.raises(CorruptObjectError):
        kp.load_file(f"sha1://{content}", verify=True)
    daemon.give_network(b"spikes")
    assert kp.load_text(f"sha1://{content}") == "spikes"


# --- offline ------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KACHERY_OFFLINE_STORAGE_DIR", str(tmp_path / "offline"))
    return tmp_path / "offline"


def test_offline_everything_is_in_the_offline_directory(offline: Path, tmp_path: Path) -> None:
    uri = kp.store_text("x")
    assert kp.load_file(uri).startswith(str(offline))
    assert kp.load_text(uri) == "x"
    assert kp.store_files(make(tmp_path, 1)) != []
    assert kp.load_text(kp.link_file(make(tmp_path, 1)[0])) == "0.txt"
    assert shares(tmp_path / "config") == []
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "config" / "state" / "index.db").exists()


def test_offline_no_daemon_is_asked(daemon: Any, offline: Path) -> None:
    content = daemon.give_network(b"far" * CHUNK_BYTES)
    rooted = f"sha1://{content}?root={'1' * 64}"
    calls: tuple[Callable[[], object], ...] = (
        lambda: kp.load_file(f"sha1://{content}"),
        lambda: kp.load_bytes(rooted, 0, 1),
        lambda: kp.load_files([rooted]),
        lambda: kp.open(rooted),
        lambda: kp.open(f"sha1://{content}"),
    )
    for call in calls:
        with pytest.raises(kp.LoadFileError, match="KACHERY_OFFLINE_STORAGE_DIR is set"):
            call()
    kp.store_text("x")
    assert daemon.operations == []
    from kachery_p2p.client.daemon import connect

    with pytest.raises(DaemonDownError):
        connect()


def test_offline_nothing_can_be_shared(offline: Path, tmp_path: Path) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: kp.store_text("x", channels=["lab"]),
        lambda: kp.store_file(tmp_path / "0.txt", channels=["lab"]),
        lambda: kp.store_files([tmp_path / "0.txt"], channels=["lab"]),
        lambda: kp.link_file(tmp_path / "0.txt", channels=["lab"]),
    )
    make(tmp_path, 1)
    for call in calls:
        with pytest.raises(ConfigError, match="nothing can be shared"):
            call()
    assert not offline.exists()


def test_a_node_keeps_its_own_store_directory(offline: Path, tmp_path: Path) -> None:
    assert settings.node_storage_dir() == str(tmp_path / "store")
    assert settings.storage_dir() == str(offline)


# --- temporary directories ----------------------------------------------------------------------


def test_a_temporary_directory_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temp").mkdir()
    monkeypatch.setenv("KACHERY_TEMP_DIR", str(tmp_path / "temp"))
    with kp.TemporaryDirectory(prefix="sorting-") as path:
        Path(path, "file").touch()
        assert Path(path).parent == tmp_path / "temp"
        assert Path(path).name.startswith("sorting-")
    assert not os.path.exists(path)
    with kp.TemporaryDirectory(remove=False) as path:
        pass
    assert os.path.isdir(path)
    monkeypatch.setenv("KACHERY_KEEP_TEMP_FILES", "1")
    with kp.TemporaryDirectory() as path:
        pass
    assert os.path.isdir(path)


def test_a_temporary_directory_that_cannot_be_is_said(
    distant: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KACHERY_TEMP_DIR", str(tmp_path / "missing"))
    with pytest.raises(StoreError, match="missing"):
        kp.store_text("a value travels to the daemon in a temporary file")
    with pytest.raises(ConfigError, match="missing"), kp.TemporaryDirectory():
        pass


# --- older names, light imports -----------------------------------------------------------------


def test_the_older_names_work_and_say_the_new_ones() -> None:
    with pytest.warns(DeprecationWarning, match="store_json") as told:
        uri = kp.store_object({"example": "dict"})
    assert uri == "sha1://d0d9555e376ff13a08c6d56072808e27ca32d54a/file.json"
    assert told[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="load_json"):
        assert kp.load_object(uri) == {"example": "dict"}


def test_loading_many_stored_files_imports_nothing_heavy(tmp_path: Path) -> None:
    uris = kp.store_files(make(tmp_path, 3))
    code = (
        "import sys, kachery_p2p as kp\n"
        "assert len(kp.load_files(sys.argv[1:])) == 3\n"
        "kp.open(sys.argv[1]).close()\n"
        "heavy = {'trio', 'libp2p', 'numpy', 'cryptography', 'msgpack', 'click', 'sqlite3',\n"
        "         'blake3', 'h11', 'json', 'http.client', 'asyncio', 'logging', 'tempfile'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code, *uris], env=environment, check=True)
