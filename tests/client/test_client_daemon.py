"""The client with a daemon: the same store, another store, another machine, and no answer."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

import kachery_p2p as kp
from kachery_p2p.client import daemon as client_daemon
from kachery_p2p.client import http_daemon
from kachery_p2p.client.daemon import UnixDaemon, unix_daemon
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import (
    DaemonAuthError,
    DaemonDownError,
    DaemonError,
    DaemonProtocolError,
    DaemonTimeoutError,
    HashCollisionError,
    InvalidRangeError,
    NotFoundError,
    UnknownChannelError,
)
from kachery_p2p.limits import DOOR_CONNECTIONS_MAX

DATA = os.urandom(3 << 20)
HASH = hashlib.sha1(DATA).hexdigest()
Fake = Any


def uri(content: str = HASH) -> str:
    return f"sha1://{content}/data.bin"


def objects(store: Path) -> list[str]:
    return sorted(path.name for path in store.rglob("*") if path.is_file())


# --- loading -------------------------------------------------------------------------------


def test_a_hit_never_contacts_the_daemon(daemon: Fake) -> None:
    stored = kp.store_text("here", channels=[])
    daemon.operations.clear()
    assert kp.load_text(stored) == "here"
    assert daemon.operations == []


def test_a_miss_is_loaded_by_the_daemon_into_the_common_store(daemon: Fake) -> None:
    daemon.give_network(DATA)
    path = kp.load_file(uri())
    assert Path(path).read_bytes() == DATA
    assert path.startswith(str(daemon.store_dir))
    assert daemon.operations == ["load"]


@pytest.mark.parametrize("which", ["distant", "remote"])
def test_a_miss_is_copied_from_a_daemon_with_another_store(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    daemon = request.getfixturevalue(which)
    daemon.give_network(DATA)
    path = kp.load_file(uri())
    assert path.startswith(str(tmp_path / "store"))
    assert Path(path).read_bytes() == DATA
    daemon.operations.clear()
    assert kp.load_file(uri()) == path
    assert daemon.operations == []


@pytest.mark.parametrize("which", ["daemon", "distant", "remote"])
@pytest.mark.filterwarnings("ignore:.* are fetched and verified first:UserWarning")
def test_a_range_is_loaded_without_the_rest(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    daemon = request.getfixturevalue(which)
    daemon.give_network(DATA)
    assert kp.load_bytes(uri(), 5, 1 << 20) == DATA[5 : 1 << 20]
    assert kp.load_bytes(uri(), 7, 7) == b""
    with pytest.raises(InvalidRangeError):
        kp.load_bytes(uri(), 0, len(DATA) + 1)


@pytest.mark.parametrize("which", ["daemon", "remote"])
def test_an_error_of_the_daemon_is_raised_as_it_was_there(
    which: str, request: pytest.FixtureRequest
) -> None:
    daemon = request.getfixturevalue(which)
    with pytest.raises(NotFoundError, match="no peer has") as caught:
        kp.load_file(uri())
    assert caught.value.hint == "ask its owner"
    daemon.fail_with = HashCollisionError("two files")
    with pytest.raises(HashCollisionError, match="two files"):
        kp.load_file(uri())


def test_bytes_that_are_not_what_was_asked_for_are_never_kept(
    distant: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"not it")
    monkeypatch.setattr(distant, "_path", lambda content: str(wrong))
    with pytest.raises(kp.LoadFileError, match="sha1"):
        kp.load_file(uri())
    assert objects(tmp_path / "store") == []


def test_the_daemons_path_is_given_when_our_store_may_not_be_written(
    distant: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kachery_p2p.errors import StorePermissionError
    from kachery_p2p.store.blobs import BlobStore

    def refuse(*_: object) -> None:
        raise StorePermissionError("read-only")

    distant.give_network(DATA)
    distant.blobs.put_bytes(DATA)
    monkeypatch.setattr(BlobStore, "put_stream", refuse)
    assert kp.load_file(uri()).startswith(str(tmp_path / "their-store"))


# --- storing --------------------------------------------------------------------------------


def test_with_a_common_store_we_write_and_the_daemon_shares(daemon: Fake) -> None:
    content = kp.store_text("x", channels=["lab"])[7:47]
    assert daemon.shared == [(content, ["lab"])]
    assert "store" not in daemon.operations
    # It need not hash what we have: the index was told before the daemon was.
    assert daemon.blobs.known(ContentHash(content)) is not None


def test_what_is_private_is_not_told_to_be_shared(daemon: Fake) -> None:
    kp.store_text("x", channels=[])
    assert daemon.shared == []


def test_with_another_store_the_daemon_reads_our_descriptor(distant: Fake, tmp_path: Path) -> None:
    source = tmp_path / "a.bin"
    source.write_bytes(DATA)
    stored = kp.store_file(source)
    assert stored.startswith(f"sha1://{HASH}/a.bin?root=")
    assert kp.store_text("x").endswith("/file.txt")
    assert distant.operations.count("store") == 2
    assert objects(tmp_path / "store") == []


def test_a_remote_daemon_is_sent_what_it_lacks(remote: Fake, tmp_path: Path) -> None:
    source = tmp_path / "a.bin"
    source.write_bytes(DATA)
    kp.store_file(source)
    assert remote.put_in == [HASH]
    assert remote.shared == [(HASH, None)]
    kp.store_file(source)
    assert remote.put_in == [HASH]


def test_a_channel_that_the_daemon_does_not_know_is_its_error(daemon: Fake) -> None:
    with pytest.raises(UnknownChannelError):
        kp.store_text("x", channels=["nowhere"])


def test_a_daemon_that_is_gone_at_share_time_loses_nothing(
    daemon: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kachery_p2p.client import storing

    def gone(*_: object) -> None:
        raise DaemonDownError("gone")

    monkeypatch.setattr(storing, "_share_by_daemon", gone)
    content = kp.store_text("x")[7:47]
    assert content in (tmp_path / "config" / "shares.log").read_text()


# --- connections -----------------------------------------------------------------------------


def test_the_node_id_is_the_daemons(daemon: Fake) -> None:
    assert kp.get_node_id() == "12" * 32


def test_one_connection_serves_many_calls_and_a_restart(daemon: Fake, tmp_path: Path) -> None:
    connection = unix_daemon(str(tmp_path / "config"))
    connection.call("status", {})
    first = connection._socket
    connection.call("status", {})
    assert connection._socket is first
    daemon.stop()
    with pytest.raises(DaemonDownError):
        connection.call("status", {})
    daemon.start()
    connection.call("status", {})


@pytest.mark.filterwarnings("ignore:.* are fetched and verified first:UserWarning")
def test_many_threads_each_have_a_connection(daemon: Fake) -> None:
    daemon.give_network(DATA)
    failures: list[BaseException] = []

    def load() -> None:
        try:
            for _ in range(5):
                assert kp.get_node_id() == "12" * 32
            assert kp.load_bytes(uri(), 0, 4) == DATA[:4]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_more_clients_than_the_door_has_places_are_all_served(daemon: Fake) -> None:
    everyone = threading.Barrier(DOOR_CONNECTIONS_MAX + 20)
    served: list[str] = []

    def ask_twice() -> None:
        served.append(kp.get_node_id())
        everyone.wait(30)
        served.append(kp.get_node_id())

    threads = [threading.Thread(target=ask_twice) for _ in range(everyone.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert served == ["12" * 32] * (2 * everyone.parties)


def test_a_forked_worker_opens_its_own_connection(daemon: Fake) -> None:
    import subprocess
    import sys

    script = (
        "import os, kachery_p2p as kp\n"
        "kp.get_node_id()\n"
        "pid = os.fork()\n"
        "for _ in range(100): assert kp.get_node_id() == '12' * 32\n"
        "if pid: assert os.waitpid(pid, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


async def test_a_running_event_loop_does_not_mind(daemon: Fake) -> None:
    assert kp.get_node_id() == "12" * 32


def test_ctrl_c_leaves_no_half_answer_behind(daemon: Fake, tmp_path: Path) -> None:
    connection = unix_daemon(str(tmp_path / "config"))
    daemon.give_network(DATA)

    def interrupted(update: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    body = {"content": HASH, "root": None, "timeout_s": None}
    with pytest.raises(KeyboardInterrupt):
        connection.call("load", body, progress=interrupted)
    result, descriptor = connection.call("load", body)
    assert result["size"] == len(DATA)
    assert descriptor is not None
    os.close(descriptor)


# --- daemons that do not answer ------------------------------------------------------------------


@pytest.fixture
def mute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stopped daemon: it accepts (the kernel does) and says nothing."""
    monkeypatch.setattr(client_daemon, "CALL_S_MAX", 0.05)
    monkeypatch.setattr(http_daemon, "CALL_S_MAX", 0.05)
    (tmp_path / "config").mkdir()
    with socket.socket(socket.AF_UNIX) as unix, socket.socket() as tcp:
        unix.bind(str(tmp_path / "config" / "daemon.sock"))
        tcp.bind(("127.0.0.1", 0))
        unix.listen()
        tcp.listen()
        yield tcp.getsockname()[1]


