"""How a program tells its daemon that it appended: it never harms the program, nor the message."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kachery_p2p.client import feed_appends
from kachery_p2p.errors import DaemonDownError
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.poke import POKE_BYTES, SOCKET_NAME
from tests.feeds.direct_logs import take_in
from tests.feeds.feed_parts import FEED, KEY, LOG, NAME, messages


@pytest.fixture
def config(environment: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    config = environment / "config"
    config.mkdir(mode=0o700)
    # Each append tells; nothing is left of other tests.
    monkeypatch.setattr(feed_appends, "FEED_LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(feed_appends, "FEED_POKE_REST_S", 0.0)
    monkeypatch.setattr(feed_appends, "_line", None)
    return config


@pytest.fixture
def own(config: Path) -> Iterator[LogFile]:
    """A subfeed with one message, as a daemon has it."""
    files = LogFiles(str(config / "feeds"))
    log = files.own(LOG, KEY)
    log.append(messages(1), 1)
    yield log
    files.close()
    feed_appends._known.clear()


@pytest.fixture
def heard(config: Path) -> Iterator[socket.socket]:
    """What hears the words."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hearing:
        hearing.bind(str(config / SOCKET_NAME))
        hearing.setblocking(False)
        yield hearing


def append(text: bytes) -> int:
    def ask(texts: Sequence[bytes]) -> int:
        raise DaemonDownError("no daemon is running")

    return feed_appends.append(str(FEED), str(NAME.name), [text], ask)


def test_a_program_without_a_descriptor_left_appends_and_is_told_so(
    own: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    append(b'"opened"')
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", full)
        assert [append(b'"1"'), append(b'"2"')] == [2, 3]
    assert len(take_in(own)) == 3


def test_the_daemon_is_told_again_when_it_is_there_again(config: Path, own: LogFile) -> None:
    append(b'"opened"')
    for number in range(2, 5):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hearing:
            hearing.bind(str(config / SOCKET_NAME))
            append(b'"heard"')
            # The first word after a daemon has gone is lost with its socket.
            append(b'"heard"')
            assert len(hearing.recv(1_000)) == POKE_BYTES
        (config / SOCKET_NAME).unlink()
        assert append(b'"unheard"') == 3 * number - 2


def test_words_never_go_into_what_a_forked_program_has_opened_since(
    own: LogFile, heard: socket.socket
) -> None:
    append(b'"opened"')
    append(b'"told"')
    line = feed_appends._line
    assert line is not None
    assert line._socket is not None
    number = line._socket.fileno()
    child = os.fork()
    if not child:
        try:
            # As who becomes a daemon; then the number is that of a connection of its own.
            os.closerange(3, 256)
            near, far = socket.socketpair()
            os.dup2(near.fileno(), number)
            appended = [append(b'"1"'), append(b'"2"')]
            far.setblocking(False)
            silent = False
            try:
                far.recv(1_000)
            except BlockingIOError:
                silent = True
            os._exit(0 if silent and appended == [3, 4] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert append(b'"3"') == 5
