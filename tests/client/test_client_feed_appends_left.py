"""Appending while the daemon goes away: never twice, and never said to be done when it is not."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kachery_p2p.client import feed_appends
from kachery_p2p.client.daemon import SOCKET_NAME, UnixDaemon, unix_daemon
from kachery_p2p.errors import DaemonBusyError, DaemonDownError, DaemonLeftError
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.wire.codec import encode_frame
from kachery_p2p.wire.feed_records import pack_texts
from tests.feeds.direct_logs import take_in
from tests.feeds.feed_logs import all_of
from tests.feeds.feed_parts import FEED, KEY, LOG, NAME, messages

WAIT_S = 10.0
# What the daemon does with one request after the other on a connection; it leaves after the last.
Does = Callable[[socket.socket], None]


@pytest.fixture
def config(environment: Path) -> Path:
    config = environment / "config"
    config.mkdir(mode=0o700)
    return config


@pytest.fixture
def own(config: Path) -> Iterator[LogFile]:
    """A subfeed with one message, as a daemon has it."""
    files = LogFiles(str(config / "feeds"))
    log = files.own(LOG, KEY)
    log.append(messages(1), 1)
    yield log
    files.close()


@contextlib.contextmanager
def daemon(config: Path, *connections: Sequence[Does]) -> Iterator[None]:
    """One that takes so many connections and does this on each, and then is gone."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(config / SOCKET_NAME))
    listening.listen(len(connections))
    listening.settimeout(WAIT_S)

    def serve() -> None:
        with listening:
            for number, does in enumerate(connections, 1):
                connection, _ = listening.accept()
                with connection:
                    connection.settimeout(WAIT_S)
                    if number == len(connections):
                        listening.close()
                    for do in does:
                        do(connection)

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        yield
    finally:
        serving.join(WAIT_S)
        (config / SOCKET_NAME).unlink()


def wait_for_request(connection: socket.socket) -> None:
    connection.recv(1, socket.MSG_PEEK)


def answer(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(encode_frame({"ok": {"first": 7}}))


def append(config: Path, text: bytes) -> int:
    def ask(texts: Sequence[bytes]) -> int:
        about = {"feed": str(FEED), "name_hash": str(NAME.name)}
        body = {**about, "messages": [text.decode() for text in texts]}
        return int(unix_daemon(str(config)).call("feed_append", body)[0]["first"])

    return feed_appends.append(str(FEED), str(NAME.name), [text], ask)


def test_what_the_daemon_may_have_appended_is_not_appended_once_more(
    config: Path, own: LogFile
) -> None:
    def append_it(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        own.append(messages(1, 1), 1)

    with daemon(config, [append_it]), pytest.raises(DaemonLeftError) as caught:
        append(config, b'"m1"')
    assert caught.value.hint
    assert "last messages" in caught.value.hint
    assert all_of(own) == messages(2)


def test_what_the_daemon_has_not_read_is_appended_here(config: Path, own: LogFile) -> None:
    with daemon(config, [wait_for_request]):
        assert append(config, b'"here"') == 1
    assert len(take_in(own)) == 1
    assert append(config, b'"again"') == 2


def test_what_a_daemon_that_takes_no_connection_was_never_asked_is_appended_here(
    config: Path, own: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.client.daemon.CALL_S_MAX", 0.05)
    with contextlib.ExitStack() as open_sockets:
        listening = open_sockets.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(str(config / SOCKET_NAME))
        listening.listen(0)
        for _ in range(9):
            waiting = open_sockets.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(str(config / SOCKET_NAME))
        with pytest.raises(DaemonBusyError) as caught:
            unix_daemon(str(config)).call("status", {})
        assert caught.value.hint
        assert append(config, b'"here"') == 1
    assert len(take_in(own)) == 1


def test_a_daemon_that_is_there_again_is_asked_again_only_if_nobody_read_it(config: Path) -> None:
    def read(connection: socket.socket) -> None:
        connection.recv(1 << 16)

    for left, error in ((read, DaemonLeftError), (wait_for_request, None)):
        asking = UnixDaemon(str(config))
        body = {"feed": str(FEED), "name_hash": str(NAME.name), "messages": ["1"]}
        with daemon(config, [answer, left], [answer]):
            assert asking.call("feed_append", body)[0] == {"first": 7}
            if error is None:
                assert asking.call("feed_append", body)[0] == {"first": 7}
            else:
                with pytest.raises(error):
                    asking.call("feed_append", body)
                # The one that is there now was not asked yet.
                assert asking.call("feed_append", body)[0] == {"first": 7}
        asking.close()


def test_a_request_that_could_not_be_sent_whole_was_not_read(config: Path) -> None:
    asking = UnixDaemon(str(config))
    about = {"feed": str(FEED), "name_hash": str(NAME.name)}
    body = {**about, "messages": pack_texts([b"1" * 900_000])}
    with daemon(config, [wait_for_request]), pytest.raises(DaemonDownError) as caught:
        asking.call("feed_append", body)
    assert not isinstance(caught.value, DaemonLeftError)