def test_a_silent_daemon_is_a_timeout(mute: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DaemonTimeoutError):
        kp.load_file(uri())
    monkeypatch.setenv("KACHERY_DAEMON_PORT", str(mute))
    with pytest.raises(DaemonTimeoutError):
        kp.load_file(uri())


def test_a_call_ends_at_its_own_deadline(mute: int, tmp_path: Path) -> None:
    with pytest.raises(DaemonTimeoutError):
        UnixDaemon(str(tmp_path / "config")).call("status", {}, timeout_s=0.01)


def test_storing_does_not_wait_for_a_silent_daemon(mute: int, tmp_path: Path) -> None:
    stored = kp.store_text("x")
    assert kp.load_text(stored) == "x"
    assert stored[7:47] in (tmp_path / "config" / "shares.log").read_text()


@pytest.mark.parametrize("answer", [b"", b"junk", b"\0\0\0\1\xc1", b"\xff\xff\xff\xff"])
def test_a_daemon_that_talks_nonsense_is_an_error(tmp_path: Path, answer: bytes) -> None:
    (tmp_path / "config").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "config" / "daemon.sock"))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(DaemonError):
            UnixDaemon(str(tmp_path / "config")).call("status", {})
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [b"", b"junk\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n[1]", b"HTTP/1.1 500 Oops\r\n\r\n<html>"],
)
def test_what_is_no_daemon_at_that_port_is_an_error(
    monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("KACHERY_DAEMON_PORT", str(listening.getsockname()[1]))

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                while b"\r\n\r\n{" not in connection.recv(1 << 16, socket.MSG_PEEK):
                    pass
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(DaemonError):
            http_daemon.HttpDaemon("127.0.0.1", listening.getsockname()[1], "x").call("status", {})
        thread.join()


def test_no_daemon_at_that_port_is_said_with_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("KACHERY_DAEMON_PORT", str(port))
    with pytest.raises(NotFoundError, match=f"127.0.0.1:{port}"):
        kp.load_file(uri())


@pytest.mark.parametrize("token", ["", "cd" * 32, "with\nnewline", "ünicode"])
def test_a_wrong_token_is_refused_before_anything_is_stored(
    remote: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("KACHERY_DAEMON_TOKEN", token)
    with pytest.raises(DaemonAuthError, match="token"):
        kp.store_text("x")
    with pytest.raises(DaemonAuthError):
        kp.load_file(uri())
    assert remote.operations == []
    assert not (tmp_path / "store").exists()


def test_a_path_too_long_for_a_socket_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_daemon: Any
) -> None:
    config = tmp_path / ("x" * 120)
    monkeypatch.setenv("KACHERY_P2P_CONFIG_DIR", str(config))
    start_daemon(config, tmp_path / "store")
    assert kp.get_node_id() == "12" * 32


def test_a_result_that_the_table_forbids_is_an_error(
    daemon: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.node.doors.check_result", lambda operation, result: {"x": 1})
    with pytest.raises(DaemonProtocolError, match="version"):
        kp.get_node_id()


def test_the_older_names_of_the_daemons_address_are_read_and_the_newer_win(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kachery_p2p.client import settings

    for name in ("KACHERY_DAEMON_HOST", "KACHERY_DAEMON_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KACHERY_P2P_API_HOST", "192.0.2.9")
    monkeypatch.setenv("KACHERY_P2P_API_PORT", "20499")
    assert settings.daemon_address() == ("192.0.2.9", 20499)
    monkeypatch.setenv("KACHERY_DAEMON_HOST", "192.0.2.1")
    assert settings.daemon_address() == ("192.0.2.1", 20499)
